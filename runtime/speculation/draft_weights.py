"""Weights of a draft model: large types are made smaller while they are packed, because a draft's time is its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...formats.errors import CapacityError
from ...formats.ggml_types import GgmlType, row_bytes
from ...formats.record import replace
from ...quant.narrow import can_narrow
from ...quant.pack import copy_rows
from ...quant.pack_format import allocate
from ..executor.team import Team
from ..executor.threaded import kernels_of
from ..kernels.kernel_set import KernelSet
from ..memory import available_bytes, gigabytes
from ..packing import Piece, pack_finite, pack_kernels_of
from ..program import Program, Weight
from ..simd.isa import choose_target
from ..weights import GgufWeights
from .narrowing import is_narrowed, narrow_by_kernels, narrow_kernels_of

Progress = Callable[[str, int, int], None]
ARENA_BYTES = 32 << 20
NARROW_BYTES = 1 << 19  # of the file, that are made smaller at a time: as floats some MB, which stay in the cache


class DraftWeights(GgufWeights):
    """A GGUF file's weights, made smaller: those of feed-forward networks to ``feed_forward``, others to Q4_0.

    The networks are nine tenths of a small model and bear three bits (bench/LOG.md).
    """

    feed_forward = GgmlType.Q3_0

    def matrix(self, name: str, n_out: int, n_in: int) -> Weight:
        """Describe a matrix as it will be packed."""
        weight = super().matrix(name, n_out, n_in)
        target = self.feed_forward if ".ffn_" in name else GgmlType.Q4_0
        if can_narrow(GgmlType[weight.file_type], n_in, target):
            return replace(weight, packed=target.name, source=weight.file_type)
        return weight

    def _pack_by_kernels(self, weights: Sequence[Weight], kernels: KernelSet, team: Team) -> Iterator[Piece]:
        yield from super()._pack_by_kernels(weights, kernels, team)
        for piece in self._pieces(filter(is_narrowed, weights), NARROW_BYTES):
            narrow_by_kernels(piece, kernels, team)
            yield piece

    def exchange_rows(self, weight: Weight, rows: Sequence[int], with_rows: Sequence[int]) -> None:
        """Overwrite rows of a packed matrix with other rows of its tensor, made smaller as those were.

        Raises:
            FormatError: they are infinite or NaN, or another program has changed the file.
        """
        assert self._machine is not None, "load_for comes first"
        self._file.check_mapped()
        info = self._file.tensors[weight.name]
        n_byte = row_bytes(info.ggml_type, weight.n_in)
        data = np.concatenate([self._file.data(info, n_byte * i, n_byte * (i + 1)) for i in with_rows])
        packed = allocate(weight.name, GgmlType[weight.packed], len(rows), weight.n_in, info.ggml_type)
        with self._naming_file():
            if is_narrowed(weight):
                whole = slice(0, len(data))
                narrow_by_kernels(Piece(weight, packed, data, 0, packed.n_rowgroup, whole), *self._machine)
            else:
                pack_finite(packed, data, 0, packed.n_rowgroup)
        copy_rows(packed, self.packed(weight), rows)

    def load_for(
        self, programs: Sequence[Program], team: Team, *, kv_bytes: int, on_progress: Progress | None = None
    ) -> tuple[KernelSet, int]:
        """Pack what some programs read in every pass; return kernels that run them, and the bytes of the weights.

        Args:
            programs: lowered and fused.
            team: the threads that pack.
            kv_bytes: that the draft's KV cache will take.
            on_progress: called as (what, done, total) during long steps.

        Raises:
            CapacityError: it does not fit into memory.
            FormatError: the weights are not numbers, or another program has changed the file.
        """
        used = dict.fromkeys(w for p in programs for op in p.ops if op.kind == "matmul" for w in op.weights if w.n_out)
        own = [w for w in used if self.has(w.name)]
        n_byte, free = self.packed_bytes(own), available_bytes()
        needed = n_byte + kv_bytes + ARENA_BYTES
        if needed > free:
            raise CapacityError(f"{self._path}: the draft model needs {gigabytes(needed)}, {gigabytes(free)} free")
        names = set[str]().union(*map(kernels_of, programs)) | pack_kernels_of(own) | narrow_kernels_of(own)
        kernels = KernelSet(names, choose_target(), on_progress=on_progress)
        self.pack_with(kernels, team)
        self.fetch_tables(programs)
        self.load(own, on_progress)
        self._file.check_unchanged()
        return kernels, n_byte
