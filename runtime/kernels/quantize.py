"""Activations to int8: one 64-byte record per token and 32 columns (``simd/tile.py`` has its layout).

Record words of ``quantize``: 2 blocks of 32 columns, 3 x (f32 rows), 4 bytes between rows of x,
5 records out, 6 records per token and block: 1, or 2, of which the second holds what the first leaves over
(about 15 bits together). Of ``norm_quantize``: the same, then 7 norm weight, 8 epsilon (f32 bits in the low
half), 9 number of columns.
"""

from __future__ import annotations

import numpy as np

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.tile import RECORD_BYTES, SCALE, SCALED_SUM, SCALED_SUM_0, SCALED_SUM_1, SUM, SUM_0, SUM_1
from ..simd.scalar import atomic_load, larger, load_i64, smaller, store_f32, store_i32
from ..simd.vector import (
    absolute, add, broadcast_f32, device, div, f32x16, first_lane, fma, int64, load_f32x16, load_i8x16, max_lanes,
    maximum, mul, round_to_i32, splat, splat_i32, sqrt, store_i8x16, sub, sum_lanes, sum_lanes_i32, to_f32, void,
    where_less,
)  # fmt: skip
from .layout import BATCH_STOP, TOKEN_GROUP

_OP = void(*[int64] * 4)
_ZERO, _ONE, _STEPS = np.float32(0), np.float32(1), np.float32(127)
SMALLEST = np.float32(2.0**-93)  # a block with nothing larger is zero (``SHIFT`` in simd/tile.py says why)


@device(void(f32x16, f32x16, int64))
def quantize_block(left, right, record):
    """Write the record of 32 activations: quants ``round(x * 127 / max|x|)``, their scale, and sums.

    The scale has the least squared error for these quants, ``sum(x q) / sum(q q)``: about one part in 32 less
    error than ``max|x| / 127``, for two sums and a division (in units of that, so that nothing overflows).
    """
    largest = splat(max_lanes(maximum(absolute(left), absolute(right))))
    inverse = where_less(splat(SMALLEST), largest, div(splat(_STEPS), largest), splat(_ZERO))
    left, right = mul(left, inverse), mul(right, inverse)
    q_left, q_right = round_to_i32(left), round_to_i32(right)
    f_left, f_right = to_f32(q_left), to_f32(q_right)
    squares = splat(sum_lanes(fma(f_right, f_right, mul(f_left, f_left))))  # an integer below 2**24: exact
    products = splat(sum_lanes(fma(right, f_right, mul(left, f_left))))
    scale = mul(div(products, squares), div(largest, splat(_STEPS)))
    scale = where_less(splat(_ZERO), squares, scale, splat(_ZERO))
    store_i8x16(record, q_left)
    store_i8x16(record + 16, q_right)
    sum_left, sum_right = sum_lanes_i32(q_left), sum_lanes_i32(q_right)
    store_f32(record + SCALE, first_lane(scale))
    store_i32(record + SUM, -(sum_left + sum_right))
    store_i32(record + SUM_0, -sum_left)
    store_i32(record + SUM_1, -sum_right)
    store_f32(record + SCALED_SUM, first_lane(mul(scale, to_f32(splat_i32(sum_left + sum_right)))))
    store_f32(record + SCALED_SUM_0, first_lane(mul(scale, to_f32(splat_i32(sum_left)))))
    store_f32(record + SCALED_SUM_1, first_lane(mul(scale, to_f32(splat_i32(sum_right)))))
    store_i32(record + 60, 0)


@device(void(f32x16, f32x16, int64))
def _quantize_rest(left, right, record):
    """Write a second record: what the finished one before it leaves over of 32 activations."""
    minus_scale = sub(splat(_ZERO), broadcast_f32(record + SCALE))
    left = fma(minus_scale, to_f32(load_i8x16(record)), left)
    right = fma(minus_scale, to_f32(load_i8x16(record + 16)), right)
    quantize_block(left, right, record + RECORD_BYTES)


