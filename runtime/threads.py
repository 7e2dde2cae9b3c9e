"""How many threads to use: physical performance cores, minus what affinity and cgroup quota forbid."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

from ..formats.errors import ConfigError

MAX_THREADS = 1024


def n_processor() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def team_size(n_thread: int | None) -> int:
    """Return how many threads compute where so many are asked for (None: what ``default_threads`` says).

    Never more than processors: whoever has none keeps all others waiting at every barrier (bench/LOG.md). No bit of a
    result depends on it.
    """
    return min(default_threads()[0] if n_thread is None else n_thread, n_processor())


def default_threads() -> tuple[int, str]:
    """Return the number of threads for this machine, and why it is that.

    Raises:
        ConfigError: ``LLMRUN_THREADS`` is not a number of threads.
    """
    forced = os.environ.get("LLMRUN_THREADS", "")
    if forced:
        if not (forced.isascii() and forced.isdigit() and 1 <= int(forced) <= MAX_THREADS):
            raise ConfigError(f"LLMRUN_THREADS is {forced!r}, expected a number from 1 to {MAX_THREADS}")
        return int(forced), "LLMRUN_THREADS"
    limits = [(_physical_cores(), "physical cores")]
    if hasattr(os, "sched_getaffinity"):
        limits.append((n_processor(), "processors that this process may use"))
    quota = _cgroup_quota()
    if quota is not None:
        limits.append((max(1, int(quota)), f"a cgroup quota of {quota:g} processors"))
    return min(limits, key=lambda limit: limit[0])


def _physical_cores() -> int:
    if sys.platform == "darwin":
        count, size = ctypes.c_int(0), ctypes.c_size_t(4)
        sysctl = ctypes.CDLL(None).sysctlbyname
        if sysctl(b"hw.perflevel0.physicalcpu", ctypes.byref(count), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return max(1, count.value)
    cores = set()
    with suppress(OSError):
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
            cores.add(path.read_text(encoding="ascii"))
    if cores:
        return len(cores)
    import psutil  # here: takes 20 ms, and Linux needs none of it

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _cgroup_quota() -> float | None:
    """Return the processors that a cgroup (v2, then v1) grants, or None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        v1_quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        return v1_quota / int((folder / "cpu.cfs_period_us").read_text(encoding="ascii")) if v1_quota > 0 else None
    except (OSError, ValueError):
        return None
