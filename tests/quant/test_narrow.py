"""Weights of a draft model get smaller at about the loss of quantising them anew."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant import round_to_nearest
from llmrun.quant.dequantize import dequantize
from llmrun.quant.narrow import can_narrow, narrow
from llmrun.quant.quantize import quantize

T = GgmlType
SMALL = [T.Q4_0, T.Q4_1, T.Q4_K, T.IQ4_NL, T.Q3_K, T.Q2_K, T.MXFP4]
LARGE = [T.Q5_0, T.Q5_1, T.Q5_K, T.Q6_K, T.Q8_0, T.F16, T.BF16, T.F32]


def weights(n_row, n_in=512):
    rng = np.random.default_rng(n_row)
    return (rng.standard_normal((n_row, n_in)) * rng.uniform(0.1, 3, (n_row, 1))).astype(np.float32)


def loss(values, other):
    return float(np.sqrt(np.mean((values - other) ** 2) / np.mean(values**2)))


@pytest.mark.parametrize("kind", LARGE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("n_row", [1, 3, 700])
def test_loses_hardly_more_than_quantising(kind, n_row):
    data = quantize(weights(n_row), kind).reshape(-1)
    values = dequantize(kind, data).reshape(-1)
    narrowed = dequantize(T.Q4_0, narrow(kind, data)).reshape(-1)
    anew = dequantize(T.Q4_0, round_to_nearest.q4_0(values.reshape(-1, 32)).reshape(-1)).reshape(-1)
    assert loss(values, narrowed) < 1.03 * loss(values, anew) + 1e-6
    assert abs(np.mean(narrowed - values)) < 0.02 * np.std(values)


@pytest.mark.parametrize("kind", [T.Q5_0, T.Q8_0], ids=lambda kind: kind.name)
def test_every_quant_goes_to_one_of_its_neighbours(kind):
    """Blocks with every quant at every place, and with scales of both signs."""
    n_quant, step = (32, 2) if kind is T.Q5_0 else (255, 16)
    places = (np.arange(n_quant)[:, None] + np.arange(32)) % n_quant
    blocks = np.zeros((n_quant, BLOCK[kind][1]), np.uint8)
    blocks[:, :2] = (
        np.where(np.arange(n_quant)[:, None] % 2, np.float16(0.5), np.float16(-0.5)).astype(np.float16).view(np.uint8)
    )
    if kind is T.Q8_0:
        blocks[:, 2:] = (places - 127).astype(np.int8).view(np.uint8)
    else:
        low, high = places & 15, (places >> 4).astype(np.uint8)
        blocks[:, 2:6] = np.packbits(high, axis=1, bitorder="little")
        blocks[:, 6:] = low[:, :16] | low[:, 16:] << 4
    before = dequantize(kind, blocks.reshape(-1)).reshape(n_quant, 32)
    after = dequantize(T.Q4_0, narrow(kind, blocks.reshape(-1))).reshape(n_quant, 32)
    # Half a step of the new grid, and one at the end that the grid does not reach.
    assert np.abs(before - after).max() <= 0.5 * step * (0.5 if kind is T.Q5_0 else 1.0) + 0.5 * (kind is T.Q8_0)


def test_only_what_gets_smaller():
    assert [kind for kind in SMALL if can_narrow(kind, 512)] == []
    assert [kind for kind in LARGE if not can_narrow(kind, 512)] == []
    assert not can_narrow(T.F16, 48)


def test_nothing():
    assert narrow(T.Q8_0, np.zeros(0, np.uint8)).size == 0


def test_a_damaged_scale_stays_visible():
    """An infinite scale is refused when it is packed."""
    blocks = quantize(weights(1, 32), T.Q8_0)
    blocks[:, :2] = np.array([np.inf], np.float16).view(np.uint8)
    assert not np.isfinite(narrow(T.Q8_0, blocks.reshape(-1))[:2].view(np.float16)).all()
