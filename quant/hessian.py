"""Second moments of a matrix's input, and their triangular factor: what error feedback and channel scales go by.

For ``y = W x`` the mean squared error of the outputs is ``tr(E H E^T)`` with ``E = W - W'`` and ``H`` the mean of
``x x^T`` over the rows of a calibration text. Everything is computed in tiles of a fixed size, each by one thread, so
that no bit depends on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from ..formats.errors import FormatError, quote
from .floats import F32

TILE = 512  # columns of a tile
DAMPING = 0.05  # of the mean of the diagonal, added to it (Frantar et al., GPTQ, section 3.3, with 0.01)
LARGEST_ROW = 2.0  # times the middle norm: the huge rows of a text's first token would else be all that counts


class Hessian:
    """The sum of ``x x^T`` over rows, f32 [n_in, n_in]; only the lower triangle of tiles is kept up to date.

    Args:
        names: matrices that are multiplied with these rows.
        n_in: their width.
        is_whole: False: only the diagonal is wanted, ``sums`` is a vector.
        largest_row: longer rows are shortened to this many times the middle norm.
    """

    def __init__(
        self, names: tuple[str, ...], n_in: int, *, is_whole: bool = True, largest_row: float = LARGEST_ROW
    ) -> None:
        self.names, self.n_in, self.n_row, self._largest_row = names, n_in, 0, largest_row
        self.sums: F32 = np.zeros((n_in, n_in) if is_whole else n_in, np.float32)

    @classmethod
    def of_columns(cls, names: tuple[str, ...], squares: F32) -> Hessian:
        """Return the moments of columns that are independent, from their mean squares f32 [n_in]; finished."""
        result = cls(names, len(squares), is_whole=False)
        result.sums[:] = squares
        return result

    def add(self, x: F32, pool: Executor) -> None:
        """Add rows f32 [n, n_in]; rows much longer than the middle one of these are shortened."""
        norms = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
        limit = self._largest_row * float(np.median(norms))
        factors = np.minimum(1.0, limit / np.maximum(norms, 1e-30)).astype(np.float32)
        self.n_row += len(x)
        if self.sums.ndim == 1:
            self.sums += np.einsum("ij,ij,i->j", x, x, factors * factors)
            return
        columns: F32 = np.ascontiguousarray((x * factors[:, None]).T)  # [n_in, n]

        def add_tile(i: int, j: int) -> None:
            a, b = slice(i, i + TILE), slice(j, j + TILE)
            self.sums[a, b] += columns[a] @ columns[b].T

        starts = range(0, self.n_in, TILE)
        _all(pool, add_tile, [(i, j) for i in starts for j in starts if j <= i])

    def finish(self) -> None:
        """Divide by the number of rows, and fill the upper triangle.

        Raises:
            FormatError: an input was infinite or NaN.
        """
        if not np.isfinite(self.diagonal).all():
            raise FormatError(f"the input of tensor {quote(self.names[0])} becomes infinite or NaN on this text")
        self.sums /= np.float32(max(self.n_row, 1))
        for i in range(0, self.n_in if self.sums.ndim > 1 else 0, TILE):
            self.sums[:i, i : i + TILE] = self.sums[i : i + TILE, :i].T

    @property
    def diagonal(self) -> F32:
        """The mean square of every column, f32 [n_in]: the importance matrix."""
        return self.sums.diagonal() if self.sums.ndim > 1 else self.sums

    def output_error(self, error: F32) -> float:
        """Return the mean squared error of the outputs together, for weights off by f32 [n_row, n_in]."""
        if self.sums.ndim == 1:
            return float((np.square(error) @ self.sums).sum(dtype=np.float64))
        return float(np.einsum("ij,ij->", error @ self.sums, error, dtype=np.float64))


def factor(hessian: F32, pool: Executor, damping: float = DAMPING) -> tuple[F32, F32] | None:
    """Return ``U`` and ``d`` with ``H = U diag(d) U^T``, U upper triangular with ones on its diagonal.

    Args:
        hessian: f32 [n, n], symmetric; overwritten by U.
        pool: threads.
        damping: of the mean diagonal, added to the diagonal.

    Returns:
        f32 [n, n] (the same memory) and f32 [n]; None where H is not positive definite in spite of damping (its
        memory then holds nothing useful).
    """
    n = len(hessian)
    diagonal = hessian.diagonal().copy()
    mean = float(diagonal.mean(dtype=np.float64))
    if not (np.isfinite(mean) and mean > 0):
        return None
    reversed_: F32 = hessian[::-1, ::-1]  # its lower factor, reversed again, is an upper one
    index = np.arange(n)
    hessian[index, index] = diagonal + np.float32(damping * mean)
    if not _cholesky(reversed_, pool):
        return None
    root = hessian.diagonal().copy()
    for start in range(0, n, TILE):
        hessian[:, start : start + TILE] /= root[start : start + TILE]
        hessian[start + TILE :, start : start + TILE] = 0
    for start in range(0, n, TILE):
        part = hessian[start : start + TILE, start : start + TILE]
        part[:] = np.triu(part)
    return hessian, root * root


def _cholesky(a: F32, pool: Executor) -> bool:
    """Replace the lower triangle of ``a f32 [n, n]`` by its Cholesky factor; False where there is none."""
    n = len(a)
    for k in range(0, n, TILE):
        own = slice(k, k + TILE)
        try:
            root = np.linalg.cholesky(a[own, own].astype(np.float64))
        except np.linalg.LinAlgError:
            return False
        inverse: F32 = np.linalg.inv(root).astype(np.float32)
        if not np.isfinite(inverse).all():
            return False
        a[own, own] = root
        below = range(k + TILE, n, TILE)

        def solve(i: int, own: slice = own, inverse: F32 = inverse) -> None:
            a[i : i + TILE, own] = _tile(a, i, own.start) @ inverse.T

        def update(i: int, j: int, own: slice = own) -> None:
            a[i : i + TILE, j : j + TILE] -= _tile(a, i, own.start) @ _tile(a, j, own.start).T

        _all(pool, solve, [(i,) for i in below])
        _all(pool, update, [(i, j) for i in below for j in below if j <= i])
    return bool(np.isfinite(a.diagonal()).all())


def _tile(a: F32, i: int, j: int) -> F32:
    """Return a copy of a tile: BLAS takes no negative strides."""
    return np.ascontiguousarray(a[i : i + TILE, j : j + TILE])


def _all(pool: Executor, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> None:
    for job in [pool.submit(function, *a) for a in arguments]:
        job.result()
