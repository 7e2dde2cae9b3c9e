"""Tensors of a checkpoint as a GGUF file has them: row order, shifts and types changed as they are read.

``names.py`` says which tensor is which; ``packed.py`` makes the ones that are already integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError
from ...formats.ggml_types import GgmlType
from ...formats.hf_checkpoint import HfCheckpoint
from ...formats.safetensors import SafeTensor

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_SAME_TYPE = {"F32": GgmlType.F32, "F16": GgmlType.F16, "BF16": GgmlType.BF16}


def _f8_table(n_exponent: int, bias: int, has_infinity: bool) -> F32:
    """Return the values of the 256 codes of an 8-bit float (arXiv 2209.05433, table 1)."""
    code = np.arange(256)
    n_mantissa = 7 - n_exponent
    exponent, mantissa = (code >> n_mantissa) & ((1 << n_exponent) - 1), code & ((1 << n_mantissa) - 1)
    fraction = mantissa / (1 << n_mantissa)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if has_infinity:
        top = exponent == (1 << n_exponent) - 1
        value = np.where(top, np.where(mantissa == 0, np.inf, np.nan), value)
    else:
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    signed: F32 = np.where(code >> 7, -value, value).astype(np.float32)
    return signed


_F8 = {"F8_E4M3": _f8_table(4, 7, False), "F8_E5M2": _f8_table(5, 15, True)}


def to_f32(dtype: str, values: NDArray[Any]) -> F32:
    """Return elements in their ``STORAGE`` type as a fresh f32 array; f64 beyond f32 become infinite."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype in _F8:
        looked_up: F32 = _F8[dtype][values]
        return looked_up
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


FLOATS = frozenset({"F64", "F32", "F16", "BF16", *_F8})


def rope_order(n_row: int, n_embd_head: int) -> NDArray[np.int64]:
    """Return which row of a checkpoint's q or k is which of GGUF's llama: pairs (i, i + half) become neighbours."""
    within = np.arange(n_embd_head).reshape(2, -1).T.reshape(-1)
    return (np.arange(0, n_row, n_embd_head)[:, None] + within).reshape(-1)


class ConvertedTensor:
    """One tensor of the GGUF file to be.

    Attributes:
        name: in GGUF.
        shape: slowest dimension first.
        ggml_type: type that holds the source exactly.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType

    def __init__(self, name: str, shape: tuple[int, ...], ggml_type: GgmlType, order: NDArray[np.int64] | None) -> None:
        self.name, self.shape, self.ggml_type = name, shape, ggml_type
        self._order = order  # row of the checkpoint for every row of the file

    def read_rows(self, start: int, stop: int) -> F32:
        """Return some rows (of a vector: the whole, as one row), f32 ``[stop - start, n_in]``.

        Raises:
            FormatError: the source cannot be read any more.
        """
        raise NotImplementedError

    def read_raw(self, start: int, stop: int) -> U8:
        """Return the bytes of some rows in ``ggml_type``, u8 ``[stop - start, n_row_bytes]``.

        Raises:
            FormatError: the source cannot be read any more.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Drop resident pages of the source."""


class MadeTensor(ConvertedTensor):
    """A tensor that is computed from the configuration."""

    def __init__(self, name: str, values: F32) -> None:
        super().__init__(name, values.shape, GgmlType.F32, None)
        self._values = values

    def read_rows(self, start: int, stop: int) -> F32:
        """Return some rows."""
        return self._values.reshape(-1, self.shape[-1])[start:stop].copy()

    def read_raw(self, start: int, stop: int) -> U8:
        """Return the bytes of some rows."""
        return self.read_rows(start, stop).view(np.uint8)


class PlainTensor(ConvertedTensor):
    """A tensor of floats, with rows in another order and a constant added where GGUF wants it so.

    Vectors and shifted ones are F32: GGUF has no other vectors.
    """

    def __init__(
        self,
        checkpoint: HfCheckpoint,
        tensor: SafeTensor,
        name: str,
        order: NDArray[np.int64] | None = None,
        shift: float = 0.0,
    ) -> None:
        if tensor.dtype not in FLOATS:
            raise FormatError(f"{checkpoint.where(tensor.name)} has dtype {tensor.dtype}, expected floats for {name}")
        is_kept = len(tensor.shape) > 1 and not shift
        super().__init__(name, tensor.shape, _SAME_TYPE.get(tensor.dtype, GgmlType.F32), order)
        if not is_kept:
            self.ggml_type = GgmlType.F32
        self._checkpoint, self._tensor, self._shift = checkpoint, tensor, shift

    def _elements(self, start: int, stop: int) -> NDArray[Any]:
        name = self._tensor.name
        if len(self.shape) == 1:
            values = self._checkpoint.rows(name)
            values = values if self._order is None else values[self._order]
            return values.reshape(1, -1)[start:stop]
        if self._order is None:
            return self._checkpoint.rows(name, start, stop)
        index = self._order[start:stop]
        first = int(index.min()) if len(index) else 0  # rows move within a head: they are near each other
        return self._checkpoint.rows(name, first, int(index.max()) + 1 if len(index) else 0)[index - first]

    def read_rows(self, start: int, stop: int) -> F32:
        """Return some rows."""
        values = to_f32(self._tensor.dtype, self._elements(start, stop))
        return values + np.float32(self._shift) if self._shift else values

    def read_raw(self, start: int, stop: int) -> U8:
        """Return the bytes of some rows."""
        if self.ggml_type == GgmlType.F32:
            return self.read_rows(start, stop).view(np.uint8)
        return np.ascontiguousarray(self._elements(start, stop)).view(np.uint8)

    def release(self) -> None:
        """Drop resident pages of the source."""
        self._checkpoint.release(self._tensor.name)


class ScaledTensor(PlainTensor):
    """A matrix of 8-bit floats with a scale for the whole, for each row, or for each block of rows and columns."""

    def __init__(
        self,
        checkpoint: HfCheckpoint,
        tensor: SafeTensor,
        name: str,
        scale: F32,
        block: tuple[int, int],
        order: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(checkpoint, tensor, name, order)
        self.ggml_type = GgmlType.F32
        self._scale, self._block = scale, block

    def read_rows(self, start: int, stop: int) -> F32:
        """Return some rows."""
        index = np.arange(start, stop) if self._order is None else self._order[start:stop]
        columns = np.arange(self.shape[1]) // self._block[1]
        return super().read_rows(start, stop) * self._scale[index // self._block[0]][:, columns]
