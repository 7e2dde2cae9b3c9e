"""Quantise without a search: the scale follows from the largest weight of a block of 32.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are llama.cpp's ``quantize_row_*_ref`` in every byte. MXFP4 tries the exponent of
``quantize_row_mxfp4_ref`` and its neighbours. All take f32 [n, 32] and return u8 [n, block_bytes]; a block whose
scale would be subnormal becomes zero.
"""

from __future__ import annotations

import numpy as np

from . import encode
from .floats import F32, U8
from .tables import E2M1_VALUES, e8m0_half

_E2M1 = np.array(E2M1_VALUES[:8], np.float32)
_E2M1_MIDDLES = (_E2M1[1:] + _E2M1[:-1]) / 2


def f16(values: F32) -> U8:
    """Return half-precision numbers, rounded to nearest even; too large ones become infinite."""
    return values.astype("<f2").view(np.uint8)


def bf16(values: F32) -> U8:
    """Return bfloat16 numbers, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype("<u2").view(np.uint8)


def _inverse(d: F32) -> F32:
    inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _from_peak(x: F32, n_half: int) -> tuple[U8, U8]:
    """Return scales and quants 0 to ``2 * n_half - 1``, the largest weight being ``-n_half`` steps."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = peak / np.float32(-n_half)
    q = (x * _inverse(d) + np.float32(n_half + 0.5)).astype(np.int32)
    return encode.half_bytes(d), np.minimum(q, 2 * n_half - 1).astype(np.uint8)


def _from_range(x: F32, q_max: int) -> tuple[U8, U8, U8]:
    """Return scales, minima and quants 0 to ``q_max``."""
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(q_max)
    q = ((x - low) * _inverse(d) + np.float32(0.5)).astype(np.int32)
    return encode.half_bytes(d), encode.half_bytes(low), np.minimum(q, q_max).astype(np.uint8)


def q4_0(x: F32) -> U8:
    """Quantise to Q4_0."""
    return encode.encode_q4_0(*_from_peak(x, 8))


def q5_0(x: F32) -> U8:
    """Quantise to Q5_0."""
    return encode.encode_q5_0(*_from_peak(x, 16))


def q4_1(x: F32) -> U8:
    """Quantise to Q4_1."""
    return encode.encode_q4_1(*_from_range(x, 15))


def q5_1(x: F32) -> U8:
    """Quantise to Q5_1."""
    return encode.encode_q5_1(*_from_range(x, 31))


def q8_0(x: F32) -> U8:
    """Quantise to Q8_0; halves are rounded away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    y = x * _inverse(d)
    size = np.abs(y)
    whole = np.floor(size)
    q = np.copysign(whole + (size - whole >= 0.5), y).astype(np.int8)
    return encode.encode_q8_0(encode.half_bytes(d), q)


def mxfp4(x: F32, importance: F32) -> U8:
    """Quantise to MXFP4: of three exponents, the one with the smallest error weighted by ``importance [n, 32]``."""
    peak = np.abs(x).max(axis=1, keepdims=True)
    _, exponent = np.frexp(peak)  # peak is below 2 ** exponent
    base = np.where(peak > 0, exponent - 3 + 127, 0)
    best_error = np.full_like(peak, np.inf)
    best_e, best_q = np.zeros(peak.shape, np.uint8), np.zeros(x.shape, np.uint8)
    for step in (0, 1, -1):
        e = np.clip(base + step, 0, 254).astype(np.uint8)
        scale = e8m0_half(e)
        index = np.searchsorted(_E2M1_MIDDLES, np.abs(x) / scale).astype(np.uint8)  # a tie takes the lower one
        q = np.where(np.signbit(x) & (index > 0), index + 8, index).astype(np.uint8)
        error = (importance * (np.abs(x) - scale * _E2M1[index]) ** 2).sum(axis=1, keepdims=True)
        is_better = error < best_error
        best_error = np.where(is_better, error, best_error)
        best_e, best_q = np.where(is_better, e, best_e), np.where(is_better, q, best_q)
    return encode.encode_mxfp4(best_e, best_q)
