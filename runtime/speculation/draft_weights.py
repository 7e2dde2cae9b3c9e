"""Weights of a draft model: large types are made smaller while they are packed, because a draft's time is its bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...formats.ggml_types import GgmlType, row_bytes
from ...quant.narrow import TARGET, can_narrow, narrow
from ...quant.pack_format import ROW_LANES, PackedTensor
from ..kernels.kernel_set import KernelSet
from ..packing import Pack, packer
from ..program import Weight
from ..weights import GgufWeights


class DraftWeights(GgufWeights):
    """A GGUF file's weights with matrices of more than 5 bits a weight as Q4_0."""

    def matrix(self, name: str, n_out: int, n_in: int) -> Weight:
        """Describe a matrix as it will be packed."""
        weight = super().matrix(name, n_out, n_in)
        if can_narrow(GgmlType[weight.file_type], n_in):
            return replace(weight, packed=TARGET.name, source=weight.file_type)
        return weight

    def pack_with(self, kernels: KernelSet) -> None:
        """Pack with compiled kernels."""
        choose = packer(kernels)

        def pack_of(weight: Weight) -> Pack:
            if weight.packed == TARGET.name and weight.file_type != TARGET.name:
                return _narrowing(weight, choose(replace(weight, source="")))
            return choose(weight)

        self._pack = pack_of


def _narrowing(weight: Weight, pack: Pack) -> Pack:
    """Return what packs rows of the file that are narrowed first."""
    kind = GgmlType[weight.file_type]
    n_byte = row_bytes(kind, weight.n_in)

    def pack_narrow(packed: PackedTensor, data: NDArray[np.uint8], group_start: int, group_stop: int) -> None:
        start, stop = group_start * ROW_LANES, min(group_stop * ROW_LANES, packed.n_row)
        rows = narrow(kind, data[start * n_byte : stop * n_byte])
        parts = {name: part[group_start:group_stop] for name, part in packed.parts.items()}
        pack(replace(packed, parts=parts, n_row=stop - start, source_type=TARGET), rows, 0, group_stop - group_start)

    return pack_narrow
