"""Two engines in turn on the same file: processes of their own, rounds A B A B, ratios of neighbours.

While one side measures, the other is stopped (SIGSTOP): a thread pool that spins on costs nothing. A ratio is formed
within each round, so that what slows the machine down for minutes slows both sides.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ...formats.errors import ConfigError, quote
from ...formats.record import Record, field
from .bench_row import BenchTest
from .read_probe import ReadProbe
from .statistics import MIN_RATIOS, Spread, quantile

OWN_COMMAND = (sys.executable, "-c", "from llmrun.runtime.measure.worker import main; main()")
MIN_ROOFLINE_PCT = 70.0  # of the read bandwidth: a peer that decodes slower is not at its best here
MAX_DECODE_DEPTH = 512
Progress = Callable[[str, int, int], None]


def peer_command(python: str) -> tuple[str, ...]:
    """Return the command of llama.cpp's side under a Python that has llama-cpp-python."""
    return python, str(Path(__file__).with_name("peer_llama_cpp.py"))


class Worker:
    """A process that runs tests when it is asked to, and is stopped when it is not.

    Args:
        command: the program and its arguments.
        settings: ``path, n_ctx, n_ctx_seq, n_seq, n_batch, n_ubatch, n_threads, type_k, flash_attn``.

    Raises:
        ConfigError: it does not start, or cannot open the model.
    """

    def __init__(self, command: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._name = Path(command[0]).name
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise ConfigError(f"{command[0]}: cannot be started ({error.strerror})") from None
        try:
            self.about = self._ask(settings)
            self._signal("SIGSTOP")
        except BaseException:
            self.close()
            raise

    def run(self, test: BenchTest) -> dict[str, Any]:
        """Run a test once and return ``total_ns`` and ``step_ns``.

        Raises:
            ConfigError: the process failed.
        """
        self._signal("SIGCONT")
        try:
            return self._ask({name: getattr(test, name) for name in ("n_prompt", "n_gen", "n_depth", "n_seq")})
        finally:
            self._signal("SIGSTOP")

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(dict(question)) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ConfigError(f"{self._name}: ended with {self._process.wait()} while it measured")
        answer = self._parse(line)
        if answer.get("is_missing"):
            raise ConfigError(
                f"{answer['error']}. Install it with `pip install 'llmrun[peers]'`,"
                " or name a Python that has it with --peer-python"
            )
        if "error" in answer:
            raise ConfigError(str(answer["error"]))
        return answer

    def _parse(self, line: str) -> dict[str, Any]:
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
        raise ConfigError(
            f"{self._name}: answered {quote(line.strip()[:60])}, expected JSON."
            " Name a Python that has llama-cpp-python with --peer-python"
        )

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Comparison(Record, frozen=False):
    """One test on both sides."""

    test: BenchTest
    own_ns: list[int] = field(default_factory=list)
    peer_ns: list[int] = field(default_factory=list)
    read_rates: list[float] = field(default_factory=list)  # bytes per second, read before each of them

    @property
    def own_ts(self) -> list[float]:
        """Tokens per second of each round."""
        return [1e9 * self.test.n_token / ns for ns in self.own_ns]

    @property
    def peer_ts(self) -> list[float]:
        """The peer's."""
        return [1e9 * self.test.n_token / ns for ns in self.peer_ns]

    @property
    def ratios(self) -> Spread:
        """How many times as fast as the peer, over the rounds."""
        return Spread.of([peer / own for own, peer in zip(self.own_ns, self.peer_ns, strict=True)])

    @property
    def bandwidth(self) -> float | None:
        """Median read bandwidth of the rounds, bytes per second, where it was measured."""
        return quantile(self.read_rates, 0.5) if self.read_rates else None

    @property
    def is_decode(self) -> bool:
        """Whether reading the weights is what should limit it: one sequence, and not much to attend to."""
        return self.test.n_prompt == 0 and self.test.n_seq == 1 and self.test.n_depth <= MAX_DECODE_DEPTH


def compare(
    own: Worker,
    peer: Worker,
    tests: Sequence[BenchTest],
    n_round: int,
    *,
    has_warmup: bool = True,
    probe: ReadProbe | None = None,
    on_progress: Progress | None = None,
) -> list[Comparison]:
    """Run every test on both sides in turn, ``n_round`` times; with a probe of the bandwidth before each decoding.

    Raises:
        ConfigError: the two did not read the same file, or one of them failed.
        ValueError: fewer rounds than quartiles need.
    """
    if n_round < MIN_RATIOS:
        raise ValueError(f"{n_round} rounds, expected at least {MIN_RATIOS}")
    if own.about["sha256"] != peer.about["sha256"]:
        raise ConfigError("the two engines read different files: was the model replaced meanwhile?")
    results = [Comparison(test) for test in tests]
    n_total, done = len(tests) * (n_round + has_warmup), 0
    for i in range(-int(has_warmup), n_round):
        for result in results:
            if on_progress:
                on_progress("warm-up" if i < 0 else f"round {i + 1}/{n_round}", done, n_total)
            done += 1
            for side, times in ((own, result.own_ns), (peer, result.peer_ns)):
                rate = probe.bytes_s() if probe and result.is_decode and i >= 0 else None
                ns = side.run(result.test)["total_ns"]
                if i >= 0:
                    times.append(ns)
                    result.read_rates += [rate] if rate else []
    return results
