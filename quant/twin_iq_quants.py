"""Numba twins of ``iq_quants.py``: ``blocks u8 [n_block, block_bytes]`` to ``out f32 [n_block, 256]``."""

from __future__ import annotations

import numpy as np

from ..formats.ggml_types import GgmlType
from .floats import F32, U8
from .iq_grids import grid, sign_masks
from .twin_bits import byte, half, half_from, word

_SIGNS = sign_masks()
_IQ1 = grid(GgmlType.IQ1_S)  # IQ1_M has the same
_IQ2_XXS = grid(GgmlType.IQ2_XXS)
_IQ2_XS = grid(GgmlType.IQ2_XS)
_IQ2_S = grid(GgmlType.IQ2_S)
_IQ3_XXS = grid(GgmlType.IQ3_XXS)
_IQ3_S = grid(GgmlType.IQ3_S)


def iq2_xxs(blocks: U8, out: F32) -> None:
    """Dequantise IQ2_XXS."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for s in range(8):
            aux = word(blocks, i, 6 + 8 * s) | (word(blocks, i, 8 + 8 * s) << 16)
            effective = d * (np.float32(0.5) + np.float32(aux >> 28)) * np.float32(0.25)
            for g in range(4):
                index, signs = byte(blocks, i, 2 + 8 * s + g), np.int64(_SIGNS[aux >> (7 * g) & 127])
                for j in range(8):
                    value = effective * np.float32(_IQ2_XXS[index, j])
                    out[i, 32 * s + 8 * g + j] = -value if signs >> j & 1 else value


def iq2_xs(blocks: U8, out: F32) -> None:
    """Dequantise IQ2_XS."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for g in range(32):
            s = byte(blocks, i, 66 + (g >> 2)) >> ((g >> 1 & 1) << 2) & 15
            effective = d * (np.float32(0.5) + np.float32(s)) * np.float32(0.25)
            q = word(blocks, i, 2 + 2 * g)
            index, signs = q & 511, np.int64(_SIGNS[q >> 9])
            for j in range(8):
                value = effective * np.float32(_IQ2_XS[index, j])
                out[i, 8 * g + j] = -value if signs >> j & 1 else value


def iq2_s(blocks: U8, out: F32) -> None:
    """Dequantise IQ2_S."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for g in range(32):
            s = byte(blocks, i, 74 + (g >> 2)) >> ((g >> 1 & 1) << 2) & 15
            effective = d * (np.float32(0.5) + np.float32(s)) * np.float32(0.25)
            high = byte(blocks, i, 66 + (g >> 2)) >> ((g & 3) << 1) & 3
            index, signs = byte(blocks, i, 2 + g) | (high << 8), byte(blocks, i, 34 + g)
            for j in range(8):
                value = effective * np.float32(_IQ2_S[index, j])
                out[i, 8 * g + j] = -value if signs >> j & 1 else value


def iq3_xxs(blocks: U8, out: F32) -> None:
    """Dequantise IQ3_XXS."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for s in range(8):
            aux = word(blocks, i, 66 + 4 * s) | (word(blocks, i, 68 + 4 * s) << 16)
            effective = d * (np.float32(0.5) + np.float32(aux >> 28)) * np.float32(0.5)
            for g in range(8):
                index, signs = byte(blocks, i, 2 + 8 * s + g), np.int64(_SIGNS[aux >> (7 * (g >> 1)) & 127])
                for j in range(4):
                    value = effective * np.float32(_IQ3_XXS[index, j])
                    out[i, 32 * s + 4 * g + j] = -value if signs >> (4 * (g & 1) + j) & 1 else value


def iq3_s(blocks: U8, out: F32) -> None:
    """Dequantise IQ3_S."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for g in range(64):
            s = byte(blocks, i, 106 + (g >> 4)) >> ((g >> 3 & 1) << 2) & 15
            effective = d * np.float32(1 + 2 * s)
            high = byte(blocks, i, 66 + (g >> 3)) >> (g & 7) & 1
            index, signs = byte(blocks, i, 2 + g) | (high << 8), byte(blocks, i, 74 + (g >> 1)) >> (4 * (g & 1))
            for j in range(4):
                value = effective * np.float32(_IQ3_S[index, j])
                out[i, 4 * g + j] = -value if signs >> j & 1 else value


def iq1_s(blocks: U8, out: F32) -> None:
    """Dequantise IQ1_S."""
    for i in range(blocks.shape[0]):
        d = half(blocks, i, 0)
        for s in range(8):
            qh = word(blocks, i, 34 + 2 * s)
            effective = d * np.float32(2 * (qh >> 12 & 7) + 1)
            delta = np.float32(-0.125) if qh >> 15 else np.float32(0.125)
            for g in range(4):
                index = byte(blocks, i, 2 + 4 * s + g) | ((qh >> (3 * g) & 7) << 8)
                for j in range(8):
                    out[i, 32 * s + 8 * g + j] = effective * (np.float32(_IQ1[index, j]) + delta)


def iq1_m(blocks: U8, out: F32) -> None:
    """Dequantise IQ1_M."""
    for i in range(blocks.shape[0]):
        bits = np.int64(0)
        for k in range(4):
            bits |= (word(blocks, i, 48 + 2 * k) >> 12) << (4 * k)
        d = half_from(bits)
        for g in range(32):
            s = word(blocks, i, 48 + 2 * (g >> 3)) >> (3 * (g >> 1 & 3)) & 7
            effective = d * np.float32(2 * s + 1)
            qh = byte(blocks, i, 32 + (g >> 1)) >> ((g & 1) << 2) & 15
            delta = np.float32(-0.125) if qh >> 3 else np.float32(0.125)
            index = byte(blocks, i, g) | ((qh & 7) << 8)
            for j in range(8):
                out[i, 8 * g + j] = effective * (np.float32(_IQ1[index, j]) + delta)
