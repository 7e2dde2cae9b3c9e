"""Every operation on vectors, on every target that this machine runs, against NumPy: exact bits."""

import ctypes
from functools import cache

import numpy as np
import pytest

from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.simd.isa import TARGETS
from llmrun.runtime.simd.loader import KernelModule

from ..bits import assert_same_bits
from ..machine import TARGET_NAMES, rng_for

SPECIAL = np.array(
    [0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, 1e-45, -1e-45, 1e-38, 3e38, -3e38, np.inf, -np.inf, 8388607.5, 88.7, -87.34,
     -104, 1e-3],
    np.float32,
)  # fmt: skip


def kernel():
    """Return a kernel that reads x, y, z (f32) and writes one row of results after the other."""
    from llmrun.runtime.kernels import vector_math as math
    from llmrun.runtime.simd import vector as v
    from llmrun.runtime.simd.compiler import Kernel

    def operations(x_at, y_at, z_at, out, _unused):
        x, y, z = v.load_f32x16(x_at), v.load_f32x16(y_at), v.load_f32x16(z_at)
        v.store_f32x16(out, v.add(x, y))
        v.store_f32x16(out + 64, v.sub(x, y))
        v.store_f32x16(out + 128, v.mul(x, y))
        v.store_f32x16(out + 192, v.div(x, y))
        v.store_f32x16(out + 256, v.fma(x, y, z))
        v.store_f32x16(out + 320, v.maximum(x, y))
        v.store_f32x16(out + 384, v.minimum(x, y))
        v.store_f32x16(out + 448, v.absolute(x))
        v.store_f32x16(out + 512, v.where_less(x, y, z, x))
        v.store_f32x16(out + 576, v.round_even(x))
        v.store_f32x16(out + 640, v.splat(v.sum_lanes(x)))
        v.store_f32x16(out + 704, v.splat(v.max_lanes(v.absolute(x))))
        v.store_f32x16(out + 768, v.splat(v.first_lane(x)))
        v.store_f32x16(out + 832, v.splat(v.sqrt(v.first_lane(v.absolute(x)))))
        v.store_f32x16(out + 896, math.exp(x))
        v.store_f32x16(out + 960, math.silu(x))
        v.store_f32x16(out + 1024, math.gelu(x))
        v.store_f32x16(out + 1088, math.tanh(x))
        v.store_f32x16(out + 1152, v.broadcast_f32(y_at + 4))
        v.store_f32x16(out + 1216, v.where_between(-3, 0, 9, x, y))
        v.store_f32x16(out + 1280, math.exp_below(v.sub(v.splat(np.float32(0)), v.absolute(x))))

    return Kernel("operations", v.void(*[v.int64] * 5), operations)


@cache
def operations_on(target_name):
    from llmrun.runtime.simd.compiler import compile_object

    module = KernelModule(TARGETS[target_name])
    module.add(compile_object(kernel(), TARGETS[target_name]))
    module.finalize()
    return module, ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(module.address("operations"))


def run(target_name, x, y, z):
    """Return the 21 rows of results of one call, f32 [21, 16]."""
    out = np.zeros((21, 16), np.float32)
    operations_on(target_name)[1](x.ctypes.data, y.ctypes.data, z.ctypes.data, out.ctypes.data, 0)
    return out


def expected(x, y, z):
    lane = np.arange(16) - 3
    with np.errstate(all="ignore"):
        rows = [
            x + y, x - y, x * y, x / y, twin.fma(x, y, z), np.where(x > y, x, y), np.where(x < y, x, y), np.abs(x),
            np.where(x < y, z, x), np.rint(x), full(twin.add_lanes(x)), full(np.abs(x).max()), full(x[0]),
            full(np.sqrt(np.abs(x[0]))), twin.exp(x), twin.silu(x), twin.gelu(x), twin.tanh(x), full(y[1]),
            np.where((lane >= 0) & (lane < 9), x, y), twin.exp(-np.abs(x)),
        ]  # fmt: skip
    return np.stack(rows)


def full(value):
    return np.full(16, value, np.float32)


@pytest.mark.parametrize("target_name", TARGET_NAMES)
def test_operations(target_name):
    rng = rng_for("vectors")
    for i in range(300):
        if i % 3 == 0:
            x, y, z = (rng.choice(SPECIAL, 16) for _ in range(3))
        elif i % 3 == 1:
            x, y, z = (rng.normal(size=16).astype(np.float32) * np.float32(30) for _ in range(3))
        else:  # any bits at all, NaN excepted: the largest lane is defined for numbers
            x, y, z = (rng.integers(0, 1 << 32, 16, dtype=np.uint32).view(np.float32) for _ in range(3))
            x, y, z = (np.where(np.isnan(a), np.float32(1), a) for a in (x, y, z))
        assert_same_bits(run(target_name, x, y, z), expected(x, y, z), f"call {i}")


@pytest.mark.parametrize("target_name", TARGET_NAMES)
def test_fused_multiply_add_rounds_once(target_name):
    """Sums that cancel, sticky bits, subnormal results: where a second rounding would show."""
    rng = rng_for("fma", "targets")
    differs = 0
    for _ in range(2000):
        x, y = (rng.normal(size=16).astype(np.float32) for _ in range(2))
        product = x.astype(np.float64) * y
        z = (-product * (1 + rng.choice([0, 2.0**-24, -(2.0**-30), 2.0**-12], 16))).astype(np.float32)
        scale = np.float32(2.0) ** rng.choice([0, -60, -70, 60], 16).astype(np.float32)
        x, y, z = x * scale, y * scale, z * scale * scale
        got = run(target_name, x, y, z)[4]
        assert_same_bits(got, twin.fma(x, y, z))
        with np.errstate(all="ignore"):
            differs += int((got != x * y + z).sum())
    assert differs > 1000  # the cases are hard: rounding twice gives something else
