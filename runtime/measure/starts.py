"""What a user waits for: the whole of ``llmrun run`` with one token, from the start of the process to its end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ...formats.errors import ConfigError
from .statistics import quantile

TIMEOUT_S = 600


def time_starts(path: Path, n_thread: int, n_start: int, on_progress: Callable[[int, int], None] | None = None) -> int:
    """Return the median time in nanoseconds of ``n_start`` starts; one more, before them, warms the caches up.

    Raises:
        ConfigError: the program could not be started, or failed.
    """
    command = [sys.executable, "-m", "llmrun", "run", str(path), "-p", "Hi", "-n", "1", "--temp", "0"]
    command += ["-c", "256", "-t", str(n_thread)]
    times = []
    for i in range(n_start + 1):
        start = time.perf_counter_ns()
        try:
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigError(f"llmrun could not be started: {error}") from None
        if run.returncode:
            words = run.stderr.decode("utf-8", "replace").strip().splitlines()
            raise ConfigError(f"llmrun ended with {run.returncode}: {words[-1] if words else 'no message'}")
        times.append(time.perf_counter_ns() - start)
        if on_progress:
            on_progress(i + 1, n_start + 1)
    return int(quantile(times[1:], 0.5))
