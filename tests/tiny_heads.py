"""Tiny EAGLE-3 heads with reproducible random weights, in the layout of llama.cpp's converter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from .tiny_gguf import write_gguf
from .tiny_models import MODELS, N_VOCAB, uniform_sum, vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyHead:
    """Shape of a head; names follow GGUF's keys."""

    target: str = "llama"  # a key of MODELS
    layers: tuple[int, ...] = (0, 1, 2)
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_embd_head: int = 16
    n_ff: int = 96
    n_draft: int | None = None  # tokens of d2t; None: none
    has_embd: bool = False
    has_output: bool = True
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    has_rope_freqs: bool = False


HEADS = {
    "plain": TinyHead(),
    "d2t": TinyHead(n_draft=90),
    "shared": TinyHead(has_output=False),
    "own": TinyHead(has_embd=True, n_draft=90, n_embd=96, n_head=6, n_head_kv=3, has_rope_freqs=True),
    "residual": TinyHead(norm_before_residual=True, n_embd_head=32, layers=(2, 0, 3)),
    "fc": TinyHead(norm_before_fc=True, has_embd=True, n_draft=301),
}


def shapes(head: TinyHead) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a head's weights; matrices are [n_out, n_in]."""
    e, q, kv = head.n_embd, head.n_head * head.n_embd_head, head.n_head_kv * head.n_embd_head
    n_in = 3 * MODELS[head.target].n_embd
    result: dict[str, tuple[int, ...]] = {
        "fc.weight": (e, n_in),
        "output_norm.weight": (e,),
        "blk.0.attn_norm.weight": (e,),
        "blk.0.attn_norm_2.weight": (e,),
        "blk.0.attn_q.weight": (q, 2 * e),
        "blk.0.attn_k.weight": (kv, 2 * e),
        "blk.0.attn_v.weight": (kv, 2 * e),
        "blk.0.attn_output.weight": (e, q),
        "blk.0.ffn_norm.weight": (e,),
        "blk.0.ffn_gate.weight": (head.n_ff, e),
        "blk.0.ffn_up.weight": (head.n_ff, e),
        "blk.0.ffn_down.weight": (e, head.n_ff),
    }
    if head.norm_before_fc:
        result["enc.output_norm.weight"] = (n_in,)
    if head.has_embd:
        result["token_embd.weight"] = (N_VOCAB, e)
    if head.has_output:
        result["output.weight"] = (head.n_draft or N_VOCAB, e)
    return result


def tensors(head: TinyHead) -> dict[str, np.ndarray]:
    """Return a head's float32 weights, and the i64 ids of d2t."""
    result = {}
    for name, shape in shapes(head).items():
        if len(shape) == 1:
            result[name] = 1 + np.round(uniform_sum(f"head/{name}", shape, 0.25) * 1024).astype(np.float32) / 1024
        else:
            std = 0.5 if name == "token_embd.weight" else 1.5 / math.sqrt(shape[1])
            result[name] = uniform_sum(f"head/{name}", shape, std)
    if head.n_draft is not None:
        ids = np.random.default_rng(5).permutation(N_VOCAB)[: head.n_draft]
        result["d2t"] = np.sort(ids).astype(np.int64)
    if head.has_rope_freqs:
        result["rope_freqs.weight"] = np.linspace(1, 4, head.n_embd_head // 2).astype(np.float32)
    return result


def metadata(head: TinyHead) -> dict[str, object]:
    """Return a head's metadata."""
    tokens, types, merges = vocabulary()
    return {
        "general.architecture": "eagle3",
        "general.name": "tiny random head",
        "eagle3.context_length": 512,
        "eagle3.embedding_length": head.n_embd,
        "eagle3.block_count": 1,
        "eagle3.feed_forward_length": head.n_ff,
        "eagle3.attention.head_count": head.n_head,
        "eagle3.attention.head_count_kv": head.n_head_kv,
        "eagle3.attention.key_length": head.n_embd_head,
        "eagle3.attention.value_length": head.n_embd_head,
        "eagle3.attention.layer_norm_rms_epsilon": 1e-5,
        "eagle3.rope.freq_base": 10000.0,
        "eagle3.rope.dimension_count": head.n_embd_head,
        "eagle3.vocab_size": N_VOCAB,
        "eagle3.target_layers": list(head.layers),
        "eagle3.target_hidden_size": MODELS[head.target].n_embd,
        "eagle3.norm_before_residual": head.norm_before_residual,
        "eagle3.norm_before_fc": head.norm_before_fc,
        "general.file_type": 0,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<|bos|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|eos|>"),
    }


def write_head(
    path: Path,
    head: TinyHead,
    ggml_type: str = "F32",
    changes: dict[str, object] | None = None,
    replaced: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """Write a head and return its path.

    Args:
        path: of the file.
        head: its shape.
        ggml_type: of the matrices.
        changes: other metadata (None removes a key).
        replaced: other tensors (None leaves one out).
    """
    kind = GGMLQuantizationType[ggml_type]
    values = {**metadata(head), **(changes or {})}
    written: dict[str, object] = {}
    for name, value in {**tensors(head), **(replaced or {})}.items():
        if value is None:
            continue
        if value.ndim == 2 and value.dtype == np.float32 and ggml_type != "F32":
            written[name] = (gguf.quants.quantize(value, kind), kind)
        else:
            written[name] = value
    return write_gguf(path, {key: value for key, value in values.items() if value is not None}, written)
