"""A progress bar on standard error that appears only where something takes long enough to notice."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .text import escaped

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


# Rich's own yellow and cyan cannot be read on a light background, its dark grey looks there like the part that is done.
_STYLES = {
    "bar.back": "grey50",
    "progress.percentage": "none",
    "progress.download": "none",
    "progress.data.speed": "none",
    "progress.elapsed": "dim",
    "progress.remaining": "dim",
}


class ProgressBar:
    """Call it with ``(what, done, total)``, as often as wanted and from any thread.

    Nothing is drawn before ``delay_s`` seconds have passed, nor when standard error is no terminal.
    ``total`` 0 means unknown: a moving bar without an end. Leaving the ``with`` block removes it.
    """

    def __init__(self, what: str, *, delay_s: float = 1.0, in_bytes: bool = False, has_time_left: bool = False) -> None:
        self._latest = (what, 0, 0)
        self._in_bytes, self._has_time_left = in_bytes, has_time_left
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._closed = False
        self._timer: threading.Timer | None = None
        if sys.stderr.isatty():
            self._timer = threading.Timer(delay_s, self._show)
            self._timer.daemon = True

    def __call__(self, what: str, done: int, total: int) -> None:
        """Note how far ``what`` has come."""
        with self._lock:
            is_new = done < self._latest[1]  # the next of several parts: its speed is measured anew
            self._latest = (what, done, total)
            if self._bar is not None and self._task is not None:
                if is_new:
                    self._bar.reset(self._task)
                self._bar.update(self._task, description=escaped(what), completed=done, total=total or None)

    def _show(self) -> None:
        from rich import progress as parts  # here: most runs end before a bar is wanted
        from rich.console import Console
        from rich.theme import Theme

        amount = (
            (parts.DownloadColumn(), parts.TransferSpeedColumn()) if self._in_bytes else (parts.TaskProgressColumn(),)
        )
        name = parts.TextColumn("{task.description}", markup=False)
        time = parts.TimeRemainingColumn() if self._has_time_left else parts.TimeElapsedColumn()
        columns = (name, parts.BarColumn(bar_width=28), *amount, time)
        with self._lock:
            if self._closed:
                return
            what, done, total = self._latest
            self._bar = parts.Progress(*columns, console=Console(stderr=True, theme=Theme(_STYLES)), transient=True)
            self._task = self._bar.add_task(escaped(what), completed=done, total=total or None)
            self._bar.start()

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._closed = True
            bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
