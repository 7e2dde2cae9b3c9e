"""Scales and quants of blocks: the compiled form of ``quant/scale_search.py``, which says what is computed.

16 rows are the lanes. Words of the record of a search (its batch is not used):

====  ==========================================================================================
2-4   groups of 16 rows, blocks of a row, x (f32 rows)
5-6   row bytes of x, importance (f32, one per column)
7-8   sub-blocks of a block, weights of a sub-block
9-11  offset: highest quant, highest integer scale, least minimum; symmetric: lowest and highest value, lowest
      integer scale (all f32 bits in the low half)
12    reach
13    candidates (f32)
14    number of candidates
15-19 results: d (f32), m (f32; symmetric: not used), scales (i8), minima (u8; not used likewise), quants (u8)
20    symmetric: highest integer scale
21    rounds
====  ==========================================================================================

Results of block b of row r are at place ``r * n_block + b``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...quant.tables import IQ4_MIDDLES, IQ4_STEPS
from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.lower import F32X16, constant
from ..simd.scalar import load_i64, stack_bytes
from ..simd.vector import (
    absolute, add, broadcast_f32, device, div, f32x16, int64, load_f32x16, load_strided, maximum, minimum, mul,
    operation, round_even, round_half, round_to_i32, splat, splat_i32, store_f32x16, store_strided, store_strided_i8,
    sub, to_f32, void, where_less,
)  # fmt: skip

_OP = void(*[int64] * 4)
_ZERO, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
MAX_SUB = 16
_LINE = 64  # bytes of 16 lanes
# Places in the scratch memory of one block: weights by column, then one line per sub-block of
_X, _SUM_W, _SUM_WX = 0, 256 * _LINE, (256 + MAX_SUB) * _LINE
_SCALE, _LOW = (256 + 2 * MAX_SUB) * _LINE, (256 + 3 * MAX_SUB) * _LINE
_KEPT_SCALE, _KEPT_LOW = (256 + 4 * MAX_SUB) * _LINE, (256 + 5 * MAX_SUB) * _LINE
# ... and single lines: the block's numbers, those kept, errors, and sums of the normal equations.
_D, _M, _KEPT_D, _KEPT_M, _BEST, _TOTAL, _SUMS = ((256 + 6 * MAX_SUB + i) * _LINE for i in range(7))
_scratch_memory = stack_bytes(_SUMS + 5 * _LINE)
_WORD = 8  # bytes of a record's word


@device(f32x16(f32x16, f32x16, f32x16))
def clip(value, low, high):
    """Return the nearest number from ``low`` to ``high``; ``low`` for a NaN."""
    return minimum(maximum(value, low), high)


@device(f32x16(f32x16))
def inverse_of(value):
    """Return ``1 / value``, 0 for 0."""
    return where_less(splat(_ZERO), absolute(value), div(splat(_ONE), value), splat(_ZERO))


@device(f32x16(f32x16))
def half(value):
    """Return the nearest half-precision number; never a negative zero."""
    return add(round_half(value), splat(_ZERO))


@device(void(int64, int64, int64, int64))
def load_block(scratch, x, row_bytes, n_column):
    """Copy one block of 16 rows, a line per column."""
    for column in range(n_column):
        store_f32x16(scratch + _X + _LINE * column, load_strided(x + 4 * column, row_bytes))


@device(void(int64, f32x16))
def add_to(address, value):
    """Add to a line."""
    store_f32x16(address, add(load_f32x16(address), value))


# ---- weights d * scale * q - m * low ------------------------------------------------------------


@device(f32x16(f32x16, f32x16, f32x16, f32x16))
def offset_quants(x, inverse, low, q_max):
    """Return the nearest quants."""
    return clip(round_even(mul(add(x, low), inverse)), splat(_ZERO), q_max)


@device(void(int64, int64, int64, int64, int64), is_inlined=False)
def offset_alone(record, scratch, x, w, j):
    """Find one sub-block's best scale and minimum; also keep its sums that do not depend on quants."""
    width, n_candidate = load_i64(record + _WORD * 8), load_i64(record + _WORD * 14)
    q_max, least = broadcast_f32(record + _WORD * 9), broadcast_f32(record + _WORD * 11)
    sum_w = sum_wx = splat(_ZERO)
    smallest, largest = sub(splat(_ZERO), least), splat(-_INFINITY)
    for i in range(width):
        value, weight = load_f32x16(x + _LINE * i), broadcast_f32(w + 4 * i)
        sum_w, sum_wx = add(sum_w, weight), add(sum_wx, mul(weight, value))
        smallest, largest = minimum(value, smallest), maximum(value, largest)
    span = sub(largest, smallest)
    span = where_less(splat(_ZERO), span, span, splat(_ONE))
    scale, low, best = splat(_ZERO), sub(splat(_ZERO), smallest), splat(-_INFINITY)
    start = low
    for candidate in range(n_candidate):
        inverse = div(broadcast_f32(load_i64(record + _WORD * 13) + 4 * candidate), span)
        sum_q = sum_qq = sum_xq = splat(_ZERO)
        for i in range(width):
            value = load_f32x16(x + _LINE * i)
            q = offset_quants(value, inverse, start, q_max)
            weighted = mul(broadcast_f32(w + 4 * i), q)
            sum_q, sum_qq = add(sum_q, weighted), add(sum_qq, mul(weighted, q))
            sum_xq = add(sum_xq, mul(weighted, value))
        det = sub(mul(sum_w, sum_qq), mul(sum_q, sum_q))
        new_scale = div(sub(mul(sum_w, sum_xq), mul(sum_wx, sum_q)), det)
        new_low = div(sub(mul(sum_q, sum_xq), mul(sum_qq, sum_wx)), det)
        new_scale = where_less(new_low, least, div(sum_xq, sum_qq), new_scale)
        new_low = where_less(new_low, least, splat(_ZERO), new_low)
        gain = sub(mul(new_scale, sum_xq), mul(new_low, sum_wx))
        gain = where_less(splat(_ZERO), det, gain, splat(-_INFINITY))
        scale, low = where_less(best, gain, new_scale, scale), where_less(best, gain, new_low, low)
        best = where_less(best, gain, gain, best)
    store_f32x16(scratch + _SUM_W + _LINE * j, sum_w)
    store_f32x16(scratch + _SUM_WX + _LINE * j, sum_wx)
    store_f32x16(scratch + _SCALE + _LINE * j, scale)
    store_f32x16(scratch + _LOW + _LINE * j, low)


