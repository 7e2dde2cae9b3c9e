"""The NumPy specification of every GGML type against gguf, libgguf and hand-written definitions."""

import struct

import gguf
import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.dequantize import CHUNK_WEIGHTS, DEQUANTIZERS, dequantize
from llmrun.quant.floats import NO_NUMBER, f8, to_f8
from llmrun.quant.tables import e8m0_half, ue4m3_half

DATA_TYPES = {GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64, GgmlType.F64}
WITHOUT_ORACLE = {GgmlType.Q3_0, GgmlType.Q1_0, GgmlType.Q8_1, GgmlType.Q8_K}  # gguf.quants lacks them


def by_name(ggml_type):
    return ggml_type.name


def test_every_type_of_weights_is_there():
    assert set(DEQUANTIZERS) == set(GgmlType) - DATA_TYPES


@pytest.mark.parametrize("ggml_type", sorted(set(DEQUANTIZERS) - WITHOUT_ORACLE), ids=by_name)
def test_equals_gguf(ggml_type, random_blocks, assert_same_bits):
    blocks = random_blocks(ggml_type, 2000)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(ggml_type))
    assert_same_bits(dequantize(ggml_type, blocks), want.astype(np.float32, copy=False))


def test_equals_libgguf(random_blocks, assert_same_bits):
    """Q1_0 and all the others that llama.cpp's own C code dequantises, in the wheel of that name."""
    libgguf = pytest.importorskip("libgguf")
    floats = {GgmlType.F32, GgmlType.F16, GgmlType.BF16}
    for ggml_type in sorted(set(DEQUANTIZERS) - floats - {GgmlType.Q3_0, GgmlType.Q8_1, GgmlType.Q8_K}):
        n_weight = BLOCK[ggml_type][0]
        blocks = random_blocks(ggml_type, 500)
        raw = libgguf.dequantize_rows_raw(int(ggml_type), blocks.tobytes(), len(blocks), n_weight)
        assert_same_bits(dequantize(ggml_type, blocks), np.frombuffer(raw, np.float32).reshape(-1, n_weight))


