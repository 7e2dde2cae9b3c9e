"""Packing: a weight matrix of a file into the layout that kernels read.

``allocate`` makes the arrays, ``pack_rows`` fills a range of row groups (from any number of threads, on
separate ranges), ``pack`` does both. The layout is in ``pack_format.py``, its meaning in ``unpack.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import BLOCK, GgmlType
from .pack_blocks import FILL
from .pack_format import ROW_LANES, PackedTensor, allocate

# Source bytes packed at once: with the temporaries, about what a core's second-level cache holds.
CHUNK_BYTES = 384 * 1024


def pack(name: str, ggml_type: GgmlType, shape: tuple[int, ...], data: NDArray[np.uint8]) -> PackedTensor:
    """Pack a whole matrix.

    Args:
        name: the tensor's name, for messages.
        ggml_type: a type in ``PACKED_FORMATS``.
        shape: ``[n_row, n_col]``, or more dimensions whose leading ones are stacked rows.
        data: the tensor's bytes as in a GGUF file, ``u8 [n_bytes]``.

    Raises:
        FormatError: the type has no kernel layout, or the shape or the size of the data is wrong.
    """
    n_row = int(np.prod(shape[:-1], dtype=object)) if len(shape) > 1 else 1
    packed = allocate(name, ggml_type, n_row, shape[-1] if shape else 0)
    pack_rows(packed, data, 0, packed.n_rowgroup)
    return packed


def pack_rows(packed: PackedTensor, data: NDArray[np.uint8], group_start: int, group_stop: int) -> None:
    """Fill the row groups ``[group_start, group_stop)`` of a packed tensor from the whole tensor's bytes.

    Separate ranges may be filled by separate threads: only the range's part of ``packed`` is written,
    and only the rows of that range are read from ``data``.

    Raises:
        FormatError: ``data`` is not as long as the shape says.
        ValueError: the range does not lie inside the tensor.
    """
    n_weight, n_byte = BLOCK[packed.format.ggml_type]
    n_block = packed.n_col // n_weight
    if data.size != packed.n_row * n_block * n_byte:
        raise FormatError(
            f"tensor '{packed.name}' has {data.size} bytes of data,"
            f" expected {packed.n_row * n_block * n_byte} for {packed.n_row} rows of {packed.n_col} columns"
        )
    if not 0 <= group_start <= group_stop <= packed.n_rowgroup:
        raise ValueError(f"row groups {group_start}..{group_stop} of {packed.n_rowgroup}")
    rows = np.ascontiguousarray(data).view(np.uint8).reshape(packed.n_row, n_block, n_byte)
    fill = FILL[packed.format.ggml_type]
    for g0, g1, b0, b1 in _chunks(group_start, group_stop, n_block, n_byte):
        blocks = _chunk(rows[g0 * ROW_LANES : g1 * ROW_LANES, b0:b1], g1 - g0)
        parts = {}
        for spec in packed.format.parts:
            u0, u1 = (b * n_weight // spec.n_unit for b in (b0, b1))
            parts[spec.name] = packed.parts[spec.name][g0:g1, u0:u1]
        fill(blocks, parts)


def _chunks(start: int, stop: int, n_block: int, n_byte: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first group, end group, first block, end block) of pieces of about ``CHUNK_BYTES``."""
    block_step = max(1, min(n_block, CHUNK_BYTES // (ROW_LANES * n_byte)))
    group_step = max(1, CHUNK_BYTES // (ROW_LANES * n_block * n_byte))
    for g in range(start, stop, group_step):
        for b in range(0, n_block, block_step):
            yield g, min(g + group_step, stop), b, min(b + block_step, n_block)


def _chunk(rows: NDArray[np.uint8], n_rowgroup: int) -> NDArray[np.uint8]:
    """Return ``rows [n_row, n_block, block_bytes]`` as row groups, the last one padded with zero blocks."""
    if rows.shape[0] == n_rowgroup * ROW_LANES:
        return rows.reshape(n_rowgroup, ROW_LANES, *rows.shape[1:])
    padded = np.zeros((n_rowgroup * ROW_LANES, *rows.shape[1:]), np.uint8)
    padded[: rows.shape[0]] = rows
    return padded.reshape(n_rowgroup, ROW_LANES, *rows.shape[1:])
