"""A team of threads that runs programs: the leader takes part, workers wait inside compiled code.

Between passes a worker spins for a short while, then returns to Python and waits on a condition: an
idle team uses no CPU. ``runtime/kernels/program_loop.py`` is the compiled side.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from typing import Any

import numpy as np

from ..kernels.kernel_set import KernelSet
from ..kernels.layout import BATCH, EPOCH, HEADER_WORDS, N_OP, N_WORKER, PROGRAM, SPIN_BARRIER, SPIN_IDLE, STOP, YIELD
from ..threads import n_processor

# 300 pauses are 5 to 15 µs; a longer spin costs more than it saves when cores are shared.
N_SPIN_BARRIER = 500
# With more threads than processors whoever waits keeps the processor from who is waited for: yield at once.
N_SPIN_CROWDED = 1
# About a millisecond: longer than the Python between two tokens, short enough not to be seen as load.
N_SPIN_IDLE = 20_000
INTERRUPT_POLL_S = 0.05


def aligned_array(n_word: int, align: int = 128) -> Any:
    """Return a zeroed int64 array whose data starts at a multiple of ``align`` bytes."""
    raw = np.zeros(n_word + align // 8, np.int64)
    skip = (-raw.ctypes.data % align) // 8
    return raw[skip : skip + n_word]


def _yield_address() -> tuple[int, Any]:
    """Return the address of a C function that gives up the processor, and what keeps it alive."""
    library: Any
    if sys.platform == "win32":
        library = ctypes.WinDLL("kernel32")
        function = library.SwitchToThread
    else:
        library = ctypes.CDLL(None)
        function = library.sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0, function


class Team:
    """``n_thread`` threads with one program loop. Only one pass runs at a time."""

    def __init__(self, kernels: KernelSet, n_thread: int) -> None:
        self.n_thread = n_thread
        self._kernels = kernels  # keeps the machine code
        self._lead = kernels.function("lead", 1)
        self._work = kernels.function("work", 3, ctypes.c_int64)
        self._header = aligned_array(HEADER_WORDS)
        self._address = int(self._header.ctypes.data)
        address, self._keep_yield = _yield_address()
        n_spin = N_SPIN_BARRIER if n_thread <= n_processor() else N_SPIN_CROWDED
        fields = {N_WORKER: n_thread, SPIN_BARRIER: n_spin, SPIN_IDLE: N_SPIN_IDLE, YIELD: address}
        for offset, value in fields.items():
            self._header[offset // 8] = value
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._n_parked = 0
        self._is_awake = False  # a pass is about to start or runs: nobody parks
        self._is_closed = False
        self._workers = [threading.Thread(target=self._worker, args=(i,), daemon=True) for i in range(1, n_thread)]
        for worker in self._workers:
            worker.start()

    @property
    def stop_address(self) -> int:
        """Address of the word that asks kernels to give a pass up."""
        return self._address + STOP

    def run(self, program: int, n_op: int, batch: int, *, is_long: bool = False) -> None:
        """Run one pass; returns when every worker is done.

        Args:
            program: address of the operation records.
            n_op: their number.
            batch: address of the batch record.
            is_long: keep the calling thread free for signals (Ctrl-C stops the pass between two
                operations); costs a thread switch.
        """
        for offset, value in ((PROGRAM, program), (N_OP, n_op), (BATCH, batch), (STOP, 0)):
            self._header[offset // 8] = value
        try:
            with self._lock:
                self._is_awake = True
                if self._n_parked:
                    self._wake.notify_all()
            if is_long:
                self._run_long()
            else:
                self._lead(self._address)
        finally:
            self._is_awake = False

    def _run_long(self) -> None:
        """Lead a pass in another thread; on an exception here (Ctrl-C) stop the pass and wait for its end."""
        is_abandoned = False
        has_begun = False
        is_done = threading.Event()

        def lead() -> None:
            nonlocal has_begun
            with self._lock:
                if is_abandoned:
                    return
                has_begun = True
            try:
                self._lead(self._address)
            finally:
                is_done.set()

        try:
            threading.Thread(target=lead, daemon=True).start()
            while not is_done.wait(INTERRUPT_POLL_S):
                pass
        except BaseException:
            with self._lock:
                is_abandoned = True
            self._header[STOP // 8] = 1
            while has_begun and not is_done.is_set():
                with contextlib.suppress(KeyboardInterrupt):  # one is on its way already
                    is_done.wait()
            raise

    def _worker(self, index: int) -> None:
        seen = 0
        while True:
            seen = self._work(self._address, index, seen)  # the GIL is released inside
            with self._lock:
                self._n_parked += 1
                while self._header[EPOCH // 8] == seen and not self._is_awake and not self._is_closed:
                    self._wake.wait()
                self._n_parked -= 1
                if self._is_closed:
                    return

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._is_closed = True
            self._wake.notify_all()
        for worker in self._workers:
            worker.join()
