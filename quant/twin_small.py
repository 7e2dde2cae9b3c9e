"""Numba twins of ``iq4.py``, ``ternary.py`` and ``fp4.py``: types whose values come from small tables.

``blocks u8 [n_block, block_bytes]`` to ``out f32 [n_block, n_weight]``.
"""

from __future__ import annotations

import numpy as np

from .floats import F32, U8
from .tables import E2M1_VALUES, IQ4_VALUES
from .twin_bits import byte, float_from_bits, half, word

_IQ4 = np.array(IQ4_VALUES, np.float32)
_E2M1 = np.array(E2M1_VALUES, np.float32)
_POWERS = np.array([1, 3, 9, 27, 81], np.int64)


def iq4_nl(blocks: U8, out: F32) -> None:
    """Dequantise IQ4_NL."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for j in range(16):
            q = byte(blocks, i, 2 + j)
            out[i, j] = d * _IQ4[q & 15]
            out[i, j + 16] = d * _IQ4[q >> 4]


def iq4_xs(blocks: U8, out: F32) -> None:
    """Dequantise IQ4_XS."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        high = word(blocks, i, 2)
        for s in range(8):
            low = byte(blocks, i, 4 + (s >> 1)) >> ((s & 1) << 2) & 15
            effective = d * np.float32((low | ((high >> (2 * s) & 3) << 4)) - 32)
            for j in range(16):
                q = byte(blocks, i, 8 + 16 * s + j)
                out[i, 32 * s + j] = effective * _IQ4[q & 15]
                out[i, 32 * s + j + 16] = effective * _IQ4[q >> 4]


def tq1_0(blocks: U8, out: F32) -> None:
    """Dequantise TQ1_0."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 52)
        for at in range(52):
            first, step, n = 240 + at - 48, 4, 4
            if at < 32:
                first, step, n = at, 32, 5
            elif at < 48:
                first, step, n = 160 + at - 32, 16, 5
            for j in range(n):
                shifted = byte(blocks, i, at) * _POWERS[j] & 255
                out[i, first + step * j] = d * np.float32((shifted * 3 >> 8) - 1)


def tq2_0(blocks: U8, out: F32) -> None:
    """Dequantise TQ2_0."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 64)
        for j in range(256):
            q = byte(blocks, i, ((j >> 7) << 5) + (j & 31)) >> (((j >> 5) & 3) << 1) & 3
            out[i, j] = d * np.float32(q - 1)


def mxfp4(blocks: U8, out: F32) -> None:
    """Dequantise MXFP4."""
    for i in range(blocks.shape[0]):
        e = byte(blocks, i, 0)
        bits = 0x00200000 << e if e < 2 else (e - 1) << 23
        d = float_from_bits(bits)
        for j in range(16):
            q = byte(blocks, i, 1 + j)
            out[i, j] = d * _E2M1[q & 15]
            out[i, j + 16] = d * _E2M1[q >> 4]


def nvfp4(blocks: U8, out: F32) -> None:
    """Dequantise NVFP4."""
    for i in range(blocks.shape[0]):
        for s in range(4):
            x = byte(blocks, i, s)
            exponent = x >> 3 & 15
            mantissa = x & 7
            if x == 127:  # NaN counts as zero
                mantissa = 0
            elif exponent > 0:
                mantissa += 8
            else:
                exponent = 1
            d = np.float32(mantissa) * float_from_bits((exponent + 116) << 23)
            for j in range(8):
                q = byte(blocks, i, 4 + 8 * s + j)
                out[i, 16 * s + j] = d * _E2M1[q & 15]
                out[i, 16 * s + j + 8] = d * _E2M1[q >> 4]