@device(void(int64, int64, int64, int64, int64), is_inlined=False)
def offset_near(record, scratch, x, w, j):
    """Move one sub-block to its best integer scale and minimum nearby; add its error and its normal sums."""
    width, reach = load_i64(record + _WORD * 8), load_i64(record + _WORD * 12)
    q_max, top = broadcast_f32(record + _WORD * 9), broadcast_f32(record + _WORD * 10)
    d, m = load_f32x16(scratch + _D), load_f32x16(scratch + _M)
    start_scale, start_low = load_f32x16(scratch + _SCALE + _LINE * j), load_f32x16(scratch + _LOW + _LINE * j)
    best, best_scale, best_low = splat(_INFINITY), start_scale, start_low
    for scale_step in range(-reach, reach + 1):
        scale = clip(add(start_scale, to_f32(splat_i32(scale_step))), splat(_ZERO), top)
        step = mul(d, scale)
        inverse = inverse_of(step)
        for low_step in range(-reach, reach + 1):
            low = clip(add(start_low, to_f32(splat_i32(low_step))), splat(_ZERO), top)
            offset = mul(m, low)
            error = splat(_ZERO)
            for i in range(width):
                value = load_f32x16(x + _LINE * i)
                diff = sub(sub(mul(step, offset_quants(value, inverse, offset, q_max)), offset), value)
                error = add(error, mul(mul(broadcast_f32(w + 4 * i), diff), diff))
            best_scale = where_less(error, best, scale, best_scale)
            best_low = where_less(error, best, low, best_low)
            best = where_less(error, best, error, best)
    add_to(scratch + _TOTAL, best)
    store_f32x16(scratch + _SCALE + _LINE * j, best_scale)
    store_f32x16(scratch + _LOW + _LINE * j, best_low)
    inverse, offset = inverse_of(mul(d, best_scale)), mul(m, best_low)
    sum_q = sum_qq = sum_xq = splat(_ZERO)
    for i in range(width):
        value = load_f32x16(x + _LINE * i)
        q = offset_quants(value, inverse, offset, q_max)
        weighted = mul(broadcast_f32(w + 4 * i), q)
        sum_q, sum_qq = add(sum_q, weighted), add(sum_qq, mul(weighted, q))
        sum_xq = add(sum_xq, mul(weighted, value))
    add_to(scratch + _SUMS, mul(mul(best_scale, best_scale), sum_qq))
    add_to(scratch + _SUMS + _LINE, mul(mul(best_scale, best_low), sum_q))
    add_to(scratch + _SUMS + 2 * _LINE, mul(mul(best_low, best_low), load_f32x16(scratch + _SUM_W + _LINE * j)))
    add_to(scratch + _SUMS + 3 * _LINE, mul(best_scale, sum_xq))
    add_to(scratch + _SUMS + 4 * _LINE, mul(best_low, load_f32x16(scratch + _SUM_WX + _LINE * j)))


