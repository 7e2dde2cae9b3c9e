"""The engine: a model file opened for generation, and the sessions that generate with it.

This is all that the command line and other front ends import. ``Engine.open`` reads, plans, loads and
binds; a ``Session`` is one conversation with its own part of the KV cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import ConfigError, FormatError
from ..formats.gguf import GgufFile
from ..formats.record import Record, replace
from .batch import Batch
from .best_logit import MOST_ROWS, BestLogit, least_rows
from .executor.team import Team
from .executor.threaded import ThreadedExecutor, kernels_of
from .fuse import prepare
from .hidden_states import HiddenStates
from .kernels.kernel_set import KernelSet
from .kernels.layout import DEFAULT_KV_TYPE, KV_TYPES, PAGE_SLOTS
from .kv_cache import KvPages, KvSequence
from .memory import MemoryPlan, available_bytes, choose_context
from .models import build_model
from .models.model import Model
from .packing import pack_kernels_of
from .program import Program
from .session import GeneratedToken, GenerationParams, GenerationStats, Session
from .simd.isa import choose_target
from .speculation.costs import StepCosts
from .speculation.speed_file import SpeedFile
from .threads import team_size
from .weights import GgufWeights

if TYPE_CHECKING:
    from ..formats.metadata import Metadata
    from .chat_template import ChatTemplate
    from .speculation.source import Draft, DraftSource
    from .tokenizer.base import Tokenizer

__all__ = [
    "Engine", "GeneratedToken", "GenerationParams", "GenerationStats", "ModelInfo", "Session", "load_program",
    "streamed_weights",
]  # fmt: skip

DRAFT_EXTRA_BYTES = 200 << 20  # KV cache and buffers of a draft model
LOGITS_BYTES = 64 << 20  # rows of logits that are made at once
Progress = Callable[[str, int, int], None]
LONG_PASS_TOKENS = 16  # a pass of more rows leaves the main thread free for Ctrl-C
F32 = NDArray[np.float32]


class ModelInfo(Record, kw_only=True):
    """What is known of an opened model."""

    path: Path
    name: str
    architecture: str
    quant: str
    n_params: int
    file_bytes: int
    packed_bytes: int
    n_ctx_train: int
    n_vocab: int
    n_layer: int
    n_embd: int
    quality: str = ""  # the quality card in one line


class Engine:
    """An opened model."""

    def __init__(self, file: GgufFile, **parts: Any) -> None:
        """Use ``open``."""
        self._file = file
        self.info: ModelInfo = parts["info"]
        self.tokenizer: Tokenizer = parts["tokenizer"]
        self.template: ChatTemplate | None = parts["template"]
        self.n_ctx: int = parts["n_ctx"]
        self.n_ctx_wanted: int = parts["n_ctx_wanted"]
        self.n_threads: int = parts["n_threads"]
        self.isa: str = parts["isa"]
        self.n_compiled: int = parts["n_compiled"]  # kernels that had to be compiled first
        self.notices: list[str] = parts["notices"]
        self.executor: ThreadedExecutor = parts["executor"]
        self._program = self.executor.program  # that is run where nothing is watched
        self._model_program: Program = parts["model_program"]  # as the model file has it
        self._is_fused: bool = parts["is_fused"]
        self.pages: KvPages = parts["pages"]
        self.team: Team = parts["team"]
        self.draft: Draft | None = None
        self.hidden: HiddenStates | None = None  # what a draft looks at, None where none does
        self.lock = threading.Lock()  # one pass at a time
        self._best: BestLogit | None = None  # made when it is needed first
        self._best_from: int | None = parts["best_from"]  # rows of a pass from which on it is quicker
        self._speeds: tuple[StepCosts, SpeedFile] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_ubatch: int = 512,
        use_mmap: bool = True,
        tokenizer_pre: str | None = None,
        is_fused: bool = True,
        kv_type: str = DEFAULT_KV_TYPE,
        draft: Path | None = None,
        on_progress: Progress | None = None,
    ) -> Self:
        """Open a GGUF model.

        Args:
            path: the file, or the first of a split model.
            n_ctx: context in tokens; None takes the model's own, lowered to what memory allows.
            n_threads: at most one for each processor is used; None takes what ``default_threads`` says.
            n_ubatch: most tokens of one pass.
            use_mmap: map the file, or read it.
            tokenizer_pre: overrides the file's pre-tokenizer name.
            is_fused: join operations (the other form exists for tests; the same bits).
            kv_type: how keys and values are kept, one of ``KV_TYPES``.
            draft: a small GGUF model that drafts for this one.
            on_progress: called as (what, done, total) during long steps.

        Raises:
            LlmrunError: whatever is wrong with the file, the options or the machine.
        """
        if n_ubatch < 1 or (n_threads is not None and n_threads < 1) or (n_ctx is not None and n_ctx < 1):
            raise ConfigError("threads, context and ubatch sizes must be at least 1")
        if kv_type not in KV_TYPES:
            raise ConfigError(f"no KV cache of type {kv_type!r}: expected one of {', '.join(KV_TYPES)}")
        target = choose_target()
        file = GgufFile.open(path, use_mmap=use_mmap)
        team: Team | None = None
        try:
            threads = team_size(n_threads)
            weights = GgufWeights(file, threads)
            model, program = load_program(file, weights, n_ctx, is_fused=is_fused)
            hp = model.hparams
            n_ubatch = min(n_ubatch, n_ctx or hp.n_ctx_train)
            n_out = max(1, min(n_ubatch, LOGITS_BYTES // (4 * hp.n_vocab)))
            memory = MemoryPlan(
                weight_bytes=weights.packed_bytes(streamed_weights(program)),
                slot_bytes=KvPages.slot_bytes(hp.n_layer, hp.n_head_kv, hp.n_embd_head, kv_type),
                arena_bytes=LOGITS_BYTES
                + MOST_ROWS * 4 * hp.n_vocab
                + n_ubatch * 4 * (8 * hp.n_embd + 4 * hp.n_ff)
                + draft_bytes(draft),
                available_bytes=available_bytes(),
            )
            n_ctx_used = choose_context(memory, file.path, wanted=n_ctx, n_ctx_train=hp.n_ctx_train)
            names = kernels_of(program, kv_type) | pack_kernels_of(streamed_weights(program))
            pages = KvPages(hp.n_layer, hp.n_head_kv, hp.n_embd_head, n_ctx_used + PAGE_SLOTS, kv_type)
            kernels = KernelSet(names, target, on_progress=on_progress)
            team = Team(kernels, threads)
            vocabulary = _Background(lambda: _load_text(file, tokenizer_pre))
            weights.pack_with(kernels, team)
            weights.fetch_tables([program])
            weights.load(streamed_weights(program), on_progress)
            file.check_unchanged()
            executor = ThreadedExecutor(program, weights, pages, kernels, team, n_tok=n_ubatch, n_out=n_out)
            tokenizer, template = vocabulary.result()
            if tokenizer.n_vocab != hp.n_vocab:
                raise FormatError(f"{path}: {tokenizer.n_vocab} tokens, expected {hp.n_vocab}")
            notices = list(kernels.notices)
            wanted = n_ctx or hp.n_ctx_train
            if n_ctx_used < wanted:
                notices.append(f"context lowered from {wanted} to {n_ctx_used} tokens, which is what memory allows")
            if n_ctx_used > hp.n_ctx_train:
                notices.append(f"context of {n_ctx_used} tokens: the model was trained on {hp.n_ctx_train}")
            engine = cls(
                file, info=_info(file, model, weights, program), tokenizer=tokenizer, template=template,
                n_ctx=n_ctx_used, n_ctx_wanted=wanted, n_threads=threads, isa=target.name, notices=notices,
                n_compiled=kernels.n_compiled, model_program=model.program, is_fused=is_fused, executor=executor,
                pages=pages, team=team, best_from=least_rows(program, target),
            )  # fmt: skip
            if draft is not None:
                from .speculation.opening import open_draft  # here: it knows most of what this module knows

                engine.draft = open_draft(draft, engine, use_mmap=use_mmap, on_progress=on_progress)
            return engine
        except BaseException:
            if team is not None:
                team.close()
            file.close()
            raise

    def session(self) -> Session:
        """Return a new, empty conversation."""
        return Session(self)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        """Yield the logits after ``ids[first]``, ``ids[first + 1]``, … of a fresh sequence, in blocks of rows.

        Each block is ``f32 [n, n_vocab]`` and is overwritten by the next.

        Raises:
            CapacityError: the ids do not fit the context.
        """
        sequence = KvSequence(self.pages, self.n_ctx)
        try:
            position = 0
            while position < len(ids):
                limit = self.executor.n_tok if position < first else min(self.executor.n_tok, self.executor.n_out)
                stop = min(len(ids), position + limit)
                if position < first:
                    stop = min(stop, first)
                wanted = range(max(first, position), stop)
                with self.lock:
                    n_row = self.run_tokens(sequence, ids[position:stop], [i - position for i in wanted])
                    if n_row:
                        yield self.executor.output("logits", n_row)
                position = stop
        finally:
            sequence.close()

    def run_tokens(self, sequence: KvSequence, ids: Sequence[int], out_rows: Sequence[int]) -> int:
        """Run one pass over consecutive tokens of a sequence; return the number of output rows.

        Raises:
            FormatError: another program has changed the mapped file.
        """
        past = sequence.n_past
        sequence.append(len(ids))
        try:
            batch = Batch.of_tokens(sequence.page_table, past, ids, out_rows)
            self.run_batch(batch)
        except BaseException:
            sequence.rollback(past)
            raise
        return batch.n_out

    def run_batch(self, batch: Batch) -> None:
        """Run one pass.

        Raises:
            FormatError: another program has changed the mapped file, which embeddings are read from.
        """
        self.check_mapped()
        self.executor.run(batch, is_long=batch.n_tok > LONG_PASS_TOKENS)
        if self.hidden is not None:
            self.hidden.keep(self.executor, batch)

    def logits_of(self, batch: Batch, *, is_best_wanted: bool = False) -> NDArray[np.float32]:
        """Run one pass all of whose rows are wanted; return their logits, f32 [n_row, n_vocab], until the next pass.

        ``is_best_wanted``: of each row only the largest; the others are then only smaller than it.

        Raises:
            FormatError: another program has changed the mapped file.
        """
        if self._best is not None and is_best_wanted and self._suits_best(batch.n_out):
            self.check_mapped()
            return self._best.run(batch)
        self.run_batch(batch)
        return self.executor.output("logits", batch.n_out)

    def prepare_best(self, n_row: int) -> None:
        """Prepare to look for the largest logits alone, if that is not done and pays for so many rows."""
        if self._best is None and self._suits_best(n_row):
            self._best = BestLogit(self.executor)

    def _suits_best(self, n_row: int) -> bool:
        return self.hidden is None and self._best_from is not None and self._best_from <= n_row <= MOST_ROWS

    def check_mapped(self) -> None:
        """Check that the mapped file, which embeddings are read from, is as it was.

        Raises:
            FormatError: another program has changed it.
        """
        self._file.check_mapped()

    def watch(self, layers: Sequence[int]) -> None:
        """Keep from now on what these layers are given (``hidden``), of new sessions; none: of no layer any more."""
        with self.lock:
            plain, program = self._model_program, self._program
            self.hidden = HiddenStates(plain, layers) if layers else None
            if self.hidden is not None:
                watched = replace(plain, outputs={**plain.outputs, **self.hidden.outputs})
                program = prepare(watched, is_fused=self._is_fused)
            self.executor = self.executor.with_program(program)

    def pass_costs(self) -> tuple[StepCosts, SpeedFile]:
        """Return what passes take on this machine, and where that is kept."""
        if self._speeds is None:
            file = SpeedFile.of_engine(self)
            self._speeds = file.read(), file
        return self._speeds

    def draft_sources(self, sequence: KvSequence) -> list[DraftSource]:
        """Return new sources of drafts for a session with its sequence, beside its own text."""
        return [] if self.draft is None else [self.draft.source(sequence)]

    def close(self) -> None:
        """End the threads and close the files."""
        if self.draft is not None:
            self.draft.close()
        self.team.close()
        self._file.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class _Background:
    """Runs a function in a thread; ``result`` waits for it and passes its exception on."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._value = function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value


