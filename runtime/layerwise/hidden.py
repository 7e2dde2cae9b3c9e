"""Rows between two layers, kept in a temporary file that has no name: nothing is left behind however a run ends."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import CapacityError
from ..memory import gigabytes

F32 = NDArray[np.float32]
SPARE_BYTES = 64 << 20  # of the disk that are left to others


class HiddenStates:
    """``n_row`` rows of ``n_col`` f32 on disk.

    Args:
        n_row: rows.
        n_col: columns.
        folder: where the file is made; None: the system's folder for temporary files.

    Raises:
        CapacityError: the disk has not enough room, or the folder cannot be written.
    """

    def __init__(self, n_row: int, n_col: int, folder: Path | None = None) -> None:
        self.n_row, self.n_col = n_row, n_col
        n_bytes = 4 * n_row * n_col
        place = Path(tempfile.gettempdir() if folder is None else folder)
        try:
            free = shutil.disk_usage(place).free
            self._file = tempfile.TemporaryFile(dir=place, buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise CapacityError(f"{place}: no temporary file can be made: {error.strerror}") from None
        if free < n_bytes + SPARE_BYTES:
            self._file.close()
            raise CapacityError(
                f"{place}: the hidden states of {n_row} rows need {gigabytes(n_bytes)}, {gigabytes(free)} free."
                " Take fewer chunks, or another folder (TMPDIR)"
            )

    def read(self, start: int, stop: int, out: NDArray[Any] | None = None) -> F32:
        """Return rows ``start`` to ``stop``, f32 [n, n_col], in ``out`` where it is given."""
        rows: F32 = np.empty((stop - start, self.n_col), np.float32) if out is None else out[: stop - start]
        view, done = rows.view(np.uint8).reshape(-1).data, 0
        self._file.seek(4 * self.n_col * start)
        while done < len(view):
            n = self._file.readinto(view[done:])
            if not n:
                raise CapacityError("the temporary file of hidden states ended early")
            done += n
        return rows

    def write(self, start: int, rows: F32) -> None:
        """Keep rows from ``start`` on: f32 [n, n_col].

        Raises:
            CapacityError: the disk is full.
        """
        view, done = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data, 0
        try:
            self._file.seek(4 * self.n_col * start)
            while done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            raise CapacityError(f"hidden states cannot be written: {error.strerror}") from None

    def extend(self, rows: F32) -> int:
        """Keep more rows behind the last one; return the number of the first of them.

        Raises:
            CapacityError: the disk is full.
        """
        first = self.n_row
        self.write(first, rows)
        self.n_row += len(rows)
        return first

    def close(self) -> None:
        """Give the disk's room back."""
        self._file.close()
