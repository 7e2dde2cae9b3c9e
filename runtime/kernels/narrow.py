"""Narrowing as kernels: f32 rows into the packed parts of Q3_0 and Q4_0, the compiled form of ``quant/narrow.py``.

16 rows are the lanes. Record words after the two that all share (the number of rows, word 1, is not used):

2 x (f32 rows), 3 bytes of a row, 4 row groups, 5 blocks of a row, 6, 7 quants and scales, as ``quant/pack_format.py``
has them, of the first row group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...formats.ggml_types import GgmlType
from ...quant.narrow import GRIDS
from ..simd.compiler import Kernel
from ..simd.f8 import load_f8x16, store_f8x16
from ..simd.isa import Target
from ..simd.scalar import load_i64, stack_bytes
from ..simd.vector import (
    absolute, add, and_i32, as_f32, device, div, f32x16, i32x16, int64, load_f16x16, load_f32x16, load_strided,
    maximum, minimum, mul, or_i32, round_even, shift_left, shift_right, splat, splat_i32, store_f16x16, store_f32x16,
    to_i32, void, where_less,
)  # fmt: skip
from .rows import first_unit

_ZERO, _ONE = np.float32(0), np.float32(1)
_LINE = 64  # bytes of 16 lanes
_block_memory = stack_bytes(32 * _LINE)


@device(void(int64, i32x16))
def _store_words(address, words):
    store_f32x16(address, as_f32(words))


@device(i32x16(int64, int64))
def _vector(lines, k):
    """Return the quants of columns ``4k`` to ``4k + 3``, a byte each."""
    words = splat_i32(0)
    for c in range(4):
        words = or_i32(words, shift_left(to_i32(load_f32x16(lines + _LINE * (4 * k + c))), 8 * c))
    return words


@device(void(int64, int64))
def _put_q3(lines, q33):
    """Pack 32 columns of quants 0 to 7, a line each."""
    rest = or_i32(_vector(lines, 6), shift_left(_vector(lines, 7), 3))
    for v in range(3):
        words = or_i32(_vector(lines, 2 * v), shift_left(_vector(lines, 2 * v + 1), 3))
        high = shift_left(and_i32(shift_right(rest, 2 * v), 0x03030303), 6)
        _store_words(q33 + _LINE * v, or_i32(words, high))


@device(void(int64, int64))
def _put_q4(lines, q4):
    """Pack 32 columns of quants 0 to 15, a line each."""
    for v in range(4):
        _store_words(q4 + _LINE * v, or_i32(_vector(lines, 2 * v), shift_left(_vector(lines, 2 * v + 1), 4)))


# How quants and scales are stored and loaded, and the bytes of each in a group.
_PUT: dict[str, tuple[Any, int]] = {"Q3_0": (_put_q3, 192), "Q4_0": (_put_q4, 256)}
_SCALE: dict[str, tuple[Any, Any, int]] = {
    "Q3_0": (load_f8x16, store_f8x16, 16), "Q4_0": (load_f16x16, store_f16x16, 32),
}  # fmt: skip


def narrow_kernel(name: str, _target: Target) -> Kernel:
    """Return the narrowing to one type."""
    grid, (put, group_bytes), (load_scale, store_scale, scale_bytes) = GRIDS[GgmlType[name]], _PUT[name], _SCALE[name]
    lowest, highest, offset = np.float32(-grid.offset), np.float32(grid.offset - 1), np.float32(grid.offset)
    starts = tuple(np.float32(-start) for start in grid.starts)

    @device(f32x16(f32x16, f32x16))
    def nearest(value, inverse):
        return minimum(maximum(round_even(mul(value, inverse)), splat(lowest)), splat(highest))

    @device(void(int64, int64, int64))
    def narrow_block(lines, q, d):
        """Narrow 32 columns, a line each, which are overwritten."""
        peak = total = splat(_ZERO)
        for column in range(32):
            value = load_f32x16(lines + _LINE * column)
            peak = where_less(absolute(peak), absolute(value), value, peak)
            total = add(total, value)
        scale, best = mul(total, splat(_ZERO)), splat(_ZERO)
        for start in starts:
            inverse = where_less(splat(_ZERO), absolute(peak), div(splat(start), peak), splat(_ZERO))
            sum_qq = sum_qx = splat(_ZERO)
            for column in range(32):
                value = load_f32x16(lines + _LINE * column)
                quant = nearest(value, inverse)
                sum_qq, sum_qx = add(sum_qq, mul(quant, quant)), add(sum_qx, mul(quant, value))
            step = div(sum_qx, sum_qq)
            gain = mul(step, sum_qx)
            scale = where_less(best, gain, step, scale)
            best = where_less(best, gain, gain, best)
        store_scale(d, scale)
        stored = load_scale(d)
        inverse = where_less(splat(_ZERO), absolute(stored), div(splat(_ONE), stored), splat(_ZERO))
        for column in range(32):
            quant = nearest(load_f32x16(lines + _LINE * column), inverse)
            store_f32x16(lines + _LINE * column, add(quant, splat(offset)))
        put(lines, q)

    def narrow(record, batch, worker, n_worker):
        x, row_bytes, n_rowgroup = load_i64(record + 16), load_i64(record + 24), load_i64(record + 32)
        n_block, q, d = load_i64(record + 40), load_i64(record + 48), load_i64(record + 56)
        lines = _block_memory()
        for g in range(first_unit(n_rowgroup, worker, n_worker), first_unit(n_rowgroup, worker + 1, n_worker)):
            for block in range(n_block):
                source = x + 16 * row_bytes * g + 128 * block
                for column in range(32):
                    store_f32x16(lines + _LINE * column, load_strided(source + 4 * column, row_bytes))
                place = n_block * g + block
                narrow_block(lines, q + group_bytes * place, d + scale_bytes * place)

    return Kernel(f"narrow_{name.lower()}", void(*[int64] * 4), narrow)
