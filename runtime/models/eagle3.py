"""EAGLE-3 (Li et al., arXiv 2503.01840): a head of one layer that drafts from what some layers of a target are given.

Slot p of the head holds token p + 1 and the state of position p, and guesses token p + 2. The state is made of the
target's rows (``fuse``) where the target has computed them, and is the head's own last one behind. Keys and tensors are
those of llama.cpp's files of architecture ``eagle3``.
"""

from __future__ import annotations

from ...formats.errors import FormatError
from ...formats.metadata import Metadata
from ...formats.record import Record
from ..program import Buffer, Program, ProgramBuilder
from ..weights import WeightSource
from .llama import feed_forward, projection
from .model import MAX_EMBD, MAX_LAYER, HParams, bounded
from .rope import read_rope

ARCHITECTURE = "eagle3"
N_WATCHED = 3  # layers of the target


class Head(Record, kw_only=True):
    """A head ready to run; its programs are plain operations, not yet lowered or fused.

    Attributes:
        hparams: its shape; ``n_vocab`` is the target's.
        n_embd_target: width of the target's rows.
        layers: of the target, whose inputs it looks at; number ``n_layer``: its final norm.
        fuse: makes the output "state" [n_tok, n_embd] of the target's rows, its only input.
        step: makes "logits" [n_out, n_draft] and the next "state" [n_tok, n_embd] of token ids and states, its input.
    """

    hparams: HParams
    n_embd_target: int
    layers: tuple[int, ...]
    fuse: Program
    step: Program


def is_head(meta: Metadata) -> bool:
    """Return whether a file says that it is a head."""
    try:
        return meta.required("general.architecture", str) == ARCHITECTURE
    except FormatError:
        return False


def watched(meta: Metadata) -> tuple[int, tuple[int, ...]]:
    """Return the width of the target that a head is made for, and the layers that it looks at.

    Raises:
        FormatError: a key is missing or out of range.
    """
    n_embd_target = bounded(meta, f"{ARCHITECTURE}.target_hidden_size", MAX_EMBD)
    layers = meta.required(f"{ARCHITECTURE}.target_layers", list[int])
    if len(layers) != N_WATCHED or not all(0 <= layer <= MAX_LAYER for layer in layers):
        raise FormatError(
            f"{meta.path}: {ARCHITECTURE}.target_layers is {layers}, expected {N_WATCHED} layers' numbers"
        )
    return n_embd_target, tuple(layers)


def build(meta: Metadata, weights: WeightSource, n_draft: int | None, n_ctx: int | None) -> Head:
    """Return the head of a file.

    Args:
        meta: the file's metadata.
        weights: describes its tensors, and the target's ``token_embd.weight`` and ``output.weight`` in place of those
            that it does not have.
        n_draft: tokens that it can draft; None: all.
        n_ctx: context length wanted.

    Raises:
        FormatError: a key or tensor is missing or does not fit.
    """
    hp = HParams.from_metadata(meta)
    if hp.n_layer != 1:
        raise FormatError(f"{meta.path}: {hp.arch}.block_count is {hp.n_layer}, expected 1 in a draft head")
    n_embd_target, layers = watched(meta)
    return Head(
        hparams=hp,
        n_embd_target=n_embd_target,
        layers=layers,
        fuse=fuse(meta, weights, hp, N_WATCHED * n_embd_target),
        step=step(meta, weights, hp, n_draft or hp.n_vocab, n_ctx),
    )


def fuse(meta: Metadata, weights: WeightSource, hp: HParams, n_in: int) -> Program:
    """Return the program that makes states of the target's rows, side by side [n_tok, n_in]."""
    b = ProgramBuilder()
    rows = b.input("rows", n_in)
    x = rows
    if meta.optional(f"{hp.arch}.norm_before_fc", bool, False):
        x = b.rms_norm(x, weights.vector("enc.output_norm.weight", n_in), hp.norm_rms_eps)
    b.output("state", b.matmul(x, weights.matrix("fc.weight", hp.n_embd, n_in)))
    return b.build(0)


def step(meta: Metadata, weights: WeightSource, hp: HParams, n_draft: int, n_ctx: int | None) -> Program:
    """Return the layer with its output matrix."""
    b, eps = ProgramBuilder(), hp.norm_rms_eps
    token = b.embed(weights.matrix("token_embd.weight", hp.n_vocab, hp.n_embd))  # [n_tok, n_embd]
    state = b.input("state", hp.n_embd)
    h = b.rms_norm(token, weights.vector("blk.0.attn_norm.weight", hp.n_embd), eps)
    normed = b.rms_norm(state, weights.vector("blk.0.attn_norm_2.weight", hp.n_embd), eps)
    residual = normed if meta.optional(f"{hp.arch}.norm_before_residual", bool, False) else state
    x = b.add(residual, attention(b, meta, hp, weights, b.concat(h, normed), n_ctx))
    x = feed_forward(b, hp, weights, 0, x)
    b.output("state", x)
    x = b.rms_norm(b.select(x), weights.vector("output_norm.weight", hp.n_embd), eps)
    b.output("logits", b.matmul(x, weights.matrix("output.weight", n_draft, hp.n_embd)))  # [n_out, n_draft]
    return b.build(1)


def attention(
    b: ProgramBuilder, meta: Metadata, hp: HParams, weights: WeightSource, x: Buffer, n_ctx: int | None
) -> Buffer:
    """Grouped-query self-attention over rows of twice the width, [n_tok, 2 * n_embd] -> [n_tok, n_embd]."""
    n_q, n_kv = hp.n_head * hp.n_embd_head, hp.n_head_kv * hp.n_embd_head
    rope = read_rope(meta, weights, n_embd_head=hp.n_embd_head, n_ctx=n_ctx, is_neox=False)
    q = b.rope(projection(b, weights, x, "blk.0.attn_q", n_q, x.n_col), hp.n_head, rope)
    k = b.rope(projection(b, weights, x, "blk.0.attn_k", n_kv, x.n_col), hp.n_head_kv, rope)
    v = projection(b, weights, x, "blk.0.attn_v", n_kv, x.n_col)
    b.kv_append(0, k, v, hp.n_head_kv)
    y = b.attention(0, q, hp.n_head, hp.n_head_kv, scale=hp.n_embd_head**-0.5)
    return projection(b, weights, y, "blk.0.attn_output", hp.n_embd, n_q)
