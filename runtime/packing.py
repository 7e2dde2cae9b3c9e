"""Packing one range of a matrix's row groups, with a look at every scale: by NumPy or by a compiled kernel.

``quant/pack.py`` says what the bytes become, ``kernels/pack.py`` does the same at the speed of memory for the types
that models mostly have. ``weights.py`` deals the ranges out to threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import BLOCK, row_bytes
from ..quant.pack import pack_rows
from ..quant.pack_format import ROW_LANES, PackedTensor
from .kernels.kernel_set import KernelSet
from .kernels.layout import FLOAT_COLUMNS, PACK_FORMATS
from .program import Weight

# Exponent bits of infinity and NaN, by the type of the weights or of their scales in a packed part.
_EXPONENT = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F80_0000}

# pack(packed, the tensor's bytes, first row group, row group after the last)
Pack = Callable[[PackedTensor, NDArray[np.uint8], int, int], None]


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


class PackKernel:
    """``pack_finite`` as a kernel; calling it leaves Python's lock to other threads."""

    def __init__(self, kernels: KernelSet, name: str) -> None:
        self._pack = kernels.function(name, 8, ctypes.c_int64)

    def __call__(self, packed: PackedTensor, data: NDArray[np.uint8], group_start: int, group_stop: int) -> None:
        """Pack row groups; NumPy takes a last one of fewer than 16 rows.

        Raises:
            FormatError: a scale or weight is infinite or NaN.
        """
        n_whole = min(group_stop, packed.n_row // ROW_LANES)
        if n_whole < group_stop:
            pack_finite(packed, data, max(n_whole, group_start), group_stop)
        if n_whole <= group_start:
            return
        n_byte = row_bytes(packed.source_type, packed.n_col)
        n_weight = BLOCK[packed.source_type][0]
        parts = [packed.parts[part.name][group_start:].ctypes.data for part in packed.format.parts]
        if self._pack(
            data.ctypes.data + group_start * ROW_LANES * n_byte, n_byte, n_whole - group_start,
            packed.n_col // (FLOAT_COLUMNS if n_weight == 1 else n_weight), *[*parts, 0, 0, 0][:4],
        ):  # fmt: skip
            raise FormatError(not_finite(packed.name))


def packer(kernels: KernelSet) -> Callable[[Weight], Pack]:
    """Return a function that tells how a matrix is packed."""
    kernel = cache(lambda name: PackKernel(kernels, name))

    def choose(weight: Weight) -> Pack:
        name = pack_kernel_of(weight)
        return kernel(name) if name else pack_finite

    return choose


def not_finite(name: str) -> str:
    """Return what is wrong with a tensor of such weights."""
    return f"tensor '{name}' holds infinite or NaN weights. The file is damaged"
