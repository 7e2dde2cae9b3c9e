"""exp, silu, gelu and tanh of 16 lanes: fixed polynomials, so that every target gives the same bits.

``reference.py`` has the NumPy twins, which share the constants below.
"""

from __future__ import annotations

import numpy as np

from ..simd.vector import (
    add, add_i32, as_f32, device, div, f32x16, fma, maximum, minimum, mul, round_even, shift_left, splat, splat_i32,
    sub, to_i32, where_less,
)  # fmt: skip

EXP_MIN, EXP_MAX = np.float32(-87.33654), np.float32(88.02)  # below: 0; above: clamped
LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # S. Moshier, Cephes expf
EXP_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_C0, _C1, _C2, _C3, _C4, _C5 = EXP_COEFFICIENTS
GELU_SCALE, GELU_CUBE = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi)
_ONE, _TWO, _ZERO = np.float32(1), np.float32(2), np.float32(0)


@device(f32x16(f32x16, f32x16))
def _exp(x, clamped):
    n = round_even(mul(clamped, splat(LOG2_E)))
    r = fma(n, splat(-LN2_HIGH), clamped)
    r = fma(n, splat(-LN2_LOW), r)
    p = fma(splat(_C0), r, splat(_C1))
    p = fma(p, r, splat(_C2))
    p = fma(p, r, splat(_C3))
    p = fma(p, r, splat(_C4))
    p = fma(p, r, splat(_C5))
    p = add(fma(p, mul(r, r), r), splat(_ONE))
    power = as_f32(shift_left(add_i32(to_i32(n), splat_i32(127)), 23))
    return where_less(x, splat(EXP_MIN), splat(_ZERO), mul(p, power))


@device(f32x16(f32x16))
def exp(x):
    """Return e**x, at most 2 ulp off; 0 below EXP_MIN, e**EXP_MAX above EXP_MAX."""
    return _exp(x, minimum(maximum(x, splat(EXP_MIN)), splat(EXP_MAX)))


@device(f32x16(f32x16))
def exp_below(x):
    """Return the same of numbers that are not above EXP_MAX."""
    return _exp(x, maximum(x, splat(EXP_MIN)))


@device(f32x16(f32x16))
def silu(x):
    """Return x / (1 + exp(-x))."""
    return div(x, add(splat(_ONE), exp(sub(splat(_ZERO), x))))


@device(f32x16(f32x16))
def gelu(x):
    """Return the tanh form of gelu, written with a sigmoid: x / (1 + exp(-2u))."""
    inner = mul(splat(GELU_SCALE), mul(x, fma(mul(splat(GELU_CUBE), x), x, splat(_ONE))))
    return div(x, add(splat(_ONE), exp(mul(splat(-_TWO), inner))))


@device(f32x16(f32x16))
def tanh(x):
    """Return tanh x, absolute error below 2e-7."""
    return sub(splat(_ONE), div(splat(_TWO), add(exp(mul(splat(_TWO), x)), splat(_ONE))))