@device(void(int64, int64))
def start_round(scratch, n_line):
    """Set the error of a round and its sums to zero."""
    store_f32x16(scratch + _TOTAL, splat(_ZERO))
    for i in range(n_line):
        store_f32x16(scratch + _SUMS + _LINE * i, splat(_ZERO))


@device(void(int64, int64, f32x16, f32x16))
def keep_line(kept, found, total, best):
    """Copy a line to where the kept one is, in lanes with ``total < best``."""
    store_f32x16(kept, where_less(total, best, load_f32x16(found), load_f32x16(kept)))


@device(void(int64, int64, f32x16))
def keep_better(scratch, n_sub, total):
    """Keep what a round found in the lanes where its error is the smallest so far."""
    best = load_f32x16(scratch + _BEST)
    keep_line(scratch + _KEPT_D, scratch + _D, total, best)
    keep_line(scratch + _KEPT_M, scratch + _M, total, best)
    for line in range(0, _LINE * n_sub, _LINE):
        keep_line(scratch + _KEPT_SCALE + line, scratch + _SCALE + line, total, best)
        keep_line(scratch + _KEPT_LOW + line, scratch + _LOW + line, total, best)
    store_f32x16(scratch + _BEST, where_less(total, best, total, best))


@device(void(int64, int64))
def keep_start(scratch, n_sub):
    """Keep what the search starts from, whatever its error (all of it is infinite where weights are far too large)."""
    store_f32x16(scratch + _BEST, splat(_INFINITY))
    keep_better(scratch, n_sub, splat(_ZERO))
    store_f32x16(scratch + _BEST, splat(_INFINITY))


@device(void(int64, int64, int64), is_inlined=False)
def offset_start(record, scratch, n_sub):
    """Make d, m and integer scales of the scales that the sub-blocks found alone."""
    top = broadcast_f32(record + _WORD * 10)
    scale_max = low_max = splat(-_INFINITY)
    for j in range(n_sub):
        scale_max = maximum(load_f32x16(scratch + _SCALE + _LINE * j), scale_max)
        low_max = maximum(load_f32x16(scratch + _LOW + _LINE * j), low_max)
    d, m = half(div(scale_max, top)), half(div(low_max, top))
    inverse_d, inverse_m = inverse_of(d), inverse_of(m)
    for j in range(n_sub):
        scale, low = scratch + _SCALE + _LINE * j, scratch + _LOW + _LINE * j
        store_f32x16(scale, clip(round_even(mul(load_f32x16(scale), inverse_d)), splat(_ZERO), top))
        store_f32x16(low, clip(round_even(mul(load_f32x16(low), inverse_m)), splat(_ZERO), top))
    store_f32x16(scratch + _D, d)
    store_f32x16(scratch + _M, m)
    keep_start(scratch, n_sub)


@device(void(int64, f32x16, f32x16, f32x16))
def refit_line(address, value, positive, also_positive):
    """Store a value where two others are above zero."""
    old = load_f32x16(address)
    value = where_less(splat(_ZERO), positive, value, old)
    store_f32x16(address, where_less(splat(_ZERO), also_positive, value, old))


