"""Run a model over many chunks of text, one layer at a time.

The rows of all chunks pass through a layer before the next one is loaded, so that a model larger than memory can be
calibrated: at any time there is one layer's weights, and the rows lie in a temporary file. Kernels, order of sums and
rounding of keys and values are the engine's; with ``is_float`` activations are not quantised::

    with open_gguf(path) as source, LayerwiseRunner(source, n_ctx=512) as runner:
        runner.begin(chunks)                                   # token embeddings of all rows
        for layer in runner.layers():
            layer.run(on_input=collect, advance=False)         # look at the inputs of its matrices: as often as wanted
            layer.run(replaced={"blk.0.ffn_up.weight": w})     # with other weights; the next layer sees the result
        runner.finish()                                        # final norm
        for rows, columns, logits in runner.logits(...): ...   # in blocks
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import CapacityError, ConfigError
from ...formats.record import Record, replace
from ..batch import Batch
from ..executor.team import Team
from ..executor.threaded import ThreadedExecutor, kernels_of
from ..fuse import fuse, lower
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import PAGE_SLOTS
from ..kv_cache import KvPages
from ..memory import OVERHEAD_BYTES, available_bytes, gigabytes
from ..models import build_model
from ..program import Op, Program
from ..simd.isa import choose_target
from ..threads import team_size
from .hidden import HiddenStates
from .source import ModelSource
from .split import CAPTURED, Segment, rows_of_output, split
from .weights import LayerWeights

F32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
OnInput = Callable[[tuple[str, ...], F32], None]
OnOutput = Callable[[int, F32], None]
OnRows = Callable[[float], None]

ALL = slice(None)
PASS_ROWS = 512  # rows of one pass
BLOCK_BYTES = 32 << 20  # of logits, and of the f32 weights that make them


class LayerwiseRunner:
    """One model, run layer by layer.

    Args:
        source: the model; must stay open.
        n_ctx: largest length of a chunk.
        is_float: activations stay f32 and matrices are dequantised; False: int8 activations, as the engine runs it.
        n_threads: at most one for each processor is used; None takes what ``default_threads`` says.
        folder: for the temporary file; None: the system's.
        on_progress: called as (what, done, total).

    Raises:
        LlmrunError: the model cannot be run, or its largest layer does not fit into memory.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        n_ctx: int,
        is_float: bool = True,
        n_threads: int | None = None,
        folder: Path | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        if n_ctx < 1:
            raise ConfigError(f"context of {n_ctx} tokens, expected at least 1")
        self.n_thread = n_thread = team_size(n_threads)
        self.source, self.n_ctx, self.is_float, self._folder = source, n_ctx, is_float, folder
        self._on_progress = on_progress
        self.weights = LayerWeights(source, is_float=is_float, n_thread=n_thread)
        model = build_model(source.metadata, self.weights, n_ctx)
        self.weights.check_all_used()
        self.hparams = hp = model.hparams
        segments = split(model.program)
        self._embedding, self._layers, self._tail = segments[0], segments[1:-2], segments[-2:]
        self._check_memory(segments)
        target = choose_target()
        names = {"matmul_f32", "glu", "add", "rms_norm", "quantize"}  # replaced matrices may stand between others
        for segment in segments[1:]:
            for has_captures in (False, True):
                names |= kernels_of(self._program(segment.program(has_captures=has_captures)))
        self._kernels = KernelSet(names, target, on_progress=on_progress)
        self._team = Team(self._kernels, n_thread)
        self._pages = KvPages(1, hp.n_head_kv, hp.n_embd_head, n_ctx + PAGE_SLOTS)
        self._page_table = np.arange(-(-n_ctx // PAGE_SLOTS), dtype=np.int64)
        self._hidden: HiddenStates | None = None
        self._chunks: list[list[int]] = []
        self._n_advanced = 0  # segments

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def hidden(self) -> HiddenStates:
        """The rows as the last finished layer left them."""
        assert self._hidden is not None, "begin() comes first"
        return self._hidden

    def _check_memory(self, segments: list[Segment]) -> None:
        largest = max(self.weights.bytes_of({w for op in s.ops for w in op.weights}) for s in segments[1:-1])
        needed, free = max(largest, 2 * BLOCK_BYTES) + OVERHEAD_BYTES, available_bytes()
        if needed > free:
            raise CapacityError(
                f"{self.source.path}: the largest layer needs {gigabytes(needed)}, {gigabytes(free)} free"
            )

    def _program(self, program: Program) -> Program:
        return fuse(program if self.is_float else lower(program))

    # ---- the rows -----------------------------------------------------------------------------

    def begin(self, chunks: Sequence[Sequence[int]]) -> None:
        """Take the token ids of all chunks (each at most ``n_ctx``) and look their embeddings up.

        Raises:
            ConfigError: there is no chunk, or one is empty, too long, or holds ids outside of the vocabulary.
            CapacityError: the temporary file does not fit on the disk.
        """
        n_vocab = self.hparams.n_vocab
        for chunk in chunks:
            if not 1 <= len(chunk) <= self.n_ctx:
                raise ConfigError(f"a chunk of {len(chunk)} tokens, expected 1 to {self.n_ctx}")
            if min(chunk) < 0 or max(chunk) >= n_vocab:
                raise ConfigError(f"token ids of 0 to {n_vocab - 1} expected, got {min(chunk)} to {max(chunk)}")
        if not chunks:
            raise ConfigError("no chunk of text to run")
        self._chunks, self._n_advanced = [list(chunk) for chunk in chunks], 0
        self.close_hidden()
        self._hidden = HiddenStates(sum(map(len, chunks)), self.hparams.n_embd, self._folder)
        start = 0
        for chunk in self._chunks:
            self._hidden.write(start, self.embed(chunk))
            start += len(chunk)

    def extend(self, chunks: Sequence[Sequence[int]], rows: F32) -> int:
        """Add chunks whose rows, f32 [n, n_embd], are what the next layer is to see of them; return their first row.

        Raises:
            CapacityError: the disk is full.
        """
        self._chunks += [list(chunk) for chunk in chunks]
        return self.hidden.extend(rows)

    def restore(self, chunks: Sequence[Sequence[int]], rows: Iterable[F32], n_layer: int, *, is_finished: bool) -> None:
        """Go on, after ``begin``, where an earlier runner stood.

        Args:
            chunks: all of them, extended ones too.
            rows: f32 [n, n_embd] in pieces, as that runner's layers left them.
            n_layer: layers that they have passed; ``layers`` yields those behind.
            is_finished: whether ``finish`` was called.
        """
        self._chunks, self._n_advanced = [list(chunk) for chunk in chunks], n_layer + is_finished
        self.close_hidden()
        self._hidden = HiddenStates(sum(map(len, chunks)), self.hparams.n_embd, self._folder)
        start = 0
        for piece in rows:
            self._hidden.write(start, piece)
            start += len(piece)

    def embed(self, ids: Sequence[int], replaced: F32 | None = None) -> F32:
        """Return the rows that the first layer sees of token ids, f32 [n, n_embd]; by other embeddings if given."""
        weight = self._embedding.ops[0].weights[0]
        numbers = np.array(ids, np.int64)
        rows = self.weights.look_up(weight, numbers) if replaced is None else replaced
        for op in self._embedding.ops[1:]:
            assert op.kind == "scale", op
            rows = rows * np.float32(op.attributes["factor"])
        return rows

    def layers(self) -> Iterator[Layer]:
        """Yield the layers in order, from the first that the rows have not passed; each advances before the next."""
        for i, segment in enumerate(self._layers[self._n_advanced :], self._n_advanced):
            layer = Layer(self, segment, i)
            yield layer
            if not layer.has_advanced:
                layer.run()
            self.weights.drop()

    def finish(self, on_rows: OnRows | None = None) -> None:
        """Normalise the last rows: what the output matrix is multiplied with; ``on_rows`` as for ``Layer.run``."""
        self.run_segment(self._tail[0], advance=True, replaced={}, what="final norm", on_rows=on_rows)

    def run_segment(
        self,
        segment: Segment,
        *,
        advance: bool,
        replaced: Mapping[str, F32],
        what: str,
        on_input: OnInput | None = None,
        on_output: OnOutput | None = None,
        on_rows: OnRows | None = None,
        chunks: slice = ALL,
    ) -> None:
        """Run all rows through a segment; see ``Layer.run``."""
        segment = _with_floats(segment, self.weights, replaced)
        captures = list(segment.matmul_inputs().values()) if on_input else []
        program = self._program(segment.program(has_captures=on_input is not None))
        self.weights.load(program.weights(), replaced)
        n_tok = min(PASS_ROWS, max(map(len, self._chunks)))
        executor = self._executor(program, n_tok)
        lengths, chosen = [len(chunk) for chunk in self._chunks], self._chunks[chunks]
        first, n_done, total = sum(lengths[: chunks.start or 0]), 0, sum(map(len, chosen))
        assert segment.input is not None
        for chunk in chosen:
            for start in range(0, len(chunk), n_tok):
                n = min(n_tok, len(chunk) - start)
                out_rows = range(n) if segment.output.rows == "out" else ()
                batch = Batch.of_tokens(self._page_table, start, chunk[start : start + n], out_rows)
                executor.view(segment.input, n)[:] = self.hidden.read(first + start, first + start + n)
                executor.run(batch, is_long=True)
                for i, names in enumerate(captures):
                    assert on_input is not None
                    on_input(names, executor.output(CAPTURED.format(i), n))
                y = executor.output("y", n)
                if on_output:
                    on_output(first + start, y)
                if advance:
                    self.hidden.write(first + start, y)
                n_done += n
                if on_rows:
                    on_rows(n_done / total)
                elif self._on_progress:
                    self._on_progress(what, self._n_advanced * total + n_done, (self.n_layer + 1) * total)
            first += len(chunk)
        self._n_advanced += advance

    def _executor(self, program: Program, n_tok: int, n_out: int | None = None) -> ThreadedExecutor:
        return ThreadedExecutor(
            program, self.weights, self._pages, self._kernels, self._team, n_tok=n_tok, n_out=n_out or n_tok
        )

    # ---- the logits ---------------------------------------------------------------------------

    def vocabulary_blocks(self, n_model: int = 1) -> list[tuple[int, int]]:
        """Return ranges of the vocabulary whose output weights, as f32 for ``n_model`` models, take 32 MB at most."""
        step = max(16, BLOCK_BYTES // (4 * self.hparams.n_embd * n_model) // 16 * 16)
        n_vocab = self.hparams.n_vocab
        return [(a, min(a + step, n_vocab)) for a in range(0, n_vocab, step)]

    def logits_maker(self, start: int, stop: int, n_row: int, replaced: F32 | None = None) -> Callable[[F32], F32]:
        """Return a function from normalised rows f32 [n, n_embd] to the logits of a range of the vocabulary.

        Args:
            start: first token id.
            stop: end of the token ids.
            n_row: most rows at a time.
            replaced: other weights for this range, f32 [stop - start, n_embd].

        Returns:
            The function; its result f32 [n, stop - start] is overwritten by the next call. Valid until the runner
            does something else.
        """
        segment, values = rows_of_output(self._tail[1], start, stop), {}
        if replaced is not None:
            name = next(w.name for op in segment.ops for w in op.weights)
            values = {name: replaced}
            segment = _with_floats(rows_of_output(self._tail[1], 0, stop - start), self.weights, values)
        program = self._program(segment.program())
        self.weights.load(program.weights(), values)
        executor = self._executor(program, n_row)
        buffer = program.inputs[0]

        def make(rows: F32) -> F32:
            executor.view(buffer, len(rows))[:] = rows
            executor.run(Batch.of_tokens(self._page_table, 0, [0] * len(rows), range(len(rows))), is_long=True)
            return executor.output("y", len(rows))

        return make

    def logits(self, rows: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[int, F32]]:
        """Yield (index of the first row, logits f32 [n, n_vocab]) of some rows, in blocks of 32 MB at most.

        Args:
            rows: numbers of rows, over all chunks.
        """
        step = self.rows_per_block(self.hparams.n_vocab)
        make = self.logits_maker(0, self.hparams.n_vocab, min(step, len(rows)))
        for start in range(0, len(rows), step):
            yield start, make(self.gather(rows[start : start + step]))
        self.weights.drop()

    def rows_per_block(self, n_column: int) -> int:
        """Return how many rows of logits over ``n_column`` token ids take 32 MB at most; no more than a pass has."""
        return max(1, min(PASS_ROWS, BLOCK_BYTES // (4 * n_column)))

    def gather(self, rows: Sequence[int] | NDArray[np.int64]) -> F32:
        """Return some of the rows, f32 [n, n_embd]."""
        result = np.empty((len(rows), self.hparams.n_embd), np.float32)
        numbers = np.asarray(rows)
        cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for a, b in pairwise(cuts):  # runs of neighbours
            if b > a:
                self.hidden.read(int(numbers[a]), int(numbers[a]) + b - a, result[a:b])
        return result

    # ---- the end ------------------------------------------------------------------------------

    def close_hidden(self) -> None:
        """Remove the temporary file."""
        if self._hidden is not None:
            self._hidden.close()
            self._hidden = None

    def close(self) -> None:
        """End the threads and remove the temporary file."""
        self.close_hidden()
        self.weights.drop()
        self._team.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class Layer(Record, frozen=False):
    """One layer while it is the runner's current one.

    Attributes:
        index: from 0.
        has_advanced: whether the rows have passed through it for good.
    """

    runner: LayerwiseRunner
    segment: Segment
    index: int
    has_advanced: bool = False

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """Names of its matrices, those together that are multiplied with the same rows, in order."""
        return list(self.segment.matmul_inputs().values())

    def run(
        self,
        *,
        on_input: OnInput | None = None,
        on_output: OnOutput | None = None,
        replaced: Mapping[str, F32] | None = None,
        on_rows: OnRows | None = None,
        advance: bool = True,
        chunks: slice = ALL,
    ) -> None:
        """Pass the rows through the layer.

        Args:
            on_input: called with (names of the matrices, their input f32 [n, n_in]) for every pass and every
                distinct input, in program order; the array is overwritten later.
            on_output: called with (number of the first row, the layer's output f32 [n, n_embd]) for every pass.
            replaced: values for some of the layer's tensors, f32 in their shapes.
            on_rows: called with the part of the rows that is done, instead of the runner's ``on_progress``.
            advance: keep the output as the next layer's input. Once; without, the layer can be run again.
            chunks: only these, a range; not with ``advance``.
        """
        if advance and (self.has_advanced or chunks != ALL):
            raise ValueError("a layer advances once, with all rows")
        self.runner.run_segment(
            self.segment, advance=advance, replaced=replaced or {},
            what=f"layer {self.index + 1} of {self.runner.n_layer}",
            on_input=on_input, on_output=on_output, on_rows=on_rows, chunks=chunks,
        )  # fmt: skip
        self.has_advanced |= advance


def _with_floats(segment: Segment, weights: LayerWeights, replaced: Mapping[str, F32]) -> Segment:
    """Return a segment whose replaced matrices are described as F32."""
    if not replaced:
        return segment

    def changed(op: Op) -> Op:
        new = tuple(weights.described(w) if w.n_out and w.name in replaced else w for w in op.weights)
        return replace(op, weights=new)

    return replace(segment, ops=tuple(changed(op) for op in segment.ops))
