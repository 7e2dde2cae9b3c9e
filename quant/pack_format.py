"""Which arrays a packed weight matrix consists of, for every type that kernels read directly.

Lanes are output rows: 16 rows side by side form a *row group*. Rows are padded with zero blocks to
a multiple of 16. A *group* is 32 columns of a row group, cut into eight vectors of 64 bytes: vector
``k`` holds columns ``4k .. 4k+3`` of 16 rows, and byte ``4 * row + column % 4`` of a vector belongs to
one weight. Every part is an array of its own, C-contiguous, starting at a multiple of 64 bytes.

====  ===================================  =====================================================
part  dtype, shape                         meaning
====  ===================================  =====================================================
q4    u8 [n_rowgroup, n_group, 4, 64]      byte of vector v: low nibble vector 2v, high nibble 2v+1
q2    u8 [n_rowgroup, n_group, 2, 64]      bits 2i, 2i+1 of the byte of vector v: vector 4v+i
q3    u8 [n_rowgroup, n_group, 3, 64]      vector 0, bit k: the highest bit of vector k; then as q2
q33   u8 [n_rowgroup, n_group, 3, 64]      byte of vector v: vectors 2v and 2v + 1 in three bits each; the two highest
                                           bits of all three, one after the other, are vectors 6 and 7
q5    u8 [n_rowgroup, n_group, 5, 64]      vector 0, bit k: the highest bit of vector k; then as q4
q6    u8 [n_rowgroup, n_group, 6, 64]      the two highest bits as q2; then as q4
q8    i8 [n_rowgroup, n_group, 8, 64]      one byte a weight
d     f16 [n_rowgroup, n_block, 16]        scale of a block (a super-block of 256 for K types)
d8    u8 [n_rowgroup, n_block, 16]         the same as ``floats.f8``
dm    f16 [n_rowgroup, n_block, 2, 16]     scale, then minimum (legacy) or scale of minima (K)
e     u8 [n_rowgroup, n_block, 16]         exponent of a power of two (MXFP4)
s8    i8 [n_rowgroup, n_super, 16, 16]     scales of 16 sub-blocks, 16 rows each (Q6_K)
s4    u8 [n_rowgroup, n_super, 16, 16]     low nibble scale, high nibble minimum (Q2_K)
s6    u8 [n_rowgroup, n_super, 192 or 96]  6-bit scales, see below
w     [n_rowgroup, n_col, 16]              u16 (F16, BF16) or f32 (F32)
====  ===================================  =====================================================

High bits come before low ones, and both side by side: a tile then reads lines of ascending addresses, which the
hardware of a core recognises and fetches ahead of it.

s6, rows innermost (``[n][16 rows]``):

* Q4_K, Q5_K: bytes 0..127 are [8] ``(sc_s & 15) | (m_s & 15) << 4``; bytes 128..191 are [4]
  ``sc_s >> 4 | (m_s >> 4) << 2 | (sc_{s+4} >> 4) << 4 | (m_{s+4} >> 4) << 6``.
* Q3_K, 16 scales v: bytes 0..127 are [8] ``(v_s & 15) | (v_{s+8} & 15) << 4``; bytes 128..191 are [4]
  ``v_s >> 4 | (v_{s+4} >> 4) << 2 | (v_{s+8} >> 4) << 4 | (v_{s+12} >> 4) << 6``.
* IQ4_XS, 8 scales v: bytes 0..63 are [4] ``(v_s & 15) | (v_{s+4} & 15) << 4``; bytes 64..95 are [2]
  ``v_s >> 4 | (v_{s+2} >> 4) << 2 | (v_{s+4} >> 4) << 4 | (v_{s+6} >> 4) << 6``.

``unpack`` in ``unpack.py`` is the specification of how weights follow from the parts.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import BLOCK, FILE_TYPES, GgmlType
from ..formats.record import Record

ROW_LANES = 16  # output rows side by side in a vector
PART_ALIGN = 64  # bytes; the widest vector register and a cache line
SLAB_BYTES = 64 << 20


class PartSpec(Record):
    """One array of a packed format: ``shape = [n_rowgroup, n_col // n_unit, *tail]``."""

    name: str
    dtype: np.dtype[Any]
    n_unit: int  # columns that one step of the second dimension covers
    tail: tuple[int, ...]

    def shape(self, n_row: int, n_col: int) -> tuple[int, ...]:
        """Return the shape for a matrix of ``n_row`` by ``n_col`` weights."""
        return (row_groups(n_row), n_col // self.n_unit, *self.tail)


class PackedFormat(Record):
    """The kernel layout of one GGML type."""

    ggml_type: GgmlType
    parts: tuple[PartSpec, ...]

    @property
    def name(self) -> str:
        """Name of the GGML type, such as ``Q4_K``."""
        return self.ggml_type.name

    def n_bytes(self, n_row: int, n_col: int) -> int:
        """Return the bytes of all parts, padded rows included, without allocating."""
        return sum(p.dtype.itemsize * prod(p.shape(n_row, n_col)) for p in self.parts)


class PackedTensor(Record, eq=False):
    """A weight matrix ``[n_row, n_col]`` in the kernel layout."""

    name: str
    format: PackedFormat
    n_row: int
    n_col: int
    parts: dict[str, NDArray[Any]]
    source_type: GgmlType  # type in the file; another one than the format's is widened while packing

    @property
    def n_rowgroup(self) -> int:
        """Number of groups of 16 rows, the last one padded."""
        return row_groups(self.n_row)

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


def row_groups(n_row: int) -> int:
    """Return how many groups of 16 rows hold ``n_row`` rows."""
    return -(-n_row // ROW_LANES)


def _format(ggml_type: GgmlType, *names: str, s6_bytes: int = 192) -> PackedFormat:
    block = BLOCK[ggml_type][0]
    float_dtype = np.dtype(np.float32 if ggml_type is GgmlType.F32 else np.uint16)
    table = {
        "q4": PartSpec("q4", np.dtype(np.uint8), 32, (4, 64)),
        "q2": PartSpec("q2", np.dtype(np.uint8), 32, (2, 64)),
        "q3": PartSpec("q3", np.dtype(np.uint8), 32, (3, 64)),
        "q33": PartSpec("q33", np.dtype(np.uint8), 32, (3, 64)),
        "q5": PartSpec("q5", np.dtype(np.uint8), 32, (5, 64)),
        "q6": PartSpec("q6", np.dtype(np.uint8), 32, (6, 64)),
        "q8": PartSpec("q8", np.dtype(np.int8), 32, (8, 64)),
        "d": PartSpec("d", np.dtype(np.float16), block, (ROW_LANES,)),
        "d8": PartSpec("d8", np.dtype(np.uint8), block, (ROW_LANES,)),
        "dm": PartSpec("dm", np.dtype(np.float16), block, (2, ROW_LANES)),
        "e": PartSpec("e", np.dtype(np.uint8), block, (ROW_LANES,)),
        "s8": PartSpec("s8", np.dtype(np.int8), block, (16, ROW_LANES)),
        "s4": PartSpec("s4", np.dtype(np.uint8), block, (16, ROW_LANES)),
        "s6": PartSpec("s6", np.dtype(np.uint8), block, (s6_bytes,)),
        "w": PartSpec("w", float_dtype, 1, (ROW_LANES,)),
    }
    return PackedFormat(ggml_type, tuple(table[name] for name in names))


PACKED_FORMATS: dict[GgmlType, PackedFormat] = {
    f.ggml_type: f
    for f in (
        _format(GgmlType.Q3_0, "q33", "d8"),
        _format(GgmlType.Q4_0, "q4", "d"),
        _format(GgmlType.Q4_1, "q4", "dm"),
        _format(GgmlType.Q5_0, "q5", "d"),
        _format(GgmlType.Q5_1, "q5", "dm"),
        _format(GgmlType.Q8_0, "q8", "d"),
        _format(GgmlType.Q2_K, "q2", "s4", "dm"),
        _format(GgmlType.Q3_K, "q3", "s6", "d"),
        _format(GgmlType.Q4_K, "q4", "dm", "s6"),
        _format(GgmlType.Q5_K, "q5", "dm", "s6"),
        _format(GgmlType.Q6_K, "q6", "s8", "d"),
        _format(GgmlType.IQ4_NL, "q4", "d"),
        _format(GgmlType.IQ4_XS, "q4", "d", "s6", s6_bytes=96),
        _format(GgmlType.MXFP4, "q4", "e"),
        _format(GgmlType.F16, "w"),
        _format(GgmlType.BF16, "w"),
        _format(GgmlType.F32, "w"),
    )
}


def packed_format(name: str, ggml_type: GgmlType, n_row: int, n_col: int) -> PackedFormat:
    """Return the format for a matrix, after checking that its shape is possible.

    Raises:
        FormatError: kernels do not read this type, or the shape does not fit its blocks.
    """
    chosen = PACKED_FORMATS.get(ggml_type)
    if chosen is None:
        known = ", ".join(t.name for t in PACKED_FORMATS if t in FILE_TYPES)
        raise FormatError(f"tensor '{name}': no kernel layout for type {ggml_type.name}, expected one of {known}")
    check_shape(name, ggml_type, n_row, n_col)
    return chosen


def check_shape(name: str, ggml_type: GgmlType, n_row: int, n_col: int) -> None:
    """Check that a type's blocks can make up a matrix.

    Raises:
        FormatError: the shape does not fit the blocks.
    """
    n_weight = BLOCK[ggml_type][0]
    if n_row < 1 or n_col < 1 or n_col % n_weight:
        raise FormatError(
            f"tensor '{name}' has {n_row} rows of {n_col} columns,"
            f" expected at least one row and a multiple of {n_weight} columns for {ggml_type.name}"
        )


def allocate(
    name: str,
    ggml_type: GgmlType,
    n_row: int,
    n_col: int,
    source_type: GgmlType | None = None,
    memory: Slabs | None = None,
) -> PackedTensor:
    """Return a packed tensor whose parts are allocated but not yet filled (pages are untouched).

    Args:
        name: the tensor's name, for messages.
        ggml_type: the type of the layout, as ``widen.run_type`` chooses it.
        n_row: rows of the matrix.
        n_col: columns of the matrix.
        source_type: type of the data that will be packed, if it is another one.
        memory: what the parts are cut from; None gives each part memory of its own.

    Raises:
        FormatError: kernels do not read this type, or the shape does not fit its blocks.
    """
    chosen = packed_format(name, ggml_type, n_row, n_col)
    empty = aligned_empty if memory is None else memory.take
    parts = {p.name: empty(p.shape(n_row, n_col), p.dtype) for p in chosen.parts}
    return PackedTensor(name, chosen, n_row, n_col, parts, ggml_type if source_type is None else source_type)


class Slabs:
    """Memory for many arrays that live equally long, taken from the system in large pieces.

    A small model's parts are below the size from which NumPy asks for huge pages: in pieces of their own they
    cost ten times the page faults, and every pass misses more address translations.
    """

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an uninitialised C-contiguous array whose address is a multiple of 64 bytes."""
        n_bytes = prod(shape) * dtype.itemsize
        n_used = -(-n_bytes // PART_ALIGN) * PART_ALIGN
        if n_used >= SLAB_BYTES:
            return aligned_empty(shape, dtype)
        if n_used > self._rest.nbytes:
            self._rest = aligned_empty((SLAB_BYTES,), np.dtype(np.uint8))
        result, self._rest = self._rest[:n_bytes], self._rest[n_used:]
        return result.view(dtype).reshape(shape)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialised C-contiguous array whose address is a multiple of 64 bytes."""
    n_bytes = prod(shape) * dtype.itemsize
    raw = np.empty(n_bytes + PART_ALIGN, np.uint8)
    start = -raw.ctypes.data % PART_ALIGN
    return raw[start : start + n_bytes].view(dtype).reshape(shape)
