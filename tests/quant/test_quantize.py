"""Quantisers: rounded types equal the gguf package's bytes, searched ones have a small and honest error."""

import gguf
import numpy as np
import pytest

from llmrun.formats.errors import ConfigError, FormatError
from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.dequantize import dequantize
from llmrun.quant.quantize import QUANTIZABLE, SHAPES, quantize
from llmrun.quant.scale_search import NumpySearch, OffsetShape

from .hard_rows import hard_rows

ROUNDED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
N_BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6,
          "IQ4_NL": 4, "IQ4_XS": 4, "MXFP4": 3}  # fmt: skip


def gaussian(n_row=16, n_in=512):
    return np.random.default_rng(5).standard_normal((n_row, n_in)).astype(np.float32)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_types_are_those_of_the_gguf_package(name):
    rng = np.random.default_rng(1)
    tiny = np.abs(hard_rows(rng, 512)).max(axis=1) < 1e-30  # 1 / scale is infinite: undefined in C
    for values in (gaussian(), hard_rows(rng, 512)[~tiny]):
        want = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
        with np.errstate(over="ignore"):
            assert np.array_equal(quantize(values, GgmlType[name]), want.view(np.uint8))


def test_halves_are_rounded_away_from_zero_in_q8_0():
    values = np.zeros((1, 32), np.float32)
    values[0, :5] = 127, 0.5, -0.5, 1.5, np.nextafter(np.float32(0.5), np.float32(0))
    assert quantize(values, GgmlType.Q8_0)[0, 2:7].view(np.int8).tolist() == [127, 1, -1, 2, 0]


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("name", N_BITS)
def test_error_is_within_what_the_bits_allow(name, with_importance):
    """A uniform grid of 2**b steps over the range of 32 (or 256) normal weights has an error of step / sqrt(12).

    The range is about 4.4 standard deviations wide for 32 weights; 1.15 leaves room for the grid's own scales.
    """
    values = gaussian()
    importance = np.random.default_rng(2).uniform(0.5, 2, 512).astype(np.float32) if with_importance else None
    back = dequantize(GgmlType[name], quantize(values, GgmlType[name], importance))
    step = 4.4 / (2 ** N_BITS[name] - 1)
    assert np.sqrt(np.mean((back - values) ** 2)) < 1.15 * step / np.sqrt(12)


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_stand_for_the_weights_that_the_search_meant(name):
    shape, values = SHAPES[name], gaussian(3)
    search = NumpySearch()
    if isinstance(shape, OffsetShape):
        found = search.offset(values, np.ones(512, np.float32), shape)
        scale, low = found.d[:, None] * found.scales, found.m[:, None] * found.lows
        meant = scale[..., None] * found.q.reshape(*scale.shape, -1).astype(np.float32) - low[..., None]
    else:
        found = search.symmetric(values, np.ones(512, np.float32), shape)
        scale = found.d[:, None] * found.scales
        v = found.q.reshape(*scale.shape, -1).astype(np.int32)
        v = np.array(gguf.quants.IQ4_NL.kvalues)[v] if shape.is_iq4 else v + shape.v_min
        meant = scale[..., None] * v.astype(np.float32)
    blocks = quantize(values, name, np.ones(512, np.float32))
    assert np.array_equal(dequantize(name, blocks), meant.reshape(3, 512))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_search_is_better_than_rounding(name):
    values, kind = gaussian(), GgmlType[name]
    errors = [
        np.sum((dequantize(kind, quantize(values, kind, weights)) - values) ** 2)
        for weights in (None, np.ones(512, np.float32))
    ]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("name", [n for n, shape in SHAPES.items() if not getattr(shape, "is_iq4", False)])
def test_weights_on_the_grid_come_back(name):
    """Integers times a power of two, all of a type's quants in use: only the half-precision scale may be off.

    It and the minimum's are off by at most 2**-11 of themselves, the weights by twice that of the largest.
    """
    shape = SHAPES[name]
    low, high = (0, shape.q_max) if isinstance(shape, OffsetShape) else (shape.v_min, shape.v_max)
    q = np.random.default_rng(3).integers(low, high + 1, (4, 512))
    q[:, ::16], q[:, 1::16] = low, high
    values = (q * 2.0**-6).astype(np.float32)
    back = dequantize(name, quantize(values, name, np.ones(512, np.float32)))
    assert np.abs(back - values).max() <= 2**-10 * np.abs(values).max()


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "Q5_1"])
def test_importance_moves_the_error_away_from_important_columns(name):
    values, importance = gaussian(64), np.ones(512, np.float32)
    importance[::4] = 100
    errors = []
    for weights in (np.ones(512, np.float32), importance):
        back = dequantize(GgmlType[name], quantize(values, GgmlType[name], weights))
        errors.append(np.mean((back - values)[:, ::4] ** 2))
    assert errors[1] < (0.95 if name == "MXFP4" else 0.9) * errors[0]  # it has but three exponents to choose from


@pytest.mark.parametrize("name", sorted(t.name for t in QUANTIZABLE))
def test_a_row_does_not_depend_on_its_neighbours(name):
    values = hard_rows(np.random.default_rng(4), 512)
    whole = quantize(values, GgmlType[name])
    assert whole.shape == (19, 512 // BLOCK[GgmlType[name]][0] * BLOCK[GgmlType[name]][1])
    assert np.array_equal(whole[7:9], quantize(values[7:9], GgmlType[name]))


@pytest.mark.parametrize("importance", [np.zeros(256), np.full(256, 1e-30), np.full(256, 1e30), np.arange(256) == 7])
def test_odd_importance_gives_weights_of_ordinary_size(importance):
    values = gaussian(4, 256)
    for name in ("Q4_K", "Q6_K", "Q4_1", "IQ4_NL", "MXFP4"):
        back = dequantize(GgmlType[name], quantize(values, GgmlType[name], importance.astype(np.float32)))
        assert np.abs(back).max() < 2 * np.abs(values).max()


def test_weights_too_large_for_half_precision_scales_are_refused():
    values = gaussian(2, 256) * np.float32(1e9)
    for name in ("F16", "Q4_K", "Q8_0", "IQ4_XS"):
        with pytest.raises(FormatError, match=f"too large for {name}; BF16 and F32 hold it"):
            quantize(values, GgmlType[name])
    assert np.allclose(dequantize(GgmlType.BF16, quantize(values, GgmlType.BF16)), values, rtol=2**-8)


def test_infinite_and_nan_weights_survive_in_floating_point_types():
    values = np.array([[np.inf, -np.inf, np.nan, 1]], np.float32)
    for name in ("F32", "F16", "BF16"):
        back = dequantize(GgmlType[name], quantize(values, GgmlType[name]))
        assert np.array_equal(back, values, equal_nan=True)


def test_types_that_cannot_be_written_are_refused():
    with pytest.raises(ConfigError, match="IQ1_S cannot be written, expected BF16, F16"):
        quantize(gaussian(), GgmlType.IQ1_S)


def test_no_rows_give_no_bytes():
    assert quantize(np.zeros((0, 256), np.float32), GgmlType.Q4_K).shape == (0, 144)
