"""Packing ranges of matrices' row groups, with a look at every scale: by NumPy or by compiled kernels.

``quant/pack.py`` says what the bytes become, ``kernels/pack.py`` does the same at the speed of memory for the types
that models mostly have. ``weights.py`` cuts the matrices of a model into ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import BLOCK, row_bytes
from ..quant.pack import pack_rows
from ..quant.pack_format import ROW_LANES, PackedTensor
from .executor.team import Team, aligned_array
from .kernels.kernel_set import KernelSet
from .kernels.layout import BARRIER_WORD, FLOAT_COLUMNS, PACK_FORMATS, PACK_SPECIAL, RECORD_WORDS
from .program import Weight

# Exponent bits of infinity and NaN, by the type of the weights or of their scales in a packed part.
_EXPONENT = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F80_0000}


class Piece(NamedTuple):
    """Row groups ``start`` to ``stop`` of a matrix, whose bytes are ``place`` of its tensor's."""

    weight: Weight
    packed: PackedTensor
    data: NDArray[np.uint8]  # the whole matrix, as it is in the file
    start: int
    stop: int
    place: slice


def pack_finite(packed: PackedTensor, data: NDArray[np.uint8], group_start: int, group_stop: int) -> None:
    """Pack row groups as ``pack_rows`` does, and look at every scale (or weight) for infinity and NaN.

    Attention would turn such values into ordinary, wrong text. Costs 0.15 ns per scale.

    Raises:
        FormatError: there is one.
    """
    pack_rows(packed, data, group_start, group_stop)
    floats = {"d": "f16", "dm": "f16", "w": packed.format.name.lower()}
    for name, kind in floats.items():
        if name in packed.parts:
            part = packed.parts[name][group_start:group_stop]
            bits = part.view(np.uint32 if kind == "f32" else np.uint16)
            exponent, sign = _EXPONENT[kind], 1 << (8 * bits.itemsize - 1)
            # The largest signed number is the largest positive value, the largest unsigned one the lowest negative.
            if bits.view(f"i{bits.itemsize}").max() >= exponent or bits.max() >= exponent | sign:
                raise FormatError(not_finite(packed.name))


def pack_kernel_of(weight: Weight) -> str:
    """Return the name of the kernel that packs a matrix, or nothing where NumPy does it."""
    kind = "Q4_0" if weight.packed == "IQ4_NL" else weight.packed  # the same fields
    is_whole = weight.n_in % FLOAT_COLUMNS == 0
    has_kernel = weight.file_type == weight.packed and kind in PACK_FORMATS and is_whole
    return f"pack_{kind.lower()}" if has_kernel else ""


def pack_kernels_of(weights: Iterable[Weight]) -> set[str]:
    """Return the names of the kernels that pack matrices."""
    return {name for w in weights if w.n_out and (name := pack_kernel_of(w))}


def pack_by_kernels(pieces: Sequence[Piece], kernels: KernelSet, team: Team) -> None:
    """Pack pieces of matrices that have a kernel as ``pack_finite`` does, all in one call out of Python.

    Packed one by one, small matrices would wait for Python's lock longer than they take: other threads of a start
    hold it, such as the one that builds the tokenizer.

    Raises:
        FormatError: a scale or weight is infinite or NaN.
    """
    records = aligned_array(len(pieces) * RECORD_WORDS).reshape(-1, RECORD_WORDS)
    for record, (weight, packed, data, start, stop, _) in zip(records, pieces, strict=True):
        n_whole = min(stop, packed.n_row // ROW_LANES)
        if n_whole < stop:  # NumPy takes a last row group of fewer than 16 rows
            pack_finite(packed, data, max(n_whole, start), stop)
        n_byte = row_bytes(packed.source_type, packed.n_col)
        n_weight = BLOCK[packed.source_type][0]
        parts = [packed.parts[part.name] for part in packed.format.parts]
        words = [
            int(data.ctypes.data) + start * ROW_LANES * n_byte, n_byte, max(n_whole - start, 0),
            packed.n_col // (FLOAT_COLUMNS if n_weight == 1 else n_weight),
            *(int(part.ctypes.data) + start * part.strides[0] for part in parts),
        ]  # fmt: skip
        record[0] = kernels.address(pack_kernel_of(weight))
        record[2 : 2 + len(words)] = words
    records[-1, BARRIER_WORD] = 1  # the call returns when all threads are done
    team.run(int(records.ctypes.data), len(records), 0, is_long=True)
    for i in np.flatnonzero(records[:, PACK_SPECIAL]).tolist():
        raise FormatError(not_finite(pieces[i].packed.name))


def not_finite(name: str) -> str:
    """Return what is wrong with a tensor of such weights."""
    return f"tensor '{name}' holds infinite or NaN weights. The file is damaged"
