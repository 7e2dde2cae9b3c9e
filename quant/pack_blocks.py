"""One function per GGML block type: blocks as they lie in a file, into the parts that kernels read.

Each takes a chunk of blocks ``u8 [n_rowgroup, 16, n_block, block_bytes]`` and the matching slices of the
parts (``pack_format.py``), and fills them. How GGML orders bits inside a block is in the layout tables of
``legacy.py``, ``k_quants.py`` and ``iq4.py``; only the orders that matter here are repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.ggml_types import GgmlType
from .pack_bits import (
    U8,
    bits32_to_bytes,
    bits_to_words,
    crumbs_to_words,
    delta_swap,
    field,
    gather_u64,
    nibbles_to_words,
    rows_innermost,
)

Parts = dict[str, NDArray[Any]]
Fill = Callable[[U8, Parts], None]


def _words(part: NDArray[Any], *shape: int) -> NDArray[Any]:
    """View (vectors of) a part as 32-bit words ``[n_rowgroup, *shape, 16 rows]``; ``shape`` splits its dimensions."""
    return part.view("<u4").reshape(part.shape[0], *shape, 16)


def _copy_scalar(out: NDArray[Any], blocks: U8, offset: int) -> None:
    """Copy one scalar of each block, such as its scale, to ``out [n_rowgroup, n_block, 16]``."""
    raw = out.view(f"u{out.itemsize}")
    np.copyto(raw, field(blocks, offset, raw.dtype).transpose(0, 2, 1))


def _copy_items(out: NDArray[Any], blocks: U8, offset: int, n_item: int) -> None:
    """Copy ``n_item`` neighbouring scalars of each block to ``out [n_rowgroup, n_block, n_item, 16]``."""
    raw = out.view(f"u{out.itemsize}")
    rows_innermost(raw, field(blocks, offset, (raw.dtype, (n_item,))))


def _halves_of_16(part: NDArray[Any], blocks: U8, offset: int, n_group: int) -> None:
    """Fill nibbles where 16 bytes hold 32 columns: low nibbles 0..15, high nibbles 16..31 (legacy, IQ4)."""
    pairs = nibbles_to_words(gather_u64(blocks, offset, 16 * n_group))  # [n_rowgroup, 16, n_block, 2 * n_group, 2]
    source = pairs.reshape(*pairs.shape[:3], n_group, 2, 2)  # [.., row, block, group, run, half]
    np.copyto(_words(part, pairs.shape[2], n_group, 2, 2), source.transpose(0, 2, 3, 5, 4, 1))


def _halves_of_32(part: NDArray[Any], blocks: U8, offset: int) -> None:
    """Fill nibbles where 32 bytes hold 64 columns: low nibbles 0..31, high nibbles 32..63 (Q4_K, Q5_K)."""
    pairs = nibbles_to_words(gather_u64(blocks, offset, 128))  # [n_rowgroup, 16, n_super, 16, 2]
    source = pairs.reshape(*pairs.shape[:3], 4, 4, 2)  # [.., row, super, 64 columns, vector, half]
    np.copyto(_words(part, pairs.shape[2], 4, 2, 4), source.transpose(0, 2, 3, 5, 4, 1))


def _halves_of_64(part: NDArray[Any], blocks: U8, offset: int) -> None:
    """Fill nibbles where 64 bytes hold 128 columns: low nibbles 0..63, high nibbles 64..127 (Q6_K)."""
    pairs = nibbles_to_words(gather_u64(blocks, offset, 128))  # [n_rowgroup, 16, n_super, 16, 2]
    source = pairs.reshape(*pairs.shape[:3], 2, 2, 4, 2)  # [.., row, super, 128 columns, group, vector, half]
    np.copyto(_words(part, pairs.shape[2], 2, 2, 2, 4), source.transpose(0, 2, 3, 6, 4, 5, 1))


def _crumbs(part: NDArray[Any], blocks: U8, offset: int) -> None:
    """Fill pairs of bits where bits 2j of 32 bytes hold columns ``32j .. 32j+31`` (Q2_K, Q3_K, Q6_K)."""
    quads = crumbs_to_words(gather_u64(blocks, offset, 64))  # [n_rowgroup, 16, n_super, 4, 4]
    source = quads.reshape(*quads.shape[:3], 2, 2, 4)  # [.., row, super, 128 columns, vector, group]
    np.copyto(_words(part, quads.shape[2], 2, 4, 2), source.transpose(0, 2, 3, 5, 4, 1))


def _high_bits(part: NDArray[Any], blocks: U8, offset: int) -> None:
    """Fill single bits where bit j of 32 bytes holds columns ``32j .. 32j+31`` (Q3_K, Q5_K)."""
    words = bits_to_words(gather_u64(blocks, offset, 32).view("<u4"))  # [n_rowgroup, 16, n_super, 8]
    rows_innermost(_words(part, words.shape[2], 8), words)


def _high_bits_32(part: NDArray[Any], blocks: U8, offset: int) -> None:
    """Fill single bits where bit j of 32 bits holds column j (Q5_0, Q5_1)."""
    bits = np.empty(blocks.shape[:3], "<u4")
    np.copyto(bits, field(blocks, offset, "<u4"))
    np.copyto(_words(part, blocks.shape[2]), bits32_to_bytes(bits).transpose(0, 2, 1))


def _fill_q3_0(blocks: U8, parts: Parts) -> None:
    _copy_scalar(parts["d8"], blocks, 0)
    words = np.ascontiguousarray(blocks[..., 1:]).view("<u4")  # [n_rowgroup, 16, n_block, 3]
    rows_innermost(_words(parts["q33"], words.shape[2], 3), words)


def _fill_q4_0(blocks: U8, parts: Parts) -> None:
    """Pack Q4_0, and IQ4_NL which has the same fields."""
    _copy_scalar(parts["d"], blocks, 0)
    _halves_of_16(parts["q4"], blocks, 2, 1)


def _fill_q4_1(blocks: U8, parts: Parts) -> None:
    _copy_items(parts["dm"], blocks, 0, 2)
    _halves_of_16(parts["q4"], blocks, 4, 1)


def _fill_q5_0(blocks: U8, parts: Parts) -> None:
    _copy_scalar(parts["d"], blocks, 0)
    _high_bits_32(parts["q5"][:, :, 0], blocks, 2)
    _halves_of_16(parts["q5"][:, :, 1:], blocks, 6, 1)


def _fill_q5_1(blocks: U8, parts: Parts) -> None:
    _copy_items(parts["dm"], blocks, 0, 2)
    _high_bits_32(parts["q5"][:, :, 0], blocks, 4)
    _halves_of_16(parts["q5"][:, :, 1:], blocks, 8, 1)


def _fill_q8_0(blocks: U8, parts: Parts) -> None:
    _copy_scalar(parts["d"], blocks, 0)
    rows_innermost(_words(parts["q8"], blocks.shape[2], 8), field(blocks, 2, ("<u4", (8,))))


def _fill_mxfp4(blocks: U8, parts: Parts) -> None:
    _copy_scalar(parts["e"], blocks, 0)
    _halves_of_16(parts["q4"], blocks, 1, 1)


def _fill_q2_k(blocks: U8, parts: Parts) -> None:
    _copy_items(parts["s4"], blocks, 0, 16)
    _crumbs(parts["q2"], blocks, 16)
    _copy_items(parts["dm"], blocks, 80, 2)


def _fill_q3_k(blocks: U8, parts: Parts) -> None:
    _high_bits(parts["q3"][:, :, 0], blocks, 0)
    _crumbs(parts["q3"][:, :, 1:], blocks, 32)
    # The file already pairs scales s and s+8, and four scales' upper bits, in the order of s6.
    s6 = parts["s6"]
    _copy_items(s6.reshape(*s6.shape[:2], 12, 16), blocks, 96, 12)
    _copy_scalar(parts["d"], blocks, 108)


def _k_scales(part: NDArray[Any], blocks: U8, offset: int) -> None:
    """Fill s6 of Q4_K and Q5_K from 12 bytes."""
    # Four sub-blocks a word; each word an array of its own, so that arithmetic runs over long rows.
    sc, m = (np.ascontiguousarray(field(blocks, offset + at, "<u4")) for at in (0, 4))
    high = (sc >> 4) & 0x03030303
    high |= (m >> 2) & 0x0C0C0C0C
    high |= (sc >> 2) & 0x30303030
    high |= m & 0xC0C0C0C0
    sc &= 0x0F0F0F0F
    sc |= (m << 4) & 0xF0F0F0F0
    out = part.reshape(*part.shape[:2], 12, 16)
    rows_innermost(out[:, :, 0:4], _bytes(sc))
    rows_innermost(out[:, :, 4:8], field(blocks, offset + 8, ("u1", (4,))))  # nibbles of 4..7 as they are
    rows_innermost(out[:, :, 8:12], _bytes(high))


def _bytes(words: NDArray[Any]) -> U8:
    """View ``[n_rowgroup, 16, n_block]`` words as their bytes, ``[n_rowgroup, 16, n_block, 2 or 4]``."""
    return words.view(np.uint8).reshape(*words.shape, words.itemsize)


def _fill_q4_k(blocks: U8, parts: Parts) -> None:
    _copy_items(parts["dm"], blocks, 0, 2)
    _k_scales(parts["s6"], blocks, 4)
    _halves_of_32(parts["q4"], blocks, 16)


def _fill_q5_k(blocks: U8, parts: Parts) -> None:
    _copy_items(parts["dm"], blocks, 0, 2)
    _k_scales(parts["s6"], blocks, 4)
    _high_bits(parts["q5"][:, :, 0], blocks, 16)
    _halves_of_32(parts["q5"][:, :, 1:], blocks, 48)


def _fill_q6_k(blocks: U8, parts: Parts) -> None:
    _halves_of_64(parts["q6"][:, :, 2:], blocks, 0)
    _crumbs(parts["q6"][:, :, :2], blocks, 128)
    _copy_items(parts["s8"], blocks, 192, 16)
    _copy_scalar(parts["d"], blocks, 208)


def _fill_iq4_xs(blocks: U8, parts: Parts) -> None:
    _copy_scalar(parts["d"], blocks, 0)
    out = parts["s6"].reshape(blocks.shape[0], blocks.shape[2], 6, 16)
    low = np.ascontiguousarray(field(blocks, 4, "<u4"))  # nibble s of scale s; wanted: s and s + 4 in a byte
    delta_swap(low, 8, 0x0000FF00)
    delta_swap(low, 4, 0x00F000F0)
    rows_innermost(out[:, :, 0:4], _bytes(low))
    high = np.ascontiguousarray(field(blocks, 2, "<u2"))  # two bits of scale s; wanted: even ones, then odd ones
    delta_swap(high, 2, 0x0C0C)
    delta_swap(high, 4, 0x00F0)
    rows_innermost(out[:, :, 4:6], _bytes(high))
    _halves_of_16(parts["q4"], blocks, 8, 8)


def _fill_float(blocks: U8, parts: Parts) -> None:
    """Pack F16, BF16 and F32: a block is one weight."""
    _copy_scalar(parts["w"], blocks, 0)


FILL: dict[GgmlType, Fill] = {
    GgmlType.Q3_0: _fill_q3_0,
    GgmlType.Q4_0: _fill_q4_0,
    GgmlType.Q4_1: _fill_q4_1,
    GgmlType.Q5_0: _fill_q5_0,
    GgmlType.Q5_1: _fill_q5_1,
    GgmlType.Q8_0: _fill_q8_0,
    GgmlType.Q2_K: _fill_q2_k,
    GgmlType.Q3_K: _fill_q3_k,
    GgmlType.Q4_K: _fill_q4_k,
    GgmlType.Q5_K: _fill_q5_k,
    GgmlType.Q6_K: _fill_q6_k,
    GgmlType.IQ4_NL: _fill_q4_0,
    GgmlType.IQ4_XS: _fill_iq4_xs,
    GgmlType.MXFP4: _fill_mxfp4,
    GgmlType.F16: _fill_float,
    GgmlType.BF16: _fill_float,
    GgmlType.F32: _fill_float,
}
