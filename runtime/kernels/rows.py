"""Operations on f32 rows: norm, additions, gated activations, soft cap, and the choice of output rows.

Record words after the two that all share:

============  ====================================================================================
rms_norm      2 columns of a group, 3 groups of a row, 4 x, 5 row bytes of x, 6 y, 7 row bytes of y,
              8 weight (padded, the same for every group), 9 epsilon (f32 bits in the low half)
add           2 columns, 3 x, 4 row bytes of x, 5 other, 6 row bytes of other (0: one row for all), 7 y,
              8 row bytes of y
glu           2 columns, 3 gate, 4 row bytes of gate, 5 up, 6 row bytes of up, 7 y, 8 row bytes of y, 9 1 silu or 2 gelu
softcap       2 columns, 3 x (in place), 4 row bytes of x, 5 cap (f32 bits)
scale         2 columns, 3 x (in place), 4 row bytes of x, 5 factor (f32 bits)
select        2 columns, 3 x, 4 row bytes of x, 5 y, 6 row bytes of y: the rows whose outputs are wanted
============  ====================================================================================
"""

from __future__ import annotations

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import larger, load_i64, smaller
from ..simd.vector import add, broadcast_f32, device, div, int64, load_f32x16, mul, store_f32x16, void
from .layout import OUT_ROWS, ROWS
from .quantize import inverse_rms
from .vector_math import gelu, silu, tanh

_OP = void(*[int64] * 4)


@device(int64(int64, int64, int64))
def first_unit(n, worker, n_worker):
    """Return where a worker's share of ``n`` units starts."""
    return n * worker // n_worker


@device(int64(int64, int64))
def rows_of(record, batch):
    """Return the address of the records of the rows that an operation works on: all, or those with outputs."""
    return load_i64(batch + load_i64(record + 8) + ROWS)


def _rms_norm(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n, n_group, weight, epsilon = (
        load_i64(record + 16), load_i64(record + 24), load_i64(record + 64), broadcast_f32(record + 72),
    )  # fmt: skip
    for unit in range(first_unit(n_tok * n_group, worker, n_worker), first_unit(n_tok * n_group, worker + 1, n_worker)):
        tok, group = unit // n_group, unit % n_group
        x = load_i64(record + 32) + tok * load_i64(record + 40) + 4 * n * group
        y = load_i64(record + 48) + tok * load_i64(record + 56) + 4 * n * group
        scale = inverse_rms(x, n, epsilon)
        for i in range(0, n, 16):
            store_f32x16(y + 4 * i, mul(mul(load_f32x16(x + 4 * i), scale), load_f32x16(weight + 4 * i)))


@device(int64(int64, int64, int64, int64, int64))
def _column_start(n_tok, n_vector, worker, n_worker, tok):
    """Return the first vector of row ``tok`` that belongs to the worker; rows times vectors are shared out evenly."""
    return smaller(larger(first_unit(n_tok * n_vector, worker, n_worker) - tok * n_vector, 0), n_vector)


def _add(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_vector = (load_i64(record + 16) + 15) // 16
    for tok in range(n_tok):
        x = load_i64(record + 24) + tok * load_i64(record + 32)
        other = load_i64(record + 40) + tok * load_i64(record + 48)
        y = load_i64(record + 56) + tok * load_i64(record + 64)
        start = _column_start(n_tok, n_vector, worker, n_worker, tok)
        for i in range(start, _column_start(n_tok, n_vector, worker + 1, n_worker, tok)):
            store_f32x16(y + 64 * i, add(load_f32x16(x + 64 * i), load_f32x16(other + 64 * i)))


def _glu(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_vector, activation = (load_i64(record + 16) + 15) // 16, load_i64(record + 72)
    for tok in range(n_tok):
        gate = load_i64(record + 24) + tok * load_i64(record + 32)
        up = load_i64(record + 40) + tok * load_i64(record + 48)
        y = load_i64(record + 56) + tok * load_i64(record + 64)
        start = _column_start(n_tok, n_vector, worker, n_worker, tok)
        for i in range(start, _column_start(n_tok, n_vector, worker + 1, n_worker, tok)):
            value = load_f32x16(gate + 64 * i)
            value = silu(value) if activation == 1 else gelu(value)
            store_f32x16(y + 64 * i, mul(value, load_f32x16(up + 64 * i)))


def _softcap(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_vector, cap = (load_i64(record + 16) + 15) // 16, broadcast_f32(record + 40)
    for tok in range(n_tok):
        x = load_i64(record + 24) + tok * load_i64(record + 32)
        start = _column_start(n_tok, n_vector, worker, n_worker, tok)
        for i in range(start, _column_start(n_tok, n_vector, worker + 1, n_worker, tok)):
            store_f32x16(x + 64 * i, mul(cap, tanh(div(load_f32x16(x + 64 * i), cap))))


def _scale(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_vector, factor = (load_i64(record + 16) + 15) // 16, broadcast_f32(record + 40)
    for tok in range(n_tok):
        x = load_i64(record + 24) + tok * load_i64(record + 32)
        start = _column_start(n_tok, n_vector, worker, n_worker, tok)
        for i in range(start, _column_start(n_tok, n_vector, worker + 1, n_worker, tok)):
            store_f32x16(x + 64 * i, mul(factor, load_f32x16(x + 64 * i)))


def _select(record, batch, worker, n_worker):
    n_out, rows = load_i64(batch + load_i64(record + 8)), load_i64(batch + OUT_ROWS)
    n_vector = (load_i64(record + 16) + 15) // 16
    for out in range(first_unit(n_out, worker, n_worker), first_unit(n_out, worker + 1, n_worker)):
        x = load_i64(record + 24) + load_i64(rows + 8 * out) * load_i64(record + 32)
        y = load_i64(record + 40) + out * load_i64(record + 48)
        for i in range(n_vector):
            store_f32x16(y + 64 * i, load_f32x16(x + 64 * i))


ROW_KERNELS = {
    "rms_norm": _rms_norm,
    "add": _add,
    "glu": _glu,
    "softcap": _softcap,
    "scale": _scale,
    "select": _select,
}


def row_kernel(name: str, _target: Target) -> Kernel:
    """Return one of ``ROW_KERNELS``."""
    return Kernel(name, _OP, ROW_KERNELS[name])
