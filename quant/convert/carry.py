"""Integers of GPTQ, AWQ and compressed-tensors as GGML blocks, bit for bit where a type holds them.

=====  =====================================  ==============================================================
type   holds exactly                          why
=====  =====================================  ==============================================================
Q4_0   4 bits, zero point 8                   ``d * (q - 8)``
Q4_1   4 bits, ``scale * zero`` exact in f16  ``d * q + m``; else m is the nearest half, off by < 0.8 % of a step
Q5_0   4 bits, any zero point                 ``d * (q - 16)``: ``q - zero`` lies between -15 and 15
Q8_0   8 bits, differences of -128 to 127     ``d * q``
=====  =====================================  ==============================================================

The scale must be exact in half precision (always so for f16) and one for each block of 32 columns; wider groups
repeat it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...formats.ggml_types import GgmlType
from ..encode import encode_q4_0, encode_q8_0, half_bytes
from ..floats import U8
from .grids import F32, I32, Grid, GridReader

BLOCK_COLUMNS = 32


def exact_type(reader: GridReader, n_row: int) -> GgmlType | None:
    """Return the smallest type that holds a whole matrix exactly, None when none does."""
    groups = block_groups(reader.group)
    if groups is None:
        return None
    scale, zero = reader.scales_and_zeros(np.arange(n_row))
    with np.errstate(over="ignore"):
        if not np.array_equal(scale.astype(np.float16).astype(np.float32), scale):
            return None
    if reader.bits == 8:
        return GgmlType.Q8_0 if np.all(zero == 128) else None
    if np.all(zero == 8):
        return GgmlType.Q4_0
    return GgmlType.Q4_1 if not minimum_error(scale, zero).any() else GgmlType.Q5_0


def block_groups(group: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the group of every block of 32 columns, None where a block has columns of several groups."""
    if len(group) % BLOCK_COLUMNS:
        return None
    blocks = group.reshape(-1, BLOCK_COLUMNS)
    return blocks[:, 0] if np.all(blocks == blocks[:, :1]) else None


def minimum_error(scale: F32, zero: I32) -> F32:
    """Return by how much a half-precision minimum of Q4_1 is off, in steps of the grid, ``[n_row, n_group]``."""
    exact = -(scale.astype(np.float64) * zero)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        off = np.abs(exact.astype(np.float16).astype(np.float64) - exact) / np.abs(scale)
    return np.where(scale == 0, 0, off).astype(np.float32)


def encode(grid: Grid, ggml_type: GgmlType) -> U8:
    """Return rows as blocks of a type that ``exact_type`` gave, or of Q4_1, u8 ``[n_row, n_row_bytes]``."""
    groups = block_groups(grid.group)
    assert groups is not None
    n_row = len(grid.q)
    d = half_bytes(grid.scale[:, groups].reshape(-1, 1))
    q = grid.q.reshape(-1, BLOCK_COLUMNS)
    zero = grid.zero[:, groups].reshape(-1, 1)
    if ggml_type == GgmlType.Q4_0:
        blocks = encode_q4_0(d, q.astype(np.uint8))
    elif ggml_type == GgmlType.Q8_0:
        blocks = encode_q8_0(d, (q - zero).astype(np.int8))
    elif ggml_type == GgmlType.Q4_1:
        minimum = -(grid.scale[:, groups].reshape(-1, 1).astype(np.float64) * zero)
        blocks = np.concatenate([d, half_bytes(minimum.astype(np.float32)), _nibbles(q)], axis=1)
    else:
        assert ggml_type == GgmlType.Q5_0
        five = q - zero + 16
        high = np.packbits((five >> 4).astype(np.uint8), axis=1, bitorder="little")
        blocks = np.concatenate([d, high, _nibbles(five & 15)], axis=1)
    return blocks.reshape(n_row, -1)


def _nibbles(q: I32) -> U8:
    """Pack ``[n, 32]`` values below 16: column i low, column i + 16 high."""
    packed: U8 = (q[:, :16] | (q[:, 16:] << 4)).astype(np.uint8)
    return packed
