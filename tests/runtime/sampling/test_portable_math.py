"""The mathematics of sampling against exactly rounded values, and its bits against committed ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal, localcontext

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrun.runtime.sampling import portable_math as pm


def largest_error_in_ulp(
    got: npt.NDArray[np.float64], x: npt.NDArray[np.float64], true: Callable[..., Decimal]
) -> float:
    worst = 0.0
    with localcontext(Context(prec=40)):
        for y, value in zip(got.tolist(), x.tolist(), strict=True):
            exact = true(Decimal(value))
            worst = max(worst, float(abs(Decimal(y) - exact) / Decimal(math.ulp(float(exact)))))
    return worst


@pytest.mark.parametrize(("low", "high"), [(-1e-3, 1e-3), (-1.0, 0.0), (-40.0, 0.0), (-700.0, 700.0)])
def test_exp_is_within_1_5_ulp(low, high):
    x = np.random.default_rng(1).uniform(low, high, 3000)
    assert largest_error_in_ulp(pm.exp(x), x, Decimal.exp) <= 1.5


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 2.0), (1 - 1e-9, 1 + 1e-9), (1e-300, 1e-290), (1e-16, 37.0), (1.0, 1e300)]
)
def test_ln_is_within_1_ulp(low, high):
    x = np.random.default_rng(2).uniform(low, high, 3000)
    assert largest_error_in_ulp(pm.ln(x), x, Decimal.ln) <= 1.0


def test_exp_subtracts_in_float64():
    x = np.array([1.1, 5.5], dtype=np.float32)
    assert pm.exp(x, 7.25).tolist() == pm.exp(x.astype(np.float64) - 7.25).tolist()


def test_exp_outside_its_range_is_exp_of_the_nearer_end():
    assert pm.exp(np.array([-np.inf, -1e9, -708.0])).tolist() == [pm.exp_scalar(-708.0)] * 3
    assert pm.exp_scalar(1e9) == pm.exp_scalar(709.0) < math.inf


def test_exp_of_a_chunk_does_not_depend_on_its_place():
    x = np.random.default_rng(3).uniform(-50, 0, 3 * pm.CHUNK + 5)
    y = pm.exp(x)
    assert all(y[i] == pm.exp_scalar(x[i]) for i in [0, pm.CHUNK - 1, pm.CHUNK, 2 * pm.CHUNK + 1, len(x) - 1])


def test_special_values_are_exact():
    assert pm.exp_scalar(0.0) == 1.0
    assert pm.ln_scalar(1.0) == 0.0
    assert pm.ln_scalar(2.0) == math.log(2.0)


# Every bit counts: a change here changes every text of every seed.
GOLDEN_EXP = {
    -0.5: "0x1.368b2fc6f960ap-1",
    -1.0: "0x1.78b56362cef38p-2",
    -10.25: "0x1.2899a7a835446p-15",
    0.3: "0x1.599058c8c1a95p+0",
    -36.7: "0x1.0998b04bdd190p-53",
    -707.5: "0x1.39b42358bdf31p-1021",
}
GOLDEN_LN = {
    0.1: "-0x1.26bb1bbb55515p+1",
    0.75: "-0x1.269621134db92p-2",
    3.7: "0x1.4eeee650ae550p+0",
    2.0**-53: "-0x1.25e4f7b2737fap+5",
    1 - 2.0**-53: "-0x1.0000000000000p-53",
    1e200: "0x1.cc845b54b54f2p+8",
}


@pytest.mark.parametrize("x", GOLDEN_EXP)
def test_bits_of_exp(x):
    assert pm.exp_scalar(x).hex() == GOLDEN_EXP[x]


@pytest.mark.parametrize("x", GOLDEN_LN)
def test_bits_of_ln(x):
    assert pm.ln_scalar(x).hex() == GOLDEN_LN[x]


def slow_sum(x: list[float]) -> float:
    """Fold halves while there are more than 256 numbers, then add from left to right."""
    while len(x) > 256:
        half = len(x) // 2
        folded = [x[i] + x[half + i] for i in range(half)]
        if len(x) % 2:
            folded[0] += x[-1]
        x = folded
    total = x[0]
    for value in x[1:]:
        total += value
    return total


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 513, 1000, 9999])
def test_fixed_sum_adds_in_its_order(n):
    x = np.random.default_rng(n).standard_normal(n) * 10.0 ** np.random.default_rng(n).integers(-9, 9, n)
    before = x.copy()
    assert pm.fixed_sum(x) == slow_sum(x.tolist())
    assert np.array_equal(x, before)


def test_fixed_sum_of_nothing_is_zero():
    assert pm.fixed_sum(np.empty(0)) == 0.0


@pytest.mark.parametrize(("base", "exponent"), [(1.75, 0), (1.75, 1), (1.1, 30), (2.0, 100), (1.000001, 4000)])
def test_power_is_near_the_exact_one(base, exponent):
    with localcontext(Context(prec=50)):
        exact = float(Decimal(base) ** exponent)
    assert pm.power(base, exponent) == pytest.approx(exact, rel=1e-12)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.floats(allow_nan=False))
def test_at_least_compares_float32_with_float64_exactly(values, bound):
    x = np.array(values, dtype=np.float32)
    assert pm.at_least(x, bound).tolist() == [float(value) >= bound for value in x]
    assert pm.at_least(x.astype(np.float64), bound).tolist() == [float(value) >= bound for value in x]
