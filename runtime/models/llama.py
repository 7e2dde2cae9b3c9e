"""Llama-family decoder: Llama 1 to 3.x, Mistral, SmolLM2, TinyLlama, Qwen2 (biases), Qwen3 (norms on q and k).

Read top to bottom: the weights of a layer, then one forward pass. Shapes use ``n_tok`` for tokens in
this pass; weights are ``[n_out, n_in]``.
"""

from __future__ import annotations

from ...formats.metadata import Metadata
from ..program import Biases, Buffer, ProgramBuilder, Rope
from ..weights import WeightSource
from .model import HParams, Model
from .rope import read_rope


def build(meta: Metadata, weights: WeightSource, n_ctx: int | None) -> Model:
    """Return the model with its forward pass.

    Raises:
        FormatError: a key or tensor is missing or does not fit.
    """
    hp = HParams.from_metadata(meta)
    # llama files have their q and k rows permuted so that rotated pairs are neighbours.
    rope = read_rope(meta, weights, n_embd_head=hp.n_embd_head, n_ctx=n_ctx, is_neox=hp.arch != "llama")
    b = ProgramBuilder()
    token_embd = weights.matrix("token_embd.weight", hp.n_vocab, hp.n_embd)
    x = b.embed(token_embd)  # [n_tok, n_embd]
    for i in range(hp.n_layer):
        x = attention(b, hp, rope, weights, i, x)
        x = feed_forward(b, hp, weights, i, x)
    x = b.rms_norm(b.select(x), weights.vector("output_norm.weight", hp.n_embd), hp.norm_rms_eps)  # [n_out, n_embd]
    is_tied = not weights.has("output.weight")
    output = token_embd if is_tied else weights.matrix("output.weight", hp.n_vocab, hp.n_embd)
    b.output("logits", b.matmul(x, output))  # [n_out, n_vocab]
    return Model(hparams=hp, program=b.build(hp.n_layer))


def attention(b: ProgramBuilder, hp: HParams, rope: Rope, weights: WeightSource, i: int, x: Buffer) -> Buffer:
    """Grouped-query self-attention over the KV cache, plus the residual."""
    n_q, n_kv = hp.n_head * hp.n_embd_head, hp.n_head_kv * hp.n_embd_head
    h = b.rms_norm(x, weights.vector(f"blk.{i}.attn_norm.weight", hp.n_embd), hp.norm_rms_eps)
    q = projection(b, weights, h, f"blk.{i}.attn_q", n_q, hp.n_embd)  # [n_tok, n_head * n_embd_head]
    k = projection(b, weights, h, f"blk.{i}.attn_k", n_kv, hp.n_embd)  # [n_tok, n_head_kv * n_embd_head]
    v = projection(b, weights, h, f"blk.{i}.attn_v", n_kv, hp.n_embd)
    biases = None
    if weights.has(f"blk.{i}.attn_q_norm.weight"):  # Qwen3: every head by itself
        q = b.rms_norm(q, weights.vector(f"blk.{i}.attn_q_norm.weight", hp.n_embd_head), hp.norm_rms_eps, hp.n_head)
        k = b.rms_norm(k, weights.vector(f"blk.{i}.attn_k_norm.weight", hp.n_embd_head), hp.norm_rms_eps, hp.n_head_kv)
    elif weights.has(f"blk.{i}.attn_q.bias") and weights.has(f"blk.{i}.attn_k.bias"):  # Qwen2: large in few columns
        k_bias, q_bias = weights.vector(f"blk.{i}.attn_k.bias", n_kv), weights.vector(f"blk.{i}.attn_q.bias", n_q)
        biases = Biases(k_bias, q_bias, rope)
    q = b.rope(q, hp.n_head, rope)
    k = b.rope(k, hp.n_head_kv, rope)
    b.kv_append(i, k, v, hp.n_head_kv, biases)  # before attention: a token attends to itself
    y = b.attention(i, q, hp.n_head, hp.n_head_kv, scale=hp.n_embd_head**-0.5, biases=biases)
    return b.add(x, projection(b, weights, y, f"blk.{i}.attn_output", hp.n_embd, n_q))


def feed_forward(b: ProgramBuilder, hp: HParams, weights: WeightSource, i: int, x: Buffer) -> Buffer:
    """SwiGLU feed-forward, plus the residual."""
    h = b.rms_norm(x, weights.vector(f"blk.{i}.ffn_norm.weight", hp.n_embd), hp.norm_rms_eps)
    gate = projection(b, weights, h, f"blk.{i}.ffn_gate", hp.n_ff, hp.n_embd)  # [n_tok, n_ff]
    up = projection(b, weights, h, f"blk.{i}.ffn_up", hp.n_ff, hp.n_embd)
    return b.add(x, projection(b, weights, b.glu(gate, up, "silu"), f"blk.{i}.ffn_down", hp.n_embd, hp.n_ff))


def projection(b: ProgramBuilder, weights: WeightSource, x: Buffer, name: str, n_out: int, n_in: int) -> Buffer:
    """Multiply by a matrix, and add its bias where the file has one."""
    bias = weights.vector(f"{name}.bias", n_out) if weights.has(f"{name}.bias") else None
    return b.matmul(x, weights.matrix(f"{name}.weight", n_out, n_in), bias)
