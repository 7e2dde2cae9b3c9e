"""The importance matrix: how strongly each input column of each matrix is used.

For a matrix ``[n_out, n_in]`` it holds the mean square of every input column over the rows of a calibration text.
A quantiser minimises ``sum(importance * (w - q)**2)``, which is the expected squared error of the matrix's output if
columns are independent. ``formats/imatrix_file.py`` knows the bytes on disk, ``runtime/layerwise`` measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..formats.errors import ConfigError, FormatError, quote
from ..formats.imatrix_file import ImatrixFile, read_imatrix, write_dat, write_gguf

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class Imatrix:
    """Sums of squared activations by matrix.

    Attributes:
        path: the file that it was read from, for messages; None when it was measured.
        chunk_size: tokens of a chunk.
        datasets: names of the texts.
    """

    def __init__(self, *, chunk_size: int, datasets: Iterable[str] = (), path: Path | None = None) -> None:
        self.path, self.chunk_size, self.datasets = path, chunk_size, list(datasets)
        self._sums: dict[str, F64] = {}  # [n_mat, n_in]
        self._counts: dict[str, npt.NDArray[np.int64]] = {}  # [n_mat]

    @classmethod
    def load(cls, path: Path, *, chunk_size: int = 512) -> Self:
        """Read a file that llmrun or llama-imatrix wrote, GGUF or ``.dat``.

        Args:
            path: the file.
            chunk_size: tokens of a chunk, where the file does not say (``.dat``).

        Raises:
            FormatError: it cannot be read, is damaged, or holds no importance matrix.
        """
        file = read_imatrix(path)
        result = cls(chunk_size=file.chunk_size or chunk_size, datasets=file.datasets, path=path)
        scale = result.chunk_size if file.is_legacy else 1  # there: mean times chunks, and chunks
        for name, sums in file.sums.items():
            result._sums[name] = sums.astype(np.float64) * scale
            result._counts[name] = file.counts[name] * scale
        return result

    def save(self, path: Path, layout: str = "gguf") -> None:
        """Write the file, the whole or nothing.

        Args:
            path: the file.
            layout: "gguf" or "dat".

        Raises:
            ConfigError: it cannot be written, or there is nothing to write.
        """
        if not self._sums:
            raise ConfigError(f"{path}: nothing was measured, no importance matrix is written")
        file = ImatrixFile(
            sums={name: sums.astype(np.float32) for name, sums in self._sums.items()},
            counts=self._counts,
            chunk_size=self.chunk_size,
            n_chunk=self.n_chunk,
            datasets=self.datasets,
        )
        (write_dat if layout == "dat" else write_gguf)(path, file)

    @property
    def n_chunk(self) -> int:
        """Chunks that were measured: the most that any matrix saw."""
        return max((int(c.max()) for c in self._counts.values()), default=0) // max(self.chunk_size, 1)

    @property
    def names(self) -> list[str]:
        """Names of the matrices, sorted."""
        return sorted(self._sums)

    def add(self, name: str, x: npt.NDArray[Any]) -> None:
        """Add rows of a matrix's input: ``x`` f32 [n_row, n_in].

        Raises:
            FormatError: the input is infinite or NaN.
        """
        sums = np.einsum("ij,ij->j", x, x, dtype=np.float64)  # [n_in]
        self.add_sums(name, sums, len(x))

    def add_sums(self, name: str, sums: F64, n_row: int) -> None:
        """Add sums of squares f64 [n_in] over ``n_row`` rows.

        Raises:
            FormatError: one is infinite or NaN.
        """
        if not np.isfinite(sums).all():
            raise FormatError(f"the input of tensor {quote(name)} becomes infinite or NaN on this text")
        if name in self._sums:
            self._sums[name] += sums
            self._counts[name] += n_row
        else:
            self._sums[name] = np.array(sums, np.float64).reshape(1, -1)
            self._counts[name] = np.array([n_row], np.int64)

    def merge(self, other: Imatrix) -> None:
        """Add what another one measured.

        Raises:
            FormatError: a matrix has another shape there.
        """
        for name, sums in other._sums.items():
            counts = other._counts[name]
            if name not in self._sums:
                self._sums[name], self._counts[name] = sums.copy(), counts.copy()
            elif self._sums[name].shape != sums.shape:
                shapes = f"{list(sums.shape)}, expected {list(self._sums[name].shape)}"
                raise FormatError(f"{other.path}: entry {quote(name)} has shape {shapes}")
            else:
                self._sums[name] += sums
                self._counts[name] += counts
        self.datasets += other.datasets

    def of_divided_inputs(self, columns: Mapping[str, F32]) -> Imatrix:
        """Return the same where the inputs of some matrices are divided by ``columns``, f32 [n_in] by name."""
        result = Imatrix(chunk_size=self.chunk_size, datasets=self.datasets, path=self.path)
        result._sums = {
            name: sums / np.square(columns[name], dtype=np.float64) if name in columns else sums
            for name, sums in self._sums.items()
        }
        result._counts = self._counts
        return result

    def importance(self, name: str, n_in: int) -> F32 | None:
        """Return the mean square of every input column, f32 [n_in]; None where the matrix was not measured.

        A matrix that saw no row (an expert that was never chosen) has the same importance everywhere: ones. For
        a stack of matrices it is the mean over all of them (``stacked`` has each).

        Raises:
            FormatError: the matrix has another width here.
        """
        stack = self.stacked(name, n_in)
        if stack is None:
            return None
        counts = self._counts[name]
        if len(stack) == 1 or not counts.any():
            first: F32 = stack[0]
            return first
        mean: F32 = np.average(stack, axis=0, weights=counts).astype(np.float32)
        return mean

    def stacked(self, name: str, n_in: int) -> F32 | None:
        """Return the mean squares of each matrix of a stack (experts), f32 [n_mat, n_in]; None if not measured.

        Raises:
            FormatError: the matrices have another width here.
        """
        sums = self._sums.get(name)
        if sums is None:
            return None
        if sums.shape[1] != n_in:
            raise FormatError(
                f"{self.path or 'importance matrix'}: entry {quote(name)} has {sums.shape[1]} columns, expected {n_in}:"
                " it was measured with another model"
            )
        counts = self._counts[name]
        result: F32 = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 1.0).astype(np.float32)
        return result
