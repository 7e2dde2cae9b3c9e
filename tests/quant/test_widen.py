"""Types without a kernel layout run in one that holds their weights exactly."""

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.dequantize import DEQUANTIZERS, dequantize
from llmrun.quant.pack import allocate, pack, pack_rows
from llmrun.quant.pack_format import PACKED_FORMATS
from llmrun.quant.unpack import unpack
from llmrun.quant.widen import run_type

# Where the scales lie in a block: (offset, dtype, n).
SCALES = {
    GgmlType.Q1_0: (0, "<f2", 1),
    GgmlType.TQ1_0: (52, "<f2", 1),
    GgmlType.TQ2_0: (64, "<f2", 1),
    GgmlType.IQ1_S: (0, "<f2", 1),
    GgmlType.IQ2_XXS: (0, "<f2", 1),
    GgmlType.IQ2_XS: (0, "<f2", 1),
    GgmlType.IQ2_S: (0, "<f2", 1),
    GgmlType.IQ3_XXS: (0, "<f2", 1),
    GgmlType.IQ3_S: (0, "<f2", 1),
    GgmlType.Q8_1: (0, "<f4", 1),
    GgmlType.Q8_K: (0, "<f4", 1),
}
EXPECTED = {
    GgmlType.Q1_0: GgmlType.Q4_0,
    GgmlType.TQ1_0: GgmlType.Q2_K,
    GgmlType.TQ2_0: GgmlType.Q2_K,
    GgmlType.IQ1_S: GgmlType.Q5_K,
    GgmlType.IQ1_M: GgmlType.Q6_K,
    GgmlType.IQ2_XXS: GgmlType.F32,
    GgmlType.IQ2_XS: GgmlType.F32,
    GgmlType.IQ2_S: GgmlType.F32,
    GgmlType.IQ3_XXS: GgmlType.Q6_K,
    GgmlType.IQ3_S: GgmlType.Q6_K,
    GgmlType.NVFP4: GgmlType.F16,
    GgmlType.Q8_1: GgmlType.Q8_0,
    GgmlType.Q8_K: GgmlType.Q8_0,
}


def by_name(ggml_type):
    return ggml_type.name


def set_scales(blocks, ggml_type, scales):
    """Replace the scale of every block, in the type's own place and form."""
    if ggml_type is GgmlType.IQ1_M:  # four nibbles on top of four words
        bits = np.asarray(scales, "<f2").view("<u2")
        words = blocks[:, 48:56].copy().view("<u2")
        for i in range(4):
            words[:, i] = (words[:, i] & 0x0FFF) | (((bits >> (4 * i)) & 15) << 12)
        blocks[:, 48:56] = words.view(np.uint8)
    elif ggml_type in SCALES:
        offset, dtype, _ = SCALES[ggml_type]
        raw = np.asarray(scales, dtype).view(np.uint8).reshape(len(blocks), -1)
        blocks[:, offset : offset + raw.shape[1]] = raw


def usual_matrix(random_blocks, ggml_type, n_row, n_col):
    """Return blocks as a quantiser writes them: random quants, scales of ordinary size and either sign."""
    blocks = random_blocks(ggml_type, n_row * n_col // BLOCK[ggml_type][0])
    rng = np.random.default_rng(int(ggml_type))
    scales = (rng.uniform(0.001, 0.1, len(blocks)) * rng.choice([-1, 1], len(blocks))).astype(np.float16)
    set_scales(blocks, ggml_type, scales)
    return blocks.reshape(-1)


def test_every_type_without_layout_is_covered():
    assert set(EXPECTED) == set(DEQUANTIZERS) - set(PACKED_FORMATS)


@pytest.mark.parametrize("ggml_type", sorted(EXPECTED), ids=by_name)
def test_usual_tensors_run_exactly(ggml_type, random_blocks):
    for n_row in (5, 16, 48):
        data = usual_matrix(random_blocks, ggml_type, n_row, 512)
        packed = pack("w", ggml_type, (n_row, 512), data)
        assert packed.format.ggml_type is EXPECTED[ggml_type]
        assert packed.source_type is ggml_type
        want = dequantize(ggml_type, data).reshape(n_row, 512)
        assert np.array_equal(unpack(packed), want)  # the sign of a zero may differ


@pytest.mark.parametrize("ggml_type", sorted(EXPECTED), ids=by_name)
def test_any_bits_run_exactly(ggml_type, random_blocks):
    """Infinite, NaN and tiny scales rule the small layouts out, but never change a weight."""
    data = random_blocks(ggml_type, 2 * 16 * 512 // BLOCK[ggml_type][0]).reshape(-1)
    packed = pack("w", ggml_type, (32, 512), data)
    want = dequantize(ggml_type, data).reshape(32, 512)
    assert np.array_equal(unpack(packed), want, equal_nan=True)


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 2.0**-24, -(2.0**-24), 0.0, -0.0, 65504.0])
@pytest.mark.parametrize("ggml_type", sorted(set(EXPECTED) - {GgmlType.NVFP4}), ids=by_name)
def test_one_extreme_scale(ggml_type, scale, random_blocks):
    n_block = 16 * 512 // BLOCK[ggml_type][0]
    data = usual_matrix(random_blocks, ggml_type, 16, 512).reshape(n_block, -1)
    scales = np.full(n_block, 0.5, np.float16)
    scales[n_block // 2] = scale
    set_scales(data, ggml_type, scales)
    packed = pack("w", ggml_type, (16, 512), data.reshape(-1))
    want = dequantize(ggml_type, data).reshape(16, 512)
    assert np.array_equal(unpack(packed), want, equal_nan=True)
    if not np.isfinite(scale):
        assert packed.format.ggml_type in {GgmlType.F16, GgmlType.BF16, GgmlType.F32}


def test_prefers_half_precision_where_it_is_exact():
    blocks = np.zeros((4, 66), np.uint8)  # IQ2_XXS with d = 0: weights are zeros
    assert run_type("w", GgmlType.IQ2_XXS, blocks) is GgmlType.F16


def test_bfloat16_where_half_precision_overflows():
    blocks = np.zeros((2, 292), np.uint8)  # Q8_K
    blocks[:, :4] = np.array([2.0**100], "<f4").view(np.uint8)
    blocks[:, 4:260] = 3
    assert run_type("w", GgmlType.Q8_K, blocks) is GgmlType.BF16


@pytest.mark.parametrize("ggml_type", sorted(PACKED_FORMATS), ids=by_name)
def test_kernel_types_run_as_they_are(ggml_type):
    assert run_type("w", ggml_type, np.empty(0, np.uint8)) is ggml_type


@pytest.mark.parametrize("ggml_type", [GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64, GgmlType.F64])
def test_refuses_data_types(ggml_type):
    with pytest.raises(FormatError, match=f"tensor 'w' has type {ggml_type.name}, expected floating-point or quan"):
        pack("w", ggml_type, (1, 32), np.zeros(32 * BLOCK[ggml_type][1], np.uint8))


def test_refuses_a_type_that_does_not_hold_the_weights(random_blocks):
    """The choice is proven while packing: data that changed in between does not get through."""
    data = usual_matrix(random_blocks, GgmlType.IQ1_S, 16, 256).reshape(16, -1)
    packed = allocate("w", GgmlType.Q5_K, 16, 256, GgmlType.IQ1_S)
    set_scales(data, GgmlType.IQ1_S, np.full(16, 2.0**-24))
    with pytest.raises(FormatError, match="tensor 'w' has IQ1_S weights that Q5_K does not hold exactly"):
        pack_rows(packed, data.reshape(-1), 0, 1)
