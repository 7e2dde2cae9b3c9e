"""Matrices that are already integers: GPTQ, AWQ and compressed-tensors layouts, read row by row.

All of them mean ``weight = scale[group] * (q - zero[group])`` with a scale and a zero point for every row and
group of columns. They differ in where the integers lie:

===================  =====================================================================================
tensor               layout
===================  =====================================================================================
GPTQ  qweight        i32 [n_in * bits / 32, n_out]: the integers of a word are consecutive *inputs*
GPTQ  qzeros         i32 [n_group, n_out * bits / 32]: consecutive outputs; version 1 stores the zero point - 1
GPTQ  scales, g_idx  f16 [n_group, n_out]; i32 [n_in], the group of every input (``desc_act`` scatters them)
AWQ   qweight        i32 [n_in, n_out / 8]: eight *outputs* in the order 0 2 4 6 1 3 5 7; qzeros likewise
AWQ   scales         f16 [n_group, n_out]
CT    weight_packed  i32 [n_out, n_in * bits / 32]: consecutive inputs, offset by 2 ** (bits - 1)
CT    weight_scale   f16 or bf16 [n_out, n_group]; weight_g_idx as in GPTQ
CT    zero_point     i32 [n_out * bits / 32, n_group]: consecutive outputs; absent when symmetric
===================  =====================================================================================

Source: AutoGPTQ ``qlinear_cuda.py``, AutoAWQ ``packing_utils.py``, compressed-tensors ``pack_quantized.py``.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...formats.record import Record

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

_AWQ_PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of output i among the eight of a word


class Grid(Record):
    """Rows of a matrix of integers.

    Attributes:
        q: i32 ``[n_row, n_in]``, 0 to 2 ** bits - 1.
        zero: i32 ``[n_row, n_group]``.
        scale: f32 ``[n_row, n_group]``.
        group: group of every column, ``[n_in]``.
    """

    q: I32
    zero: I32
    scale: F32
    group: NDArray[np.int64]

    def values(self) -> F32:
        """Return the weights, f32 ``[n_row, n_in]``: the integer part exact, one rounding."""
        steps = (self.q - self.zero[:, self.group]).astype(np.float32)
        return steps * self.scale[:, self.group]


class GridReader(Protocol):
    """One matrix of a checkpoint in one of the layouts."""

    bits: int
    group: NDArray[np.int64]  # [n_in]

    def rows(self, index: NDArray[np.int64]) -> Grid:
        """Return the rows with these numbers, in that order."""
        ...

    def scales_and_zeros(self, index: NDArray[np.int64]) -> tuple[F32, I32]:
        """Return only scales and zero points, ``[n_row, n_group]`` each."""
        ...


def _unpack(words: NDArray[Any], shift: NDArray[Any] | int, bits: int) -> I32:
    """Return ``bits`` bits of every word, from bit ``shift`` on."""
    unpacked: I32 = ((words.astype(np.uint32) >> np.asarray(shift, np.uint32)) & np.uint32((1 << bits) - 1)).astype(
        np.int32
    )
    return unpacked


class Gptq(Record, frozen=False):
    """GPTQ's layout. Arrays are views of the mapped file."""

    qweight: NDArray[Any]
    qzeros: NDArray[Any]
    scales: NDArray[Any]
    group: NDArray[np.int64]
    bits: int
    zero_offset: int  # 1 in version 1 of the format, 0 in version 2

    def rows(self, index: NDArray[np.int64]) -> Grid:
        """Return some rows."""
        n_per_word = 32 // self.bits
        shifts = (np.arange(n_per_word) * self.bits)[None, :, None]
        words = self.qweight[:, index]  # [n_in / n_per_word, n_row]
        q = _unpack(words[:, None, :], shifts, self.bits).reshape(-1, len(index))  # [n_in, n_row]
        scale, zero = self.scales_and_zeros(index)
        return Grid(np.ascontiguousarray(q.T), zero, scale, self.group)

    def scales_and_zeros(self, index: NDArray[np.int64]) -> tuple[F32, I32]:
        """Return scales and zero points of some rows; a stored 2 ** bits - 1 is the -1 of a zero point of 0."""
        n_per_word = 32 // self.bits
        zero = _unpack(self.qzeros[:, index // n_per_word], (index % n_per_word) * self.bits, self.bits)
        zero = (zero + self.zero_offset) & ((1 << self.bits) - 1)
        return _f32(self.scales[:, index]).T, zero.T


class Awq(Record, frozen=False):
    """AWQ's layout for matrix products ("gemm")."""

    qweight: NDArray[Any]
    qzeros: NDArray[Any]
    scales: NDArray[Any]
    group: NDArray[np.int64]
    bits: int = 4

    def rows(self, index: NDArray[np.int64]) -> Grid:
        """Return some rows."""
        q = _unpack(self.qweight[:, index // 8], _AWQ_PLACE[index % 8] * 4, 4)  # [n_in, n_row]
        scale, zero = self.scales_and_zeros(index)
        return Grid(np.ascontiguousarray(q.T), zero, scale, self.group)

    def scales_and_zeros(self, index: NDArray[np.int64]) -> tuple[F32, I32]:
        """Return scales and zero points of some rows."""
        zero = _unpack(self.qzeros[:, index // 8], _AWQ_PLACE[index % 8] * 4, 4)
        return _f32(self.scales[:, index]).T, zero.T


class CompressedTensors(Record, frozen=False):
    """The ``pack-quantized`` layout of compressed-tensors."""

    packed: NDArray[Any]
    scale: NDArray[Any]
    zero_point: NDArray[Any] | None
    group: NDArray[np.int64]
    bits: int
    is_bf16: bool

    def rows(self, index: NDArray[np.int64]) -> Grid:
        """Return some rows."""
        shifts = np.arange(32 // self.bits) * self.bits
        q = _unpack(self.packed[index][:, :, None], shifts, self.bits).reshape(len(index), -1)
        scale, zero = self.scales_and_zeros(index)
        return Grid(np.ascontiguousarray(q[:, : len(self.group)]), zero, scale, self.group)

    def scales_and_zeros(self, index: NDArray[np.int64]) -> tuple[F32, I32]:
        """Return scales and zero points of some rows."""
        raw = self.scale[index]
        scale = (raw.astype(np.uint32) << 16).view(np.float32) if self.is_bf16 else _f32(raw)
        if self.zero_point is None:
            return scale, np.full(scale.shape, 1 << (self.bits - 1), np.int32)
        n_per_word = 32 // self.bits
        shifts = ((index % n_per_word) * self.bits)[:, None]
        return scale, _unpack(self.zero_point[index // n_per_word], shifts, self.bits)


def _f32(values: NDArray[Any]) -> F32:
    return values.astype(np.float32)