def q1_0(block):
    (d,) = struct.unpack_from("<e", block)
    return [d if block[2 + j // 8] >> (j % 8) & 1 else -d for j in range(128)]


def q3_0(block):
    sign, exponent, mantissa = block[0] >> 7, block[0] >> 3 & 15, block[0] & 7
    d = (-1) ** sign * (2.0 ** (exponent - 15) * (1 + mantissa / 8) if exponent else 2.0**-14 * mantissa / 8)
    d = float("nan") if block[0] == 0x80 else d
    quants = {}
    for c in range(4):
        bytes_of_c = [block[1 + 4 * j + c] for j in range(3)]
        for j, byte in enumerate(bytes_of_c):
            quants[8 * j + c], quants[8 * j + 4 + c] = byte & 7, byte >> 3 & 7
        rest = sum((byte >> 6) << 2 * j for j, byte in enumerate(bytes_of_c))
        quants[24 + c], quants[28 + c] = rest & 7, rest >> 3
    return [np.float32(d) * np.float32(quants[column] - 4) for column in range(32)]


def q8_1(block):
    d, _total, *qs = struct.unpack("<ff32b", block)
    return [np.float32(d) * np.float32(q) for q in qs]


def q8_k(block):
    d, *qs = struct.unpack("<f256b32x", block)
    return [np.float32(d) * np.float32(q) for q in qs]


@pytest.mark.parametrize(
    ("ggml_type", "define"),
    [(GgmlType.Q3_0, q3_0), (GgmlType.Q1_0, q1_0), (GgmlType.Q8_1, q8_1), (GgmlType.Q8_K, q8_k)],
)
def test_equals_definition(ggml_type, define, random_blocks, assert_same_bits):
    """The definitions are those of llama.cpp's block structures (Q8_1 with float32 scales, as gguf sizes it)."""
    blocks = random_blocks(ggml_type, 300)
    with np.errstate(all="ignore"):
        want = np.array([define(block.tobytes()) for block in blocks], np.float32)
    assert_same_bits(dequantize(ggml_type, blocks), want)


@pytest.mark.parametrize("ggml_type", [GgmlType.F16, GgmlType.BF16], ids=by_name)
def test_all_16_bit_floats(ggml_type, assert_same_bits):
    patterns = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    want = gguf.quants.dequantize(patterns, gguf.GGMLQuantizationType(ggml_type))
    assert_same_bits(dequantize(ggml_type, patterns), want)


def test_scales_of_eight_bits(assert_same_bits):
    """Every code is kept; what lies between two goes to the nearer, to the even one in the middle."""
    codes = np.array([c for c in range(256) if c != NO_NUMBER], np.uint8)
    values = f8(codes)
    assert np.array_equal(to_f8(values), codes)
    positive = np.sort(values[values >= 0])
    middles = (positive[:-1] + positive[1:]) / 2
    even = to_f8(positive)[:-1] + (to_f8(positive)[:-1] & 1)
    assert np.array_equal(to_f8(middles), even)
    assert np.array_equal(to_f8(middles * np.float32(1.02)), to_f8(positive)[1:])
    assert np.array_equal(to_f8(-middles * np.float32(0.98))[1:], to_f8(-positive[1:-1]))
    assert f8(to_f8(np.array([2, -3e4, -0.0, 1e-7], np.float32))).tolist() == [1.875, -1.875, 0, 0]
    assert to_f8(np.array([np.nan, np.inf, -np.inf], np.float32)).tolist() == [NO_NUMBER] * 3
    assert np.isnan(f8(np.array([NO_NUMBER], np.uint8))).all()


def test_all_8_bit_scales(assert_same_bits):
    patterns = np.arange(256, dtype=np.uint8)
    assert_same_bits(e8m0_half(patterns), gguf.quants.MXFP4.e8m0_to_fp32_half(patterns))
    assert_same_bits(ue4m3_half(patterns), gguf.quants.NVFP4.ue4m3_to_fp32(patterns).astype(np.float32))


def test_leading_dimensions_and_chunks(random_blocks, assert_same_bits):
    n_block = CHUNK_WEIGHTS // 32 + 5  # more than one chunk
    blocks = random_blocks(GgmlType.Q4_0, n_block)
    flat = dequantize(GgmlType.Q4_0, blocks)
    assert flat.shape == (n_block, 32)
    assert_same_bits(dequantize(GgmlType.Q4_0, blocks.reshape(-1)), flat.reshape(-1))
    rows = dequantize(GgmlType.Q4_0, blocks[:24].reshape(2, 3, 4 * 18))
    assert_same_bits(rows, flat[:24].reshape(2, 3, 128))


def test_accepts_a_view_with_gaps(random_blocks, assert_same_bits):
    blocks = random_blocks(GgmlType.Q6_K, 8)
    wide = np.zeros((8, 300), np.uint8)
    wide[:, 20:230] = blocks
    assert_same_bits(dequantize(GgmlType.Q6_K, wide[:, 20:230]), dequantize(GgmlType.Q6_K, blocks))


def test_does_not_share_memory_with_the_file():
    data = np.zeros(64, np.uint8)
    assert not np.shares_memory(dequantize(GgmlType.F32, data), data)


def test_no_blocks_give_no_weights():
    assert dequantize(GgmlType.Q4_K, np.empty((3, 0), np.uint8)).shape == (3, 0)


@pytest.mark.parametrize("ggml_type", sorted(DATA_TYPES), ids=by_name)
def test_refuses_data_types(ggml_type):
    with pytest.raises(FormatError, match=f"{ggml_type.name} hold data, not weights"):
        dequantize(ggml_type, np.zeros(64, np.uint8))


def test_refuses_part_of_a_block():
    with pytest.raises(FormatError, match="100 bytes of Q4_K data, expected a multiple of 144"):
        dequantize(GgmlType.Q4_K, np.zeros(100, np.uint8))
