"""What this machine can do at most: bytes read per second, and int8 operations per second.

Both are measured with kernels that are made as the real ones are (``kernels/probe.py``), by a team of as many
threads as the model uses. They run in a process of their own, so that their memory does not count as the model's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
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
        return Roofline(
            target.name,
            n_thread,
            _read_rate(kernels, team, seconds),
            _multiply_rate(kernels, team, target.widths[0], seconds),
        )
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


def better(one: Roofline | None, other: Roofline | None) -> Roofline | None:
    """Return the larger of both limits from two measurements of the same team."""
    if one is None or other is None:
        return one or other
    read, ops = max(one.read_bytes_s, other.read_bytes_s), max(one.int8_ops_s, other.int8_ops_s)
    return Roofline(one.isa, one.n_thread, read, ops)


def main() -> None:
    """Write the limits of as many threads as the command line says, as one JSON object."""
    print(json.dumps(as_dict(measure_here(int(sys.argv[1])))))


def _read_rate(kernels: KernelSet, team: Team, seconds: float) -> float:
    n_byte = max(SMALLEST_READ, min(READ_BYTES, available_bytes() // 4)) // RUN_BYTES * RUN_BYTES
    data = aligned_array(n_byte // 8)
    data.view(np.float32)[:] = 1.0  # every page is the process's own
    results = aligned_array(8 * team.n_thread)
    record = probe_read_record(data, results, n_pass=1)
    return n_byte / _best_s(kernels, team, "probe_read", record, seconds)


def _multiply_rate(kernels: KernelSet, team: Team, width: int, seconds: float) -> float:
    weights = aligned_array(256 // 8).view(np.uint8)
    weights[:] = np.arange(256)
    records = aligned_array(RECORD_BYTES * PROBE_RECORDS // 8).view(np.uint8).reshape(PROBE_RECORDS, RECORD_BYTES)
    records[:] = 3
    results = aligned_array(8 * width * team.n_thread)
    n_pass = 2000  # 2000 x 64 records are some 0.5 ms
    record = probe_dot_record(weights, records, results, width=width, n_pass=n_pass)
    n_op = n_pass * PROBE_RECORDS * OPS_PER_RECORD * team.n_thread
    return n_op / _best_s(kernels, team, "probe_dot", record, seconds)


def _best_s(kernels: KernelSet, team: Team, name: str, record: NDArray[np.int64], seconds: float) -> float:
    """Return the shortest time of one pass of a team over one operation, tried for some time."""
    record[0] = kernels.address(name)
    batch: Any = np.zeros(BATCH_WORDS, np.int64)
    records = aligned_array(len(record))
    records[:] = record
    records[BARRIER_WORD] = 1
    address, batch_address = int(records.ctypes.data), int(batch.ctypes.data)
    team.run(address, 1, batch_address)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        team.run(address, 1, batch_address)
        end = time.perf_counter()
        best = min(best, end - start)
        if end > deadline:
            return best
