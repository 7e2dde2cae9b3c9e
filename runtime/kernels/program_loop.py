"""The compiled loop that runs a program on a team of threads: one call out of Python per forward pass.

A team shares a header. The leader publishes a program and a batch by raising ``EPOCH``; every worker
runs all operation records in order, with a barrier after the records that ask for one. Waiting is
bounded: some hundred pauses, then ``sched_yield`` (through an address in the header: the object needs
no symbol from outside), so that a team larger than the free cores degrades gently. A worker that has
waited long for the next pass returns to Python, which parks it there.

The header and its fields are in ``layout.py``.
"""

from __future__ import annotations

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import atomic_add, atomic_load, atomic_store, call_address, call_kernel, load_i64, pause
from ..simd.vector import device, int64, void
from .layout import (
    ARRIVED, BARRIER_WORD, BASE, BATCH, EPOCH, N_OP, N_WORKER, PROGRAM, RECORD_BYTES, SPIN_BARRIER, SPIN_IDLE, STOP,
    YIELD,
)  # fmt: skip


@device(void(int64, int64))
def wait_for(header, target):
    """Arrive at the barrier and wait until ARRIVED is ``target``."""
    if atomic_add(header + ARRIVED, 1) + 1 < target:
        n_spin, limit = 0, load_i64(header + SPIN_BARRIER)
        while atomic_load(header + ARRIVED) < target:
            n_spin += 1
            if n_spin < limit:
                pause()
            else:
                call_address(load_i64(header + YIELD))


def _run_pass(header, worker):
    """Run the published program as one worker of the team."""
    n_worker, n_op = load_i64(header + N_WORKER), load_i64(header + N_OP)
    record, batch, target = load_i64(header + PROGRAM), load_i64(header + BATCH), load_i64(header + BASE)
    for _ in range(n_op):
        if atomic_load(header + STOP) == 0:
            call_kernel(load_i64(record), record, batch, worker, n_worker)
        if n_worker > 1 and load_i64(record + 8 * BARRIER_WORD) != 0:
            target += n_worker
            wait_for(header, target)
        record += RECORD_BYTES


run_pass_device = device(void(int64, int64))(_run_pass)


def _work(header, worker, seen):
    """Run passes until none came for SPIN_IDLE waits; return the last epoch seen."""
    while True:
        n_spin = 0
        while atomic_load(header + EPOCH) == seen:
            n_spin += 1
            if n_spin >= load_i64(header + SPIN_IDLE):
                return seen
            if n_spin & 1023 == 0:
                call_address(load_i64(header + YIELD))
            else:
                pause()
        seen += 1
        run_pass_device(header, worker)


def _lead(header):
    """Start a pass (PROGRAM, N_OP and BATCH are set) and be its worker 0, in one call: no exception fits between."""
    atomic_store(header + BASE, atomic_load(header + ARRIVED))
    atomic_add(header + EPOCH, 1)
    run_pass_device(header, 0)


def lead_kernel(_target: Target) -> Kernel:
    """Return ``lead(header)``."""
    return Kernel("lead", void(int64), _lead)


def work_kernel(_target: Target) -> Kernel:
    """Return ``work(header, worker, seen) -> seen``."""
    return Kernel("work", int64(int64, int64, int64), _work)
