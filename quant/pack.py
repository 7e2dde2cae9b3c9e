"""Packing: a weight matrix of a file into the layout that kernels read.

``widen.run_type`` chooses the type, ``allocate`` makes the arrays, ``pack_rows`` fills a range of row groups (from
any number of threads, on separate ranges); ``pack`` does all three. The layout is in ``pack_format.py``, its
meaning in ``unpack.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import BLOCK, GgmlType, row_bytes
from .pack_blocks import FILL
from .pack_format import ROW_LANES, PackedTensor, allocate, check_shape
from .widen import convert_blocks, run_type

# Source bytes packed at once: with the temporaries, about what a core's second-level cache holds. More makes the
# allocator return the temporaries to the system, which costs a page fault per 4 kB of each chunk.
CHUNK_BYTES = 256 * 1024


def pack(name: str, ggml_type: GgmlType, shape: tuple[int, ...], data: NDArray[np.uint8]) -> PackedTensor:
    """Pack a whole matrix, widened if kernels do not read its type.

    Args:
        name: the tensor's name, for messages.
        ggml_type: any type of weights.
        shape: ``[n_row, n_col]``, or more dimensions whose leading ones are stacked rows.
        data: the tensor's bytes as in a GGUF file, ``u8 [n_bytes]``.

    Raises:
        FormatError: the type is not one of weights, or the shape or the size of the data is wrong.
    """
    n_row, n_col = (prod(shape[:-1]), shape[-1]) if shape else (0, 0)
    check_shape(name, ggml_type, n_row, n_col)
    _check_size(name, ggml_type, n_row, n_col, data)
    packed = allocate(name, run_type(name, ggml_type, data), n_row, n_col, ggml_type)
    pack_rows(packed, data, 0, packed.n_rowgroup)
    return packed


def pack_rows(packed: PackedTensor, data: NDArray[np.uint8], group_start: int, group_stop: int) -> None:
    """Fill the row groups ``[group_start, group_stop)`` of a packed tensor from the whole tensor's bytes.

    Separate ranges may be filled by separate threads: only the range's part of ``packed`` is written,
    and only the rows of that range are read from ``data``.

    Raises:
        FormatError: ``data`` is not as long as the shape says, or cannot be widened as was decided.
        ValueError: the range does not lie inside the tensor.
    """
    source, target = packed.source_type, packed.format.ggml_type
    _check_size(packed.name, source, packed.n_row, packed.n_col, data)
    if not 0 <= group_start <= group_stop <= packed.n_rowgroup:
        raise ValueError(f"row groups {group_start}..{group_stop} of {packed.n_rowgroup}")
    # A unit is the larger of both types' blocks: the number of weights is a power of two, except for 1.
    n_weight = max(BLOCK[source][0], BLOCK[target][0])
    n_byte = n_weight // BLOCK[source][0] * BLOCK[source][1]
    n_unit = packed.n_col // n_weight
    rows = np.ascontiguousarray(data).view(np.uint8).reshape(packed.n_row, n_unit, n_byte)
    for g0, g1, u0, u1 in _chunks(group_start, group_stop, n_unit, n_byte):
        units = rows[g0 * ROW_LANES : g1 * ROW_LANES, u0:u1]
        if source is not target:
            units = _widened(packed.name, source, target, units)
        blocks = _row_groups(units, g1 - g0).reshape(g1 - g0, ROW_LANES, -1, BLOCK[target][1])
        parts = {}
        for spec in packed.format.parts:
            p0, p1 = (u * n_weight // spec.n_unit for u in (u0, u1))
            parts[spec.name] = packed.parts[spec.name][g0:g1, p0:p1]
        FILL[target](blocks, parts)


def copy_rows(source: PackedTensor, target: PackedTensor, rows: Sequence[int]) -> None:
    """Copy the rows of one packed matrix over some rows of another of the same format and number of columns."""
    index = np.asarray(rows)
    for name, part in target.parts.items():
        # The rows of a group lie side by side: words of four quants each, or single scales.
        lanes, new = (
            (p.view("<u4") if p.shape[-1] == 4 * ROW_LANES else p).reshape(len(p), -1, ROW_LANES)
            for p in (part, source.parts[name])
        )
        lanes[index // ROW_LANES, :, index % ROW_LANES] = new.transpose(0, 2, 1).reshape(-1, new.shape[1])[: len(index)]


def _check_size(name: str, ggml_type: GgmlType, n_row: int, n_col: int, data: NDArray[np.uint8]) -> None:
    n_bytes = n_row * row_bytes(ggml_type, n_col)
    if data.nbytes != n_bytes:
        raise FormatError(
            f"tensor '{name}' has {data.nbytes} bytes of data, expected {n_bytes} for {n_row} rows of {n_col} columns"
        )


def _chunks(start: int, stop: int, n_unit: int, n_byte: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first group, end group, first unit, end unit) of pieces of about ``CHUNK_BYTES``."""
    unit_step = max(1, min(n_unit, CHUNK_BYTES // (ROW_LANES * n_byte)))
    group_step = max(1, CHUNK_BYTES // (ROW_LANES * n_unit * n_byte))
    for g in range(start, stop, group_step):
        for u in range(0, n_unit, unit_step):
            yield g, min(g + group_step, stop), u, min(u + unit_step, n_unit)


def _widened(name: str, source: GgmlType, target: GgmlType, units: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``units [n_row, n_unit, bytes]`` of one type in another, ``[n_row, n_unit, other bytes]``."""
    blocks = np.ascontiguousarray(units).reshape(-1, BLOCK[source][1])
    return convert_blocks(name, source, target, blocks).reshape(*units.shape[:2], -1)


def _row_groups(rows: NDArray[np.uint8], n_rowgroup: int) -> NDArray[np.uint8]:
    """Return ``rows [n_row, n_unit, bytes]`` as row groups, the last one padded with zeros."""
    if rows.shape[0] == n_rowgroup * ROW_LANES:
        return rows.reshape(n_rowgroup, ROW_LANES, *rows.shape[1:])
    padded = np.zeros((n_rowgroup * ROW_LANES, *rows.shape[1:]), np.uint8)
    padded[: rows.shape[0]] = rows
    return padded.reshape(n_rowgroup, ROW_LANES, *rows.shape[1:])
