"""Reductions of several columns at once: the bits of one column reduced by itself, on every target."""

import ctypes

import numpy as np
import pytest

from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.simd.isa import TARGETS
from llmrun.runtime.simd.loader import KernelModule

from ..bits import assert_same_bits
from ..machine import TARGET_NAMES, rng_for


def kernel(n_column):
    """Return a kernel that writes the sums of columns at ``x``, then their largest lanes."""
    from llmrun.runtime.simd import vector as v
    from llmrun.runtime.simd.columns import reductions
    from llmrun.runtime.simd.compiler import Kernel

    lanes = reductions(n_column)
    sums, maxima = lanes.sums, lanes.maxima

    def reduce(x, out):
        v.store_f32x16(out, sums(x))
        v.store_f32x16(out + 64, maxima(x))

    return Kernel("reduce", v.void(v.int64, v.int64), reduce)


@pytest.mark.parametrize("target_name", TARGET_NAMES)
@pytest.mark.parametrize("n_column", [1, 2, 3, 4, 6, 8, 16])
def test_reductions(target_name, n_column):
    from llmrun.runtime.simd.compiler import compile_object

    module = KernelModule(TARGETS[target_name])
    module.add(compile_object(kernel(n_column), TARGETS[target_name]))
    module.finalize()
    reduce = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2)(module.address("reduce"))
    raw = np.zeros(17 * 16 + 32, np.float32)
    skip = -raw.ctypes.data % 64 // 4
    x, out = raw[skip : skip + 256].reshape(16, 16), np.zeros((2, 16), np.float32)
    x[:] = rng_for("columns", n_column).normal(size=(16, 16)) * np.float32(10) ** np.arange(-8, 8)
    x[0, 3:] = -np.inf
    x[n_column:] = np.nan
    reduce(x.ctypes.data, out.ctypes.data)
    assert_same_bits(out[0, :n_column], np.array([twin.add_lanes(column) for column in x[:n_column]]), "sums")
    assert_same_bits(out[1, :n_column], x[:n_column].max(axis=1), "maxima")
    assert not np.isnan(out).any()  # the other lanes hold numbers too
