"""Tiny GGUF models with reproducible random weights, one or more per supported architecture.

Nothing is downloaded and nothing but NumPy and ``gguf`` is needed: every tensor follows from the
model's name and the tensor's own name, so ``tests/goldens`` holds only token ids and logits.
Metadata keys, tensor names and layouts are those that llama.cpp's ``convert_hf_to_gguf.py``
writes for the same network; ``tests/goldens/README.md`` says how that was checked.

The weight recipe (``uniform_sum``): PCG64 seeded with CRC-32 of ``<model>/<tensor>`` gives one
64-bit word per weight; the sum of its four 16-bit parts, centred and scaled, is nearly normal.
Only raw words of the bit generator are used, because NumPy promises their stability and not that
of ``Generator.normal``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

type_sizes = gguf.GGML_QUANT_SIZES

N_MERGE = 41
SPECIAL = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
N_VOCAB = 256 + N_MERGE + len(SPECIAL)  # 301: odd on purpose

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """Shape of one tiny network; names follow GGUF's keys."""

    arch: str
    n_layer: int = 3
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_embd_head: int = 16
    n_ff: int = 96
    n_ctx_train: int = 512
    rope_theta: float | None = 10000.0  # None: the key is not written
    norm_rms_eps: float = 1e-5
    has_key_length: bool = False
    has_qkv_bias: bool = False
    large_key_bias: float = 0.0  # of every sixteenth column, as Qwen2's few large ones
    is_tied: bool = False
    n_rot: int | None = None  # rope.dimension_count where it is not n_embd_head
    extra: Mapping[str, Any] = field(default_factory=dict)  # further "{arch}.<key>" metadata
    llama3_rope: Mapping[str, float] | None = None
    longrope_factors: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # (long, short)


