"""Numba twins of ``k_quants.py``: ``blocks u8 [n_block, block_bytes]`` to ``out f32 [n_block, 256]``."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .floats import F32, U8
from .twin_bits import byte, half, signed, single


def _crumb(blocks: Any, i: int, at: int, j: int) -> Any:
    """Return the 2-bit quant of weight j, the 64 bytes of them starting at ``at``."""
    return byte(blocks, i, at + ((j >> 7) << 5) + (j & 31)) >> (((j >> 5) & 3) << 1) & 3


crumb = numba.njit(inline="always")(_crumb)


def _nibble(blocks: Any, i: int, at: int, j: int) -> Any:
    """Return the nibble of weight j in Q4_K's order, the 128 bytes of them starting at ``at``."""
    return byte(blocks, i, at + ((j >> 6) << 5) + (j & 31)) >> (((j >> 5) & 1) << 2) & 15


nibble = numba.njit(inline="always")(_nibble)


def _scale(blocks: Any, i: int, s: int) -> Any:
    """Return the 6-bit scale of sub-block s of Q4_K or Q5_K."""
    split = (byte(blocks, i, 8 + s) & 15) | (byte(blocks, i, s) >> 6 << 4)
    return byte(blocks, i, 4 + s) & 63 if s < 4 else split


scale = numba.njit(inline="always")(_scale)


def _minimum(blocks: Any, i: int, s: int) -> Any:
    """Return the 6-bit minimum of sub-block s of Q4_K or Q5_K."""
    split = (byte(blocks, i, 8 + s) >> 4) | (byte(blocks, i, 4 + s) >> 6 << 4)
    return byte(blocks, i, 8 + s) & 63 if s < 4 else split


minimum = numba.njit(inline="always")(_minimum)


def q2_k(blocks: U8, out: F32) -> None:
    """Dequantise Q2_K."""
    for i in range(blocks.shape[0]):
        d, dmin = half(blocks, i, 80), half(blocks, i, 82)
        for s in range(16):
            packed = byte(blocks, i, s)
            effective, low = d * np.float32(packed & 15), dmin * np.float32(packed >> 4)
            for j in range(16 * s, 16 * s + 16):
                out[i, j] = effective * np.float32(crumb(blocks, i, 16, j)) - low


def q3_k(blocks: U8, out: F32) -> None:
    """Dequantise Q3_K."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 108)
        for s in range(16):
            low = byte(blocks, i, 96 + (s & 7)) >> ((s >> 3) << 2) & 15
            high = byte(blocks, i, 104 + (s & 3)) >> ((s >> 2) << 1) & 3
            effective = d * np.float32((low | (high << 4)) - 32)
            for j in range(16 * s, 16 * s + 16):
                top = byte(blocks, i, j & 31) >> (j >> 5) & 1
                out[i, j] = effective * np.float32((crumb(blocks, i, 32, j) | (top << 2)) - 4)


def q4_k(blocks: U8, out: F32) -> None:
    """Dequantise Q4_K."""
    for i in range(blocks.shape[0]):
        d, dmin = half(blocks, i, 0), half(blocks, i, 2)
        for s in range(8):
            effective, low = d * np.float32(scale(blocks, i, s)), dmin * np.float32(minimum(blocks, i, s))
            for j in range(32 * s, 32 * s + 32):
                out[i, j] = effective * np.float32(nibble(blocks, i, 16, j)) - low


def q5_k(blocks: U8, out: F32) -> None:
    """Dequantise Q5_K."""
    for i in range(blocks.shape[0]):
        d, dmin = half(blocks, i, 0), half(blocks, i, 2)
        for s in range(8):
            effective, low = d * np.float32(scale(blocks, i, s)), dmin * np.float32(minimum(blocks, i, s))
            for j in range(32 * s, 32 * s + 32):
                top = byte(blocks, i, 16 + (j & 31)) >> s & 1
                out[i, j] = effective * np.float32(nibble(blocks, i, 48, j) | (top << 4)) - low


def q6_k(blocks: U8, out: F32) -> None:
    """Dequantise Q6_K."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 208)
        for s in range(16):
            effective = d * signed(blocks, i, 192 + s)
            for j in range(16 * s, 16 * s + 16):
                low = byte(blocks, i, ((j >> 7) << 6) + (j & 63)) >> (((j >> 6) & 1) << 2) & 15
                out[i, j] = effective * np.float32((low | (crumb(blocks, i, 128, j) << 4)) - 32)


def q8_k(blocks: U8, out: F32) -> None:
    """Dequantise Q8_K."""
    for i in range(blocks.shape[0]):
        d = single(blocks, i, 0)
        for j in range(256):
            out[i, j] = d * signed(blocks, i, 4 + j)
