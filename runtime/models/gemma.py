"""Gemma 2 and Gemma 3 (text): norms before and after each half, scaled embeddings, sliding windows.

Gemma 2 caps attention scores and logits and lets every second layer see a window. Gemma 3 normalises
q and k, lets five of six layers see a window, and rotates those with a base of their own.
"""

from __future__ import annotations

import numpy as np

from ...formats.errors import FormatError
from ...formats.metadata import Metadata
from ...formats.record import Record
from ..program import Buffer, ProgramBuilder, Rope
from ..weights import WeightSource
from .llama import projection
from .model import HParams, Model
from .rope import frequencies, read_rope

GEMMA3_WINDOW_PATTERN = 6  # one global layer after five with a window
GEMMA3_LOCAL_THETA = 10_000.0


class Layer(Record):
    """What differs between layers: the rotation, and the window (0: everything is seen)."""

    rope: Rope
    window: int


def build(meta: Metadata, weights: WeightSource, n_ctx: int | None) -> Model:
    """Return the model with its forward pass.

    Raises:
        FormatError: a key or tensor is missing or does not fit.
    """
    hp = HParams.from_metadata(meta)
    layers = read_layers(meta, hp, weights, n_ctx)
    softcap = meta.optional(f"{hp.arch}.attn_logit_softcapping", float, 0.0)
    final_softcap = meta.optional(f"{hp.arch}.final_logit_softcapping", float, 0.0)
    if not (0 <= softcap < 1e6 and 0 <= final_softcap < 1e6):
        raise FormatError(f"{meta.path}: soft caps of {softcap} and {final_softcap} are not possible")
    b = ProgramBuilder()
    token_embd = weights.matrix("token_embd.weight", hp.n_vocab, hp.n_embd)
    x = b.embed(token_embd, scale=float(np.sqrt(np.float32(hp.n_embd))))  # [n_tok, n_embd]
    scale = attention_scale(hp)
    for i, layer in enumerate(layers):
        x = attention(b, hp, layer, weights, i, x, scale, softcap)
        x = feed_forward(b, hp, weights, i, x)
    x = b.rms_norm(b.select(x), weights.vector("output_norm.weight", hp.n_embd), hp.norm_rms_eps)  # [n_out, n_embd]
    is_tied = not weights.has("output.weight")
    logits = b.matmul(x, token_embd if is_tied else weights.matrix("output.weight", hp.n_vocab, hp.n_embd))
    b.output("logits", b.softcap(logits, final_softcap) if final_softcap else logits)  # [n_out, n_vocab]
    return Model(hparams=hp, program=b.build(hp.n_layer))


def attention_scale(hp: HParams) -> float:
    """Return the factor of attention scores; the 27B models divide by n_embd / n_head instead of the head width."""
    is_27b = (hp.arch, hp.n_layer) in (("gemma2", 46), ("gemma3", 62))
    return float((hp.n_embd / hp.n_head if is_27b else hp.n_embd_head) ** -0.5)


def read_layers(meta: Metadata, hp: HParams, weights: WeightSource, n_ctx: int | None) -> list[Layer]:
    """Return rotation and window of every layer.

    Raises:
        FormatError: the window is not possible.
    """
    rope = read_rope(meta, weights, n_embd_head=hp.n_embd_head, n_ctx=n_ctx, is_neox=True)
    window = meta.optional(f"{hp.arch}.attention.sliding_window", int, 4096 if hp.arch == "gemma2" else 0)
    if not 0 <= window < 1 << 31:
        raise FormatError(f"{meta.path}: {hp.arch}.attention.sliding_window is {window}, expected 0 to 2147483647")
    if hp.arch == "gemma2":
        return [Layer(rope, window if i % 2 == 0 else 0) for i in range(hp.n_layer)]
    theta = meta.optional("gemma3.rope.freq_base_swa", float, GEMMA3_LOCAL_THETA)
    if not 1 < theta < 1e12:
        raise FormatError(f"{meta.path}: gemma3.rope.freq_base_swa is {theta}, expected 1 to 1e12")
    local = tuple(float(f) for f in frequencies(theta, 2 * rope.n_pair))
    local_rope = Rope(n_pair=rope.n_pair, frequencies=local, is_neox=True)
    is_global = [i % GEMMA3_WINDOW_PATTERN == GEMMA3_WINDOW_PATTERN - 1 or not window for i in range(hp.n_layer)]
    return [Layer(rope, 0) if g else Layer(local_rope, window) for g in is_global]


def attention(
    b: ProgramBuilder, hp: HParams, layer: Layer, weights: WeightSource, i: int, x: Buffer, scale: float, softcap: float
) -> Buffer:
    """Attention between two norms, plus the residual."""
    n_q, n_kv, eps = hp.n_head * hp.n_embd_head, hp.n_head_kv * hp.n_embd_head, hp.norm_rms_eps
    h = b.rms_norm(x, weights.vector(f"blk.{i}.attn_norm.weight", hp.n_embd), eps)
    q = projection(b, weights, h, f"blk.{i}.attn_q", n_q, hp.n_embd)  # [n_tok, n_head * n_embd_head]
    k = projection(b, weights, h, f"blk.{i}.attn_k", n_kv, hp.n_embd)  # [n_tok, n_head_kv * n_embd_head]
    v = projection(b, weights, h, f"blk.{i}.attn_v", n_kv, hp.n_embd)
    if weights.has(f"blk.{i}.attn_q_norm.weight"):  # Gemma 3
        q = b.rms_norm(q, weights.vector(f"blk.{i}.attn_q_norm.weight", hp.n_embd_head), eps, hp.n_head)
        k = b.rms_norm(k, weights.vector(f"blk.{i}.attn_k_norm.weight", hp.n_embd_head), eps, hp.n_head_kv)
    q, k = b.rope(q, hp.n_head, layer.rope), b.rope(k, hp.n_head_kv, layer.rope)
    b.kv_append(i, k, v, hp.n_head_kv)
    y = b.attention(i, q, hp.n_head, hp.n_head_kv, scale, softcap=softcap, window=layer.window)
    y = projection(b, weights, y, f"blk.{i}.attn_output", hp.n_embd, n_q)
    return b.add(x, b.rms_norm(y, weights.vector(f"blk.{i}.post_attention_norm.weight", hp.n_embd), eps))


def feed_forward(b: ProgramBuilder, hp: HParams, weights: WeightSource, i: int, x: Buffer) -> Buffer:
    """Gated feed-forward with gelu between two norms, plus the residual."""
    h = b.rms_norm(x, weights.vector(f"blk.{i}.ffn_norm.weight", hp.n_embd), hp.norm_rms_eps)
    gate = projection(b, weights, h, f"blk.{i}.ffn_gate", hp.n_ff, hp.n_embd)  # [n_tok, n_ff]
    up = projection(b, weights, h, f"blk.{i}.ffn_up", hp.n_ff, hp.n_embd)
    y = projection(b, weights, b.glu(gate, up, "gelu"), f"blk.{i}.ffn_down", hp.n_embd, hp.n_ff)
    return b.add(x, b.rms_norm(y, weights.vector(f"blk.{i}.post_ffw_norm.weight", hp.n_embd), hp.norm_rms_eps))
