"""What the machine says of itself and of this process: names, peak memory, and what disturbs a measurement.

Everything is read from the system's own counters. What a system does not tell is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from ...formats.record import Record

PROC, SYS = Path("/proc"), Path("/sys")


def cpu_name() -> str:
    """Return the processor's name."""
    if sys.platform == "darwin":
        import subprocess

        with suppress(OSError, subprocess.SubprocessError):
            run = subprocess.run(
                ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5
            )
            if run.returncode == 0 and run.stdout.strip():
                return run.stdout.strip()
    with suppress(OSError):
        for line in (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def forget_peak() -> None:
    """Start a new peak of resident memory, where the system can (Linux); elsewhere it is that of the process's life."""
    with suppress(OSError):
        (PROC / "self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Return the most memory that this process had resident."""
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Counters(Record):
    """Counters of one moment; ``since`` gives what came between two."""

    steal_ticks: int | None
    all_ticks: int | None
    n_major_fault: int | None
    n_switch: int | None  # times that this process was made to wait for a processor
    n_throttle: int | None

    @classmethod
    def now(cls) -> Counters:
        """Read all counters."""
        steal, ticks = _processor_ticks()
        faults, switches = _process_counts()
        return cls(steal, ticks, faults, switches, _throttle_count())

    def since(self, before: Counters) -> Disturbance:
        """Return what happened after ``before``."""

        def difference(now: int | None, then: int | None) -> int | None:
            return None if now is None or then is None else now - then

        steal, ticks = difference(self.steal_ticks, before.steal_ticks), difference(self.all_ticks, before.all_ticks)
        share = None if steal is None or not ticks else steal / ticks
        return Disturbance(
            share,
            difference(self.n_major_fault, before.n_major_fault),
            difference(self.n_switch, before.n_switch),
            difference(self.n_throttle, before.n_throttle),
        )


class Disturbance(Record):
    """What disturbed a measurement."""

    steal_share: float | None  # of all processors' time, given to other virtual machines
    n_major_fault: int | None  # pages that had to be read from disk
    n_switch: int | None
    n_throttle: int | None  # times that a core was slowed down because of heat


def _processor_ticks() -> tuple[int | None, int | None]:
    """Return (stolen, all) ticks of all processors together (proc(5), /proc/stat: the eighth number is steal)."""
    with suppress(OSError, ValueError, IndexError):
        first = (PROC / "stat").read_text(encoding="ascii").partition("\n")[0].split()
        if first[0] == "cpu" and len(first) > 8:
            numbers = [int(n) for n in first[1:9]]  # guest time, after these, is part of user time
            return numbers[7], sum(numbers)
    return None, None


def _process_counts() -> tuple[int | None, int | None]:
    try:
        import resource
    except ImportError:
        return None, None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt, usage.ru_nivcsw


def _throttle_count() -> int | None:
    found = None
    for path in (SYS / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        with suppress(OSError, ValueError):
            found = (found or 0) + int(path.read_text(encoding="ascii"))
    return found


def is_on_battery() -> bool | None:
    """Return whether the machine runs from its battery; None where it has none or does not say."""
    states = []
    for path in (SYS / "class/power_supply").glob("*/status"):
        with suppress(OSError):
            states.append(path.read_text(encoding="ascii").strip())
    return None if not states else "Discharging" in states


def load_average() -> float | None:
    """Return how many threads wanted a processor over the last minute."""
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return None
