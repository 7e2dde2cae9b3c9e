"""A small model that drafts for a large one: its file opened beside the target's, on the target's threads.

Four things make it cheap, and none can change a text. Its output matrix is cut to the frequent tokens and those of
the text (``draft_head.py``). Its larger weights are made smaller in memory (``draft_weights.py``). What it sees of a
long text is a window. And the upper third of its layers is left out where it only reads (``runtime/skim.py``).
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ...formats.gguf import GgufFile
from ..batch import Batch
from ..executor.threaded import ThreadedExecutor
from ..fuse import prepare
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import PAGE_SLOTS
from ..kv_cache import KvPages, KvSequence
from ..models import build_model
from ..skim import skim
from .draft_head import N_EXCHANGED, N_FREQUENT, DraftHead, cut_head, is_by_frequency, output_matrix
from .draft_weights import DraftWeights, Progress
from .model_source import N_OUT, N_TOK, ModelSource
from .picking import DraftTokens
from .vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from ..engine import Engine

N_CTX = 4096  # tokens that a draft looks back at most


class DraftModel:
    """An opened draft model. Sessions use it one at a time, under the target's lock."""

    def __init__(
        self,
        file: GgufFile,
        executor: ThreadedExecutor,
        reader: ThreadedExecutor,
        pages: KvPages,
        kernels: KernelSet,
        vocabulary: VocabularyMap,
        head: DraftHead | None,
        lock: threading.Lock,
        n_ctx: int,
        packed_bytes: int,
    ) -> None:
        """Use ``open``."""
        self._file, self._kernels = file, kernels  # kept: records point into both
        self.path = file.path
        self.token_s = 0.0  # reading one token of a text, as its sources measure it; 0: not known
        self.step_s = math.inf  # a step by itself at best
        self.executor, self.pages, self.vocabulary, self.n_ctx = executor, pages, vocabulary, n_ctx
        self.head = head  # None: all tokens have rows
        self._reader = reader  # for tokens whose logits nobody wants
        self.packed_bytes, self._lock = packed_bytes, lock

    @classmethod
    def open(
        cls,
        path: Path,
        target: Engine,
        *,
        use_mmap: bool = True,
        n_frequent: int = N_FREQUENT,
        n_exchanged: int = N_EXCHANGED,
        on_progress: Progress | None = None,
    ) -> Self:
        """Open a draft for a target.

        Args:
            path: a GGUF model.
            target: the engine that it drafts for; must stay open as long.
            use_mmap: map the file, or read it.
            n_frequent: tokens that it can always draft, if its vocabulary is in order of frequency.
            n_exchanged: further ones that it can draft at a time.
            on_progress: called as (what, done, total) during long steps.

        Raises:
            LlmrunError: the file is no model that llmrun runs, or it does not fit into memory.
        """
        file = GgufFile.open(path, use_mmap=use_mmap)
        try:
            weights = DraftWeights(file, target.n_threads)
            n_ctx = min(N_CTX, target.n_ctx)
            model = build_model(file.metadata, weights, n_ctx)
            weights.check_all_used()
            hp = model.hparams
            n_ctx = min(n_ctx, hp.n_ctx_train)
            vocabulary = VocabularyMap.between(file, target.tokenizer)
            program = model.program
            n_head = n_same = vocabulary.n_shared if vocabulary.is_same else hp.n_vocab
            if vocabulary.is_same and is_by_frequency(target.tokenizer.vocabulary):
                n_head = min(n_frequent + n_exchanged, n_same)
            program = cut_head(program, n_head)
            program, reading = prepare(program), prepare(skim(program, 2 * hp.n_layer // 3))
            slot_bytes = KvPages.slot_bytes(hp.n_layer, hp.n_head_kv, hp.n_embd_head)
            kernels, n_byte = weights.load_for(
                [program, reading], target.team, kv_bytes=n_ctx * slot_bytes, on_progress=on_progress
            )
            pages = KvPages(hp.n_layer, hp.n_head_kv, hp.n_embd_head, n_ctx + PAGE_SLOTS)
            executor = ThreadedExecutor(program, weights, pages, kernels, target.team, n_tok=N_TOK, n_out=N_OUT)
            reader = executor.with_program(reading)
            head, output = None, output_matrix(program)
            if n_head < n_same:
                weights.fetch(output.name)  # rows of it are looked up
                head = DraftHead(weights, output, n_frequent, n_same, target.tokenizer)
            return cls(file, executor, reader, pages, kernels, vocabulary, head, target.lock, n_ctx, n_byte)
        except BaseException:
            file.close()
            raise

    @property
    def is_same_vocabulary(self) -> bool:
        """Whether it has the target's tokens with the same ids."""
        return self.vocabulary.is_same

    @property
    def n_shared(self) -> int:
        """Tokens that it can draft."""
        return self.vocabulary.n_shared

    @property
    def tokens(self) -> DraftTokens:
        """What its logits stand for at present."""
        return self.vocabulary.tokens if self.head is None else self.head.tokens

    def source(self, sequence: KvSequence) -> ModelSource:  # noqa: ARG002  # it reads the text
        """Return a new source for a session."""
        return ModelSource(self, self._lock)

    def step(self) -> None:
        """Run one token."""
        sequence = KvSequence(self.pages, self.n_ctx)
        try:
            with self._lock:
                started = time.perf_counter()
                self.run(sequence, [0], n_output=1)
                self.step_s = min(self.step_s, time.perf_counter() - started)
        finally:
            sequence.close()

    def run(
        self, sequence: KvSequence, ids: list[int], *, n_output: int, shift: int = 0, visible_start: int = 0
    ) -> None:
        """Append tokens to a sequence in one pass; the logits of the last ``n_output`` are then in the executor.

        Positions are larger than slots by ``shift``; slots before ``visible_start`` are not seen. Without outputs the
        upper third of the layers is left out.
        """
        self._file.check_mapped()
        past = sequence.n_past
        sequence.append(len(ids))
        try:
            out_rows = range(len(ids) - n_output, len(ids))
            batch = Batch.of_tokens(sequence.page_table, past, ids, out_rows, shift=shift, visible_start=visible_start)
            (self.executor if n_output else self._reader).run(batch, is_long=len(ids) > 16)
        except BaseException:
            sequence.rollback(past)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()
