"""What limits a model: verdicts from figures, and the whole on a tiny engine."""

import pytest

from llmrun.runtime.engine import Engine
from llmrun.runtime.measure.diagnosis import DECODE, PROMPT, Phase, diagnose, possible_gains
from llmrun.runtime.measure.roofline import Roofline
from llmrun.runtime.measure.traffic import read_traffic

from ..machine import BEST


@pytest.mark.parametrize(
    ("memory", "compute", "limit"), [(0.9, 0.1, "memory"), (0.1, 0.75, "compute"), (0.5, 0.6, "neither")]
)
def test_the_nearer_limit_is_the_one_that_counts(memory, compute, limit):
    phase = Phase(name="x", tokens_s=1, bandwidth_share=memory, int8_share=compute, barrier_share=0)
    assert phase.limit == limit


def test_a_smaller_type_gains_what_it_does_not_read(tiny_path):
    traffic = read_traffic(tiny_path("llama", "Q8_0"))
    assert traffic.bytes_by_type[0][0] == "Q8_0"
    q8 = traffic.bytes_by_type[0][1]
    gains = {gain.quant: gain for gain in possible_gains(traffic, traffic.step_weight_bytes)}
    assert "Q8_0" not in gains
    assert gains["Q4_K"].step_bytes == pytest.approx(traffic.step_weight_bytes - q8 + q8 * 4.5 / 8.5, abs=2)
    want = 100 * (traffic.step_weight_bytes / gains["Q4_K"].step_bytes - 1)
    assert gains["Q4_K"].gain_pct == pytest.approx(want)
    assert gains["Q2_K"].gain_pct > gains["Q3_K"].gain_pct > gains["Q4_K"].gain_pct


def test_a_whole_diagnosis(machine, tiny_path):
    machine.kernels(BEST)
    path = tiny_path("llama", "Q8_0")
    n_ctx = max(PROMPT.n_slot, DECODE.n_slot)
    with Engine.open(path, n_ctx=n_ctx, n_threads=2, n_ubatch=64) as engine:
        found = diagnose(engine, read_traffic(path), Roofline(BEST, 2, 1e18, 1e18))
        assert found.n_barrier == engine.executor.n_barrier > 10
    assert [phase.limit for phase in found.phases] == ["neither", "neither"]
    assert all(phase.tokens_s > 0 for phase in found.phases)
    assert found.barrier_ns >= 0
    assert found.jitter >= 1
