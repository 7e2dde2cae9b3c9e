"""Rotary position embedding: a table of cosines and sines per pass, then a rotation of heads in place.

The table is made once per pass and rope kind, in f64 with fixed polynomials (no math library), and
rounded to f32: ``[n_tok][cos, sin][n_pair padded to 16]``.

Record words after the two that all share:

==========  ==================================================================================
rope_table  2 pairs, 3 frequencies (f64 per pair), 4 table out, 5 row bytes of the table, 6 attention factor (f64 bits)
rope        2 heads, 3 columns of a head, 4 pairs, 5 x (in place), 6 row bytes of x, 7 table, 8 row bytes of the table,
            9 1 when the pair of column i is i + pairs ("neox"), 0 when pairs are neighbours
==========  ==================================================================================
"""

from __future__ import annotations

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import load_f32, load_f64, load_i64, store_f32
from ..simd.vector import (
    add, device, float64, int64, load_even, load_f32x16, load_odd, mul, round_f64, store_f32x16, store_interleaved,
    sub, to_single, void,
)  # fmt: skip
from .layout import ROW_BYTES, ROW_POSITION
from .rows import first_unit, rows_of

_OP = void(*[int64] * 4)

# pi / 2 in three parts of 33 bits: exact products with quadrants below 2**20 (fdlibm, e_rem_pio2.c).
PIO2_1, PIO2_2, PIO2_3 = 1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21
TWO_OVER_PI = 6.36619772367581382433e-01
# fdlibm, k_sin.c and k_cos.c.
SIN_COEFFICIENTS = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
COS_COEFFICIENTS = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip
_S0, _S1, _S2, _S3, _S4, _S5 = SIN_COEFFICIENTS
_C0, _C1, _C2, _C3, _C4, _C5 = COS_COEFFICIENTS


@device(float64(float64))
def _sin_reduced(r):
    z = r * r
    return r + r * z * (_S0 + z * (_S1 + z * (_S2 + z * (_S3 + z * (_S4 + z * _S5)))))


@device(float64(float64))
def _cos_reduced(r):
    z = r * r
    return 1.0 - 0.5 * z + z * z * (_C0 + z * (_C1 + z * (_C2 + z * (_C3 + z * (_C4 + z * _C5)))))


def _rope_table(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_pair, frequencies, factor = load_i64(record + 16), load_i64(record + 24), load_f64(record + 48)
    for tok in range(first_unit(n_tok, worker, n_worker), first_unit(n_tok, worker + 1, n_worker)):
        table = load_i64(record + 32) + tok * load_i64(record + 40)
        sines = table + load_i64(record + 40) // 2
        position = float64(load_i64(rows_of(record, batch) + ROW_BYTES * tok + ROW_POSITION))
        for i in range(n_pair):
            angle = position * load_f64(frequencies + 8 * i)
            quadrant = round_f64(angle * TWO_OVER_PI)
            r = ((angle - quadrant * PIO2_1) - quadrant * PIO2_2) - quadrant * PIO2_3
            sine, cosine = _sin_reduced(r), _cos_reduced(r)
            turn = int64(quadrant) & 3
            if turn == 1:
                sine, cosine = cosine, -sine
            elif turn == 2:
                sine, cosine = -sine, -cosine
            elif turn == 3:
                sine, cosine = -cosine, sine
            store_f32(table + 4 * i, to_single(cosine * factor))
            store_f32(sines + 4 * i, to_single(sine * factor))


@device(void(int64, int64, int64, int64, int64))
def rotate_head(x, table, sines, n_pair, is_neox):
    """Rotate the pairs of one head in place: ``(a, b) -> (a cos - b sin, a sin + b cos)``."""
    whole = n_pair // 16 * 16
    for i in range(0, whole, 16):
        cosine, sine = load_f32x16(table + 4 * i), load_f32x16(sines + 4 * i)
        if is_neox != 0:
            a, b = load_f32x16(x + 4 * i), load_f32x16(x + 4 * (i + n_pair))
            store_f32x16(x + 4 * i, sub(mul(a, cosine), mul(b, sine)))
            store_f32x16(x + 4 * (i + n_pair), add(mul(a, sine), mul(b, cosine)))
        else:
            a, b = load_even(x + 8 * i), load_odd(x + 8 * i)
            store_interleaved(x + 8 * i, sub(mul(a, cosine), mul(b, sine)), add(mul(a, sine), mul(b, cosine)))
    for i in range(whole, n_pair):
        first, second = (x + 4 * i, x + 4 * (i + n_pair)) if is_neox != 0 else (x + 8 * i, x + 8 * i + 4)
        cos, sin, u, v = load_f32(table + 4 * i), load_f32(sines + 4 * i), load_f32(first), load_f32(second)
        store_f32(first, u * cos - v * sin)
        store_f32(second, u * sin + v * cos)


def _rope(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_head, n_embd_head, n_pair = load_i64(record + 16), load_i64(record + 24), load_i64(record + 32)
    table_step = load_i64(record + 64)
    for unit in range(first_unit(n_tok * n_head, worker, n_worker), first_unit(n_tok * n_head, worker + 1, n_worker)):
        tok, head = unit // n_head, unit % n_head
        x = load_i64(record + 40) + tok * load_i64(record + 48) + 4 * n_embd_head * head
        table = load_i64(record + 56) + tok * table_step
        rotate_head(x, table, table + table_step // 2, n_pair, load_i64(record + 72))


def rope_table_kernel(_target: Target) -> Kernel:
    """Return the kernel that fills the table of cosines and sines."""
    return Kernel("rope_table", _OP, _rope_table)


def rope_kernel(_target: Target) -> Kernel:
    """Return the kernel that rotates heads in place."""
    return Kernel("rope", _OP, _rope)