@device(void(int64, int64))
def offset_refit(scratch, least_at):
    """Solve the normal equations for d and m."""
    aa, ab = load_f32x16(scratch + _SUMS), load_f32x16(scratch + _SUMS + _LINE)
    bb, ax = load_f32x16(scratch + _SUMS + 2 * _LINE), load_f32x16(scratch + _SUMS + 3 * _LINE)
    bx, least = load_f32x16(scratch + _SUMS + 4 * _LINE), broadcast_f32(least_at)
    det = sub(mul(aa, bb), mul(ab, ab))
    new_d, new_m = div(sub(mul(bb, ax), mul(ab, bx)), det), div(sub(mul(ab, ax), mul(aa, bx)), det)
    refit_line(scratch + _D, half(new_d), new_d, where_less(least, new_m, det, splat(_ZERO)))
    refit_line(scratch + _M, half(new_m), new_d, where_less(least, new_m, det, splat(_ZERO)))


@device(void(int64, int64, int64), is_inlined=False)
def offset_results(record, scratch, place):
    """Write the results of one block of 16 rows."""
    n_block, n_sub, width = load_i64(record + _WORD * 3), load_i64(record + _WORD * 7), load_i64(record + _WORD * 8)
    q_max = broadcast_f32(record + _WORD * 9)
    d, m = load_f32x16(scratch + _KEPT_D), load_f32x16(scratch + _KEPT_M)
    store_strided(load_i64(record + _WORD * 15) + 4 * place, 4 * n_block, d)
    store_strided(load_i64(record + _WORD * 16) + 4 * place, 4 * n_block, m)
    scales, lows = load_i64(record + _WORD * 17) + n_sub * place, load_i64(record + _WORD * 18) + n_sub * place
    quants = load_i64(record + _WORD * 19) + n_sub * width * place
    for j in range(n_sub):
        scale = load_f32x16(scratch + _KEPT_SCALE + _LINE * j)
        low = load_f32x16(scratch + _KEPT_LOW + _LINE * j)
        store_strided_i8(scales + j, n_sub * n_block, round_to_i32(scale))
        store_strided_i8(lows + j, n_sub * n_block, round_to_i32(low))
        inverse, offset = inverse_of(mul(d, scale)), mul(m, low)
        for i in range(j * width, (j + 1) * width):
            q = offset_quants(load_f32x16(scratch + _X + _LINE * i), inverse, offset, q_max)
            store_strided_i8(quants + i, n_sub * width * n_block, round_to_i32(q))


