"""Quantise with error feedback (GPTQ) onto the grids of GGML types; the bytes are like any other file's.

With ``H = U D U^T`` (``hessian.py``) and ``E = W - W'`` the error of the outputs is ``sum_k d_k (E U)_k^2``, where
``(E U)_k = E_k + sum_{j<k} E_j U_jk``. Column k is therefore rounded to the grid point nearest to ``W_k + sum_{j<k}
E_j U_jk``: what earlier columns lost, later ones make good as far as they can. This is GPTQ in the order of columns,
without an inverse of H (Chee et al., QuIP, section 3.2 and theorem 6: OPTQ equals LDLQ).

Scales of a block are searched for when its first column is reached, on the values that are then to be rounded, with
d as importance; they stay fixed while the block's columns are rounded one after the other.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np

from ..formats.ggml_types import BLOCK, GgmlType, row_bytes
from .floats import F32, U8
from .quantize import SHAPES, encode_found, find, normalized
from .scale_search import Found, OffsetShape, ScaleSearch, SymmetricShape
from .tables import IQ4_MIDDLES, IQ4_VALUES

ROWS = 512  # that a thread takes at a time: fixed, so that no sum depends on the number of threads
COLUMNS = 256  # between two products with all earlier columns' errors: a multiple of every block

HAS_FEEDBACK = frozenset(SHAPES)
"""Types that can be quantised so."""


def quantize_with_feedback(
    values: F32, ggml_type: GgmlType, factor: tuple[F32, F32], *, search: ScaleSearch, pool: Executor
) -> tuple[U8, float]:
    """Return a matrix as blocks of a type.

    Args:
        values: f32 [n_row, n_in], finite.
        ggml_type: one of ``HAS_FEEDBACK``.
        factor: U and d of the inputs' second moments, as ``hessian.factor`` returns them.
        search: for scales.
        pool: threads.

    Returns:
        u8 [n_row, row_bytes], and the error of all outputs together, ``tr(E H E^T)``.
    """
    blocks = np.empty((len(values), row_bytes(ggml_type, values.shape[1])), np.uint8)

    def rows(start: int) -> float:
        blocks[start : start + ROWS], loss = _rows(values[start : start + ROWS], ggml_type, factor, search)
        return loss

    jobs = [pool.submit(rows, start) for start in range(0, len(values), ROWS)]
    return blocks, sum(job.result() for job in jobs)


def _rows(values: F32, ggml_type: GgmlType, factor: tuple[F32, F32], search: ScaleSearch) -> tuple[U8, float]:
    upper, d = factor
    n_row, n_in = values.shape
    width, n_byte = BLOCK[ggml_type]
    shape = SHAPES[ggml_type]
    weights = normalized(d, n_in)
    error: F32 = np.zeros((n_in, n_row), np.float32)
    blocks = np.empty((n_row, n_in // width, n_byte), np.uint8)
    loss = 0.0
    for first in range(0, n_in, COLUMNS):
        last = min(first + COLUMNS, n_in)
        target: F32 = values.T[first:last] + upper[:first, first:last].T @ error[:first]  # [columns, n_row]
        for start in range(first, last, width):
            stop = start + width
            now: F32 = np.ascontiguousarray(target[start - first : stop - first].T)  # [n_row, width]
            found = find(now, ggml_type, weights[start:stop], search)
            grid = _Grid(found, shape)
            for k in range(start, stop):
                rounded = grid.round(target[k - first], k - start)
                residual = target[k - first] - rounded
                loss += float(d[k]) * float(np.dot(residual, residual))
                error[k] = values[:, k] - rounded
                target[k + 1 - first :] += upper[k, k + 1 : last, None] * error[k]
            blocks[:, start // width] = encode_found(ggml_type, found)
    return blocks.reshape(n_row, -1), loss


class _Grid:
    """The points that one block of every row can take; ``round`` also writes the quants into ``found``."""

    def __init__(self, found: Found, shape: OffsetShape | SymmetricShape) -> None:
        self._found, self._shape = found, shape
        self._step: F32 = found.d[:, None] * found.scales.astype(np.float32)  # [n_row, n_sub]
        self._low: F32 = found.m[:, None] * found.lows.astype(np.float32)
        with np.errstate(divide="ignore"):
            self._inverse: F32 = np.where(self._step != 0, np.float32(1) / self._step, np.float32(0))
        self._inverse[~np.isfinite(self._inverse)] = 0

    def round(self, target: F32, column: int) -> F32:
        """Return the grid points nearest to ``target f32 [n_row]`` in a column of the block."""
        shape = self._shape
        sub = column // shape.width
        step, inverse = self._step[:, sub], self._inverse[:, sub]
        if isinstance(shape, OffsetShape):
            low = self._low[:, sub]
            q: F32 = np.clip(np.rint((target + low) * inverse), 0, shape.q_max)
            self._found.q[:, column] = q
            return step * q - low
        if shape.is_iq4:
            index = np.searchsorted(_IQ4_MIDDLES, target * inverse)
            self._found.q[:, column] = index
            return step * _IQ4_VALUES[index]
        v: F32 = np.clip(np.rint(target * inverse), shape.v_min, shape.v_max)
        self._found.q[:, column] = v - shape.v_min
        return step * v


_IQ4_MIDDLES = np.array(IQ4_MIDDLES, np.float32)
_IQ4_VALUES = np.array(IQ4_VALUES, np.float32)
