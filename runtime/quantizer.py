"""Carry out a plan: read rows, quantise them on several threads, write them in order.

A tensor goes through in pieces of whole rows, so that memory stays bounded whatever its size. Every row's bytes
depend on that row and the importance of its columns alone: the file is the same for any number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..formats.atomic_file import check_space
from ..formats.errors import FormatError, quote
from ..formats.gguf_writer import GgufWriter
from ..formats.meta_value import MetaValue
from ..formats.metadata import ValueType
from ..quant.floats import F32, U8
from ..quant.quality_card import QualityCard
from ..quant.quantize import quantize
from ..quant.quantize_plan import FLOATS, PlannedTensor, QuantizePlan
from ..quant.scale_search import ScaleSearch
from .scale_search import LANES

PIECE_WEIGHTS = 1 << 19  # 2 MB in float32: about 15 ms of work
COPY_BYTES = 1 << 24

Progress = Callable[[str, int, int], None]
Measure = Callable[[Path], QualityCard]


class Quantizer:
    """Writes the file or files of one plan.

    Args:
        plan: what to do.
        search: the search for scales.
        n_thread: threads that quantise.
        allows_nan: write weights that are infinite or NaN: as they are in floating-point types, in quantised ones as
            0 (NaN) and as the largest finite weight of the row (infinite).
        on_progress: called with (what, weights done, weights in all).
    """

    def __init__(
        self,
        plan: QuantizePlan,
        search: ScaleSearch,
        *,
        n_thread: int,
        allows_nan: bool = False,
        on_progress: Progress | None = None,
    ) -> None:
        self._plan, self._search, self._n_thread = plan, search, n_thread
        self._allows_nan, self._on_progress = allows_nan, on_progress
        self._n_done = 0

    def write(self, path: Path, *, keeps_split: bool = False, measure: Measure | None = None) -> list[Path]:
        """Write the result and return its paths: one, or with ``keeps_split`` as many as the source has files.

        Args:
            path: where.
            keeps_split: as many files as the source has.
            measure: returns the quality card of the complete but unfinished file at a path; the card is put into its
                metadata before the file gets its name. Only where the result is one file.

        Raises:
            FormatError: the source cannot be read any more, or holds weights that the type cannot.
            ConfigError: the file cannot be written.
            CapacityError: the disk is too small.
        """
        parts = self._parts(path, keeps_split)
        if measure is not None:
            assert len(parts) == 1
            parts = [(path, {**parts[0][1], **QualityCard.placeholder()}, parts[0][2])]
        with ExitStack() as stack:
            # All are opened first: a full disk shows before the work, and none appears before all are complete.
            writers = []
            check_space(path, self._plan.n_bytes)
            for part_path, metadata, tensors in parts:
                writer = GgufWriter(part_path, metadata, [t.entry for t in tensors])
                writers.append(stack.enter_context(writer))
            pool = stack.enter_context(_Pool(self._n_thread))
            for writer, (_, _, tensors) in zip(writers, parts, strict=True):
                for tensor in tensors:
                    self._write_tensor(writer, tensor, pool)
            if measure is not None:
                card = measure(writers[0].unfinished_path)
                writers[0].replace_metadata({**parts[0][1], **card.metadata()})
            for writer in writers:
                writer.finish()
        return [part_path for part_path, _, _ in parts]

    def _parts(self, path: Path, keeps_split: bool) -> list[tuple[Path, dict[str, MetaValue], list[PlannedTensor]]]:
        tensors, metadata = self._plan.tensors, self._plan.metadata()
        n_shard = max((t.source.shard for t in tensors), default=0) + 1
        if not keeps_split or n_shard == 1:
            return [(path, metadata, tensors)]
        parts = []
        for i in range(n_shard):
            values = metadata if i == 0 else {}
            split = {
                "split.no": MetaValue(ValueType.U16, i),
                "split.count": MetaValue(ValueType.U16, n_shard),
                "split.tensors.count": MetaValue(ValueType.I32, len(tensors)),
            }
            parts.append(
                (split_path(path, i, n_shard), {**values, **split}, [t for t in tensors if t.source.shard == i])
            )
        return parts

    def _write_tensor(self, writer: GgufWriter, tensor: PlannedTensor, pool: _Pool) -> None:
        source = tensor.source
        self._report(source.name, 0)
        if tensor.is_copied:
            self._copy(writer, tensor)
        else:
            jobs = (self._job(tensor, start, stop, weights) for start, stop, weights in self._pieces(tensor))
            for blocks in pool.map_in_order(jobs):
                writer.write(blocks.reshape(-1))
                self._report(source.name, len(blocks) * source.n_in)
        if source.release is not None:
            source.release()

    def _copy(self, writer: GgufWriter, tensor: PlannedTensor) -> None:
        source = tensor.source
        raw = source.read_raw()
        assert raw is not None
        if source.ggml_type in FLOATS and not self._allows_nan:
            step = max(1, PIECE_WEIGHTS // source.n_in)
            for start in range(0, source.n_rows, step):
                rows = source.read_rows(start, min(start + step, source.n_rows))
                self._check_finite(tensor, rows, start)
        flat = raw.reshape(-1)
        for start in range(0, len(flat), COPY_BYTES):
            writer.write(flat[start : start + COPY_BYTES])
        self._report(source.name, source.n_weights)

    def _pieces(self, tensor: PlannedTensor) -> Iterator[tuple[int, int, F32 | None]]:
        """Yield row ranges, and the importance of their columns; none reaches over two matrices of a stack."""
        source, imatrix = tensor.source, self._plan.options.imatrix
        stack = imatrix.stacked(source.name, source.n_in) if imatrix is not None else None
        n_matrix_rows = source.shape[-2] if len(source.shape) > 1 else 1
        step = max(LANES, PIECE_WEIGHTS // source.n_in // LANES * LANES)
        for matrix in range(source.n_rows // n_matrix_rows):
            first = matrix * n_matrix_rows
            weights = None if stack is None else stack[matrix if len(stack) > 1 else 0]
            for start in range(first, first + n_matrix_rows, step):
                yield start, min(start + step, first + n_matrix_rows), weights

    def _job(self, tensor: PlannedTensor, start: int, stop: int, weights: F32 | None) -> Callable[[], U8]:
        def work() -> U8:
            rows = self._check_finite(tensor, tensor.source.read_rows(start, stop), start)
            try:
                return quantize(rows, tensor.ggml_type, weights, search=self._search)
            except FormatError as error:
                raise FormatError(
                    f"{self._plan.checkpoint.path}: tensor {quote(tensor.source.name)}: {error}"
                ) from None

        return work

    def _check_finite(self, tensor: PlannedTensor, rows: F32, start: int) -> F32:
        """Return the rows, made finite if their type wants that and it is allowed."""
        is_finite = np.isfinite(rows)
        if is_finite.all():
            return rows
        if not self._allows_nan:
            row, column = np.argwhere(~is_finite)[0].tolist()
            raise FormatError(
                f"{self._plan.checkpoint.path}: tensor {quote(tensor.source.name)} holds {rows[row, column]} in row"
                f" {start + row}, column {column}; --allow-nan converts it nevertheless"
            )
        if tensor.ggml_type in FLOATS:
            return rows
        largest = np.where(is_finite, np.abs(rows), 0).max(axis=1, keepdims=True)
        return np.where(is_finite, rows, np.where(np.isnan(rows), 0, np.copysign(largest, rows))).astype(np.float32)

    def _report(self, name: str, n_weights: int) -> None:
        self._n_done += n_weights
        if self._on_progress is not None:
            self._on_progress(name, self._n_done, self._plan.n_weights)


def split_path(path: Path, index: int, n_file: int) -> Path:
    """Return the name of one file of a split model: ``<stem>-00001-of-000NN.gguf``."""
    return path.with_name(f"{path.name.removesuffix('.gguf')}-{index + 1:05d}-of-{n_file:05d}.gguf")


class _Pool:
    """Threads; on the way out, work that has not begun is dropped and what runs is waited for."""

    def __init__(self, n_thread: int) -> None:
        self._n_ahead = 2 * n_thread  # enough that no thread waits for the disk
        self._threads = ThreadPoolExecutor(n_thread, "llmrun-quantize")

    def map_in_order(self, jobs: Iterator[Callable[[], U8]]) -> Iterator[U8]:
        """Yield the results of jobs in their order, a few of them under way."""
        pending: deque[Future[U8]] = deque()
        for job in jobs:
            pending.append(self._threads.submit(job))
            if len(pending) >= self._n_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
