"""Model files that a GGUF reader accepts and that are no sound model all the same.

Every generator yields (name, what the line of ``run`` must say, write); ``write(path)`` makes the file. Only a
damaged vocabulary stops ``tokenize``; ``inspect`` shows what it can of every file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ..tiny_gguf import write_gguf
from ..tiny_models import CHAT_TEMPLATE, N_VOCAB, SPECIAL, vocabulary

N_EMBD, N_FF, N_KV = 64, 96, 32
Metadata = dict[str, Any]
Tensors = dict[str, Any]
Case = tuple[str, str, Callable[[Path], object]]


def sound_metadata() -> Metadata:
    """Return the metadata of a model with one layer."""
    tokens, types, merges = vocabulary()
    return {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.embedding_length": N_EMBD,
        "llama.block_count": 1,
        "llama.feed_forward_length": N_FF,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index(SPECIAL[0]),
        "tokenizer.ggml.eos_token_id": tokens.index(SPECIAL[1]),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def sound_tensors() -> Tensors:
    """Return the tensors of a model with one layer, matrices as Q8_0."""
    rng = np.random.default_rng(1)
    shapes = {
        "token_embd": (N_VOCAB, N_EMBD), "blk.0.attn_norm": (N_EMBD,), "blk.0.attn_q": (N_EMBD, N_EMBD),
        "blk.0.attn_k": (N_KV, N_EMBD), "blk.0.attn_v": (N_KV, N_EMBD), "blk.0.attn_output": (N_EMBD, N_EMBD),
        "blk.0.ffn_norm": (N_EMBD,), "blk.0.ffn_gate": (N_FF, N_EMBD), "blk.0.ffn_up": (N_FF, N_EMBD),
        "blk.0.ffn_down": (N_EMBD, N_FF), "output_norm": (N_EMBD,), "output": (N_VOCAB, N_EMBD),
    }  # fmt: skip
    result: Tensors = {}
    for name, shape in shapes.items():
        values = (rng.standard_normal(shape) / 8).astype(np.float32)
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        is_matrix = len(shape) == 2
        result[f"{name}.weight"] = (gguf.quants.quantize(values, q8_0), q8_0) if is_matrix else 1 + values
    return result


def writer(keys: Metadata | None = None, tensors: Tensors | None = None) -> Callable[[Path], object]:
    """Return what writes the sound model with these keys and tensors changed; a value of None leaves one out."""

    def write(path: Path) -> object:
        metadata = sound_metadata() | (keys or {})
        weights = sound_tensors() | (tensors or {})
        return write_gguf(
            path,
            {key: value for key, value in metadata.items() if value is not None},
            {name: value for name, value in weights.items() if value is not None},
        )

    return write


def _q8_0(change: Callable[[np.ndarray], object], name: str) -> Tensors:
    blocks, kind = sound_tensors()[name]
    change(blocks)
    return {name: (blocks, kind)}


def _set_scales(value: float) -> Callable[[np.ndarray], object]:
    """Return what overwrites the f16 scale of every 34-byte block."""

    def change(rows: np.ndarray) -> None:
        rows.reshape(-1, 34)[:, :2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    return change


def tensor_cases() -> Iterator[Case]:
    for name in sound_tensors():
        if name != "output.weight":  # without it the embeddings are used, as other models do
            yield f"missing-{name}", f"tensor '{name}' is missing", writer(tensors={name: None})
    zeros = np.zeros
    yield "no-tensors", "tensor 'token_embd.weight' is missing", writer(tensors=dict.fromkeys(sound_tensors()))
    for name, shape in {
        "token_embd.weight": (N_VOCAB, 32), "output.weight": (N_VOCAB + 1, N_EMBD), "output_norm.weight": (N_EMBD, 1),
        "blk.0.attn_q.weight": (N_EMBD, N_EMBD, 1), "blk.0.attn_k.weight": (N_EMBD, N_EMBD),
        "blk.0.ffn_down.weight": (N_FF, N_EMBD), "blk.0.attn_norm.weight": (1,), "blk.0.ffn_norm.weight": (N_FF,),
    }.items():  # fmt: skip
        yield f"shape-{name}", f"tensor '{name}' has shape", writer(tensors={name: zeros(shape, np.float32)})
    yield (
        "embeddings-too-few",
        "has shape [300, 64], expected [301, 64]",
        writer(tensors={"token_embd.weight": zeros((300, N_EMBD), np.float32), "output.weight": None}),
    )
    for kind in (np.int8, np.int32, np.float64):
        name = "blk.0.attn_q.weight"
        yield f"type-{kind.__name__}", f"'{name}'", writer(tensors={name: zeros((N_EMBD, N_EMBD), kind)})
        name = "blk.0.attn_norm.weight"
        yield f"vector-type-{kind.__name__}", f"'{name}'", writer(tensors={name: zeros(N_EMBD, kind)})
    for name in ("extra.weight", "blk.1.attn_q.weight", "blk.0.attn_q.bias.bias", "blk.0.ffn_gate_inp.weight"):
        yield f"unused-{name}", f"tensor '{name}' is not part of", writer(tensors={name: zeros(32, np.float32)})
    yield (
        "bias-of-wrong-length",
        "'blk.0.attn_q.bias' has shape",
        writer(tensors={"blk.0.attn_q.bias": zeros(63, np.float32)}),
    )
    yield "rope-factors-zero", "rope_freqs.weight", writer(tensors={"rope_freqs.weight": zeros(8, np.float32)})
    nan_factors = np.full(8, np.nan, np.float32)
    yield "rope-factors-nan", "rope_freqs.weight", writer(tensors={"rope_freqs.weight": nan_factors})
    yield "rope-factors-length", "rope_freqs.weight", writer(tensors={"rope_freqs.weight": zeros(9, np.float32)})


def weight_cases() -> Iterator[Case]:
    """Yield files whose weights are not numbers, or make some that are not."""
    large = np.full(N_EMBD, 3e38, np.float32)
    yield "norm-too-large", "logits: ", writer(tensors={"output_norm.weight": large})
    yield (
        "scales-too-large",
        "logits: ",
        writer(tensors=_q8_0(_set_scales(65504.0), "output.weight") | {"output_norm.weight": large}),
    )
    for value in (np.nan, np.inf, -np.inf):
        for name in ("output.weight", "blk.0.attn_q.weight", "token_embd.weight", "blk.0.ffn_down.weight"):
            yield f"scales-{value}-{name}", "damaged", writer(tensors=_q8_0(_set_scales(value), name))
        norm = np.full(N_EMBD, value, np.float32)
        yield f"norm-{value}", "damaged", writer(tensors={"output_norm.weight": norm})
        yield f"first-norm-{value}", "damaged", writer(tensors={"blk.0.attn_norm.weight": norm})
        one = np.ones((N_VOCAB, N_EMBD), np.float32)
        one[77, 3] = value
        yield f"one-weight-{value}", "damaged", writer(tensors={"output.weight": one})
        bias = np.full(N_EMBD, value, np.float32)
        yield f"bias-{value}", "damaged", writer(tensors={"blk.0.attn_q.bias": bias})


def hparam_cases() -> Iterator[Case]:
    """Yield files with numbers that no model has."""
    for key in ("block_count", "embedding_length", "feed_forward_length", "context_length", "attention.head_count"):
        full = f"llama.{key}"
        yield f"{key}-missing", f"'{full}' is missing", writer({full: None})
        yield f"{key}-str", full, writer({full: "many"})
        yield f"{key}-float", full, writer({full: 4.0})
        yield f"{key}-bool", full, writer({full: True})
        for value in (0, -1, 2**31 - 1, 4_000_000_000, 2**62, 2**64 - 1):
            if key == "context_length" and value == 2**31 - 1:
                continue  # unusual, and lowered to what memory allows
            yield f"{key}-{value}", full, writer({full: np.uint64(value) if value > 2**62 else value})
    for key in ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count"):
        for value in (0, -1, 4_000_000_000, 2**62):
            yield f"{key}-{value}", f"llama.{key} is {value}, expected", writer({f"llama.{key}": value})
    yield "head_count_kv-3", "n_head=4, n_head_kv=3", writer({"llama.attention.head_count_kv": 3})
    yield "value_length-8", "key_length=16, value_length=8 do not fit", writer({"llama.attention.value_length": 8})
    yield (
        "key_length-15",
        "expected an even number from 2 to 15",
        writer({"llama.attention.key_length": 15, "llama.attention.value_length": 15}),
    )
    yield "dimension_count-3", "rope.dimension_count is 3", writer({"llama.rope.dimension_count": 3})
    yield "head_count-3", "n_head=3, n_head_kv=2", writer({"llama.attention.head_count": 3})
    yield "head_count-per-layer", "head_count", writer({"llama.attention.head_count": [4, 4]})
    yield "block_count-1000", "blk.1.attn_norm.weight", writer({"llama.block_count": 1000})
    yield "block_count-2", "blk.1.attn_norm.weight", writer({"llama.block_count": 2})
    for value in (float("nan"), float("inf"), -1.0, 2.0):
        key = "llama.attention.layer_norm_rms_epsilon"
        yield f"eps-{value}", key, writer({key: value})
    for value in (float("nan"), float("inf"), -1.0, 0.0, 1.0, 1e30):
        yield f"rope-base-{value}", "llama", writer({"llama.rope.freq_base": value})
    for kind in ("linear", "yarn"):
        for value in (float("nan"), float("inf"), -1.0, 0.0, 1e30, 1e-30):
            scaling = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": value}
            yield f"{kind}-factor-{value}", "llama.rope.scaling.factor", writer(scaling)
    yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    for key in ("yarn_beta_fast", "yarn_beta_slow", "attn_factor"):
        for value in (float("nan"), float("inf"), -1.0, 0.0, 1e30, -1e30):
            yield f"{key}-{value}", key, writer(yarn | {f"llama.rope.scaling.{key}": value})
    for value in (0, -1):
        original = {"llama.rope.scaling.original_context_length": value}
        yield f"yarn-original-context-{value}", "original_context_length", writer(yarn | original)
    yield "rope-scaling-unknown", "'ntk'", writer({"llama.rope.scaling.type": "ntk"})
    yield "rope-scaling-number", "llama.rope.scaling.type", writer({"llama.rope.scaling.type": 3})
    yield "architecture-empty", "general.architecture", writer({"general.architecture": ""})
    for arch in ("falcon", "LLAMA", "\x1b[2J"):
        yield (
            f"architecture-{arch!a}",
            "is not supported, expected one of llama",
            writer({"general.architecture": arch}),
        )
    tokens, types, _ = vocabulary()
    yield "template-of-2-MB", "expected at most 1048576", writer({"tokenizer.chat_template": "x" * 2_000_000})
    yield "vocabulary-of-another-size", "token_embd.weight", writer(
        {
            "tokenizer.ggml.tokens": tokens[:-1], "tokenizer.ggml.token_type": types[:-1],
            "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.bos_token_id": 0,
        }
    )  # fmt: skip
    yield "architecture-of-other-keys", "qwen2", writer({"general.architecture": "qwen2"})


def _one(name: str, said: str, **keys: object) -> Case:
    return name, said, writer({f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def vocabulary_cases() -> Iterator[Case]:
    """Yield files whose vocabulary is damaged; ``tokenize`` must refuse them too."""
    tokens, types, _ = vocabulary()
    yield _one("tokens-missing", "tokenizer.ggml.tokens", tokens=None)
    yield _one("tokens-numbers", "tokenizer.ggml.tokens", tokens=list(range(N_VOCAB)))
    yield _one("tokens-one-str", "tokenizer.ggml.tokens", tokens="abc")
    yield _one("tokens-twice", "have the same text", tokens=[*tokens[:-1], tokens[0]])
    yield _one("tokens-not-utf8", "is not UTF-8", tokens=[b"\xff\xfe", *(t.encode() for t in tokens[1:])])
    yield _one("tokens-long", "bytes, expected at most", tokens=["x" * 70_000, *tokens[1:]])
    yield _one("types-too-few", "300 elements, expected 301", token_type=types[:-1])
    yield _one("types-float", "token_type", token_type=[1.0] * N_VOCAB)
    yield _one("types-str", "token_type", token_type=["1"] * N_VOCAB)
    yield _one("scores-too-few", "scores", scores=[0.0] * 300)
    yield _one("scores-int", "scores", scores=[1] * N_VOCAB)
    yield _one("scores-str", "scores", scores=["0"] * N_VOCAB)
    yield _one("scores-nan", "score of token 0", scores=[float("nan")] * N_VOCAB)
    yield _one("model-unknown", "'magic' is not supported", model="magic")
    yield _one("model-missing", "tokenizer.ggml.model", model=None)
    yield _one("pre-unknown", "'magic'", pre="magic")
    yield _one("pre-number", "tokenizer.ggml.pre", pre=3)
    yield _one("merges-missing", "merges", merges=None)
    yield _one("merges-numbers", "merges", merges=[1, 2, 3])
    for key in ("bos", "eos", "eot", "eom", "unknown"):
        for value in (N_VOCAB, -1, 2**32 - 1, 2**62):
            yield _one(f"{key}-{value}", f"{key}_token_id is {value}", **{f"{key}_token_id": value})
        yield _one(f"{key}-str", f"{key}_token_id", **{f"{key}_token_id": "1"})
    yield _one("add-bos-number", "add_bos_token", add_bos_token=1)


def template_cases() -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """Yield files with a chat template that never works out; ``tokenize`` does not need it."""
    sources = {
        "endless-loop": "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}",
        "endless-output": "{% for i in range(100000000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
        "10-MB": "{{ 'x' * 10000000 }}",
        "10-GB": "{{ 'x' * 10000000000 }}",
        "doubling": "{% set ns = namespace(t='x') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "big-shift": "{{ (1).__lshift__(10**12) }}",
        "big-range": "{{ range(10**12) | list }}",
        "format-width": "{{ '%1000000000d' % 1 }}",
        "syntax": "{% for m in messages %}{{ m.content }",
        "unknown-tag": "{% frobnicate %}",
        "unknown-filter": "{{ messages | frobnicate }}",
        "undefined": "{{ nothing.at.all }}",
        "raises": "{{ raise_exception('no\x1b[2J\nnot today') }}",
        "include": "{% include '/etc/passwd' %}",
        "import-os": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "recursive-macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "deep-parentheses": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "deep-lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
        "deep-ifs": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
        "deep-unary": "{{ " + "not " * 50_000 + "1 }}",
        "long-sum": "{{ " + "1+" * 100_000 + "1 }}",
        "long-filters": "{{ 'x'" + "|upper" * 50_000 + " }}",
        "many-tags": "{{ 1 }}" * 140_000,
        "not-a-division": "{{ 1 / 0 }}",
        "wrong-type": "{{ messages + 1 }}",
    }  # fmt: skip
    for name, source in sources.items():
        yield f"template-{name}", "template", writer({"tokenizer.chat_template": source})


def harmless_cases() -> Iterator[Case]:
    """Yield files that look odd and run all the same, as they do in llama.cpp."""
    _, _, merges = vocabulary()
    yield _one("merges-without-space", "", merges=[*merges[:-1], "abc"])
    yield _one("merges-of-no-token", "", merges=[*merges, "q zzz"])
    for model in ("llama", "t5", "bert"):
        yield _one(f"model-{model}-of-bpe-tokens", "", model=model, scores=[0.0] * N_VOCAB)
    yield "context-2^31", "", writer({"llama.context_length": 2**31 - 1})
    for name, source in {
        "big-power": "{{ 9 ** 9 ** 9 }}",
        "spaces": "{{ (' ' * 100000 + 'x') | trim | replace(' ', '  ') | length * 'y' }}" * 10,
    }.items():
        yield f"template-{name}", "", writer({"tokenizer.chat_template": source})
