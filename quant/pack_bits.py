"""Moves of bits and bytes that packing is made of, on whole chunks at a time.

A chunk of blocks is ``u8 [n_rowgroup, 16, n_block, block_bytes]``. Quants travel as 32-bit words that
hold the same field of four neighbouring columns, so that putting 16 rows side by side is a
transposition of words. Source bytes packed per second by one Zen 4 core, results in cache (2026-11): 5 GB/s for
Q8_0, 3 for Q4_0 and Q4_1, 2 for Q4_K and Q6_K, 1.5 for Q3_K and Q5_K.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]


def field(blocks: U8, offset: int, dtype: Any) -> NDArray[Any]:
    """Return one field of every block, ``[n_rowgroup, 16, n_block]`` plus the shape inside ``dtype``.

    A view; its elements may be unaligned, which plain copies handle well and arithmetic does not.
    """
    view = blocks.view(_record(offset, dtype, blocks.shape[-1]))[
        "f"
    ]  # [n_rowgroup, 16, n_block, 1] plus the shape inside dtype
    return view.reshape(*view.shape[:3], *view.shape[4:])


@cache
def _record(offset: int, dtype: Any, n_byte: int) -> np.dtype[Any]:
    return np.dtype({"names": ["f"], "formats": [dtype], "offsets": [offset], "itemsize": n_byte})


def gather_u64(blocks: U8, offset: int, n_bytes: int) -> U64:
    """Copy ``n_bytes`` of every block to ``u64 [n_rowgroup, 16, n_block, n_bytes // 8]``."""
    # One copy of a whole field per block: 45 GB/s, against 10 for 4-byte pieces (Zen 4, 2026-11).
    packed = np.empty(blocks.shape[:-1], f"V{n_bytes}")
    np.copyto(packed, field(blocks, offset, f"V{n_bytes}"))
    return packed.view("<u8").reshape(*blocks.shape[:-1], n_bytes // 8)


def delta_swap(x: NDArray[Any], shift: int, mask: int) -> None:
    """Exchange, in place, the bits of ``x`` under ``mask`` with those ``shift`` places higher."""
    t = x >> shift
    t ^= x
    t &= mask
    x ^= t
    t <<= shift
    x ^= t


def delta_swap_between(a: NDArray[Any], b: NDArray[Any], shift: int, mask: int) -> None:
    """Exchange, in place, the bits ``mask << shift`` of ``a`` with the bits ``mask`` of ``b``."""
    t = a >> shift
    t ^= b
    t &= mask
    b ^= t
    t <<= shift
    a ^= t


def nibbles_to_words(x: U64) -> U32:
    """Turn nibbles of two runs into packed words, ``[..., n]`` to ``[..., n, 2]``, in place.

    Word 0 of a pair of 32-bit words holds the low nibbles of both: those of columns ``8v .. 8v+3`` in its
    low nibbles, ``8v+4 .. 8v+7`` in its high ones. Word 1 holds the high nibbles likewise.
    """
    delta_swap(x, 28, 0xF0F0F0F0)
    return x.view("<u4").reshape(*x.shape, 2)


def crumbs_to_words(x: U64) -> U32:
    """Turn 2-bit fields of four runs into packed words, ``[..., 2 * n]`` to ``[..., n, 4]``, in place.

    Of four words (16 bytes of each row), the two bits ``2j`` of word i go to the bits ``2i`` of word j.
    """
    delta_swap(x, 30, 0xCCCCCCCC)
    delta_swap_between(x[..., 0::2], x[..., 1::2], 4, 0x0F0F0F0F0F0F0F0F)
    return x.view("<u4").reshape(*x.shape[:-1], -1, 4)


def bits_to_words(words: U32) -> U32:
    """Turn single bits of eight runs into packed words, ``[..., 8]`` in place.

    Of eight words (32 bytes of each row), bit ``j`` of word k's bytes goes to bit k of word j's bytes.
    """
    x = words.view("<u8")  # [..., 4]: words 2i and 2i+1
    delta_swap(x, 31, 0xAAAAAAAA)
    for i, j in ((0, 1), (2, 3)):
        delta_swap_between(x[..., i], x[..., j], 2, 0x3333333333333333)
    for i, j in ((0, 2), (1, 3)):
        delta_swap_between(x[..., i], x[..., j], 4, 0x0F0F0F0F0F0F0F0F)
    return words


def bits32_to_bytes(bits: U32) -> U32:
    """Regroup 32 bits of 32 columns, in place: bit ``4k + c`` goes to bit k of byte c."""
    # A bit's index has five bits, k2 k1 k0 c1 c0; wanted is c1 c0 k2 k1 k0. Each step exchanges two of them.
    for shift, mask in ((3, 0x0A0A0A0A), (6, 0x00CC00CC), (8, 0x0000FF00), (4, 0x00F000F0)):
        delta_swap(bits, shift, mask)
    return bits


def rows_innermost(out: NDArray[Any], values: NDArray[Any]) -> None:
    """Copy ``values [n_rowgroup, 16, n_block, n]`` into ``out [n_rowgroup, n_block, n, 16]``."""
    np.copyto(out, values.transpose(0, 2, 3, 1))
