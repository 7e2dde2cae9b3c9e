"""How far a measurement of sensitivities has come, in a file that a later run goes on from.

=====================  ======================================================================================
first line             ``MAGIC`` and a key: what the figures depend on (source, types, text), hashed
second line            JSON of a ``Progress``, with ``shape`` and ``crc`` of the rows
rows                   f32, as the last layer left them
lines behind them      JSON: what else was found, each line for itself; one that is torn does not count. Files
                       that were made and measured are among them (``choices``)
=====================  ======================================================================================

The first three are replaced together (``formats/atomic_file.py``): a run that is killed leaves the state before.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..formats.atomic_file import AtomicFile
from ..formats.errors import CapacityError
from ..formats.record import Record, field
from ..quant.floats import F32
from .layerwise.hidden import HiddenStates

MAGIC = "llmrun sensitivities 1"
MAX_LINE = 1 << 26
ROWS_BYTES = 1 << 24  # that are copied at a time


class Progress(Record, frozen=False):
    """What is known after some layers.

    Attributes:
        n_layer: layers that all rows have passed; all of them, and the final norm, where ``is_finished``.
        is_finished: whether the rows are what the output matrix is multiplied with.
        tried: of each try: matrix, first row, output type's name or "".
        errors: of each matrix, of its outputs with each type.
        found: lines that were added since.
    """

    n_layer: int = 0
    is_finished: bool = False
    tried: list[tuple[str, int, str]] = field(default_factory=list)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)


class SensitivityJournal:
    """The file of one measurement.

    Args:
        path: the file.
        key: of what is measured; a file with another one is not gone on from.

    Attributes:
        choices: divergences of whole files by a key of how they were made; known after ``load``.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.choices: dict[str, float] = {}
        self.path, self._head = path, f"{MAGIC} {key}\n".encode()
        self._rows_start, self._shape = 0, (0, 0)

    def load(self) -> Progress | None:
        """Return what an earlier run has left; None if nothing that can be used."""
        try:
            with self.path.open("r+b") as file:
                return self._load(file)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _load(self, file: IO[bytes]) -> Progress | None:
        if file.readline(MAX_LINE) != self._head:
            return None
        state = json.loads(file.readline(MAX_LINE))
        self._rows_start, self._shape = file.tell(), (int(state["shape"][0]), int(state["shape"][1]))
        if _checksum(file, 4 * self._shape[0] * self._shape[1]) != state["crc"]:
            return None
        tried = [(str(name), int(row), str(kind)) for name, row, kind in state["tried"]]
        progress = Progress(int(state["n_layer"]), bool(state["is_finished"]), tried, dict(state["errors"]))
        end = file.tell()
        while (line := file.readline(MAX_LINE)).endswith(b"\n"):
            try:
                values = dict(json.loads(line))
            except ValueError:
                break
            if "choice" in values:
                self.choices[str(values["choice"])] = float(values["divergence"])
            else:
                progress.found.append(values)
            end = file.tell()
        file.truncate(end)
        return progress

    def rows(self) -> Iterator[F32]:
        """Yield the rows of the file that ``load`` has read, f32 [n, n_col], in pieces."""
        n_row, n_col = self._shape
        step = max(1, ROWS_BYTES // (4 * n_col))
        with self.path.open("rb") as file:
            file.seek(self._rows_start)
            for start in range(0, n_row, step):
                n = min(step, n_row - start)
                yield np.frombuffer(file.read(4 * n * n_col), np.float32).reshape(n, n_col)

    def save(self, progress: Progress, hidden: HiddenStates) -> None:
        """Replace the file by a state and its rows; lines that were added are gone.

        Raises:
            CapacityError: the disk is full.
        """
        step, crc = max(1, ROWS_BYTES // (4 * hidden.n_col)), 0
        pieces = [(start, min(start + step, hidden.n_row)) for start in range(0, hidden.n_row, step)]
        for start, stop in pieces:
            crc = zlib.crc32(hidden.read(start, stop).data, crc)
        state = {
            "n_layer": progress.n_layer, "is_finished": progress.is_finished, "tried": progress.tried,
            "errors": progress.errors, "shape": [hidden.n_row, hidden.n_col], "crc": crc,
        }  # fmt: skip
        with AtomicFile(self.path, 4 * hidden.n_row * hidden.n_col) as file:
            file.write(self._head + json.dumps(state).encode() + b"\n")
            for start, stop in pieces:
                file.write(hidden.read(start, stop).reshape(-1).view(np.uint8))
            file.finish()

    def add(self, line: dict[str, Any]) -> None:
        """Put a line behind the rows.

        Raises:
            CapacityError: the disk is full.
        """
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CapacityError(f"{self.path}: cannot be written: {error.strerror}") from None

    def add_choice(self, key: str, divergence: float) -> None:
        """Keep what was measured of a whole file; raises as ``add``."""
        self.choices[key] = divergence
        self.add({"choice": key, "divergence": divergence})

    def remove(self) -> None:
        """Delete the file: it is not needed any more."""
        self.path.unlink(missing_ok=True)


def _checksum(file: IO[bytes], size: int) -> int | None:
    """Return the checksum of the next bytes, None where there are fewer."""
    crc = 0
    while size > 0:
        data = file.read(min(size, ROWS_BYTES))
        if not data:
            return None
        crc, size = zlib.crc32(data, crc), size - len(data)
    return crc
