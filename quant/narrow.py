"""Weights of draft models made smaller in memory: blocks of 32 with a scale, as Q3_0 or Q4_0.

A draft may be anything that guesses well, and its time is its bytes. For a few steps the weights are rounded, then the
step is fitted to what they were rounded to; the best of the few is kept, by the sum of squared errors, and with it, as
it is stored, they are rounded once more.
This is the specification: ``runtime/kernels/narrow.py``, which gives the same bits, is what loads a draft.
"""

from __future__ import annotations

import numpy as np

from ..formats.ggml_types import BLOCK, GgmlType
from ..formats.record import Record
from . import encode
from .dequantize import DEQUANTIZERS, dequantize
from .floats import F32, U8, f8, half_at, to_f8

CHUNK_WEIGHTS = 1 << 16  # temporaries stay in the second-level cache


class Grid(Record):
    """What the weights of a block are rounded to: ``d`` times the integers from ``-offset`` to ``offset - 1``.

    Attributes:
        offset: what is added to make them unsigned.
        starts: how many first steps the largest weight is away from zero, in each attempt.
    """

    offset: int
    starts: tuple[float, ...]


GRIDS = {GgmlType.Q3_0: Grid(4, (3.5, 4.25, 5.0)), GgmlType.Q4_0: Grid(8, (7.5, 8.5))}


def bits_per_weight(ggml_type: GgmlType) -> float:
    """Return what a weight of a type takes."""
    n_weight, n_byte = BLOCK[ggml_type]
    return 8 * n_byte / n_weight


def can_narrow(ggml_type: GgmlType, n_in: int, target: GgmlType) -> bool:
    """Return whether rows of a type get smaller by half a bit a weight at least."""
    return (
        ggml_type in DEQUANTIZERS
        and n_in % BLOCK[target][0] == 0
        and bits_per_weight(ggml_type) > bits_per_weight(target) + 0.5
    )


def narrow(ggml_type: GgmlType, data: U8, target: GgmlType) -> U8:
    """Return whole blocks of a type as blocks of a smaller one with the same weights, roughly.

    Args:
        ggml_type: a type for which ``can_narrow`` holds.
        data: u8, whole blocks; a multiple of 32 weights.
        target: one of ``GRIDS``.

    Returns:
        u8 [n_weight // 32 * bytes of a block]. Infinite or NaN weights give an infinite or NaN scale.
    """
    n_weight, n_byte = BLOCK[ggml_type]
    blocks, step = data.reshape(-1, n_byte), CHUNK_WEIGHTS // n_weight
    parts = [np.zeros(0, np.uint8)]
    for start in range(0, len(blocks), step):
        values = dequantize(ggml_type, np.ascontiguousarray(blocks[start : start + step]).reshape(-1))
        parts.append(_blocks_of(np.asarray(values, np.float32).reshape(-1, 32), target).reshape(-1))
    return np.concatenate(parts)


def _blocks_of(x: F32, target: GgmlType) -> U8:
    """Return f32 [n, 32] as blocks. All sums go from the first weight to the last."""
    grid, n = GRIDS[target], len(x)
    peak, total = np.zeros(n, np.float32), np.zeros(n, np.float32)
    best = np.zeros(n, np.float32)
    with np.errstate(all="ignore"):
        for value in x.T:
            peak = np.where(np.abs(peak) < np.abs(value), value, peak)
            total = total + value
        d = total * np.float32(0)  # no number where a weight is none
        for start in grid.starts:
            inverse = np.where(np.abs(peak) > 0, np.float32(-start) / peak, np.float32(0))
            q = _nearest(x, inverse[:, None], grid)
            sum_qq, sum_qx = np.zeros(n, np.float32), np.zeros(n, np.float32)
            for value, quant in zip(x.T, q.T, strict=True):
                sum_qq, sum_qx = sum_qq + quant * quant, sum_qx + quant * value
            step = sum_qx / sum_qq
            gain = step * sum_qx
            is_better = best < gain
            d, best = np.where(is_better, step, d), np.where(is_better, gain, best)
        scale = to_f8(d.reshape(-1, 1)) if target is GgmlType.Q3_0 else encode.half_bytes(d.reshape(-1, 1))
        stored = f8(scale) if target is GgmlType.Q3_0 else half_at(scale, 0)
        inverse = np.where(np.abs(stored) > 0, np.float32(1) / stored, np.float32(0))
        quants = (_nearest(x, inverse, grid) + np.float32(grid.offset)).astype(np.uint8)
    return (encode.encode_q3_0 if target is GgmlType.Q3_0 else encode.encode_q4_0)(scale, quants)


def _nearest(x: F32, inverse: F32, grid: Grid) -> F32:
    """Return weights [n, 32] in steps, rounded to the grid."""
    q: F32 = np.rint(x * inverse)
    return np.minimum(np.maximum(q, np.float32(-grid.offset)), np.float32(grid.offset - 1))
