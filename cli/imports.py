"""The large imports, with a Ctrl-C that is quiet meanwhile; and the garbage collector, which starts after them.

Modules that are written in C turn a ``KeyboardInterrupt`` that comes while they are set up into errors of their own
("you should not try to import numpy from its source directory"). Nothing is open yet at that time, so the process
may end at once.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def import_numpy() -> None:
    """Import NumPy, which every reader of model files needs."""
    with ending_at_interrupt():
        import numpy as np  # noqa: F401  # from here on it is there for everyone


def import_engine() -> None:
    """Import the engine and all that it needs at once."""
    with ending_at_interrupt():
        from ..runtime import engine  # noqa: F401  # from here on it is there for everyone


def start_collector() -> None:
    """Switch the cyclic garbage collector on if ``entry.py`` has switched it off; what is there now stays for good."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextmanager
def ending_at_interrupt() -> Iterator[None]:
    """End the process at once, with exit code 130, when Ctrl-C comes while the block runs."""
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread is interrupted; a job that a script has started with & is not to be.
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature is fixed by the signal module
    os._exit(128 + signum)
