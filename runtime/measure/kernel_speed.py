"""How fast this machine multiplies a token with weights of each type that come from memory: seconds a weight."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ...formats.ggml_types import BLOCK, GgmlType
from ...quant.pack import pack
from ...quant.pack_format import PackedTensor, allocate
from ..executor.team import Team, aligned_array
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import BARRIER_WORD, BATCH_WORDS, RECORD_WORDS
from ..kernels.registry import MATMUL_FORMATS
from ..simd.isa import choose_target

N_ROW, N_COL = 2048, 2048
STREAM_BYTES = 160 << 20  # of weights in turn: more than a core's share of any cache
SECONDS = 0.3  # of samples for each type
FLOATS = ("F16", "BF16", "F32")
_ONE = {"F16": 0x3C00, "BF16": 0x3F80, "F32": 1.0}
_EXPONENT = 120  # of MXFP4, far from the denormal ones

Progress = Callable[[str, int, int], None]


def seconds_per_weight(
    types: Sequence[GgmlType], n_thread: int, *, on_progress: Progress | None = None
) -> dict[GgmlType, float]:
    """Return what one weight of each type costs a decode step; types without a kernel of their own are left out."""
    known = [t for t in types if t.name in MATMUL_FORMATS]
    kernels = KernelSet([f"matmul_{t.name.lower()}" for t in known], choose_target(), on_progress=on_progress)
    team = Team(kernels, n_thread)
    try:
        result = {}
        for i, kind in enumerate(known):
            if on_progress:
                on_progress("measuring kernels", i, len(known))
            result[kind] = _measure(kind, kernels, team)
        return result
    finally:
        team.close()


def _measure(kind: GgmlType, kernels: KernelSet, team: Team) -> float:
    matrices = _matrices(kind)
    x = aligned_array(2 * 16 * N_COL)  # at most 4 bytes for each of 16 tokens' columns
    y = aligned_array(N_ROW)
    records = aligned_array(len(matrices) * RECORD_WORDS).reshape(len(matrices), RECORD_WORDS)
    for record, packed in zip(records, matrices, strict=True):
        parts = [packed.parts[part.name].ctypes.data for part in packed.format.parts]
        record[0] = kernels.address(f"matmul_{kind.name.lower()}")
        record[2:4] = N_ROW // 16, N_COL if kind.name in FLOATS else N_COL // 32
        record[4 : 4 + len(parts)] = parts
        record[12:16] = x.ctypes.data, N_COL * 4, y.ctypes.data, N_ROW * 4
        record[20] = record[BARRIER_WORD] = 1
    batch = np.zeros(BATCH_WORDS, np.int64)
    batch[0] = 1
    address, batch_address = int(records.ctypes.data), int(batch.ctypes.data)
    team.run(address, len(matrices), batch_address)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        team.run(address, len(matrices), batch_address)
        best = min(best, time.perf_counter() - start)
    return best / (len(matrices) * N_ROW * N_COL)


def without_denormals(packed: PackedTensor) -> None:
    """Change weights made of random bytes: denormal floats take a core hundreds of cycles, and models have none."""
    for name, value in (("w", _ONE.get(packed.format.name)), ("e", _EXPONENT)):
        if name in packed.parts:
            packed.parts[name][...] = value


def _matrices(kind: GgmlType) -> list[PackedTensor]:
    """Return equal matrices in memory of their own."""
    n_weight, n_byte = BLOCK[kind]
    data = np.random.default_rng(0).integers(0, 100, N_ROW * N_COL // n_weight * n_byte, dtype=np.uint8)
    matrices = [pack("w", kind, (N_ROW, N_COL), data)]
    without_denormals(matrices[0])
    for _ in range(STREAM_BYTES // matrices[0].n_bytes):
        copy = allocate("w", kind, N_ROW, N_COL, kind)
        for name, part in matrices[0].parts.items():
            copy.parts[name][...] = part
        matrices.append(copy)
    return matrices