def _search_offset(record, batch, worker, n_worker):
    n_group, n_block = load_i64(record + _WORD * 2), load_i64(record + _WORD * 3)
    n_sub, width = load_i64(record + _WORD * 7), load_i64(record + _WORD * 8)
    row_bytes, scratch = load_i64(record + _WORD * 5), _scratch_memory()
    for unit in range(n_group * n_block * worker // n_worker, n_group * n_block * (worker + 1) // n_worker):
        group, block = unit // n_block, unit % n_block
        x = load_i64(record + _WORD * 4) + 16 * group * row_bytes + 4 * n_sub * width * block
        w = load_i64(record + _WORD * 6) + 4 * n_sub * width * block
        load_block(scratch, x, row_bytes, n_sub * width)
        for j in range(n_sub):
            offset_alone(record, scratch, scratch + _X + _LINE * width * j, w + 4 * width * j, j)
        offset_start(record, scratch, n_sub)
        for _ in range(load_i64(record + _WORD * 21)):
            start_round(scratch, 5)
            for j in range(n_sub):
                offset_near(record, scratch, scratch + _X + _LINE * width * j, w + 4 * width * j, j)
            keep_better(scratch, n_sub, load_f32x16(scratch + _TOTAL))
            offset_refit(scratch, record + _WORD * 11)
        offset_results(record, scratch, 16 * group * n_block + block)


# ---- weights d * scale * v ------------------------------------------------------------------------


@device(f32x16(f32x16, f32x16, f32x16))
def nearest_integer(y, v_min, v_max):
    """Return the nearest integers within the range."""
    return clip(round_even(y), v_min, v_max)


def _stairs(start: float, steps: tuple[float, ...]) -> Any:
    """Return an operation: ``start`` plus the steps of those ``IQ4_MIDDLES`` that lie below."""

    @operation(f32x16(f32x16, f32x16, f32x16))
    def climb(low, y, v_min, v_max):
        value = constant(F32X16, float(start))
        for middle, step in zip(IQ4_MIDDLES, steps, strict=True):
            is_above = low.b.fcmp_ordered(">", y, constant(F32X16, middle))
            value = low.b.fadd(value, low.b.select(is_above, constant(F32X16, float(step)), constant(F32X16, 0.0)))
        return value

    return climb


nearest_iq4 = _stairs(-127, IQ4_STEPS)
index_iq4 = _stairs(0, (1,) * 15)


@device(f32x16(f32x16, f32x16, f32x16))
def above_lowest(y, v_min, v_max):
    """Return how far the nearest integer is above the lowest."""
    return sub(nearest_integer(y, v_min, v_max), v_min)


def symmetric_search(nearest: Any, stored: Any) -> Any:
    """Return the body of a search: ``nearest`` gives values, ``stored`` what is written for them."""

    @device(void(int64, int64, int64, int64, int64), is_inlined=False)
    def alone(record, scratch, x, w, j):
        width, n_candidate = load_i64(record + _WORD * 8), load_i64(record + _WORD * 14)
        v_min, v_max = broadcast_f32(record + _WORD * 9), broadcast_f32(record + _WORD * 10)
        peak = size = splat(_ZERO)
        for i in range(width):
            value = load_f32x16(x + _LINE * i)
            peak = where_less(size, absolute(value), value, peak)
            size = where_less(size, absolute(value), absolute(value), size)
        inverse = inverse_of(peak)
        scale, best = splat(_ZERO), splat(-_INFINITY)
        for candidate in range(n_candidate):
            factor = mul(broadcast_f32(load_i64(record + _WORD * 13) + 4 * candidate), inverse)
            sum_vv = sum_xv = splat(_ZERO)
            for i in range(width):
                value = load_f32x16(x + _LINE * i)
                v = nearest(mul(value, factor), v_min, v_max)
                weighted = mul(broadcast_f32(w + 4 * i), v)
                sum_vv, sum_xv = add(sum_vv, mul(weighted, v)), add(sum_xv, mul(weighted, value))
            new_scale = div(sum_xv, sum_vv)
            gain = where_less(splat(_ZERO), sum_vv, mul(new_scale, sum_xv), splat(-_INFINITY))
            scale = where_less(best, gain, new_scale, scale)
            best = where_less(best, gain, gain, best)
        store_f32x16(scratch + _SCALE + _LINE * j, scale)

    @device(void(int64, int64, int64, int64, int64), is_inlined=False)
    def near(record, scratch, x, w, j):
        width, reach = load_i64(record + _WORD * 8), load_i64(record + _WORD * 12)
        v_min, v_max = broadcast_f32(record + _WORD * 9), broadcast_f32(record + _WORD * 10)
        bottom, top = broadcast_f32(record + _WORD * 11), broadcast_f32(record + _WORD * 20)
        d, start = load_f32x16(scratch + _D), load_f32x16(scratch + _SCALE + _LINE * j)
        best, best_scale = splat(_INFINITY), start
        for scale_step in range(-reach, reach + 1):
            scale = clip(add(start, to_f32(splat_i32(scale_step))), bottom, top)
            step = mul(d, scale)
            inverse, error = inverse_of(step), splat(_ZERO)
            for i in range(width):
                value = load_f32x16(x + _LINE * i)
                diff = sub(mul(step, nearest(mul(value, inverse), v_min, v_max)), value)
                error = add(error, mul(mul(broadcast_f32(w + 4 * i), diff), diff))
            best_scale = where_less(error, best, scale, best_scale)
            best = where_less(error, best, error, best)
        add_to(scratch + _TOTAL, best)
        store_f32x16(scratch + _SCALE + _LINE * j, best_scale)
        inverse = inverse_of(mul(d, best_scale))
        sum_vv = sum_xv = splat(_ZERO)
        for i in range(width):
            value = load_f32x16(x + _LINE * i)
            v = nearest(mul(value, inverse), v_min, v_max)
            weighted = mul(broadcast_f32(w + 4 * i), v)
            sum_vv, sum_xv = add(sum_vv, mul(weighted, v)), add(sum_xv, mul(weighted, value))
        add_to(scratch + _SUMS, mul(mul(best_scale, best_scale), sum_vv))
        add_to(scratch + _SUMS + _LINE, mul(best_scale, sum_xv))

    @device(void(int64, int64, int64), is_inlined=False)
    def results(record, scratch, place):
        n_block, n_sub, width = load_i64(record + _WORD * 3), load_i64(record + _WORD * 7), load_i64(record + _WORD * 8)
        v_min, v_max = broadcast_f32(record + _WORD * 9), broadcast_f32(record + _WORD * 10)
        d = load_f32x16(scratch + _KEPT_D)
        store_strided(load_i64(record + _WORD * 15) + 4 * place, 4 * n_block, d)
        scales = load_i64(record + _WORD * 17) + n_sub * place
        quants = load_i64(record + _WORD * 19) + n_sub * width * place
        for j in range(n_sub):
            scale = load_f32x16(scratch + _KEPT_SCALE + _LINE * j)
            store_strided_i8(scales + j, n_sub * n_block, round_to_i32(scale))
            inverse = inverse_of(mul(d, scale))
            for i in range(j * width, (j + 1) * width):
                q = stored(mul(load_f32x16(scratch + _X + _LINE * i), inverse), v_min, v_max)
                store_strided_i8(quants + i, n_sub * width * n_block, round_to_i32(q))

    def search(record, batch, worker, n_worker):
        n_group, n_block = load_i64(record + _WORD * 2), load_i64(record + _WORD * 3)
        n_sub, width = load_i64(record + _WORD * 7), load_i64(record + _WORD * 8)
        row_bytes, scratch = load_i64(record + _WORD * 5), _scratch_memory()
        for unit in range(n_group * n_block * worker // n_worker, n_group * n_block * (worker + 1) // n_worker):
            group, block = unit // n_block, unit % n_block
            x = load_i64(record + _WORD * 4) + 16 * group * row_bytes + 4 * n_sub * width * block
            w = load_i64(record + _WORD * 6) + 4 * n_sub * width * block
            load_block(scratch, x, row_bytes, n_sub * width)
            for j in range(n_sub):
                alone(record, scratch, scratch + _X + _LINE * width * j, w + 4 * width * j, j)
            symmetric_start(record, scratch, n_sub)
            for _ in range(load_i64(record + _WORD * 21)):
                start_round(scratch, 2)
                for j in range(n_sub):
                    near(record, scratch, scratch + _X + _LINE * width * j, w + 4 * width * j, j)
                keep_better(scratch, n_sub, load_f32x16(scratch + _TOTAL))
                symmetric_refit(scratch)
            results(record, scratch, 16 * group * n_block + block)

    return search


@device(void(int64, int64, int64), is_inlined=False)
def symmetric_start(record, scratch, n_sub):
    """Make d and integer scales of the scales that the sub-blocks found alone."""
    bottom, top = broadcast_f32(record + _WORD * 11), broadcast_f32(record + _WORD * 20)
    peak = size = splat(_ZERO)
    for j in range(n_sub):
        scale = load_f32x16(scratch + _SCALE + _LINE * j)
        peak = where_less(size, absolute(scale), scale, peak)
        size = where_less(size, absolute(scale), absolute(scale), size)
    d = half(div(peak, bottom))
    inverse = inverse_of(d)
    for j in range(n_sub):
        scale = scratch + _SCALE + _LINE * j
        store_f32x16(scale, clip(round_even(mul(load_f32x16(scale), inverse)), bottom, top))
    store_f32x16(scratch + _D, d)
    keep_start(scratch, n_sub)


@device(void(int64))
def symmetric_refit(scratch):
    """Solve the normal equation for d."""
    sum_aa, sum_ax = load_f32x16(scratch + _SUMS), load_f32x16(scratch + _SUMS + _LINE)
    d = load_f32x16(scratch + _D)
    store_f32x16(scratch + _D, where_less(splat(_ZERO), sum_aa, half(div(sum_ax, sum_aa)), d))


def scale_search_kernel(name: str, _target: Target) -> Kernel:
    """Return one of the searches of ``SEARCHES``."""
    if name == "search_offset":
        return Kernel(name, _OP, _search_offset)
    pair = (nearest_iq4, index_iq4) if name == "search_iq4" else (nearest_integer, above_lowest)
    return Kernel(name, _OP, symmetric_search(*pair))
