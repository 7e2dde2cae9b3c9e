"""Scales and quants of a block that make the weighted squared error small: the specification.

``runtime/kernels/scale_search.py`` computes the same bits. All arithmetic is float32, sums run over ascending
columns, nothing is fused. A block has J sub-blocks of B weights and one or two half-precision numbers; with
importance ``w`` the error is ``sum(w * (weight - x)**2)``.

1. Each sub-block alone: quants of several candidate steps, for each the best scale (and minimum) by least squares.
2. The block's numbers ``d`` (and ``m``) from the largest of them; sub-blocks get integer scales.
3. Rounds: with ``d`` and ``m`` fixed, each sub-block takes the best of the integer scales near its own, measured
   with the quants that belong to them; then ``d`` and ``m`` anew by least squares over the whole block. The
   round with the smallest error counts.

The first step is what llama.cpp's ``make_qkx3_quants`` and ``make_qx_quants`` do (with other candidates and
weights); the rounds are Lloyd's alternation (least squares for the scales, nearest points for the quants).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..formats.record import Record
from .floats import F32, U8
from .tables import IQ4_MIDDLES, IQ4_STEPS, IQ4_VALUES

ROUNDS = 3

_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)


class OffsetShape(Record):
    """Blocks of weights ``d * scale * q - m * low``.

    Attributes:
        n_sub: sub-blocks of a block.
        width: weights of a sub-block.
        q_max: quants are 0 to this.
        scale_max: integer scales and minima are 0 to this; 1 where there are none (one sub-block).
        reach: how far from its first integer scale a sub-block looks in each round; 0 with ``scale_max`` 1.
        is_signed: whether ``m`` may be negative (weights all above zero).
    """

    n_sub: int
    width: int
    q_max: int
    scale_max: int = 1
    reach: int = 0
    is_signed: bool = False

    @property
    def candidates(self) -> F32:
        """Quant steps to try, as the number of them between smallest and largest weight."""
        return (self.q_max + np.linspace(-1, 1, 11)).astype(np.float32)


class SymmetricShape(Record):
    """Blocks of weights ``d * scale * v``, with ``v`` from ``v_min`` to ``v_max`` or one of ``IQ4_VALUES``.

    Attributes:
        n_sub: sub-blocks of a block.
        width: weights of a sub-block.
        v_min: the lowest value.
        v_max: the highest value.
        scale_min: lowest integer scale; -1 where there are none (one sub-block).
        scale_max: highest integer scale; -1 where there are none.
        reach: as in ``OffsetShape``.
        is_iq4: whether values are ``IQ4_VALUES``.
    """

    n_sub: int
    width: int
    v_min: int
    v_max: int
    scale_min: int = -1
    scale_max: int = -1
    reach: int = 0
    is_iq4: bool = False

    @property
    def candidates(self) -> F32:
        """Values to try for the weight that is largest in magnitude: near either end of the range."""
        if self.is_iq4:
            low, high = self.v_min + np.linspace(-14, 14, 9), self.v_max + np.linspace(-12, 12, 5)
        elif self.n_sub == 1:  # wider: nothing later makes good what one column of great importance would have wanted
            low, high = self.v_min + np.linspace(-2, 2, 13), self.v_max + np.linspace(-1, 1, 7)
        else:
            low, high = self.v_min + np.linspace(-0.9, 0.9, 13), self.v_max + np.linspace(-0.45, 0.45, 4)
        return np.concatenate([low, high]).astype(np.float32)


class Found(Record):
    """What a search found for n blocks.

    Attributes:
        d: f32 [n], half-precision numbers.
        m: f32 [n], likewise; zeros for symmetric blocks.
        scales: i8 [n, n_sub].
        lows: u8 [n, n_sub], integer minima; zeros for symmetric blocks.
        q: u8 [n, n_sub * width]; for symmetric blocks ``v - v_min``, or the index into ``IQ4_VALUES``.
    """

    d: F32
    m: F32
    scales: NDArray[np.int8]
    lows: U8
    q: U8


class ScaleSearch(Protocol):
    """One of the implementations of the search: NumPy here, compiled kernels in ``runtime/``."""

    def offset(self, values: F32, importance: F32, shape: OffsetShape) -> Found:
        """Return blocks of f32 [n_row, n_in], rows first, for importance f32 [n_in], all positive."""

    def symmetric(self, values: F32, importance: F32, shape: SymmetricShape) -> Found:
        """Return blocks likewise."""


class NumpySearch:
    """The specification."""

    def offset(self, values: F32, importance: F32, shape: OffsetShape) -> Found:
        """See ``ScaleSearch``."""
        with np.errstate(all="ignore"):
            return _offset(*_columns(values, importance, shape.n_sub, shape.width), shape)

    def symmetric(self, values: F32, importance: F32, shape: SymmetricShape) -> Found:
        """See ``ScaleSearch``."""
        with np.errstate(all="ignore"):
            return _symmetric(*_columns(values, importance, shape.n_sub, shape.width), shape)


def _columns(values: F32, importance: F32, n_sub: int, width: int) -> tuple[F32, F32]:
    """Return weights and importance as f32 [n_sub, width, n], blocks last."""
    x = values.reshape(len(values), -1, n_sub, width).transpose(2, 3, 0, 1)  # [n_sub, width, n_row, n_block]
    w = importance.reshape(-1, n_sub, width).transpose(1, 2, 0)[:, :, None]  # [n_sub, width, 1, n_block]
    shape = (n_sub, width, -1)
    return np.ascontiguousarray(x).reshape(shape), np.ascontiguousarray(np.broadcast_to(w, x.shape)).reshape(shape)


def _total(terms: F32) -> F32:
    """Return the sum over the first dimension, one after the other."""
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total = total + term
    return total


def _half(value: NDArray[Any]) -> F32:
    """Return the nearest half-precision number; never a negative zero."""
    half: F32 = value.astype(np.float16).astype(np.float32) + _ZERO
    return half


def _clip(value: F32, low: np.float32, high: np.float32) -> F32:
    """Return the nearest number from ``low`` to ``high``; ``low`` for a NaN."""
    raised = np.where(value > low, value, low)
    return np.where(raised < high, raised, high)


def _inverse(value: F32) -> F32:
    return np.where(np.abs(value) > 0, _ONE / value, _ZERO)


# ---- weights d * scale * q - m * low ------------------------------------------------------------


def _offset_quants(x: F32, inverse: F32, low: F32, q_max: np.float32) -> F32:
    return _clip(np.rint((x + low) * inverse), _ZERO, q_max)


def _offset_alone(x: F32, w: F32, shape: OffsetShape, sum_w: F32, sum_wx: F32) -> tuple[F32, F32]:
    """Return the best scale and minimum of one sub-block ``x, w [width, n]``, each [n]."""
    least = -_INFINITY if shape.is_signed else _ZERO
    smallest, largest = np.full_like(sum_w, -least), np.full_like(sum_w, -_INFINITY)
    for row in x:
        smallest, largest = np.where(row < smallest, row, smallest), np.where(row > largest, row, largest)
    span = np.where(largest - smallest > 0, largest - smallest, _ONE)
    scale, low, best = np.zeros_like(sum_w), -smallest, np.full_like(sum_w, -_INFINITY)
    for candidate in shape.candidates:
        q = _offset_quants(x, candidate / span, -smallest, np.float32(shape.q_max))
        wq = w * q
        sum_q, sum_qq, sum_xq = _total(wq), _total(wq * q), _total(wq * x)
        det = sum_w * sum_qq - sum_q * sum_q
        new_scale = (sum_w * sum_xq - sum_wx * sum_q) / det
        new_low = (sum_q * sum_xq - sum_qq * sum_wx) / det
        is_below = new_low < least
        new_scale, new_low = np.where(is_below, sum_xq / sum_qq, new_scale), np.where(is_below, _ZERO, new_low)
        gain = np.where(det > 0, new_scale * sum_xq - new_low * sum_wx, -_INFINITY)
        is_better = best < gain
        scale, low = np.where(is_better, new_scale, scale), np.where(is_better, new_low, low)
        best = np.where(is_better, gain, best)
    return scale, low


def _offset(x: F32, w: F32, shape: OffsetShape) -> Found:
    n_sub, _, n = x.shape
    subs = range(n_sub)
    top, q_max = np.float32(shape.scale_max), np.float32(shape.q_max)
    least = -_INFINITY if shape.is_signed else _ZERO
    sum_w, sum_wx = [_total(w[j]) for j in subs], [_total(w[j] * x[j]) for j in subs]
    alone = [_offset_alone(x[j], w[j], shape, sum_w[j], sum_wx[j]) for j in subs]
    scale_max, low_max = np.full(n, -_INFINITY, np.float32), np.full(n, -_INFINITY, np.float32)
    for scale, low in alone:
        scale_max, low_max = np.where(scale > scale_max, scale, scale_max), np.where(low > low_max, low, low_max)
    d, m = _half(scale_max / top), _half(low_max / top)
    first = (_inverse(d), _inverse(m))
    scales = [_clip(np.rint(scale * first[0]), _ZERO, top) for scale, _ in alone]
    lows = [_clip(np.rint(low * first[1]), _ZERO, top) for _, low in alone]
    best, kept = np.full(n, _INFINITY, np.float32), (d, m, scales, lows)
    for _ in range(ROUNDS):
        total = np.zeros(n, np.float32)
        sums = [np.zeros(n, np.float32) for _ in range(5)]
        for j in subs:
            scales[j], lows[j], error = _offset_near(x[j], w[j], shape, (d, m), (scales[j], lows[j]))
            total = total + error
            _offset_normal_sums(sums, x[j], w[j], (d, m, scales[j], lows[j]), (sum_w[j], sum_wx[j]), q_max)
        is_better = total < best
        best = np.where(is_better, total, best)
        kept = (
            np.where(is_better, d, kept[0]),
            np.where(is_better, m, kept[1]),
            [np.where(is_better, a, b) for a, b in zip(scales, kept[2], strict=True)],
            [np.where(is_better, a, b) for a, b in zip(lows, kept[3], strict=True)],
        )
        aa, ab, bb, ax, bx = sums
        det = aa * bb - ab * ab
        new_d, new_m = (bb * ax - ab * bx) / det, (ab * ax - aa * bx) / det
        is_sound = (det > 0) & (new_d > 0) & (new_m > least)
        d, m = np.where(is_sound, _half(new_d), d), np.where(is_sound, _half(new_m), m)
    d, m, scales, lows = kept
    quants = [_offset_quants(x[j], _inverse(d * scales[j]), m * lows[j], q_max) for j in subs]
    return Found(
        d, m, np.stack(scales, axis=1).astype(np.int8), np.stack(lows, axis=1).astype(np.uint8),
        np.concatenate(quants).T.astype(np.uint8),
    )  # fmt: skip


def _offset_near(
    x: F32, w: F32, shape: OffsetShape, block: tuple[F32, F32], start: tuple[F32, F32]
) -> tuple[F32, F32, F32]:
    """Return the best integer scale and minimum near ``start``, and the error with them; each [n]."""
    top, q_max = np.float32(shape.scale_max), np.float32(shape.q_max)
    best, best_scale, best_low = np.full_like(block[0], _INFINITY), *start
    for scale_step in range(-shape.reach, shape.reach + 1):
        scale = _clip(start[0] + np.float32(scale_step), _ZERO, top)
        step = block[0] * scale
        inverse = _inverse(step)
        for low_step in range(-shape.reach, shape.reach + 1):
            low = _clip(start[1] + np.float32(low_step), _ZERO, top)
            offset = block[1] * low
            diff = (step * _offset_quants(x, inverse, offset, q_max) - offset) - x
            error = _total((w * diff) * diff)
            is_better = error < best
            best = np.where(is_better, error, best)
            best_scale, best_low = np.where(is_better, scale, best_scale), np.where(is_better, low, best_low)
    return best_scale, best_low, best


def _offset_normal_sums(
    sums: list[F32], x: F32, w: F32, chosen: tuple[F32, F32, F32, F32], known: tuple[F32, F32], q_max: np.float32
) -> None:
    """Add one sub-block's part of the normal equations of d and m."""
    d, m, scale, low = chosen
    q = _offset_quants(x, _inverse(d * scale), m * low, q_max)
    wq = w * q
    sum_q, sum_qq, sum_xq = _total(wq), _total(wq * q), _total(wq * x)
    parts = (scale * scale * sum_qq, scale * low * sum_q, low * low * known[0], scale * sum_xq, low * known[1])
    for i, part in enumerate(parts):
        sums[i] = sums[i] + part


