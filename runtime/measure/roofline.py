"""What this machine can do at most: bytes read per second, and int8 operations per second.

Both are measured with kernels that are made as the real ones are (``kernels/probe.py``), by a team of as many
threads as the model uses. They run in a process of their own, so that their memory does not count as the model's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.record import Record, as_dict
from ..executor.team import Team, aligned_array
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import BARRIER_WORD, BATCH_WORDS
from ..kernels.probe_records import (
    OPS_PER_RECORD,
    PROBE_RECORDS,
    RECORD_BYTES,
    RUN_BYTES,
    probe_dot_record,
    probe_read_record,
)  # fmt: skip
from ..memory import available_bytes
from ..simd.isa import Target, choose_target

READ_BYTES = 1 << 30  # far beyond any cache
SMALLEST_READ = 64 << 20
SECONDS = 1.0  # of each of the two
TIMEOUT_S = 120


class Roofline(Record):
    """The limits of ``n_thread`` threads on one instruction set."""

    isa: str
    n_thread: int
    read_bytes_s: float
    int8_ops_s: float


def measure_here(n_thread: int, target: Target | None = None, *, seconds: float = SECONDS) -> Roofline:
    """Measure in this process; the best of many short runs each."""
    target = target or choose_target()
    kernels = KernelSet(["probe_read", "probe_dot"], target)
    team = Team(kernels, n_thread)
    try:
        n_byte, read = read_pass(kernels, team)
        read_bytes_s = n_byte / _best_s(read, seconds)
        int8_ops_s = _multiply_rate(kernels, team, target.column_widths[0], seconds)
        return Roofline(target.name, n_thread, read_bytes_s, int8_ops_s)
    finally:
        team.close()


def measure(n_thread: int) -> Roofline | None:
    """Measure in another process; None where that fails (no memory, no processes)."""
    command = [sys.executable, "-c", "from llmrun.runtime.measure.roofline import main; main()", str(n_thread)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        return Roofline(**json.loads(run.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def main() -> None:
    """Write the limits of as many threads as the command line says, as one JSON object."""
    print(json.dumps(as_dict(measure_here(int(sys.argv[1])))))


def read_pass(kernels: KernelSet, team: Team) -> tuple[int, Callable[[], float]]:
    """Return the bytes of memory far beyond any cache, and what reads them once and returns the seconds."""
    n_byte = max(SMALLEST_READ, min(READ_BYTES, available_bytes() // 4)) // RUN_BYTES * RUN_BYTES
    data = aligned_array(n_byte // 8)
    data.view(np.float32)[:] = 1.0  # every page is the process's own
    results = aligned_array(8 * team.n_thread)
    record = probe_read_record(data, results, n_pass=1)
    return n_byte, _timed_pass(kernels, team, "probe_read", record, data, results)


def _multiply_rate(kernels: KernelSet, team: Team, width: int, seconds: float) -> float:
    weights = aligned_array(256 // 8).view(np.uint8)
    weights[:] = np.arange(256)
    records = aligned_array(RECORD_BYTES * PROBE_RECORDS // 8).view(np.uint8).reshape(PROBE_RECORDS, RECORD_BYTES)
    records[:] = 3
    results = aligned_array(8 * width * team.n_thread)
    n_pass = 2000  # 2000 x 64 records are some 0.5 ms
    record = probe_dot_record(weights, records, results, width=width, n_pass=n_pass)
    n_op = n_pass * PROBE_RECORDS * OPS_PER_RECORD * team.n_thread
    run = _timed_pass(kernels, team, "probe_dot", record, weights, records, results)
    return n_op / _best_s(run, seconds)


def _timed_pass(
    kernels: KernelSet, team: Team, name: str, record: NDArray[np.int64], *used: NDArray[Any]
) -> Callable[[], float]:
    """Return what makes one pass of a team over one operation and returns its time; it keeps the arrays used."""
    record[0] = kernels.address(name)
    batch: Any = np.zeros(BATCH_WORDS, np.int64)
    records = aligned_array(len(record))
    records[:] = record
    records[BARRIER_WORD] = 1
    keep = (records, batch, used)

    def run() -> float:
        start = time.perf_counter()
        team.run(int(keep[0].ctypes.data), 1, int(keep[1].ctypes.data))
        return time.perf_counter() - start

    return run


def _best_s(run: Callable[[], float], seconds: float) -> float:
    """Return the shortest time of a pass, tried for some time."""
    run()
    best, deadline = float("inf"), time.perf_counter() + seconds
    while True:
        best = min(best, run())
        if time.perf_counter() > deadline:
            return best