@device(int64(int64))
def is_given_up(batch):
    """Whether the pass is to be given up; asked between pieces of long operations, so that Ctrl-C is not late."""
    address = load_i64(batch + BATCH_STOP)
    return 0 if address == 0 else atomic_load(address)


@device(int64(int64, int64, int64, int64, int64))
def record_address(records, n_tok, n_block, tok, block):
    """Return where the record of a token's block lies: groups of 16 tokens, blocks, tokens of the group."""
    first = tok // TOKEN_GROUP * TOKEN_GROUP
    width = smaller(TOKEN_GROUP, n_tok - first)
    return records + RECORD_BYTES * (first * n_block + block * width + tok - first)


@device(f32x16(int64, int64, f32x16))
def inverse_rms(x, n, epsilon):
    """Return ``1 / sqrt(mean(x**2) + epsilon)`` in all lanes; x is padded with zeros to 16."""
    total = splat(_ZERO)
    for i in range(0, n, 16):
        value = load_f32x16(x + 4 * i)
        total = fma(value, value, total)
    mean = div(splat(sum_lanes(total)), to_f32(splat_i32(n)))
    return div(splat(_ONE), splat(sqrt(first_lane(add(mean, epsilon)))))


def _quantize(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_block, x, x_step, records, n_record = (
        load_i64(record + 16), load_i64(record + 24), load_i64(record + 32), load_i64(record + 40),
        load_i64(record + 48),
    )  # fmt: skip
    unit_start, unit_stop = n_tok * n_block * worker // n_worker, n_tok * n_block * (worker + 1) // n_worker
    for tok in range(unit_start // n_block, (unit_stop + n_block - 1) // n_block):
        block_start, block_stop = larger(unit_start - tok * n_block, 0), smaller(unit_stop - tok * n_block, n_block)
        for block in range(block_start, block_stop):
            address = x + tok * x_step + 128 * block
            left, right = load_f32x16(address), load_f32x16(address + 64)
            out = record_address(records, n_record * n_tok, n_block, n_record * tok, block)
            quantize_block(left, right, out)
            if n_record == 2:
                _quantize_rest(left, right, out)


def _norm_quantize(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_block, x, x_step, records, n_record = (
        load_i64(record + 16), load_i64(record + 24), load_i64(record + 32), load_i64(record + 40),
        load_i64(record + 48),
    )  # fmt: skip
    weight, epsilon, n = load_i64(record + 56), broadcast_f32(record + 64), load_i64(record + 72)
    unit_start, unit_stop = n_tok * n_block * worker // n_worker, n_tok * n_block * (worker + 1) // n_worker
    for tok in range(unit_start // n_block, (unit_stop + n_block - 1) // n_block):
        block_start, block_stop = larger(unit_start - tok * n_block, 0), smaller(unit_stop - tok * n_block, n_block)
        scale = inverse_rms(x + tok * x_step, n, epsilon)  # by every worker that shares the row: cheaper than a barrier
        for block in range(block_start, block_stop):
            address, w = x + tok * x_step + 128 * block, weight + 128 * block
            left = mul(mul(load_f32x16(address), scale), load_f32x16(w))
            right = mul(mul(load_f32x16(address + 64), scale), load_f32x16(w + 64))
            out = record_address(records, n_record * n_tok, n_block, n_record * tok, block)
            quantize_block(left, right, out)
            if n_record == 2:
                _quantize_rest(left, right, out)


def quantize_kernel(_target: Target) -> Kernel:
    """Return the kernel that turns f32 rows into activation records."""
    return Kernel("quantize", _OP, _quantize)


def norm_quantize_kernel(_target: Target) -> Kernel:
    """Return the kernel that normalises f32 rows and turns them into activation records."""
    return Kernel("norm_quantize", _OP, _norm_quantize)
