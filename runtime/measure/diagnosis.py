"""Why a model is as fast as it is here: what limits it, what gets lost, and what another quantisation would bring."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ...formats.errors import ConfigError
from ...formats.record import Record
from ...quant.checkpoint import Checkpoint, GgufCheckpoint
from ...quant.file_types import file_type
from ...quant.quantize_plan import QuantizeOptions, plan_quantization
from ..executor.team import Team, aligned_array
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import BARRIER_WORD, BATCH_WORDS, RECORD_WORDS
from ..kernels.probe_records import probe_read_record
from ..simd.isa import choose_target
from .bench_row import BenchTest, Measurement
from .machine import Counters, Disturbance
from .roofline import Roofline
from .runner import Runner
from .statistics import quantile
from .traffic import Traffic, cut_prompt, weight_bytes

if TYPE_CHECKING:
    from ..engine import Engine

PROMPT = BenchTest(n_prompt=256)
DECODE = BenchTest(n_gen=48, n_depth=64)
N_REPEAT = 3
NEAR_LIMIT = 0.7  # of the nearer limit: what is below loses its time elsewhere
N_BARRIER_PROBE = 1000
# Mixtures that one would quantise to, from most to fewest bits.
CANDIDATES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
WORTH_PCT = 4.0  # a gain that is worth a line


class Phase(Record, kw_only=True):
    """Prompt or decoding: how fast, and how near to each limit."""

    name: str
    tokens_s: float
    bandwidth_share: float
    int8_share: float
    barrier_share: float

    @property
    def limit(self) -> str:
        """What limits it: "memory", "compute", or "neither" where both limits are far away."""
        if max(self.bandwidth_share, self.int8_share) < NEAR_LIMIT:
            return "neither"
        return "memory" if self.bandwidth_share >= self.int8_share else "compute"


class Gain(Record):
    """What decoding would gain in another mixture."""

    quant: str
    step_bytes: int
    gain_pct: float


class Diagnosis(Record, kw_only=True):
    """All that ``llmrun doctor MODEL`` explains."""

    phases: tuple[Phase, Phase]  # prompt, decoding
    roofline: Roofline
    disturbance: Disturbance
    step_bytes: int
    n_barrier: int
    barrier_ns: float
    jitter: float  # 90th percentile of a decode step over its median
    gains: tuple[Gain, ...]


def diagnose(engine: Engine, traffic: Traffic, roofline: Roofline) -> Diagnosis:
    """Run a prompt and some decoding on an opened engine and say what limits them.

    The engine needs room for ``PROMPT`` and ``DECODE``.
    """
    runner = Runner(engine)
    try:
        before = Counters.now()
        measured = []
        for test in (PROMPT, DECODE):
            runner.warm_up(test)
            measured.append(Measurement(test=test, samples=[runner.sample(test) for _ in range(N_REPEAT)]))
        disturbance = Counters.now().since(before)
    finally:
        runner.close()
    barrier_ns = measure_barrier_ns(engine.n_threads) if engine.n_threads > 1 else 0.0
    n_barrier = engine.executor.n_barrier if engine.n_threads > 1 else 0
    decode_bytes = traffic.test_bytes(DECODE, []) // DECODE.n_gen
    checkpoint = GgufCheckpoint.open(engine.info.path)
    try:
        gains = possible_gains(traffic, decode_bytes, checkpoint)
    finally:
        checkpoint.close()
    steps = [ns for sample in measured[1].samples for ns in sample.step_ns]
    return Diagnosis(
        phases=(
            _phase("prompt", measured[0], traffic, roofline, n_barrier * barrier_ns, engine.executor.n_tok),
            _phase("decoding", measured[1], traffic, roofline, n_barrier * barrier_ns, engine.executor.n_tok),
        ),
        roofline=roofline,
        disturbance=disturbance,
        step_bytes=decode_bytes,
        n_barrier=n_barrier,
        barrier_ns=barrier_ns,
        jitter=quantile(steps, 0.9) / quantile(steps, 0.5),
        gains=gains,
    )


def _phase(
    name: str, measured: Measurement, traffic: Traffic, roofline: Roofline, barriers_ns: float, n_ubatch: int
) -> Phase:
    """Return one phase from the fastest of its repetitions: what disturbed the others is no limit of the machine."""
    test, seconds = measured.test, min(measured.samples_ns) / 1e9
    passes = cut_prompt(test.n_prompt, test.n_prompt or 1, n_ubatch)
    n_pass = len(passes) + test.n_gen
    return Phase(
        name=name,
        tokens_s=test.n_token / seconds,
        bandwidth_share=traffic.test_bytes(test, passes) / seconds / roofline.read_bytes_s,
        int8_share=traffic.test_ops(test) / seconds / roofline.int8_ops_s,
        barrier_share=n_pass * barriers_ns / 1e9 / seconds,
    )


def possible_gains(traffic: Traffic, step_bytes: int, checkpoint: Checkpoint) -> tuple[Gain, ...]:
    """Return the quantisations with which decoding would stream fewer bytes, and so be faster if memory limits it.

    An estimate: as many bytes per second as now, of the types that ``llmrun quantize`` would give to the tensors.
    """
    now = sum(map(weight_bytes, traffic.matrices))
    gains: list[Gain] = []
    for name in CANDIDATES:
        try:
            plan = plan_quantization(checkpoint, QuantizeOptions(mixture=file_type(name), allows_requantize=True))
        except ConfigError:  # it cannot be made
            continue
        types = {t.source.name: t.ggml_type for t in plan.tensors}
        smaller = step_bytes - now + sum(weight_bytes(w, types[w.name]) for w in traffic.matrices)
        gain = 100 * (step_bytes / smaller - 1)
        if gain >= WORTH_PCT and all(gain > other.gain_pct for other in gains):  # no more loss for less gain
            gains.append(Gain(name, smaller, gain))
    return tuple(gains)


def measure_barrier_ns(n_thread: int) -> float:
    """Return what a barrier of a team costs: operations that do next to nothing, with barriers and without."""
    kernels = KernelSet(["probe_read"], choose_target())
    team = Team(kernels, n_thread)
    try:
        nothing, results = aligned_array(8), aligned_array(8 * n_thread)
        record = probe_read_record(nothing[:0], results, n_pass=1)
        record[0] = kernels.address("probe_read")
        records = aligned_array(N_BARRIER_PROBE * RECORD_WORDS).reshape(N_BARRIER_PROBE, RECORD_WORDS)
        records[:] = record
        batch = np.zeros(BATCH_WORDS, np.int64)

        def best_ns() -> int:
            times = []
            for _ in range(30):
                start = time.perf_counter_ns()
                team.run(int(records.ctypes.data), N_BARRIER_PROBE, int(batch.ctypes.data))
                times.append(time.perf_counter_ns() - start)
            return min(times)

        records[-1, BARRIER_WORD] = 1
        without = best_ns()
        records[:, BARRIER_WORD] = 1
        return max(0.0, (best_ns() - without) / (N_BARRIER_PROBE - 1))
    finally:
        team.close()
