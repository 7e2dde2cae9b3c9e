"""What every model file shares: the hyper-parameters that all families have, and the finished model."""

from __future__ import annotations

from typing import Self

from ...formats.errors import FormatError
from ...formats.metadata import Metadata
from ...formats.record import Record
from ..kernels.layout import ROW_LANES
from ..program import Program

# Upper bounds that no real model reaches; a damaged file must not make the program build millions of operations.
MAX_LAYER, MAX_HEAD, MAX_EMBD = 1024, 1024, 1 << 18


class HParams(Record, kw_only=True):
    """Shape of the network, named as in GGUF's ``{arch}.*`` keys."""

    arch: str
    n_vocab: int
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int  # == n_head without grouped-query attention
    n_embd_head: int
    n_ff: int
    n_ctx_train: int
    norm_rms_eps: float

    @classmethod
    def from_metadata(cls, meta: Metadata) -> Self:
        """Read and check the hyper-parameters.

        Raises:
            FormatError: a key is missing or out of range, or the head counts do not divide.
        """
        arch = meta.required("general.architecture", str)
        n_embd = bounded(meta, f"{arch}.embedding_length", MAX_EMBD)
        n_head = bounded(meta, f"{arch}.attention.head_count", MAX_HEAD)
        n_head_kv = bounded(meta, f"{arch}.attention.head_count_kv", MAX_HEAD, n_head)
        n_embd_head = bounded(meta, f"{arch}.attention.key_length", MAX_EMBD, n_embd // n_head)
        n_value = bounded(meta, f"{arch}.attention.value_length", MAX_EMBD, n_embd_head)
        if n_embd % ROW_LANES:  # norms work on whole vectors
            raise FormatError(f"{meta.path}: {arch}.embedding_length is {n_embd}, expected a multiple of {ROW_LANES}")
        if n_head % n_head_kv or n_embd_head < 1 or n_value != n_embd_head:
            raise FormatError(
                f"{meta.path}: n_head={n_head}, n_head_kv={n_head_kv}, key_length={n_embd_head},"
                f" value_length={n_value} do not fit together"
            )
        eps = meta.required(f"{arch}.attention.layer_norm_rms_epsilon", float)
        if not 0 <= eps < 1:
            raise FormatError(f"{meta.path}: {arch}.attention.layer_norm_rms_epsilon is {eps}, expected 0 to 1")
        return cls(
            arch=arch,
            n_vocab=len(meta.strings("tokenizer.ggml.tokens")),
            n_layer=bounded(meta, f"{arch}.block_count", MAX_LAYER),
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=n_head_kv,
            n_embd_head=n_embd_head,
            n_ff=bounded(meta, f"{arch}.feed_forward_length", 1 << 22),
            n_ctx_train=bounded(meta, f"{arch}.context_length", 1 << 31),
            norm_rms_eps=eps,
        )


def bounded(meta: Metadata, key: str, maximum: int, default: int | None = None) -> int:
    """Return a count between 1 and ``maximum``.

    Raises:
        FormatError: the key is missing (and has no default) or its value is out of range.
    """
    value = meta.required(key, int) if default is None else meta.optional(key, int, default)
    if not 1 <= value <= maximum:
        raise FormatError(f"{meta.path}: {key} is {value}, expected 1 to {maximum}")
    return value


class Model(Record, kw_only=True):
    """A model ready to run: its shape and its program (plain operations; not yet lowered or fused)."""

    hparams: HParams
    program: Program
