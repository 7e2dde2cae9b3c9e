"""An EAGLE-3 head beside its target: checked against it, bound to its threads, watching its layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError
from ...formats.gguf import GgufFile
from ...formats.record import replace
from ..batch import Batch
from ..executor.threaded import ThreadedExecutor
from ..fuse import prepare
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import PAGE_SLOTS
from ..kv_cache import KvPages, KvSequence
from ..models import eagle3
from .draft_head import cut_head
from .draft_model import N_CTX
from .draft_weights import Progress
from .head_source import HeadSource
from .head_weights import HeadWeights
from .model_source import N_TOK
from .picking import DraftTokens

if TYPE_CHECKING:
    from ..engine import Engine

F32 = NDArray[np.float32]

N_HEAD_TOKEN = 32768  # rows of the output matrix that are kept of a byte-pair vocabulary


class HeadModel:
    """An opened head. Sessions use it one at a time, under the target's lock.

    Attributes:
        path: its file.
        n_ctx: tokens that it looks back at most.
        pages: of its KV cache.
        packed_bytes: of its own weights in memory.
        tokens: of the target, that its logits stand for.
        row_s: seconds that reading one token of a text takes, as its sources measure it; 0: not known.
    """

    def __init__(
        self, file: GgufFile, head: eagle3.Head, target: Engine, weights: HeadWeights, kernels: KernelSet,
        draft_ids: NDArray[np.int64] | None, n_ctx: int, packed_bytes: int,
    ) -> None:  # fmt: skip
        """Use ``open``."""
        self._file, self._target, self._kernels = file, target, kernels  # kept: records point into them
        self.path, self.n_ctx, self.packed_bytes, self.row_s = file.path, n_ctx, packed_bytes, 0.0
        hp = head.hparams
        self.pages = KvPages(1, hp.n_head_kv, hp.n_embd_head, n_ctx + PAGE_SLOTS)
        self._fuse, self._step = (
            ThreadedExecutor(program, weights, self.pages, kernels, target.team, n_tok=N_TOK, n_out=1)
            for program in (head.fuse, head.step)
        )
        if draft_ids is None:
            self.tokens = DraftTokens.first(self.n_shared)
        else:
            places = np.argsort(draft_ids)
            self.tokens = DraftTokens(draft_ids[places], 0, places)
        self._no_page = np.zeros(1, np.int64)

    @classmethod
    def open(
        cls, path: Path, target: Engine, *, use_mmap: bool = True, n_head_token: int = N_HEAD_TOKEN,
        on_progress: Progress | None = None,
    ) -> Self:  # fmt: skip
        """Open a head for a target, and let the target keep what it looks at.

        Args:
            path: a GGUF file of architecture ``eagle3``.
            target: the engine that it drafts for; must stay open as long.
            use_mmap: map the file, or read it.
            n_head_token: tokens that it can draft, if it names none and the vocabulary is in order of frequency.
            on_progress: called as (what, done, total) during long steps.

        Raises:
            LlmrunError: the file is damaged, made for another model, or does not fit into memory.
        """
        file = GgufFile.open(path, use_mmap=use_mmap)
        try:
            check_target(file, target)
            weights = HeadWeights(file, (target.executor.program, target.executor.weights), target.n_threads)
            n_ctx = min(N_CTX, target.n_ctx)
            head, draft_ids = read_head(file, weights, n_ctx)
            hp = head.hparams
            n_ctx = min(n_ctx, hp.n_ctx_train)
            step = head.step
            if draft_ids is None and file.metadata.optional("tokenizer.ggml.model", str, "") == "gpt2":
                step = cut_head(step, min(n_head_token, hp.n_vocab))
            head = replace(head, fuse=prepare(head.fuse), step=prepare(step))
            kv_bytes = n_ctx * KvPages.slot_bytes(1, hp.n_head_kv, hp.n_embd_head)
            kernels, n_byte = weights.load_for(
                [head.fuse, head.step], target.team, kv_bytes=kv_bytes, on_progress=on_progress
            )
            opened = cls(file, head, target, weights, kernels, draft_ids, n_ctx, n_byte)
            target.watch(head.layers)
            return opened
        except BaseException:
            file.close()
            raise

    @property
    def is_same_vocabulary(self) -> bool:
        """Whether it has the target's tokens with the same ids."""
        return True

    @property
    def n_shared(self) -> int:
        """Tokens that it can draft."""
        return self._step.program.outputs["logits"].n_col

    def source(self, sequence: KvSequence) -> HeadSource:
        """Return a new source for the session whose tokens a sequence holds."""
        hidden = self._target.hidden
        assert hidden is not None, "the head is closed"
        return HeadSource(self, hidden.follow(sequence), self._target.lock)

    def step(self) -> None:
        """Make a state and a guess of zeros."""
        sequence = KvSequence(self.pages, self.n_ctx)
        try:
            with self._target.lock:
                states = self.states(np.zeros((1, self._fuse.program.inputs[0].n_col), np.float32))
                self.run(sequence, [0], states, has_output=True)
        finally:
            sequence.close()

    def states(self, rows: F32) -> F32:
        """Return states [n, n_embd] made of the target's rows [n, n_col]."""
        n = len(rows)
        self._file.check_mapped()
        self._fuse.view(self._fuse.program.inputs[0], n)[:] = rows
        self._fuse.run(Batch.of_tokens(self._no_page, 0, [0] * n, []), is_long=n > 16)
        return self._fuse.output("state", n).copy()

    def run(self, sequence: KvSequence, ids: list[int], states: F32, *, has_output: bool) -> None:
        """Append tokens with their states [n, n_embd] to a sequence in one pass; then ``logits`` and ``state`` hold."""
        self._file.check_mapped()
        self._target.check_mapped()
        past, n = sequence.n_past, len(ids)
        sequence.append(n)
        try:
            self._step.view(self._step.program.inputs[0], n)[:] = states
            batch = Batch.of_tokens(sequence.page_table, past, ids, [n - 1] if has_output else [])
            self._step.run(batch, is_long=n > 16)
        except BaseException:
            sequence.rollback(past)
            raise

    def state(self, row: int) -> F32:
        """Return a copy of what a row of the last pass leaves for the next token: [1, n_embd]."""
        return self._step.output("state", row + 1)[row:].copy()

    def logits(self) -> F32:
        """Return a copy of the last pass' logits: [n_shared]."""
        logits: F32 = self._step.output("logits", 1)[0].copy()
        return logits

    def close(self) -> None:
        """Close the file; the target keeps nothing any more."""
        self._target.watch(())
        self._file.close()


