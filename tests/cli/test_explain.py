"""``llmrun doctor MODEL``: what is said about what was found."""

import pytest

from llmrun.cli.explain import disturbances, faster_text, phase_text, rows_of
from llmrun.runtime.measure.diagnosis import Diagnosis, Gain, Phase
from llmrun.runtime.measure.machine import Disturbance
from llmrun.runtime.measure.roofline import Roofline

QUIET = Disturbance(0.0, 0, 3, 0)


def phase(name="decoding", memory=0.9, compute=0.1, barriers=0.01):
    return Phase(name=name, tokens_s=50, bandwidth_share=memory, int8_share=compute, barrier_share=barriers)


def found(decoding=None, disturbance=QUIET, jitter=1.0):
    gains = (Gain("Q4_K", 6 * 10**8, 20.0),)
    return Diagnosis(
        phases=(phase("prompt", 0.01, 0.8), decoding or phase()), roofline=Roofline("avx2", 2, 3e10, 4e11),
        disturbance=disturbance, step_bytes=10**9, n_barrier=200, barrier_ns=350.0, jitter=jitter, gains=gains,
    )  # fmt: skip


def test_a_healthy_model():
    rows = rows_of(found(), "m.gguf")
    assert rows["model"] == "m.gguf, 1.0 GB to read for a token"
    assert "80 % of the int8 peak; compute-bound" in rows["prompt"]
    assert "90 % of the read bandwidth" in rows["decoding"]
    assert "memory-bound" in rows["decoding"]
    assert rows["barriers"] == "200 a pass, 0.35 µs each: 1.0 % of prompt, 1.0 % of decoding"
    assert rows["disturbances"] == "none seen"
    assert rows["faster"] == "Q4_K about +20 % (600 MB a token)"


def test_far_from_both_limits():
    assert "neither" in phase_text(phase(memory=0.3))
    assert faster_text(found(phase(memory=0.3))).startswith("once nothing else")


def test_smaller_files_do_not_help_where_arithmetic_limits():
    assert "not limited by memory" in faster_text(found(phase(memory=0.2, compute=0.9)))


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (Disturbance(0.1, 0, 0, 0), "10.0 % of processor time"),
        (Disturbance(None, 7, 0, None), "7 pages were read from disk"),
        (Disturbance(None, None, 5000, None), "took a processor 5000 times"),
        (Disturbance(None, None, None, 2), "heat 2 times"),
    ],
)
def test_disturbances(seen, says):
    (reason,) = disturbances(found(disturbance=seen))
    assert says in reason


def test_what_is_not_known_is_not_said():
    assert disturbances(found(disturbance=Disturbance(None, None, None, None))) == []


def test_jitter_and_barriers_are_reasons_too():
    assert len(disturbances(found(phase(barriers=0.3), jitter=2.0))) == 2
