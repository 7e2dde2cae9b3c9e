"""Floating-point types: one weight a block.

====  =====  =================================================
type  bytes  meaning
====  =====  =================================================
F32   4      IEEE 754 single precision
F16   2      IEEE 754 half precision
BF16  2      upper half of a single-precision number
====  =====  =================================================

All little-endian.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


def f32(blocks: U8) -> F32:
    """Return ``[n, 4]`` bytes as float32 ``[n, 1]``."""
    return blocks.view("<f4")


def f16(blocks: U8) -> F32:
    """Return ``[n, 2]`` bytes as float32 ``[n, 1]``."""
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks: U8) -> F32:
    """Return ``[n, 2]`` bytes as float32 ``[n, 1]``."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def half_at(blocks: U8, offset: int) -> F32:
    """Return the half-precision number at a byte offset of every block, as float32 ``[n_block, 1]``."""
    return f16(np.ascontiguousarray(blocks[:, offset : offset + 2]))
