"""Probes of the machine's limits: the bits of their twins, so that they do the work that is counted."""

import numpy as np
import pytest

from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.kernels.probe_records import RUN_BYTES
from llmrun.runtime.simd.isa import TARGETS

from ...arm.kernel_cases import probe_inputs, run_probe_dot, run_probe_read
from ..bits import assert_same_bits
from ..machine import WHOLE_TARGETS, rng_for

N_PASS = 3


@pytest.mark.parametrize("n_worker", [1, 2, 5])
@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
def test_reading(machine, target_name, n_worker):
    data = rng_for("probe").normal(size=7 * RUN_BYTES // 4).astype(np.float32)
    got = run_probe_read(machine.kernels(target_name), data, n_worker)
    assert_same_bits(got, twin.probe_read(data, n_worker), "probe_read")


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
def test_multiplying(machine, target_name):
    width = TARGETS[target_name].column_widths[0]
    weights, quants = probe_inputs(rng_for("probe"))
    got = run_probe_dot(machine.kernels(target_name), TARGETS[target_name], weights, quants, N_PASS)
    want = twin.probe_dot(weights, quants, width, N_PASS)
    assert (got == want).all()
    assert len(np.unique(want)) > 16  # no two rows or tokens look alike
