"""Packing as kernels: row groups of a matrix from a file's blocks, for the types that models mostly have.

``quant/pack.py`` is the specification and packs everything else: other types, widened ones, and a last row group of
fewer than 16 rows. These do nothing but move bits, at the speed of memory, and see infinite scales as they pass.

A matrix is an operation like any other, so that one call out of Python packs many, with a team of threads.
Record words after the two that all share (the number of rows, word 1, is not used):

2 source, 3 bytes of a row, 4 row groups, 5 blocks of a row (of 8 columns for F16 and BF16), 6..8 parts in the order
of ``quant/pack_format.py``, 10 (written) not 0: a scale (or weight) is infinite or NaN. Source and parts are the
addresses of the first row group's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...formats.ggml_types import BLOCK, GgmlType
from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.pack_words import (
    pack_bits, pack_bits_of_word, pack_bytes_16, pack_crumbs, pack_half, pack_half_pair, pack_halves_8, pack_k_scales,
    pack_nibbles_16, pack_nibbles_32, pack_words_8, special_halves,
)  # fmt: skip
from ..simd.scalar import load_i64, store_i64
from ..simd.vector import any_sign, device, i32x16, int64, or_i32, splat_i32, void
from .layout import FLOAT_COLUMNS, PACK_SPECIAL
from .rows import first_unit

# block(source, row_bytes, index, part 0 .. part 2) packs one block of 16 rows; ``index`` counts blocks of the parts.
_BLOCK = i32x16(*[int64] * 6)


@device(_BLOCK)
def _q4_0(source, step, i, p0, p1, p2):
    pack_nibbles_16(source + 2, step, p0 + 256 * i)
    return special_halves(pack_half(source, step, p1 + 32 * i))


@device(_BLOCK)
def _q4_1(source, step, i, p0, p1, p2):
    pack_nibbles_16(source + 4, step, p0 + 256 * i)
    return special_halves(pack_half_pair(source, step, p1 + 64 * i))


@device(_BLOCK)
def _q5_0(source, step, i, p0, p1, p2):
    pack_bits_of_word(source + 2, step, p0 + 320 * i)
    pack_nibbles_16(source + 6, step, p0 + 320 * i + 64)
    return special_halves(pack_half(source, step, p1 + 32 * i))


@device(_BLOCK)
def _q5_1(source, step, i, p0, p1, p2):
    pack_bits_of_word(source + 4, step, p0 + 320 * i)
    pack_nibbles_16(source + 8, step, p0 + 320 * i + 64)
    return special_halves(pack_half_pair(source, step, p1 + 64 * i))


@device(_BLOCK)
def _q8_0(source, step, i, p0, p1, p2):
    pack_words_8(source + 2, step, p0 + 512 * i)
    return special_halves(pack_half(source, step, p1 + 32 * i))


@device(_BLOCK)
def _q4_k(source, step, i, p0, p1, p2):
    for pair in range(4):
        group = p0 + 2048 * i + 512 * pair
        pack_nibbles_32(source + 16 + 32 * pair, step, group, group + 256)
    return special_halves(pack_k_scales(source, step, p1 + 64 * i, p2 + 192 * i))


@device(_BLOCK)
def _q5_k(source, step, i, p0, p1, p2):
    pack_bits(source + 16, step, p0 + 2560 * i)
    for pair in range(4):
        group = p0 + 2560 * i + 640 * pair + 64
        pack_nibbles_32(source + 48 + 32 * pair, step, group, group + 320)
    return special_halves(pack_k_scales(source, step, p1 + 64 * i, p2 + 192 * i))


@device(_BLOCK)
def _q6_k(source, step, i, p0, p1, p2):
    for half in range(2):
        for group in range(2):  # low nibbles are columns 32 group .. 32 group + 31, high ones those 64 further on
            out = p0 + 3072 * i + 1536 * half + 384 * group + 128
            pack_nibbles_32(source + 64 * half + 32 * group, step, out, out + 768)
        pack_crumbs(source + 128 + 32 * half, step, p0 + 3072 * i + 1536 * half)
    pack_bytes_16(source + 192, step, p1 + 256 * i)
    return special_halves(pack_half(source + 208, step, p2 + 32 * i))


def _float(exponent: int) -> Any:
    pack_halves = pack_halves_8(exponent)

    @device(_BLOCK)
    def block(source, step, i, p0, p1, p2):
        return pack_halves(source, step, p0 + 256 * i)

    return block


_BLOCKS: dict[str, Callable[[], Any]] = {
    "Q4_0": lambda: _q4_0,
    "Q4_1": lambda: _q4_1,
    "Q5_0": lambda: _q5_0,
    "Q5_1": lambda: _q5_1,
    "Q8_0": lambda: _q8_0,
    "Q4_K": lambda: _q4_k,
    "Q5_K": lambda: _q5_k,
    "Q6_K": lambda: _q6_k,
    "F16": lambda: _float(0x7C00),
    "BF16": lambda: _float(0x7F80),
}


def pack_kernel(name: str, _target: Target) -> Kernel:
    """Return the packing of one GGML type."""
    block = _BLOCKS[name]()
    n_weight, n_byte = BLOCK[GgmlType[name]]
    block_bytes = n_byte if n_weight > 1 else n_byte * FLOAT_COLUMNS

    def pack(record, batch, worker, n_worker):
        source, row_bytes, n_rowgroup = load_i64(record + 16), load_i64(record + 24), load_i64(record + 32)
        n_block = load_i64(record + 40)
        p0, p1, p2 = load_i64(record + 48), load_i64(record + 56), load_i64(record + 64)
        special = splat_i32(0)
        for g in range(first_unit(n_rowgroup, worker, n_worker), first_unit(n_rowgroup, worker + 1, n_worker)):
            for i in range(n_block):
                at = source + 16 * row_bytes * g + block_bytes * i
                special = or_i32(special, block(at, row_bytes, n_block * g + i, p0, p1, p2))
        if any_sign(special) != 0:
            store_i64(record + 8 * PACK_SPECIAL, 1)

    return Kernel(f"pack_{name.lower()}", void(*[int64] * 4), pack)
