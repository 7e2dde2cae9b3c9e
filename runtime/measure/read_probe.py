"""The read bandwidth of the very moments in which something else is measured.

A virtual machine's share of its memory bus changes within minutes, so a percentage of a bandwidth that was measured
once says little. A process of its own holds memory, reads it when it is asked to, and waits otherwise.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import IO, Self

from ..executor.team import Team
from ..kernels.kernel_set import KernelSet
from ..simd.isa import choose_target
from .roofline import read_pass

SECONDS = 0.1  # of one answer
_COMMAND = "from llmrun.runtime.measure.read_probe import main; main()"


class ReadProbe:
    """Asks a process for the bandwidth of ``n_thread`` threads. Where it fails, every answer is None."""

    def __init__(self, n_thread: int) -> None:
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(n_thread)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this process alone; the other ends with its pipe
            )
        except OSError:
            return
        self.bytes_s()  # returns when the memory is there

    def bytes_s(self) -> float | None:
        """Return the bytes that are read per second just now."""
        if self._process is None:
            return None
        stdin, stdout = _pipes(self._process)
        try:
            stdin.write("\n")
            stdin.flush()
            return float(stdout.readline())
        except (OSError, ValueError):
            self.close()
            return None

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in _pipes(self._process):
            try:
                pipe.close()
            except OSError:  # a question that was never read
                continue
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def main() -> None:
    """Answer every line with bytes per second, until there are no more."""
    kernels = KernelSet(["probe_read"], choose_target())
    team = Team(kernels, int(sys.argv[1]))
    n_byte, run = read_pass(kernels, team)
    for _ in sys.stdin:
        run()
        n_pass, seconds = 0, 0.0
        while seconds < SECONDS:
            seconds += run()
            n_pass += 1
        print(n_pass * n_byte / seconds, flush=True)
    team.close()
