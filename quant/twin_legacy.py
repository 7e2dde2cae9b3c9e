"""Numba twins of ``floats.py`` and ``legacy.py``.

``blocks u8 [n_block, block_bytes]`` to ``out f32 [n_block, n_weight]``.
"""

from __future__ import annotations

import numpy as np

from .floats import F32, U8
from .twin_bits import byte, float_from_bits, half, signed, single, word


def f32(blocks: U8, out: F32) -> None:
    """Copy float32 weights."""
    for i in range(blocks.shape[0]):
        out[i, 0] = single(blocks, i, 0)


def f16(blocks: U8, out: F32) -> None:
    """Widen half-precision weights."""
    for i in range(blocks.shape[0]):
        out[i, 0] = half(blocks, i, 0)


def bf16(blocks: U8, out: F32) -> None:
    """Widen bfloat16 weights."""
    for i in range(blocks.shape[0]):
        out[i, 0] = float_from_bits(word(blocks, i, 0) << 16)


def q1_0(blocks: U8, out: F32) -> None:
    """Dequantise Q1_0."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for j in range(128):
            if (byte(blocks, i, 2 + (j >> 3)) >> (j & 7)) & 1:
                out[i, j] = d
            else:
                out[i, j] = -d


def q4_0(blocks: U8, out: F32) -> None:
    """Dequantise Q4_0."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for j in range(16):
            q = byte(blocks, i, 2 + j)
            out[i, j] = d * np.float32((q & 15) - 8)
            out[i, j + 16] = d * np.float32((q >> 4) - 8)


def q4_1(blocks: U8, out: F32) -> None:
    """Dequantise Q4_1."""
    for i in range(blocks.shape[0]):
        d, m = half(blocks, i, 0), half(blocks, i, 2)
        for j in range(16):
            q = byte(blocks, i, 4 + j)
            out[i, j] = d * np.float32(q & 15) + m
            out[i, j + 16] = d * np.float32(q >> 4) + m


def q5_0(blocks: U8, out: F32) -> None:
    """Dequantise Q5_0."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        high = word(blocks, i, 2) | (word(blocks, i, 4) << 16)
        for j in range(16):
            q = byte(blocks, i, 6 + j)
            out[i, j] = d * np.float32(((q & 15) | ((high >> j & 1) << 4)) - 16)
            out[i, j + 16] = d * np.float32(((q >> 4) | ((high >> (j + 16) & 1) << 4)) - 16)


def q5_1(blocks: U8, out: F32) -> None:
    """Dequantise Q5_1."""
    for i in range(blocks.shape[0]):
        d, m = half(blocks, i, 0), half(blocks, i, 2)
        high = word(blocks, i, 4) | (word(blocks, i, 6) << 16)
        for j in range(16):
            q = byte(blocks, i, 8 + j)
            out[i, j] = d * np.float32((q & 15) | ((high >> j & 1) << 4)) + m
            out[i, j + 16] = d * np.float32((q >> 4) | ((high >> (j + 16) & 1) << 4)) + m


def q8_0(blocks: U8, out: F32) -> None:
    """Dequantise Q8_0."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for j in range(32):
            out[i, j] = signed(blocks, i, 2 + j) * d


def q8_1(blocks: U8, out: F32) -> None:
    """Dequantise Q8_1."""
    for i in range(blocks.shape[0]):
        d = single(blocks, i, 0)
        for j in range(32):
            out[i, j] = signed(blocks, i, 8 + j) * d
