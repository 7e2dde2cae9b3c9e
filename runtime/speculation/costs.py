"""What passes of the target take on this machine, by number of rows: measured as they happen, kept for the next run.

A file of speeds is only a head start. Whatever is wrong with it (it is damaged, was written by a busy machine, belongs
to other hardware) is measured away within a few passes; it can never change a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine import Engine

VERSION = 1
MAX_FILE_BYTES = 1 << 16
MAX_FILES = 64
SLOPE = 0.1  # of the time of one row, for each further row, before anything is known; optimistic, so that it is tried
LEARN, DRIFT = 0.2, 0.1
KNOWN = 3  # passes after which a width says something about the machine's load


class PassCosts:
    """Seconds of a pass by its number of rows."""

    def __init__(self, seconds: dict[int, float] | None = None) -> None:
        self._seconds = dict(seconds or {})  # as of load 1
        self._n_seen = dict.fromkeys(self._seconds, 1)
        self._load = 1.0  # the machine at present: others compute too, the context is long
        self._widths = sorted(self._seconds)

    @property
    def is_known(self) -> bool:
        """Whether the time of a plain step is known."""
        return 1 in self._seconds

    @property
    def widest(self) -> int:
        """The largest number of rows that was tried."""
        return self._widths[-1] if self._widths else 0

    def __call__(self, n_row: int) -> float:
        """Return the seconds of a pass: as measured, or what other widths let hope.

        Hope makes widths be tried that were never measured, or only once, in a bad moment.
        """
        if not self.is_known:
            return math.inf
        known, n_seen = self._seconds.get(n_row), self._n_seen.get(n_row, 0)
        if known is None:
            return self._hoped(n_row) * self._load
        trust = 1.0 if n_row == 1 else n_seen / (n_seen + 1)
        return (trust * known + (1 - trust) * min(known, self._hoped(n_row))) * self._load

    def _hoped(self, n_row: int) -> float:
        """Return the seconds between two measured widths, or with the least cost of a row that any width had."""
        one, i = self._seconds[1], bisect_left(self._widths, n_row)
        if 0 < i < len(self._widths) and self._widths[i] != n_row:
            low, high = self._widths[i - 1], self._widths[i]
            part = (n_row - low) / (high - low)
            return (1 - part) * self._seconds[low] + part * self._seconds[high]
        slopes = [(s - one) / (n - 1) for n, s in self._seconds.items() if n > 1]
        return one + max(0.0, min(slopes, default=SLOPE * one)) * (n_row - 1)

    def learn(self, n_row: int, seconds: float) -> None:
        """Take note of one pass."""
        n_seen = self._n_seen.get(n_row, 0)
        self._n_seen[n_row] = n_seen + 1
        now = seconds / self._load
        known = self._seconds.get(n_row)
        if known is None:
            self._seconds[n_row] = now
            self._widths = sorted(self._seconds)
        elif n_seen < KNOWN:  # the least of a few: what disturbs a measurement makes it longer
            self._seconds[n_row] = min(known, now)
        else:
            ratio = min(max(now / known, 0.5), 2.0)
            self._seconds[n_row] = known * (1 + LEARN * (ratio - 1))
            self._load *= ratio**DRIFT

    def measured(self) -> dict[int, float]:
        """Return the seconds of the widths that were tried."""
        return {n: seconds * self._load for n, seconds in self._seconds.items()}


class SpeedFile:
    """Where the speeds of one model on one machine are kept between runs.

    Args:
        path: None: nowhere.
    """

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

    def read(self) -> dict[int, float]:
        """Return seconds by number of rows; empty where there is no sound file."""
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                record = json.loads(file.read(MAX_FILE_BYTES))
            seconds = {int(n): float(s) for n, s in record["pass_s"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return {}
        if not all(1 <= n <= 1024 and 1e-7 < s < 1e4 for n, s in seconds.items()) or 1 not in seconds:
            return {}
        self._known = seconds
        return seconds

    def write(self, costs: PassCosts) -> None:
        """Keep the speeds, if that is possible and they are news; the file appears whole or not at all."""
        seconds = costs.measured()
        if self._path is None or 1 not in seconds or not self._is_news(seconds):
            return
        self._known = seconds
        record = {"version": VERSION, "pass_s": {str(n): float(f"{s:.4g}") for n, s in sorted(seconds.items())}}
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

    def _is_news(self, seconds: dict[int, float]) -> bool:
        known = self._known
        return any(n not in known or not 0.8 < s / known[n] < 1.25 for n, s in seconds.items())


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