def _load_text(file: GgufFile, pre: str | None) -> tuple[Tokenizer, ChatTemplate | None]:
    from .chat_template import ChatTemplate
    from .tokenizer.load import load_tokenizer

    tokenizer = load_tokenizer(file.metadata, pre=pre)
    template = ChatTemplate.from_metadata(file.metadata, tokenizer)
    if template is not None:
        template.prepare()  # here, beside the packing
    return tokenizer, template


def load_program(
    file: GgufFile, weights: GgufWeights, n_ctx: int | None, *, is_fused: bool = True
) -> tuple[Model, Program]:
    """Return a file's model and the program that runs it, from its header alone.

    Raises:
        FormatError: the architecture is not supported, or a key or tensor does not fit.
    """
    model = build_model(file.metadata, weights, n_ctx)
    weights.check_all_used()
    return model, prepare(model.program, is_fused=is_fused)


def streamed_weights(program: Program) -> list[Any]:
    """Return the matrices that every pass reads; embeddings are only looked up."""
    return list(dict.fromkeys(w for op in program.ops if op.kind == "matmul" for w in op.weights if w.n_out))


def _info(file: GgufFile, model: Model, weights: GgufWeights, program: Program) -> ModelInfo:
    hp, meta = model.hparams, file.metadata
    return ModelInfo(
        path=file.path,
        name=meta.optional("general.name", str, file.path.stem),
        architecture=hp.arch,
        quant=quant_name(file),
        n_params=weights.n_params(),
        file_bytes=file.n_bytes,
        packed_bytes=weights.packed_bytes(streamed_weights(program)),
        n_ctx_train=hp.n_ctx_train,
        n_vocab=hp.n_vocab,
        n_layer=hp.n_layer,
        n_embd=hp.n_embd,
        quality=_quality(meta),
    )


def _quality(meta: Metadata) -> str:
    if "llmrun.quality.version" not in meta:
        return ""
    from ..quant.quality_card import QualityCard

    card = QualityCard.from_metadata(meta)
    return card.line() if card is not None else ""


def quant_name(file: GgufFile) -> str:
    """Return the name of a file's quantisation: what it says of itself, or the type of most of its weights."""
    from ..formats.file_types import FILE_TYPES

    number = file.metadata.get("general.file_type")
    if isinstance(number, int) and number in FILE_TYPES:
        return FILE_TYPES[number]
    by_type: dict[str, int] = {}
    for info in file.tensors.values():
        by_type[info.ggml_type.name] = by_type.get(info.ggml_type.name, 0) + info.n_bytes
    return max(by_type, key=lambda name: by_type[name], default="none")


def draft_bytes(path: Path | None) -> int:
    """Return about what a draft model takes in memory, to be kept free of the target's context."""
    if path is None:
        return 0
    try:
        return path.stat().st_size + DRAFT_EXTRA_BYTES
    except OSError:
        return 0  # opening it will say what is wrong
