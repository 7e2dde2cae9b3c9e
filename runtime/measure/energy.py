"""Energy: the counters that a machine has, and what a token costs.

Linux offers powercap (RAPL: the processor packages' own counters) and batteries; macOS has ``powermetrics``, which
only root may run. Where there is neither, there is no figure.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from ...formats.record import Record

POWERCAP = Path("/sys/class/powercap")
BATTERIES = Path("/sys/class/power_supply")
SAMPLE_S = 0.2  # of a battery's power
JOULES_PER_KWH = 3.6e6
SECONDS_PER_YEAR = 365.25 * 86400
_MILLIWATTS = re.compile(r"^CPU Power: (\d+) mW", re.MULTILINE)


class EnergyMeter(Protocol):
    """Counts energy between ``start`` and ``stop``."""

    source: str

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> float | None:
        """Return the joules since ``start``, None where they could not be read."""


def find_meter() -> tuple[EnergyMeter | None, str]:
    """Return the best meter of this machine and what it is, or None and why there is none."""
    reasons = []
    for find in (_find_rapl, _find_powermetrics, _find_battery):
        meter, what = find()
        if meter is not None:
            return meter, what
        if what:
            reasons.append(what)
    return None, "; ".join(reasons) or "this machine exposes no energy counter"


class RaplMeter:
    """The counters of all processor packages (or of the whole platform, where it has one).

    Args:
        domains: folders with ``energy_uj`` and ``max_energy_range_uj``.
    """

    source = "RAPL"

    def __init__(self, domains: list[Path]) -> None:
        self._domains = [(d / "energy_uj", int((d / "max_energy_range_uj").read_text())) for d in domains]
        self._before: list[int] = []

    def start(self) -> None:
        """Read every counter."""
        self._before = [int(path.read_text()) for path, _ in self._domains]

    def stop(self) -> float | None:
        """Return the joules of all domains; a counter that came round is put right."""
        try:
            now = [int(path.read_text()) for path, _ in self._domains]
        except (OSError, ValueError):
            return None
        total = 0
        for then, value, (_, largest) in zip(self._before, now, self._domains, strict=True):
            total += value - then if value >= then else value - then + largest
        return total / 1e6


def _find_rapl(folder: Path = POWERCAP) -> tuple[EnergyMeter | None, str]:
    packages, platform = [], []
    for domain in sorted(folder.glob("*")):
        with suppress(OSError):
            name = (domain / "name").read_text(encoding="ascii").strip()
            if name.startswith("psys"):
                platform.append(domain)
            elif name.startswith("package"):
                packages.append(domain)
    domains = platform or packages
    if not domains:
        return None, ""
    try:
        meter = RaplMeter(domains)
        meter.start()
    except PermissionError:
        return None, f"{domains[0] / 'energy_uj'} may be read by root only"
    except (OSError, ValueError) as error:
        return None, f"{domains[0]}: {error}"
    return meter, f"RAPL, {'the whole platform' if platform else f'{len(packages)} package(s)'}"


class BatteryMeter:
    """A battery that is being drained: its power, read every ``SAMPLE_S`` seconds; the whole machine's."""

    source = "battery"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._powers: list[float] = []
        self._begun = 0.0
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read."""
        self._powers, self._begun = [], time.perf_counter()
        self._is_over.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            watts = battery_watts(self._folder)
            if watts is not None:
                self._powers.append(watts)
            if self._is_over.wait(SAMPLE_S):
                return

    def stop(self) -> float | None:
        """Return mean power times time; None when the battery stopped telling, or is being charged."""
        elapsed = time.perf_counter() - self._begun
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        if not self._powers or battery_watts(self._folder) is None:
            return None
        return elapsed * sum(self._powers) / len(self._powers)


def battery_watts(folder: Path) -> float | None:
    """Return the power that a battery gives, None unless it is discharging and says how much."""

    def number(name: str) -> float:
        return float((folder / name).read_text(encoding="ascii"))

    try:
        if (folder / "status").read_text(encoding="ascii").strip() != "Discharging":
            return None
        if (folder / "power_now").exists():
            return number("power_now") / 1e6
        return number("current_now") / 1e6 * number("voltage_now") / 1e6
    except (OSError, ValueError):
        return None


def _find_battery(folder: Path = BATTERIES) -> tuple[EnergyMeter | None, str]:
    for battery in sorted(folder.glob("BAT*")):
        if battery_watts(battery) is not None:
            return BatteryMeter(battery), "battery, the whole machine"
    return None, ""


class PowermetricsMeter:
    """macOS's ``powermetrics``, writing the processor's mean power of every interval."""

    source = "powermetrics"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._begun = 0.0

    def start(self) -> None:
        """Start the tool; it writes into a file, since a pipe would fill up."""
        command = ["/usr/bin/powermetrics", "-i", "200", "--samplers", "cpu_power"]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop
        self._process = subprocess.Popen(
            command, stdout=self._output, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        self._begun = time.perf_counter()

    def stop(self) -> float | None:
        """End the tool; return mean power times time."""
        elapsed = time.perf_counter() - self._begun
        if self._process is None or self._output is None:
            return None
        self._process.terminate()
        self._process.wait()
        self._output.seek(0)
        watts = mean_watts(self._output.read().decode("utf-8", "replace"))
        self._output.close()
        return None if watts is None else watts * elapsed


def mean_watts(text: str) -> float | None:
    """Return the mean of the processor's power in what ``powermetrics`` wrote, None without any."""
    found = [int(n) / 1000 for n in _MILLIWATTS.findall(text)]
    return sum(found) / len(found) if found else None


def _find_powermetrics() -> tuple[EnergyMeter | None, str]:
    if sys.platform != "darwin":
        return None, ""
    if os.geteuid() != 0:
        return None, "macOS tells its power only to root (sudo llmrun bench …)"
    return PowermetricsMeter(), "powermetrics"


class Prices(Record, kw_only=True):
    """What energy and the machine cost, in any one currency; None: not counted."""

    per_kwh: float | None = None
    hardware: float | None = None
    lifetime_years: float = 3.0

    def per_million(self, *, joules_per_token: float | None, tokens_s: float) -> float | None:
        """Return what a million tokens cost; None without prices, or where energy is to be counted and is not known."""
        if (self.per_kwh is None and self.hardware is None) or tokens_s <= 0:
            return None
        cost = 0.0
        if self.per_kwh is not None:
            if joules_per_token is None:
                return None
            cost += 1e6 * joules_per_token / JOULES_PER_KWH * self.per_kwh
        if self.hardware is not None:
            cost += 1e6 / tokens_s * self.hardware / (self.lifetime_years * SECONDS_PER_YEAR)
        return cost
