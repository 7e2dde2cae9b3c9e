"""Where a program's weights come from.

A ``WeightSource`` describes tensors (``matrix``, ``vector``), then yields them packed for the kernels.
``GgufWeights`` packs a GGUF file tensor by tensor and lets go of the file's pages as each is done;
tensors that are only looked up row by row (token embeddings) stay in the mapped file.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import GgmlType, row_bytes
from ..formats.gguf import GgufFile, TensorInfo
from ..quant.dequantize import dequantize
from ..quant.pack_format import PACKED_FORMATS, ROW_LANES, PackedTensor, Slabs, allocate
from ..quant.widen import run_type
from .described_weights import DescribedWeights
from .executor.team import Team
from .kernels.kernel_set import KernelSet
from .packing import Piece, pack_by_kernels, pack_finite, pack_kernel_of
from .program import Program, Weight

F32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

PACK_BYTES = 2 << 20  # of the file, that NumPy packs at a time: a few ms
PASS_BYTES = 16 << 20  # that kernels pack in one call: as long, and as much of the file is resident beside the result


class WeightSource(Protocol):
    """Describes and delivers the weights of one model."""

    def has(self, name: str) -> bool:
        """Return whether the model has a tensor."""

    def matrix(self, name: str, n_out: int, n_in: int) -> Weight:
        """Describe a matrix, checked against the shape that the model needs."""

    def vector(self, name: str, n_in: int) -> Weight:
        """Describe a vector, checked likewise."""

    def split(self, weight: Weight, n_rows: Sequence[int]) -> list[Weight]:
        """Describe consecutive rows of a matrix as matrices of their own."""

    def packed(self, weight: Weight) -> PackedTensor:
        """Return a matrix in the kernel layout."""

    def values(self, weight: Weight) -> F32:
        """Return a vector as f32, padded with zeros."""

    def table(self, weight: Weight) -> NDArray[np.uint8]:
        """Return a matrix as the file has it, for looking rows up: u8 [n_out, bytes of a row]."""


class GgufWeights(DescribedWeights[TensorInfo]):
    """Weights of a GGUF file, packed on request and kept.

    Args:
        file: the opened model; must stay open.
        n_thread: threads that pack.
    """

    def __init__(self, file: GgufFile, n_thread: int | None = None) -> None:
        super().__init__(file.path, file.tensors, file.metadata.get("general.architecture"))
        self._file = file
        self._n_thread = n_thread or os.cpu_count() or 1
        self._machine: tuple[KernelSet, Team] | None = None
        self._packed: dict[Weight, PackedTensor] = {}
        self._memory = Slabs()
        self._tables: dict[str, NDArray[np.uint8]] = {}
        self._vectors: dict[str, F32] = {}
        self._fetched: set[str] = set()

    def _run_type(self, tensor: TensorInfo) -> GgmlType:
        with self._naming_file():
            return run_type(tensor.name, tensor.ggml_type, self._file.data(tensor))

    def pack_with(self, kernels: KernelSet, team: Team) -> None:
        """Pack with compiled kernels (those of ``pack_kernels_of``) from now on; without them NumPy packs."""
        self._machine = kernels, team

    def load(self, weights: Iterable[Weight], on_progress: Progress | None = None) -> None:
        """Pack all matrices that are not packed yet, with several threads.

        Raises:
            FormatError: one holds infinite or NaN weights.
        """
        wanted = [w for w in dict.fromkeys(weights) if w.n_out and w not in self._packed]
        total, done = sum(w.n_out * w.n_in for w in wanted), 0

        def finish(piece: Piece) -> None:
            nonlocal done
            self._file.release(self._file.tensors[piece.weight.name], piece.place.start, piece.place.stop)
            if piece.stop == piece.packed.n_rowgroup:
                self._packed[piece.weight] = piece.packed
                done += piece.weight.n_out * piece.weight.n_in
                if on_progress:
                    on_progress("loading", done, total)

        with self._naming_file(), _quick_turns():
            if self._machine is not None:
                for piece in self._pack_by_kernels(wanted, *self._machine):
                    finish(piece)
            self._pack_by_numpy(self._pieces([w for w in wanted if w not in self._packed], PACK_BYTES), finish)

    def _pack_by_kernels(self, weights: Sequence[Weight], kernels: KernelSet, team: Team) -> Iterator[Piece]:
        """Pack the matrices for which there are kernels; yield pieces as they are done."""
        for batch in _batches(self._pieces(filter(pack_kernel_of, weights), PASS_BYTES)):
            pack_by_kernels(batch, kernels, team)
            yield from batch

    def _pieces(self, weights: Iterable[Weight], n_byte: int) -> Iterator[Piece]:
        """Cut matrices, for which memory is set aside, into pieces of about ``n_byte`` bytes of the file."""
        for weight in weights:
            info, kind = self._file.tensors[weight.name], GgmlType[weight.packed]
            packed = allocate(weight.name, kind, weight.n_out, weight.n_in, info.ggml_type, self._memory)
            n_row_byte = row_bytes(info.ggml_type, weight.n_in)
            begin, end = weight.row_start * n_row_byte, (weight.row_start + weight.n_out) * n_row_byte
            data, group_bytes = self._file.data(info)[begin:end], ROW_LANES * n_row_byte
            step = max(1, n_byte // group_bytes)
            for start in range(0, packed.n_rowgroup, step):
                stop = min(start + step, packed.n_rowgroup)
                place = slice(begin + start * group_bytes, min(begin + stop * group_bytes, end))
                yield Piece(weight, packed, data, start, stop, place)

    def _pack_by_numpy(self, pieces: Iterable[Piece], finish: Callable[[Piece], None]) -> None:
        """Pack in a pool of threads."""
        started: deque[tuple[Piece, Future[None]]] = deque()
        pool = ThreadPoolExecutor(self._n_thread)

        def finish_first() -> None:
            piece, job = started.popleft()
            job.result()
            finish(piece)

        try:
            for piece in pieces:
                if len(started) == 4 * self._n_thread:
                    finish_first()
                started.append((piece, pool.submit(pack_finite, piece.packed, piece.data, piece.start, piece.stop)))
            while started:
                finish_first()
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun

    def packed(self, weight: Weight) -> PackedTensor:
        """Return a matrix in the kernel layout; it is packed the first time and kept.

        Raises:
            FormatError: it holds infinite or NaN weights.
        """
        if weight not in self._packed:
            self.load([weight])
        return self._packed[weight]

    def values(self, weight: Weight) -> F32:
        """Return a vector as f32, padded with zeros to a multiple of 32; it is read the first time and kept.

        Raises:
            FormatError: it holds infinite or NaN weights.
        """
        if weight.name not in self._vectors:
            info = self._file.tensors[weight.name]
            self._vectors[weight.name] = self._vector_values(weight, dequantize(info.ggml_type, self._file.data(info)))
        return self._vectors[weight.name]

    def table(self, weight: Weight) -> NDArray[np.uint8]:
        """Return a matrix as the file has it: u8 [n_out, bytes of a row]; where the file is mapped, a view of it."""
        if weight.name not in self._tables:
            info = self._file.tensors[weight.name]
            n_byte = row_bytes(info.ggml_type, weight.n_in)
            self._tables[weight.name] = self._file.data(info).reshape(weight.n_out, n_byte)
        return self._tables[weight.name]

    def fetch_tables(self, programs: Sequence[Program]) -> None:
        """Let the system read from the disk, in the background, what programs look up and do not pack as well.

        Otherwise each first look into a part of a table waits for the disk.
        """

        def weights_of(kind: str) -> set[Weight]:
            return {w for program in programs for op in program.ops if op.kind == kind for w in op.weights}

        for table in weights_of("embed"):
            n_packed_row = sum(w.n_out for w in weights_of("matmul") if w.name == table.name)
            if self.has(table.name) and n_packed_row < table.n_out:
                self.fetch(table.name)

    def fetch(self, name: str) -> None:
        """Let the system read a tensor from the disk in the background, once."""
        if name not in self._fetched:
            self._fetched.add(name)
            threading.Thread(target=self._file.fetch, args=(self._file.tensors[name],), daemon=True).start()

    def packed_bytes(self, weights: Iterable[Weight]) -> int:
        """Return the bytes that the matrices take when packed."""
        return sum(PACKED_FORMATS[GgmlType[w.packed]].n_bytes(w.n_out, w.n_in) for w in weights if w.n_out)

    def n_params(self) -> int:
        """Return the number of weights in the file."""
        return sum(prod(info.shape) for info in self._file.tensors.values())

    @contextmanager
    def _naming_file(self) -> Iterator[None]:
        """Put the file's name before what is wrong with a tensor."""
        try:
            yield
        except FormatError as error:
            raise FormatError(f"{self._file.path}: {error}") from None


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Put pieces together that make up about ``PASS_BYTES`` of the file."""
    batch: list[Piece] = []
    n_byte = 0
    for piece in pieces:
        batch.append(piece)
        n_byte += piece.place.stop - piece.place.start
        if n_byte >= PASS_BYTES:
            yield batch
            batch, n_byte = [], 0
    if batch:
        yield batch


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Let threads take turns every 0.5 ms.

    Packing is calls of a few milliseconds outside of Python's lock. After each one it would wait up to 5 ms for a
    thread that stays inside, such as the one that builds the tokenizer.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def look_up(source: WeightSource, weight: Weight, ids: NDArray[np.int64]) -> F32:
    """Return rows of a matrix as f32: [n_id, n_in]."""
    return dequantize(GgmlType[weight.file_type], source.table(weight)[ids])
