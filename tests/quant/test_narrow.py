"""Weights of a draft model get smaller and lose little."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.dequantize import dequantize
from llmrun.quant.floats import f8, half_at
from llmrun.quant.narrow import GRIDS, can_narrow, narrow
from llmrun.quant.quantize import quantize

T = GgmlType
LARGE = [T.Q5_0, T.Q5_1, T.Q5_K, T.Q6_K, T.Q8_0, T.F16, T.BF16, T.F32]
FOUR_BIT = [T.Q4_0, T.Q4_1, T.Q4_K, T.IQ4_NL, T.MXFP4]
SMALL = {T.Q4_0: [*FOUR_BIT, T.Q3_K, T.Q2_K, T.Q3_0], T.Q3_0: [T.Q3_K, T.Q2_K, T.Q3_0]}
TARGETS = pytest.mark.parametrize("target", GRIDS, ids=lambda kind: kind.name)


def weights(n_row, n_in=512):
    rng = np.random.default_rng(n_row)
    return (rng.standard_normal((n_row, n_in)) * rng.uniform(0.1, 3, (n_row, 1))).astype(np.float32)


def loss(values, other):
    return float(np.sqrt(np.mean((values - other) ** 2) / np.mean(values**2)))


def scales_of(blocks, target):
    """Return the scales of blocks, [n, 1]."""
    return f8(blocks[:, :1]) if target is T.Q3_0 else half_at(blocks, 0)


def at_nearest(x, target):
    """Round blocks [n, 32] so that the largest weight stands at the end of the grid."""
    offset = GRIDS[target].offset
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = peak / np.float32(-offset)
    return np.clip(np.rint(x / d), -offset, offset - 1) * d


@TARGETS
@pytest.mark.parametrize("kind", LARGE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("n_row", [1, 3, 700])
def test_loses_less_than_rounding_to_nearest(kind, n_row, target):
    data = quantize(weights(n_row), kind).reshape(-1)
    values = dequantize(kind, data).reshape(-1, 32)
    narrowed = dequantize(target, narrow(kind, data, target)).reshape(-1, 32)
    assert loss(values, narrowed) < 0.98 * loss(values, at_nearest(values, target))
    assert loss(values, narrowed) < (0.19 if target is T.Q3_0 else 0.09)
    assert abs(np.mean(narrowed - values)) < 0.03 * np.std(values)


@TARGETS
def test_what_lies_on_the_grid_stays(target):
    """Every quant at every place, with scales of both signs: one of the first steps rounds them to themselves."""
    offset = GRIDS[target].offset
    places = (np.arange(2 * offset)[:, None] + np.arange(32)) % (2 * offset) - offset
    for step in (0.5, -0.25):
        x = (places * step).astype(np.float32)
        assert np.array_equal(dequantize(target, narrow(T.F32, x.view(np.uint8).reshape(-1), target)), x.reshape(-1))


@TARGETS
def test_the_step_is_fitted_to_what_the_weights_are_rounded_to(target):
    """All are rounded to the nearest of the grid, and no other step is much better for what they become."""
    x = weights(20).reshape(-1, 32)
    blocks = narrow(T.F32, x.view(np.uint8).reshape(-1), target).reshape(len(x), -1)
    d, offset = scales_of(blocks, target), GRIDS[target].offset
    q = dequantize(target, blocks.reshape(-1)).reshape(x.shape) / d
    assert np.array_equal(q, np.clip(np.rint(x * (np.float32(1) / d)), -offset, offset - 1))
    fitted = (x * q).sum(axis=1, keepdims=True) / (q * q).sum(axis=1, keepdims=True)
    assert loss(x, d * q) < 1.01 * loss(x, fitted * q)


@TARGETS
def test_only_what_gets_smaller(target):
    assert [kind for kind in SMALL[target] if can_narrow(kind, 512, target)] == []
    assert [kind for kind in LARGE if not can_narrow(kind, 512, target)] == []
    assert not can_narrow(T.F16, 48, target)
    assert target is T.Q4_0 or all(can_narrow(kind, 512, target) for kind in FOUR_BIT)


@TARGETS
def test_nothing_and_zeros(target):
    assert narrow(T.Q8_0, np.zeros(0, np.uint8), target).size == 0
    assert not dequantize(target, narrow(T.Q8_0, np.zeros(34 * 3, np.uint8), target)).any()
    assert narrow(T.Q8_0, np.zeros(34 * 3, np.uint8), target).size == 3 * BLOCK[target][1]


@TARGETS
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_no_number_stays_visible(target, bad):
    """Such a scale is refused when it is packed."""
    x = weights(1, 96)
    x[0, 40] = bad
    scales = scales_of(narrow(T.F32, x.view(np.uint8).reshape(-1), target).reshape(3, -1), target)
    assert np.isfinite(scales[:, 0]).tolist() == [True, False, True]