def _longrope(n_rot: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (long, short) factors [n_rot / 2] that grow with the wave length, as Phi's do."""
    half = range(n_rot // 2)
    return tuple(1.0 + 0.75 * i * i for i in half), tuple(1.0 + 0.0625 * i for i in half)


def _longrope_extra(n_ctx_train: int, n_ctx_orig: int, sliding_window: int) -> dict[str, Any]:
    scale = n_ctx_train / n_ctx_orig
    return {
        "rope.scaling.original_context_length": n_ctx_orig,
        "rope.scaling.attn_factor": math.sqrt(1 + math.log(scale) / math.log(n_ctx_orig)),
        "attention.sliding_window": sliding_window,
    }


_GEMMA2 = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0, "attention.sliding_window": 8}

MODELS: dict[str, TinyModel] = {
    "llama": TinyModel(arch="llama", n_rot=16),
    "llama_llama3": TinyModel(
        arch="llama",
        n_rot=16,
        n_ff=128,
        is_tied=True,
        rope_theta=50000.0,
        llama3_rope={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "n_ctx_orig": 64},
    ),
    "llama_linear": TinyModel(
        arch="llama", n_rot=16, n_layer=2, extra={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    ),
    "llama_yarn": TinyModel(
        arch="llama",
        n_rot=16,
        n_layer=2,
        n_ctx_train=256,
        extra={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
    ),
    # Mistral has no architecture of its own in GGUF. Like Mistral Nemo: n_head * n_embd_head != n_embd.
    "mistral": TinyModel(arch="llama", n_rot=32, n_embd_head=32, has_key_length=True, rope_theta=1e6),
    "qwen2": TinyModel(arch="qwen2", n_ff=128, is_tied=True, has_qkv_bias=True, rope_theta=1e6, norm_rms_eps=1e-6),
    "qwen2_yarn": TinyModel(
        arch="qwen2",
        n_layer=2,
        n_head=6,
        n_head_kv=1,
        n_embd=96,
        has_qkv_bias=True,
        rope_theta=1e4,
        norm_rms_eps=1e-6,
        extra={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 2.0,
            "rope.scaling.original_context_length": 256,
        },
    ),
    "qwen3": TinyModel(arch="qwen3", n_embd_head=32, has_key_length=True, rope_theta=1e6, norm_rms_eps=1e-6),
    "gemma2": TinyModel(
        arch="gemma2",
        n_layer=4,
        n_embd_head=32,
        has_key_length=True,
        is_tied=True,
        rope_theta=None,
        norm_rms_eps=1e-6,
        extra=_GEMMA2,
    ),
    # 46 layers mark the 27B model, whose attention scale is 1/sqrt(n_embd / n_head).
    "gemma2_27b": TinyModel(
        arch="gemma2",
        n_layer=46,
        n_embd_head=32,
        n_ff=32,
        has_key_length=True,
        is_tied=True,
        rope_theta=None,
        norm_rms_eps=1e-6,
        extra=_GEMMA2,
    ),
    # Seven layers: five with a sliding window, a global one, one more with a window.
    "gemma3": TinyModel(
        arch="gemma3",
        n_layer=7,
        n_embd_head=32,
        n_head_kv=1,
        has_key_length=True,
        is_tied=True,
        rope_theta=1e6,
        norm_rms_eps=1e-6,
        extra={"attention.sliding_window": 8, "rope.freq_base_swa": 5000.0},
    ),
    # The scaling of Gemma 3 4B and larger: linear, on global layers only; no freq_base_swa, as in older files.
    "gemma3_linear": TinyModel(
        arch="gemma3",
        n_layer=7,
        n_embd_head=16,
        n_ff=64,
        has_key_length=True,
        is_tied=True,
        rope_theta=1e6,
        norm_rms_eps=1e-6,
        extra={"attention.sliding_window": 12, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": TinyModel(
        arch="phi3",
        n_rot=16,
        n_head_kv=4,
        extra={"rope.scaling.original_context_length": 512, "attention.sliding_window": 0},
    ),
    "phi3_longrope": TinyModel(
        arch="phi3",
        n_rot=16,
        n_layer=2,
        n_ctx_train=2048,
        longrope_factors=_longrope(16),
        extra=_longrope_extra(2048, 256, 262144),
    ),
    # Like Phi-4-mini: rotary embedding of three quarters of the head, tied embeddings.
    "phi3_partial": TinyModel(
        arch="phi3",
        n_rot=12,
        n_layer=2,
        n_ctx_train=1024,
        is_tied=True,
        longrope_factors=_longrope(12),
        extra=_longrope_extra(1024, 256, 262144),
    ),
    # No golden: matrices of 256 and 512 columns, so that the 256-weight block types fit.
    "llama_256": TinyModel(
        arch="llama", n_rot=32, n_layer=2, n_embd=256, n_head=8, n_head_kv=2, n_embd_head=32, n_ff=512
    ),
    "qwen2_256": TinyModel(
        arch="qwen2",
        n_layer=2,
        n_embd=256,
        n_head=8,
        n_head_kv=2,
        n_embd_head=32,
        n_ff=256,
        has_qkv_bias=True,
        large_key_bias=10.0,
        rope_theta=1e6,
        norm_rms_eps=1e-6,
    ),
    "gemma3_256": TinyModel(
        arch="gemma3",
        n_layer=7,
        n_embd=256,
        n_head=4,
        n_head_kv=1,
        n_embd_head=64,
        n_ff=256,
        has_key_length=True,
        is_tied=True,
        rope_theta=1e6,
        norm_rms_eps=1e-6,
        extra={"attention.sliding_window": 8, "rope.freq_base_swa": 10000.0},
    ),
}


def uniform_sum(seed_text: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Return float32 [shape] weights, nearly normal with mean 0 and standard deviation ``std``.

    The sum of four independent 16-bit integers has the variance (2**32 - 1) / 3.
    """
    bits = np.random.PCG64(zlib.crc32(seed_text.encode()))
    parts = bits.random_raw(math.prod(shape)).view(np.uint16).reshape(-1, 4)
    centred = parts.astype(np.int64).sum(axis=1) - 2 * 65535
    return (centred.astype(np.float32) * np.float32(std / math.sqrt((2.0**32 - 1) / 3))).reshape(shape)


def llama3_factors(model: TinyModel) -> np.ndarray:
    """Return the float32 [n_embd_head / 2] divisors of Llama 3's rope frequencies (``rope_freqs.weight``)."""
    rope = model.llama3_rope
    assert rope is not None
    assert model.rope_theta is not None
    low, high, n_ctx_orig = rope["low_freq_factor"], rope["high_freq_factor"], rope["n_ctx_orig"]
    factors = []
    for i in range(0, model.n_embd_head, 2):
        wave_length = 2 * math.pi * model.rope_theta ** (i / model.n_embd_head)
        if wave_length < n_ctx_orig / high:
            factors.append(1.0)
        elif wave_length > n_ctx_orig / low:
            factors.append(rope["factor"])
        else:
            smooth = (n_ctx_orig / wave_length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def tensor_shapes(model: TinyModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of all trained tensors; matrices are [n_out, n_in]."""
    e, q, kv = model.n_embd, model.n_head * model.n_embd_head, model.n_head_kv * model.n_embd_head
    is_gemma = model.arch.startswith("gemma")
    yield "token_embd.weight", (N_VOCAB, e)
    for layer in range(model.n_layer):
        p = f"blk.{layer}."
        yield p + "attn_norm.weight", (e,)
        if model.arch == "phi3":
            yield p + "attn_qkv.weight", (q + 2 * kv, e)
        else:
            for name, n_out in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
                yield f"{p}{name}.weight", (n_out, e)
                if model.has_qkv_bias:
                    yield f"{p}{name}.bias", (n_out,)
        if model.arch in ("qwen3", "gemma3"):
            yield p + "attn_q_norm.weight", (model.n_embd_head,)
            yield p + "attn_k_norm.weight", (model.n_embd_head,)
        yield p + "attn_output.weight", (e, q)
        if is_gemma:
            yield p + "post_attention_norm.weight", (e,)
        yield p + "ffn_norm.weight", (e,)
        if model.arch == "phi3":
            yield p + "ffn_up.weight", (2 * model.n_ff, e)
        else:
            yield p + "ffn_gate.weight", (model.n_ff, e)
            yield p + "ffn_up.weight", (model.n_ff, e)
        yield p + "ffn_down.weight", (e, model.n_ff)
        if is_gemma:
            yield p + "post_ffw_norm.weight", (e,)
    yield "output_norm.weight", (e,)
    if not model.is_tied:
        yield "output.weight", (N_VOCAB, e)


def _std(name: str, shape: tuple[int, ...]) -> float:
    """Return the spread that keeps attention peaked and the logits a few units wide."""
    if "attn_q." in name or "attn_k." in name or "attn_qkv" in name:
        return 1.5 / math.sqrt(shape[-1])
    if name == "token_embd.weight":
        return 0.5
    return 1.0 / math.sqrt(shape[-1])


def tensors(name: str) -> dict[str, np.ndarray]:
    """Return the float32 tensors of model ``name`` in file order, in GGUF's layout.

    That is: Llama's q and k rows permuted for adjacent rope pairs; Gemma's norm weights with the
    1 added that its network adds. Norm weights are 1 plus multiples of 1/1024 and thus exact in
    both conventions.
    """
    model = MODELS[name]
    result = {}
    for tensor, shape in tensor_shapes(model):
        seed_text = f"{name}/{tensor}"
        if tensor.endswith("norm.weight"):
            result[tensor] = 1 + np.round(uniform_sum(seed_text, shape, 0.25) * 1024).astype(np.float32) / 1024
        elif tensor.endswith(".bias"):
            result[tensor] = uniform_sum(seed_text, shape, 0.5)
            if "attn_k." in tensor and model.large_key_bias:
                result[tensor][5::16] = model.large_key_bias
        else:
            result[tensor] = uniform_sum(seed_text, shape, _std(tensor, shape))
    if model.llama3_rope is not None:
        result["rope_freqs.weight"] = llama3_factors(model)
    if model.longrope_factors is not None:
        long, short = model.longrope_factors
        result["rope_factors_long.weight"] = np.array(long, np.float32)
        result["rope_factors_short.weight"] = np.array(short, np.float32)
    return result


# Byte offsets of the float16 block scales (d) and of the float16 block minima, and what the minima must
# be, as a multiple of d, for a mean near zero when the quants and sub-block scales are random.
_SCALES: dict[GGMLQuantizationType, tuple[int, int | None, float]] = {
    GGMLQuantizationType.Q2_K: (80, 82, 1.5),
    GGMLQuantizationType.Q3_K: (108, None, 0.0),
    GGMLQuantizationType.Q4_K: (0, 2, 7.5),
    GGMLQuantizationType.Q5_K: (0, 2, 15.5),
    GGMLQuantizationType.Q6_K: (208, None, 0.0),
    GGMLQuantizationType.IQ1_S: (0, None, 0.0),
    GGMLQuantizationType.IQ2_XXS: (0, None, 0.0),
    GGMLQuantizationType.IQ2_XS: (0, None, 0.0),
    GGMLQuantizationType.IQ2_S: (0, None, 0.0),
    GGMLQuantizationType.IQ3_XXS: (0, None, 0.0),
    GGMLQuantizationType.IQ3_S: (0, None, 0.0),
    GGMLQuantizationType.IQ4_NL: (0, None, 0.0),
    GGMLQuantizationType.IQ4_XS: (0, None, 0.0),
}
RANDOM_BLOCK_TYPES = tuple(_SCALES)


def random_blocks(seed_text: str, shape: tuple[int, ...], ggml_type: GGMLQuantizationType, std: float) -> np.ndarray:
    """Return valid random blocks, uint8 [*shape[:-1], bytes of a row].

    All bits except the float16 scales are random; the scales vary per block by up to 1.5x and are
    set so that the weights have about the standard deviation ``std``.
    """
    n_weight, n_byte = type_sizes[ggml_type]
    assert shape[-1] % n_weight == 0, f"{shape[-1]} columns are not a multiple of {n_weight}"
    n_block = math.prod(shape) // n_weight
    bits = np.random.PCG64(zlib.crc32(f"{seed_text}/{ggml_type.name}".encode()))
    raw = bits.random_raw(n_block * (n_byte // 8 + 1)).view(np.uint8)
    blocks = raw[: n_block * n_byte].reshape(n_block, n_byte).copy()
    jitter = 1 + 0.5 * (raw[-n_block:].astype(np.float64) / 255)  # [n_block]
    d_at, min_at, min_ratio = _SCALES[ggml_type]

    def put_scales(d: np.ndarray) -> None:
        blocks[:, d_at : d_at + 2] = d.astype(np.float16).view(np.uint8).reshape(-1, 2)
        if min_at is not None:
            blocks[:, min_at : min_at + 2] = (d * min_ratio).astype(np.float16).view(np.uint8).reshape(-1, 2)

    put_scales(jitter)
    measured = gguf.quants.dequantize(blocks, ggml_type).astype(np.float64).std()
    put_scales(jitter * (std / measured))
    return blocks.reshape(*shape[:-1], shape[-1] // n_weight * n_byte)


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Return (tokens, token types, merges) of a byte-level BPE with 256 bytes, 41 merges, 4 control tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    shown = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
    g = shown[0x20]
    words = "he in re on er th nd or an es it is al ar en at st ou ng me"  # 20 pairs of letters
    merges = [f"{w[0]} {w[1]}" for w in words.split()]
    merges += [f"{g} {c}" for c in "tasowbcmfp"]  # 10
    merges += [f"{g}t he", f"{g}a nd", "in g", f"{g} in", f"{g}o f", f"{g} re", f"{g}s t", "er e", "th e"]
    merges += [f"{g} {g}", f"{g}{g} {g}{g}"]
    assert len(merges) == N_MERGE, len(merges)
    tokens = [shown[b] for b in range(256)] + [m.replace(" ", "") for m in merges] + list(SPECIAL)
    assert len(set(tokens)) == N_VOCAB
    types = [int(gguf.TokenType.NORMAL)] * (256 + N_MERGE) + [int(gguf.TokenType.CONTROL)] * len(SPECIAL)
    return tokens, types, merges


def _write_metadata(writer: gguf.GGUFWriter, model: TinyModel, file_type: int) -> None:
    arch = model.arch
    # Not "tiny phi3": llama.cpp patches token attributes of files whose name contains "phi3".
    writer.add_name("tiny random model")
    writer.add_context_length(model.n_ctx_train)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_layer)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.n_head_kv)
    writer.add_layer_norm_rms_eps(model.norm_rms_eps)
    if model.rope_theta is not None:
        writer.add_rope_freq_base(model.rope_theta)
    if model.has_key_length:
        writer.add_key_length(model.n_embd_head)
        writer.add_value_length(model.n_embd_head)
    if arch == "llama":
        writer.add_vocab_size(N_VOCAB)
    if model.n_rot is not None:
        writer.add_rope_dimension_count(model.n_rot)
    for key, value in model.extra.items():
        if isinstance(value, str):
            writer.add_string(f"{arch}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{arch}.{key}", value)
        else:
            writer.add_float32(f"{arch}.{key}", value)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    tokens, types, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|eos|>"))
    writer.add_add_bos_token(arch in ("llama", "gemma2", "gemma3"))
    writer.add_chat_template(CHAT_TEMPLATE)


def tiny_model_path(
    tmp_dir: Path,
    name: str,
    ggml_type: GGMLQuantizationType = GGMLQuantizationType.F32,
    overrides: Mapping[str, GGMLQuantizationType] | None = None,
) -> Path:
    """Write model ``name`` (a key of `MODELS`) as GGUF into ``tmp_dir`` and return its path.

    Args:
        tmp_dir: existing folder; the file is named after the arguments.
        name: a key of `MODELS`; the 256-weight block types need one that ends in ``_256``.
        ggml_type: type of the matrices; vectors stay F32. Types in `RANDOM_BLOCK_TYPES` get random
            blocks, all others are rounded from the F32 weights by ``gguf.quants``.
        overrides: other types for tensors whose name ends in the given text.
    """
    model = MODELS[name]
    path = tmp_dir / f"tiny-{name}-{ggml_type.name.lower()}{'-mixed' if overrides else ''}.gguf"
    writer = gguf.GGUFWriter(path, model.arch)
    _write_metadata(writer, model, 0)
    for tensor, value in tensors(name).items():
        wanted = ggml_type
        for ending, override in (overrides or {}).items():
            if tensor.endswith(ending):
                wanted = override
        if value.ndim == 1 or wanted == GGMLQuantizationType.F32:
            writer.add_tensor(tensor, value)
        elif wanted in _SCALES:
            data = random_blocks(f"{name}/{tensor}", value.shape, wanted, _std(tensor, value.shape))
            writer.add_tensor(tensor, data, raw_dtype=wanted)
        else:
            writer.add_tensor(tensor, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
