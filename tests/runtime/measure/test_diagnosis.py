"""What limits a model: verdicts from figures, and the whole on a tiny engine."""

import pytest

from llmrun.cli.app import main
from llmrun.quant.checkpoint import GgufCheckpoint
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


def gains_of(path):
    checkpoint = GgufCheckpoint.open(path)
    try:
        traffic = read_traffic(path)
        return {gain.quant: gain for gain in possible_gains(traffic, traffic.step_weight_bytes, checkpoint)}
    finally:
        checkpoint.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # with an output matrix of its own, and without
def test_a_gain_is_what_quantising_would_bring(tiny_path, tmp_path, architecture):
    path = tiny_path(architecture, "Q8_0")
    gains = gains_of(path)
    assert "Q8_0" not in gains
    assert gains["Q4_K_M"].step_bytes > 0
    pcts = [gain.gain_pct for gain in gains.values()]  # from most to fewest bits
    assert pcts == sorted(set(pcts))
    for name, gain in gains.items():
        out = tmp_path / f"{name}.gguf"
        assert main(["quantize", str(path), str(out), name, "--allow-requantize", "-t", "1"]) == 0
        before, after = (read_traffic(p).step_weight_bytes for p in (path, out))
        assert gain.step_bytes == after
        assert gain.gain_pct == pytest.approx(100 * (before / after - 1))
        assert name not in gains_of(out)  # nothing is gained by doing it again


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
