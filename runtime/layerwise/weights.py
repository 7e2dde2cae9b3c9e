"""Weights of one segment at a time, as floats or as the file has them.

As floats, quantised matrices are dequantised and multiplied with f32 activations: what the file says, without the
error of int8 activations. F16 and BF16 matrices stay as they are, which is the same values in half the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError
from ...formats.ggml_types import GgmlType
from ...formats.record import replace
from ...quant.checkpoint import SourceTensor
from ...quant.dequantize import DEQUANTIZERS, dequantize
from ...quant.pack_format import PACKED_FORMATS, ROW_LANES, PackedTensor, allocate
from ...quant.widen import run_type
from ..described_weights import DescribedWeights
from ..packing import not_finite, pack_finite
from ..program import Weight
from .source import ModelSource

F32 = NDArray[np.float32]
PIECE_BYTES = 4 << 20  # of f32 that a thread packs at a time
HALVES = (GgmlType.F16, GgmlType.BF16)


class LayerWeights(DescribedWeights[SourceTensor]):
    """A ``WeightSource`` that holds only what ``load`` was last asked for.

    Args:
        source: the model.
        is_float: dequantise (float activations), or pack each type for its own kernel (int8 activations).
        n_thread: threads that pack.
    """

    def __init__(self, source: ModelSource, *, is_float: bool, n_thread: int) -> None:
        super().__init__(source.path, source.tensors, source.metadata.get("general.architecture"))
        self._source, self._is_float, self._n_thread = source, is_float, n_thread
        self._packed: dict[Weight, PackedTensor] = {}
        self._replaced: Mapping[str, F32] = {}

    def _run_type(self, tensor: SourceTensor) -> GgmlType:
        if tensor.ggml_type not in DEQUANTIZERS:
            raise FormatError(
                f"{self._path}: tensor '{tensor.name}' has type {tensor.ggml_type.name}, expected weights"
            )
        raw = tensor.read_raw()
        if raw is None or (self._is_float and tensor.ggml_type not in HALVES):
            return GgmlType.F32
        try:
            return run_type(tensor.name, tensor.ggml_type, raw.reshape(-1))
        except FormatError as error:
            raise FormatError(f"{self._path}: {error}") from None

    # ---- delivering, one segment at a time ----------------------------------------------------

    def load(self, weights: Iterable[Weight], replaced: Mapping[str, F32] | None = None) -> None:
        """Hold these matrices and no others.

        Args:
            weights: of a segment's program.
            replaced: other values for some tensors by name, f32 in the tensors' shapes.

        Raises:
            FormatError: one holds infinite or NaN weights.
        """
        self._packed, self._replaced = {}, replaced or {}
        jobs: list[Future[None]] = []
        pool = ThreadPoolExecutor(self._n_thread)
        tensors = set()
        try:
            for weight in dict.fromkeys(w for w in weights if w.n_out):
                jobs += self._start_packing(weight, pool)
                tensors.add(weight.name)
            for job in jobs:
                job.result()
        except FormatError as error:
            raise FormatError(f"{self._source.path}: {error}") from None
        finally:
            pool.shutdown(cancel_futures=True)
        for name in tensors:
            if release := self._source.tensors[name].release:
                release()

    def drop(self) -> None:
        """Hold nothing."""
        self._packed, self._replaced = {}, {}

    def bytes_of(self, weights: Iterable[Weight]) -> int:
        """Return the bytes that matrices take when packed."""
        return sum(PACKED_FORMATS[GgmlType[w.packed]].n_bytes(w.n_out, w.n_in) for w in weights if w.n_out)

    def _start_packing(self, weight: Weight, pool: ThreadPoolExecutor) -> list[Future[None]]:
        tensor, kind = self._source.tensors[weight.name], GgmlType[weight.packed]
        values = self._replaced.get(weight.name)
        is_as_stored = values is None and not (self._is_float and tensor.ggml_type not in HALVES)
        raw = tensor.read_raw() if is_as_stored else None
        source_type = GgmlType.F32 if raw is None else tensor.ggml_type
        packed = allocate(weight.name, kind, weight.n_out, weight.n_in, source_type)
        self._packed[weight] = packed
        step = max(1, PIECE_BYTES // (4 * ROW_LANES * weight.n_in))
        pieces = [(a, min(a + step, packed.n_rowgroup)) for a in range(0, packed.n_rowgroup, step)]
        if raw is not None:
            data = raw[weight.row_start : weight.row_start + weight.n_out].reshape(-1)
            return [pool.submit(pack_finite, packed, data, a, b) for a, b in pieces]
        return [pool.submit(_pack_rows, packed, tensor, values, weight.row_start, a, b) for a, b in pieces]

    def described(self, weight: Weight) -> Weight:
        """Return a matrix as it is held when its values are replaced: F32."""
        return replace(weight, packed="F32", source="F32")

    def packed(self, weight: Weight) -> PackedTensor:
        """Return a matrix that ``load`` was asked for."""
        return self._packed[weight]

    def values(self, weight: Weight) -> F32:
        """Return a vector as f32, padded with zeros to a multiple of 32.

        Raises:
            FormatError: it holds infinite or NaN weights.
        """
        replaced = self._replaced.get(weight.name)
        if replaced is None:
            tensor = self._source.tensors[weight.name]
            replaced = tensor.read_rows(0, tensor.n_rows).reshape(-1)
        return self._vector_values(weight, replaced)

    def table(self, weight: Weight) -> NDArray[np.uint8]:
        """Return a matrix as it is stored, u8 [n_out, bytes of a row].

        Raises:
            FormatError: it is not stored in GGML's layout.
        """
        raw = self._source.tensors[weight.name].read_raw()
        if raw is None:
            raise FormatError(f"{self._source.path}: tensor '{weight.name}' has no rows that can be looked up")
        return raw.reshape(weight.n_out, -1)

    def look_up(self, weight: Weight, ids: NDArray[np.int64]) -> F32:
        """Return rows of a matrix as f32 [n_id, n_in].

        Raises:
            FormatError: they hold infinite or NaN weights.
        """
        tensor = self._source.tensors[weight.name]
        raw = tensor.read_raw()
        if raw is not None:
            rows = dequantize(tensor.ggml_type, raw.reshape(weight.n_out, -1)[ids])
        else:
            unique, inverse = np.unique(ids, return_inverse=True)
            rows = np.concatenate([tensor.read_rows(i, i + 1) for i in unique.tolist()])[inverse]
        if not np.isfinite(rows).all():
            raise FormatError(f"{self._source.path}: {not_finite(weight.name)}")
        return rows


def _pack_rows(
    packed: PackedTensor, tensor: SourceTensor, values: F32 | None, row_start: int, group_start: int, group_stop: int
) -> None:
    """Pack row groups of an F32 matrix from a tensor's rows, or from other values for them.

    Raises:
        FormatError: they hold infinite or NaN weights.
    """
    start, stop = group_start * ROW_LANES, min(group_stop * ROW_LANES, packed.n_row)
    if values is None:
        rows = tensor.read_rows(row_start + start, row_start + stop)
    else:
        rows = values.reshape(-1, tensor.n_in)[row_start + start : row_start + stop]
    if not np.isfinite(rows).all():
        raise FormatError(not_finite(packed.name))
    n_group = group_stop - group_start
    if len(rows) < n_group * ROW_LANES:
        rows = np.concatenate([rows, np.zeros((n_group * ROW_LANES - len(rows), rows.shape[1]), np.float32)])
    packed.parts["w"][group_start:group_stop] = rows.reshape(n_group, ROW_LANES, -1).transpose(0, 2, 1)
