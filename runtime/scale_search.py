"""The compiled search of scales: ``quant/scale_search.py``'s bits, many times faster."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from ..quant.floats import F32
from ..quant.scale_search import ROUNDS, Found, OffsetShape, SymmetricShape
from .kernels.kernel_set import KernelSet, Progress
from .kernels.registry import SEARCHES
from .simd.isa import choose_target

LANES = 16  # rows that a kernel takes at once


class CompiledSearch:
    """A ``ScaleSearch`` of machine code; several threads may use it at once.

    Args:
        kernels: those that are loaded already; by default the best build for this machine.
        on_progress: see ``KernelSet``.
    """

    def __init__(self, kernels: KernelSet | None = None, *, on_progress: Progress | None = None) -> None:
        self._kernels = kernels or KernelSet(SEARCHES, choose_target(), on_progress=on_progress)
        self._functions = {name: self._kernels.function(name, 4) for name in SEARCHES}

    def offset(self, values: F32, importance: F32, shape: OffsetShape) -> Found:
        """See ``ScaleSearch``."""
        least = -np.inf if shape.is_signed else 0.0
        limits = [shape.q_max, shape.scale_max, least, 0.0]
        return self._search("search_offset", values, importance, shape, limits)

    def symmetric(self, values: F32, importance: F32, shape: SymmetricShape) -> Found:
        """See ``ScaleSearch``."""
        limits = [shape.v_min, shape.v_max, shape.scale_min, shape.scale_max]
        return self._search("search_iq4" if shape.is_iq4 else "search_symmetric", values, importance, shape, limits)

    def _search(
        self, name: str, values: F32, importance: F32, shape: OffsetShape | SymmetricShape, limits: Sequence[float]
    ) -> Found:
        n_row, n_in = values.shape
        n_padded = -(-n_row // LANES) * LANES
        x = np.ascontiguousarray(values)
        if n_padded != n_row:
            x = np.zeros((n_padded, n_in), np.float32)
            x[:n_row] = values
        n_block = n_in // (shape.n_sub * shape.width)
        n = n_padded * n_block
        found = Found(
            np.empty(n, np.float32), np.zeros(n, np.float32), np.empty((n, shape.n_sub), np.int8),
            np.zeros((n, shape.n_sub), np.uint8), np.empty((n, shape.n_sub * shape.width), np.uint8),
        )  # fmt: skip
        w, candidates = np.ascontiguousarray(importance, np.float32), shape.candidates
        bits = np.array(limits, np.float32).view(np.uint32).tolist()
        record = np.array([
            0, 0, n_padded // LANES, n_block, x.ctypes.data, 4 * n_in, w.ctypes.data, shape.n_sub, shape.width,
            *bits[:3], shape.reach, candidates.ctypes.data, len(candidates), found.d.ctypes.data,
            found.m.ctypes.data, found.scales.ctypes.data, found.lows.ctypes.data, found.q.ctypes.data, bits[3],
            ROUNDS,
        ], np.int64)  # fmt: skip
        self._functions[name](ctypes.c_int64(record.ctypes.data), 0, 0, 1)
        m = n_row * n_block
        return Found(found.d[:m], found.m[:m], found.scales[:m], found.lows[:m], found.q[:m])
