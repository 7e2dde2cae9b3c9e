"""Phi-3: q, k and v in one matrix, gate and up in one matrix, long-context rotation.

The stacked matrices are split by rows where they are used (a ``Weight`` may be rows of a tensor), so
that the rest is the Llama forward pass.
"""

from __future__ import annotations

from ...formats.metadata import Metadata
from ..program import Buffer, ProgramBuilder, Rope
from ..weights import WeightSource
from .model import HParams, Model
from .rope import read_rope


def build(meta: Metadata, weights: WeightSource, n_ctx: int | None) -> Model:
    """Return the model with its forward pass.

    Raises:
        FormatError: a key or tensor is missing or does not fit.
    """
    hp = HParams.from_metadata(meta)
    rope = read_rope(meta, weights, n_embd_head=hp.n_embd_head, n_ctx=n_ctx, is_neox=True)
    window = meta.optional("phi3.attention.sliding_window", int, 0)
    b = ProgramBuilder()
    token_embd = weights.matrix("token_embd.weight", hp.n_vocab, hp.n_embd)
    x = b.embed(token_embd)  # [n_tok, n_embd]
    for i in range(hp.n_layer):
        x = attention(b, hp, rope, weights, i, x, window)
        x = feed_forward(b, hp, weights, i, x)
    x = b.rms_norm(b.select(x), weights.vector("output_norm.weight", hp.n_embd), hp.norm_rms_eps)  # [n_out, n_embd]
    is_tied = not weights.has("output.weight")
    output = token_embd if is_tied else weights.matrix("output.weight", hp.n_vocab, hp.n_embd)
    b.output("logits", b.matmul(x, output))  # [n_out, n_vocab]
    return Model(hparams=hp, program=b.build(hp.n_layer))


def attention(
    b: ProgramBuilder, hp: HParams, rope: Rope, weights: WeightSource, i: int, x: Buffer, window: int
) -> Buffer:
    """Self-attention over the KV cache, plus the residual."""
    n_q, n_kv = hp.n_head * hp.n_embd_head, hp.n_head_kv * hp.n_embd_head
    h = b.rms_norm(x, weights.vector(f"blk.{i}.attn_norm.weight", hp.n_embd), hp.norm_rms_eps)
    qkv = weights.matrix(f"blk.{i}.attn_qkv.weight", n_q + 2 * n_kv, hp.n_embd)
    q, k, v = (b.matmul(h, w) for w in weights.split(qkv, (n_q, n_kv, n_kv)))
    q = b.rope(q, hp.n_head, rope)  # [n_tok, n_head * n_embd_head]
    k = b.rope(k, hp.n_head_kv, rope)
    b.kv_append(i, k, v, hp.n_head_kv)
    y = b.attention(i, q, hp.n_head, hp.n_head_kv, scale=hp.n_embd_head**-0.5, window=window)
    return b.add(x, b.matmul(y, weights.matrix(f"blk.{i}.attn_output.weight", hp.n_embd, n_q)))


def feed_forward(b: ProgramBuilder, hp: HParams, weights: WeightSource, i: int, x: Buffer) -> Buffer:
    """SwiGLU feed-forward, plus the residual."""
    h = b.rms_norm(x, weights.vector(f"blk.{i}.ffn_norm.weight", hp.n_embd), hp.norm_rms_eps)
    stacked = weights.matrix(f"blk.{i}.ffn_up.weight", 2 * hp.n_ff, hp.n_embd)  # gate above up
    gate, up = (b.matmul(h, w) for w in weights.split(stacked, (hp.n_ff, hp.n_ff)))
    down = weights.matrix(f"blk.{i}.ffn_down.weight", hp.n_embd, hp.n_ff)
    return b.add(x, b.matmul(b.glu(gate, up, "silu"), down))
