"""Where the prices of one model's passes on one machine are kept between runs.

The file is only a head start. Whatever is wrong with it (it is damaged, was written by a busy machine, belongs to other
hardware) is measured away within a few passes; it can never change a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .costs import StepCosts

if TYPE_CHECKING:
    from ..engine import Engine

VERSION = 2
MAX_FILE_BYTES = 1 << 16
MAX_FILES = 64
MAX_ROWS, MAX_PRICE = 1024, 1e4
CHANGE = 1.25  # of a price, that is worth writing


class SpeedFile:
    """A small JSON file; ``path`` None: nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[int, float] = {}  # what the file says

    @classmethod
    def of_engine(cls, engine: Engine) -> SpeedFile:
        """Return the file for a model, its threads and instruction set, and this machine's processor."""
        from llvmlite.binding import get_host_cpu_name

        info = engine.info
        machine = (get_host_cpu_name(), os.cpu_count(), engine.isa, engine.n_threads)
        facts = (info.path.name, info.file_bytes, info.n_params, *machine, VERSION)
        folder = _folder()
        if folder is None:
            return cls(None)
        return cls(folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json")

    def read(self) -> StepCosts:
        """Return what is known, nothing where there is no sound file."""
        if self._path is None:
            return StepCosts()
        try:
            with self._path.open("rb") as file:
                record = json.loads(file.read(MAX_FILE_BYTES))
            plain_s, ratios = float(record["plain_s"]), {int(n): float(x) for n, x in record["ratios"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return StepCosts()
        if not 1e-7 < plain_s < 1e4 or not all(2 <= n <= MAX_ROWS and 0.1 < x < MAX_PRICE for n, x in ratios.items()):
            return StepCosts()
        self._known = ratios
        return StepCosts(ratios, plain_s)

    def write(self, costs: StepCosts) -> None:
        """Keep the prices, if that is possible and they are news; the file appears whole or not at all."""
        ratios = {n: x for n, x in costs.ratios().items() if n <= MAX_ROWS}
        if self._path is None or not costs.is_known or not self._is_news(ratios):
            return
        self._known = ratios
        record = {
            "version": VERSION,
            "plain_s": float(f"{costs.plain_s:.4g}"),
            "ratios": {str(n): float(f"{x:.4g}") for n, x in sorted(ratios.items())},
        }
        temporary = None
        with contextlib.suppress(OSError):
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".", suffix=".tmp")
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    json.dump(record, file)
                Path(temporary).replace(self._path)
                temporary = None
                _prune(self._path.parent)
            finally:
                if temporary is not None:
                    with contextlib.suppress(OSError):
                        Path(temporary).unlink()

    def _is_news(self, ratios: dict[int, float]) -> bool:
        known = self._known
        return any(n not in known or not 1 / CHANGE < x / known[n] < CHANGE for n, x in ratios.items())


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for stale in files[MAX_FILES:]:
        stale.unlink()


def _folder() -> Path | None:
    chosen = os.environ.get("LLMRUN_CACHE")
    if chosen:
        return Path(chosen).absolute() / "speeds"
    with contextlib.suppress(Exception):  # no home folder at all
        from platformdirs import user_cache_path

        path = user_cache_path("llmrun", appauthor=False)
        if path.is_absolute():
            return path / "speeds"
    return None
