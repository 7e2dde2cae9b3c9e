"""Compiled narrowing of a draft's matrices: rows of the file to f32, these to the packed parts of a smaller type.

The first half is the look-up of token embeddings, with the rows' numbers as tokens; ``quant/narrow.py`` says what the
second half does.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...formats.errors import FormatError
from ...formats.ggml_types import BLOCK, GgmlType, row_bytes
from ...quant.floats import NO_NUMBER
from ...quant.narrow import GRIDS, can_narrow
from ...quant.pack_format import ROW_LANES
from ..batch import Batch
from ..executor.team import Team, aligned_array
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import BARRIER_WORD, RECORD_WORDS
from ..packing import Piece, not_finite
from ..program import Weight


def is_narrowed(weight: Weight) -> bool:
    """Return whether a matrix is packed as a smaller type than the file's."""
    target = GgmlType[weight.packed]
    return target in GRIDS and can_narrow(GgmlType[weight.file_type], weight.n_in, target)


def narrow_kernels_of(weights: Iterable[Weight]) -> set[str]:
    """Return the names of the kernels that narrow matrices."""
    narrowed = [w for w in weights if w.n_out and is_narrowed(w)]
    return {f"embed_{w.file_type.lower()}" for w in narrowed} | {f"narrow_{w.packed.lower()}" for w in narrowed}


def narrow_by_kernels(piece: Piece, kernels: KernelSet, team: Team) -> None:
    """Pack a piece of a matrix that is narrowed.

    Raises:
        FormatError: weights are infinite or NaN.
    """
    weight, packed, data, start, stop, _ = piece
    n_byte = row_bytes(packed.source_type, packed.n_col)
    n_row = min(stop * ROW_LANES, packed.n_row) - start * ROW_LANES
    n_padded = (stop - start) * ROW_LANES
    rows = np.empty((n_padded, packed.n_col), np.float32)
    rows[n_row:] = 0.0
    batch = Batch.of_tokens(np.zeros(1, np.int64), 0, range(n_row), [])
    records = aligned_array(2 * RECORD_WORDS).reshape(2, RECORD_WORDS)
    table = int(data.ctypes.data) + start * ROW_LANES * n_byte
    n_block = packed.n_col // BLOCK[packed.source_type][0]
    x, x_bytes = int(rows.ctypes.data), 4 * packed.n_col
    look_up = [n_block, table, n_byte, x, x_bytes, packed.n_col, packed.n_col]
    parts = [packed.parts[part.name][start:stop] for part in packed.format.parts]
    narrow = [x, x_bytes, stop - start, packed.n_col // 32, *(int(part.ctypes.data) for part in parts)]
    for record, name, words in (
        (records[0], f"embed_{weight.file_type.lower()}", look_up),
        (records[1], f"narrow_{weight.packed.lower()}", narrow),
    ):
        record[0] = kernels.address(name)
        record[2 : 2 + len(words)] = words
        record[BARRIER_WORD] = 1
    team.run(int(records.ctypes.data), len(records), int(batch.record.ctypes.data))
    if n_row < n_padded:  # padding is zeros, not the quants of zeros
        parts[0][-1].reshape(-1, ROW_LANES, 4)[:, n_row % ROW_LANES :] = 0
    scales = parts[1]
    if not (np.isfinite(scales).all() if scales.dtype == np.float16 else (scales != NO_NUMBER).all()):
        raise FormatError(not_finite(packed.name))
