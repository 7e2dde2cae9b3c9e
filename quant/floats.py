"""Floating-point types: one weight a block.

====  =====  =================================================
type  bytes  meaning
====  =====  =================================================
F32   4      IEEE 754 single precision
F16   2      IEEE 754 half precision
BF16  2      upper half of a single-precision number
====  =====  =================================================

All little-endian. ``f8`` is llmrun's own, for scales in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
NO_NUMBER = 0x80  # of ``f8``


def f32(blocks: U8) -> F32:
    """Return ``[n, 4]`` bytes as float32 ``[n, 1]``."""
    return blocks.view("<f4")


def f16(blocks: U8) -> F32:
    """Return ``[n, 2]`` bytes as float32 ``[n, 1]``."""
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks: U8) -> F32:
    """Return ``[n, 2]`` bytes as float32 ``[n, 1]``."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def f8(codes: U8) -> F32:
    """Return numbers of eight bits, sign and halves from 0 to 1.875 with three bits behind the first, as float32.

    Bits 0 to 6 are bits 7 to 13 of a half-precision number whose others are zero. 0x80 stands for what is no number.
    """
    words = codes.astype(np.uint16)
    halves = ((words & 0x80) << 8 | (words & 0x7F) << 7).view(np.float16).astype(np.float32)
    return np.where(codes == NO_NUMBER, np.float32(np.nan), halves)


def to_f8(values: F32) -> U8:
    """Return the nearest half-precision numbers' nearest ``f8``, ties to even; larger ones become 1.875."""
    bits = values.astype(np.float16).view(np.uint16)
    magnitude = bits & 0x7FFF
    codes = np.minimum((magnitude + 0x3F + (magnitude >> 7 & 1)) >> 7, 0x7F)
    codes = np.where(codes == 0, 0, codes | bits >> 8 & 0x80)
    return np.where(magnitude < 0x7C00, codes, NO_NUMBER).astype(np.uint8)


def half_at(blocks: U8, offset: int) -> F32:
    """Return the half-precision number at a byte offset of every block, as float32 ``[n_block, 1]``."""
    return f16(np.ascontiguousarray(blocks[:, offset : offset + 2]))