def read_head(file: GgufFile, weights: HeadWeights, n_ctx: int | None) -> tuple[eagle3.Head, NDArray[np.int64] | None]:
    """Return a file's head, and which tokens it drafts (None: all).

    Raises:
        FormatError: a key or tensor is missing, does not fit, or is not part of a head.
    """
    draft_ids = weights.draft_ids(len(file.metadata.strings("tokenizer.ggml.tokens")))
    head = eagle3.build(file.metadata, weights, None if draft_ids is None else len(draft_ids), n_ctx)
    weights.check_all_used()
    return head, draft_ids


def check_target(file: GgufFile, target: Engine) -> None:
    """Check that a head is made for a model of the target's shape, with its vocabulary.

    Raises:
        FormatError: it is not.
    """
    info, (n_embd, layers) = target.info, eagle3.watched(file.metadata)
    if n_embd != info.n_embd:
        raise FormatError(f"{file.path}: a draft head for models {n_embd} wide, {info.path} is {info.n_embd} wide")
    if max(layers) > info.n_layer:
        raise FormatError(
            f"{file.path}: a draft head that looks at layers {list(layers)}, {info.path} has {info.n_layer}"
        )
    if list(file.metadata.strings("tokenizer.ggml.tokens")) != target.tokenizer.vocabulary.texts:
        raise FormatError(f"{file.path}: a draft head for another vocabulary than that of {info.path}")
