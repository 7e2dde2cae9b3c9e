"""A small model that drafts for a large one: its file opened beside the target's, on the target's threads.

Four things make it cheap, and none can change a text. Its output matrix is cut to the tokens that come first in
the vocabulary, which in a byte-pair vocabulary are those merged first, the frequent ones (FR-Spec, Zhao et al., arXiv
2502.14856; 32k of Qwen's 152k are 94 % of the tokens of code). Its larger weights are made smaller in memory
(``draft_weights.py``). What it sees of a long text is a window. And the upper third of its layers is left out where it
only reads (``runtime/skim.py``).
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ...formats.gguf import GgufFile
from ...formats.record import replace
from ..batch import Batch
from ..executor.threaded import ThreadedExecutor
from ..fuse import prepare
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import PAGE_SLOTS
from ..kv_cache import KvPages, KvSequence
from ..models import build_model
from ..program import Buffer, Op, Program
from ..skim import skim
from .draft_weights import DraftWeights, Progress
from .model_source import N_OUT, N_TOK, ModelSource
from .vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from ..engine import Engine

N_HEAD_TOKEN = 32768  # rows of the output matrix that are kept of a byte-pair vocabulary
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
        self._reader = reader  # for tokens whose logits nobody wants
        self.packed_bytes, self._lock = packed_bytes, lock

    @classmethod
    def open(
        cls,
        path: Path,
        target: Engine,
        *,
        use_mmap: bool = True,
        n_head_token: int = N_HEAD_TOKEN,
        on_progress: Progress | None = None,
    ) -> Self:
        """Open a draft for a target.

        Args:
            path: a GGUF model.
            target: the engine that it drafts for; must stay open as long.
            use_mmap: map the file, or read it.
            n_head_token: tokens that it can draft, if its vocabulary is in order of frequency.
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
            if vocabulary.is_same and file.metadata.optional("tokenizer.ggml.model", str, "") == "gpt2":
                program = cut_head(program, min(n_head_token, hp.n_vocab))
            program, reading = prepare(program), prepare(skim(program, 2 * hp.n_layer // 3))
            slot_bytes = KvPages.slot_bytes(hp.n_layer, hp.n_head_kv, hp.n_embd_head)
            kernels, n_byte = weights.load_for(
                [program, reading], target.team, kv_bytes=n_ctx * slot_bytes, on_progress=on_progress
            )
            pages = KvPages(hp.n_layer, hp.n_head_kv, hp.n_embd_head, n_ctx + PAGE_SLOTS)
            executor = ThreadedExecutor(program, weights, pages, kernels, target.team, n_tok=N_TOK, n_out=N_OUT)
            reader = executor.with_program(reading)
            return cls(file, executor, reader, pages, kernels, vocabulary, target.lock, n_ctx, n_byte)
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


def cut_head(program: Program, n: int) -> Program:
    """Return a plain program whose logits are those of the first ``n`` tokens alone."""
    whole = program.outputs["logits"]
    if n >= whole.n_col:
        return program
    cut = Buffer(whole.name, n, whole.rows, whole.kind)

    def exchange(buffers: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
        return tuple(cut if b is whole else b for b in buffers)

    ops = []
    for op in program.ops:
        weights = op.weights
        if op.kind == "matmul" and whole in op.writes:
            weights = (replace(weights[0], n_out=n),)
        ops.append(Op(op.kind, exchange(op.reads), exchange(op.writes), weights, op.attributes))
    return replace(program, ops=ops, outputs={**program.outputs, "logits": cut})
