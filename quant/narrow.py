"""Blocks of larger types as Q4_0, quickly: for draft models, whose weights may be anything that guesses well.

What is lost is about what quantising to Q4_0 loses. Q5_0 and Q8_0 are narrowed as integers, faster than by way of
floats: the largest weight of a block stays at the end of the range, as ``round_to_nearest.q4_0`` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..formats.ggml_types import BLOCK, GgmlType
from . import encode, round_to_nearest
from .dequantize import DEQUANTIZERS, dequantize
from .floats import F32, U8, half_at

TARGET = GgmlType.Q4_0
CHUNK_BYTES = 256 * 1024  # of the result: temporaries stay in the second-level cache


def bits_per_weight(ggml_type: GgmlType) -> float:
    """Return what a weight of a type takes."""
    n_weight, n_byte = BLOCK[ggml_type]
    return 8 * n_byte / n_weight


def can_narrow(ggml_type: GgmlType, n_in: int) -> bool:
    """Return whether rows of a type get smaller."""
    return (
        ggml_type in DEQUANTIZERS
        and n_in % BLOCK[TARGET][0] == 0
        and bits_per_weight(ggml_type) > bits_per_weight(TARGET) + 0.5
    )


def narrow(ggml_type: GgmlType, data: U8) -> U8:
    """Return whole blocks of a type as blocks of Q4_0 with the same weights, roughly.

    Args:
        ggml_type: a type for which ``can_narrow`` holds.
        data: u8, whole blocks; a multiple of 32 weights.

    Returns:
        u8 [n_weight // 32 * 18].
    """
    n_weight, n_byte = BLOCK[ggml_type]
    step = max(1, CHUNK_BYTES * 32 // BLOCK[TARGET][1] // max(32, n_weight)) * max(1, 32 // n_weight)
    convert: Callable[[U8], U8] = _INTEGER.get(ggml_type, partial(_through_floats, ggml_type))
    blocks = data.reshape(-1, n_byte)
    parts = [convert(blocks[i : i + step]).reshape(-1) for i in range(0, len(blocks), step)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _half(q: int) -> int:
    """Return half of a nibble; what lies in the middle goes to the even one, except that it stays below 8."""
    return q // 2 + (q % 4 == 3 and q < 15)


_HALVES = np.array([_half(byte & 15) | _half(byte >> 4) << 4 for byte in range(256)], np.uint8)
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # [256, 8]
_HIGH = [(_BITS << shift).view(np.uint64).reshape(-1) for shift in (3, 7)]  # a byte's bits as those of eight nibbles


def _q5_0(blocks: U8) -> U8:
    """Halve 0 to 31: the fifth bit becomes the fourth."""
    result = np.empty((len(blocks), 18), np.uint8)
    result[:, :2] = _times(blocks, np.float32(2))
    quants = _HALVES[blocks[:, 6:]]  # [n, 16]
    quants += _HIGH[0][blocks[:, 2:4]].view(np.uint8)
    quants += _HIGH[1][blocks[:, 4:6]].view(np.uint8)
    result[:, 2:] = quants
    return result


def _q8_0(blocks: U8) -> U8:
    q = blocks[:, 2:].view(np.int8)
    sign = np.where(q.max(axis=1) > -q.min(axis=1).astype(np.int16), np.int8(-1), np.int8(1))[:, None]
    halved = np.minimum((q.astype(np.int16) * sign + 8 >> 4) + 8, 15).astype(np.uint8)
    return encode.encode_q4_0(_times(blocks, 16 * sign.astype(np.float32)), halved)


def _times(blocks: U8, factor: F32 | np.float32) -> U8:
    return encode.half_bytes(half_at(blocks, 0).reshape(-1, 1).astype(np.float32) * factor)


def _through_floats(ggml_type: GgmlType, blocks: U8) -> U8:
    values = dequantize(ggml_type, np.ascontiguousarray(blocks).reshape(-1))
    with np.errstate(all="ignore"):
        return round_to_nearest.q4_0(np.asarray(values, np.float32).reshape(-1, 32))


_INTEGER: dict[GgmlType, Callable[[U8], U8]] = {GgmlType.Q5_0: _q5_0, GgmlType.Q8_0: _q8_0}
