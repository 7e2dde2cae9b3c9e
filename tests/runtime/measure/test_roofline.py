"""The machine's limits, measured; not what they are, but that they are of the right kind and size."""

import os

import pytest

from llmrun.runtime.measure import roofline
from llmrun.runtime.measure.diagnosis import measure_barrier_ns
from llmrun.runtime.measure.machine import Counters, Disturbance, cpu_name, peak_bytes
from llmrun.runtime.measure.read_probe import ReadProbe
from llmrun.runtime.measure.roofline import measure_here
from llmrun.runtime.simd.isa import TARGETS

from ..machine import BEST


def test_limits_of_one_thread(monkeypatch):
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(roofline, "SMALLEST_READ", 1 << 20)
    found = measure_here(1, TARGETS[BEST], seconds=0.05)
    assert (found.isa, found.n_thread) == (BEST, 1)
    assert 1e7 < found.read_bytes_s < 1e13
    assert 1e8 < found.int8_ops_s < 1e14


def test_a_probe_that_fails_gives_none(monkeypatch):
    monkeypatch.setattr(roofline.sys, "executable", "/no/such/python")
    assert roofline.measure(1) is None
    monkeypatch.setattr(roofline.sys, "executable", "/bin/echo")
    assert roofline.measure(1) is None


def test_bandwidth_in_turn():
    with ReadProbe(1) as probe:
        assert 1e7 < probe.bytes_s() < 1e13
        assert 1e7 < probe.bytes_s() < 1e13
    assert probe.bytes_s() is None


@pytest.mark.parametrize("program", ["/no/such/python", "/bin/false", "/bin/echo"])
def test_bandwidth_in_turn_that_fails(monkeypatch, program):
    monkeypatch.setattr(roofline.sys, "executable", program)
    with ReadProbe(1) as probe:
        assert probe.bytes_s() is None


def test_a_barrier_costs_less_than_a_millisecond():
    assert 0 <= measure_barrier_ns(2) < 1e6


def test_what_the_system_tells():
    assert cpu_name()
    assert peak_bytes() > 1 << 20
    before = Counters(10, 1000, 5, 7, None)
    after = Counters(30, 1200, 6, 9, 3)
    assert after.since(before) == Disturbance(0.1, 1, 2, None)
    if os.path.exists("/proc/stat"):  # noqa: PTH110
        assert Counters.now().all_ticks > 0