# ---- weights d * scale * v ------------------------------------------------------------------------


def _nearest(y: F32, shape: SymmetricShape) -> F32:
    """Return the nearest values to ``y``."""
    if not shape.is_iq4:
        return _clip(np.rint(y), np.float32(shape.v_min), np.float32(shape.v_max))
    value = np.full_like(y, shape.v_min)
    for middle, step in zip(IQ4_MIDDLES, IQ4_STEPS, strict=True):
        value = value + np.where(y > np.float32(middle), np.float32(step), _ZERO)
    return value


def _symmetric_alone(x: F32, w: F32, shape: SymmetricShape) -> F32:
    """Return the best scale of one sub-block ``x, w [width, n]``, f32 [n]."""
    peak, size = np.zeros(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    for row in x:
        is_larger = size < np.abs(row)
        peak, size = np.where(is_larger, row, peak), np.where(is_larger, np.abs(row), size)
    inverse = _inverse(peak)
    scale, best = np.zeros_like(peak), np.full_like(peak, -_INFINITY)
    for candidate in shape.candidates:
        v = _nearest(x * (candidate * inverse), shape)
        wv = w * v
        sum_vv, sum_xv = _total(wv * v), _total(wv * x)
        new_scale = sum_xv / sum_vv
        gain = np.where(sum_vv > 0, new_scale * sum_xv, -_INFINITY)
        is_better = best < gain
        scale, best = np.where(is_better, new_scale, scale), np.where(is_better, gain, best)
    return scale


def _symmetric(x: F32, w: F32, shape: SymmetricShape) -> Found:
    n_sub, _, n = x.shape
    subs = range(n_sub)
    bounds = np.float32(shape.scale_min), np.float32(shape.scale_max)
    alone = [_symmetric_alone(x[j], w[j], shape) for j in subs]
    peak: F32 = np.zeros(n, np.float32)
    size: F32 = np.zeros(n, np.float32)
    for scale in alone:
        is_larger = size < np.abs(scale)
        peak, size = np.where(is_larger, scale, peak), np.where(is_larger, np.abs(scale), size)
    d = _half(peak / bounds[0])
    inverse = _inverse(d)
    scales = [_clip(np.rint(scale * inverse), *bounds) for scale in alone]
    best, kept = np.full(n, _INFINITY, np.float32), (d, scales)
    for _ in range(ROUNDS):
        total, sum_aa, sum_ax = (np.zeros(n, np.float32) for _ in range(3))
        for j in subs:
            scales[j], error = _symmetric_near(x[j], w[j], shape, d, scales[j])
            total = total + error
            v = _nearest(x[j] * _inverse(d * scales[j]), shape)
            wv = w[j] * v
            sum_aa = sum_aa + scales[j] * scales[j] * _total(wv * v)
            sum_ax = sum_ax + scales[j] * _total(wv * x[j])
        is_better = total < best
        best, d_kept = np.where(is_better, total, best), np.where(is_better, d, kept[0])
        kept = (d_kept, [np.where(is_better, a, b) for a, b in zip(scales, kept[1], strict=True)])
        d = np.where(sum_aa > 0, _half(sum_ax / sum_aa), d)
    d, scales = kept
    values = np.concatenate([_nearest(x[j] * _inverse(d * scales[j]), shape) for j in subs])
    q = np.searchsorted(np.array(IQ4_VALUES), values) if shape.is_iq4 else values - shape.v_min
    return Found(
        d, np.zeros_like(d), np.stack(scales, axis=1).astype(np.int8), np.zeros((n, n_sub), np.uint8),
        q.T.astype(np.uint8),
    )  # fmt: skip


def _symmetric_near(x: F32, w: F32, shape: SymmetricShape, d: F32, start: F32) -> tuple[F32, F32]:
    """Return the best integer scale near ``start`` and the error with it, each [n]."""
    best, best_scale = np.full_like(d, _INFINITY), start
    for scale_step in range(-shape.reach, shape.reach + 1):
        scale = _clip(start + np.float32(scale_step), np.float32(shape.scale_min), np.float32(shape.scale_max))
        step = d * scale
        diff = step * _nearest(x * _inverse(step), shape) - x
        error = _total((w * diff) * diff)
        is_better = error < best
        best, best_scale = np.where(is_better, error, best), np.where(is_better, scale, best_scale)
    return best_scale, best
