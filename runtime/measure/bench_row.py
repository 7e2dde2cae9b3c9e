"""What one row of a bench is: how many tokens, after how many, in how many sequences; and what was measured."""

from __future__ import annotations

from ...formats.record import Record, field
from ..kernels.layout import PAGE_SLOTS, padded
from .statistics import deviation, mean, quantile

SMALLER = "try smaller -p, -n, -pg, -d or -npl"  # where the largest test does not fit into memory


class BenchTest(Record, kw_only=True):
    """One test, as llama-bench counts: a prompt, then generated tokens, after ``n_depth`` tokens that are not timed.

    ``n_seq`` sequences are decoded together (llama-batched-bench's ``-npl``); with ``is_shared`` they share the
    pages of the tokens before.
    """

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_seq: int = 1
    is_shared: bool = False

    @property
    def name(self) -> str:
        """The row's name: ``pp512``, ``tg128``, ``pp512+tg128``, ``tg128 x4``, each perhaps with ``@ d4096``."""
        parts = [f"pp{self.n_prompt}"] * (self.n_prompt > 0) + [f"tg{self.n_gen}"] * (self.n_gen > 0)
        name = "+".join(parts) + (f" x{self.n_seq}" if self.n_seq > 1 else "")
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def n_token(self) -> int:
        """Tokens that are timed, of all sequences."""
        return (self.n_prompt + self.n_gen) * self.n_seq

    @property
    def n_slot(self) -> int:
        """KV slots that the test fills, whole pages of each sequence."""
        one = padded(self.n_depth + self.n_prompt + self.n_gen, PAGE_SLOTS)
        return one * self.n_seq


class Sample(Record, kw_only=True):
    """One repetition, in nanoseconds."""

    total_ns: int
    prompt_ns: int = 0
    first_token_ns: int | None = None  # until the token after the prompt is known
    step_ns: tuple[int, ...] = ()  # each decode step


class Measurement(Record, kw_only=True, frozen=False):
    """All repetitions of one test, and what was seen meanwhile. None stands for what this machine does not tell."""

    test: BenchTest
    samples: list[Sample] = field(default_factory=list)
    depth_ns: int | None = None  # what the untimed tokens before took
    read_rates: list[float] = field(default_factory=list)  # bytes per second, read between the repetitions
    joules: float | None = None  # of all samples together
    peak_bytes: int | None = None
    steal_share: float | None = None  # of processor time, taken by the hypervisor
    n_major_fault: int | None = None
    n_throttle: int | None = None

    @property
    def samples_ns(self) -> list[int]:
        """Time of each repetition."""
        return [s.total_ns for s in self.samples]

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [1e9 * self.test.n_token / max(1, ns) for ns in self.samples_ns]

    @property
    def avg_ns(self) -> int:
        """Mean time, whole nanoseconds as llama-bench gives it."""
        return int(mean(self.samples_ns))

    @property
    def stddev_ns(self) -> int:
        """Its deviation."""
        return int(deviation(self.samples_ns))

    @property
    def avg_ts(self) -> float:
        """Mean of the tokens per second."""
        return mean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Their deviation."""
        return deviation(self.samples_ts)

    @property
    def first_token_ns(self) -> int | None:
        """Mean time to the first token after the prompt; None where the test has no prompt."""
        times = [s.first_token_ns for s in self.samples if s.first_token_ns is not None]
        return int(mean(times)) if times else None

    @property
    def bandwidth(self) -> float | None:
        """Mean read bandwidth of the moments between the repetitions, bytes per second, where it was measured."""
        return mean(self.read_rates) if self.read_rates else None

    def step_quantile(self, share: float) -> int | None:
        """Return a quantile of the time between tokens over all repetitions; None where nothing is decoded."""
        steps = [ns for s in self.samples for ns in s.step_ns]
        return int(quantile(steps, share)) if steps else None

    @property
    def joules_per_token(self) -> float | None:
        """Energy of a token, where the machine counts it."""
        return (
            None if self.joules is None or not self.samples else self.joules / (self.test.n_token * len(self.samples))
        )
