"""Packed parts hold exactly the weights of the file, in as many bytes."""

import threading

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant import pack as pack_module
from llmrun.quant.dequantize import dequantize
from llmrun.quant.pack import allocate, copy_rows, pack, pack_rows
from llmrun.quant.pack_format import PACKED_FORMATS, PART_ALIGN
from llmrun.quant.unpack import unpack

TYPES = sorted(PACKED_FORMATS)
BLOCK_TYPES = [t for t in TYPES if BLOCK[t][0] > 1]


def by_name(value):
    return value.name if isinstance(value, GgmlType) else None


@pytest.fixture
def matrix(random_blocks):
    """Return the bytes of a random matrix."""

    def make(ggml_type, n_row, n_col):
        return random_blocks(ggml_type, n_row * n_col // BLOCK[ggml_type][0]).reshape(-1)

    return make


def n_cols(ggml_type):
    return [n for n in (32, 256, 576, 768) if n % BLOCK[ggml_type][0] == 0]


@pytest.mark.parametrize("chunk_bytes", [pack_module.CHUNK_BYTES, 5000])
@pytest.mark.parametrize("n_row", [1, 15, 16, 17, 192])
@pytest.mark.parametrize("ggml_type", TYPES, ids=by_name)
def test_unpack_gives_the_weights(ggml_type, n_row, chunk_bytes, matrix, assert_same_bits, monkeypatch):
    monkeypatch.setattr(pack_module, "CHUNK_BYTES", chunk_bytes)  # small: cuts within rows
    for n_col in n_cols(ggml_type):
        data = matrix(ggml_type, n_row, n_col)
        got = unpack(pack("w", ggml_type, (n_row, n_col), data))
        assert_same_bits(got, dequantize(ggml_type, data).reshape(n_row, n_col))


@pytest.mark.parametrize("ggml_type", TYPES, ids=by_name)
def test_rows_are_copied_over_others(ggml_type, matrix, assert_same_bits):
    n_col = n_cols(ggml_type)[-1]
    target, source = (pack("w", ggml_type, (n, n_col), matrix(ggml_type, n, n_col)) for n in (70, 19))
    want, rows = unpack(target), [69, 3, *range(20, 37)]
    want[rows] = unpack(source)
    copy_rows(source, target, rows)
    assert_same_bits(unpack(target), want)


@pytest.mark.parametrize("ggml_type", TYPES, ids=by_name)
def test_adds_no_bytes(ggml_type, matrix):
    data = matrix(ggml_type, 32, 512)
    packed = pack("w", ggml_type, (32, 512), data)
    assert packed.n_bytes == data.size == packed.format.n_bytes(32, 512)
    assert packed.format.n_bytes(17, 512) == data.size  # padded to 32 rows


@pytest.mark.parametrize("ggml_type", TYPES, ids=by_name)
def test_parts_are_aligned_and_contiguous(ggml_type):
    packed = allocate("w", ggml_type, 17, 256)
    for spec in packed.format.parts:
        part = packed.parts[spec.name]
        assert part.ctypes.data % PART_ALIGN == 0
        assert part.flags.c_contiguous
        assert part.shape == (2, 256 // spec.n_unit, *spec.tail)
        assert part.dtype == spec.dtype


@pytest.mark.parametrize("ggml_type", TYPES, ids=by_name)
def test_padded_rows_are_zero(ggml_type, matrix):
    packed = pack("w", ggml_type, (3, 256), matrix(ggml_type, 3, 256))
    whole = type(packed)("w", packed.format, 16, 256, packed.parts, packed.format.ggml_type)
    assert not np.any(unpack(whole)[3:])


@pytest.mark.parametrize("ggml_type", TYPES, ids=by_name)
def test_ranges_of_row_groups_touch_only_their_rows(ggml_type, matrix):
    data = matrix(ggml_type, 80, 256)
    want = pack("w", ggml_type, (80, 256), data)
    packed = allocate("w", ggml_type, 80, 256)
    for part in packed.parts.values():
        part.view(np.uint8)[:] = 0xA5
    pack_rows(packed, data, 1, 3)
    for name, part in packed.parts.items():
        raw, expected = part.view(np.uint8), want.parts[name].view(np.uint8)
        assert np.array_equal(raw[1:3], expected[1:3])
        assert np.all(raw[:1] == 0xA5)
        assert np.all(raw[3:] == 0xA5)


def test_threads_pack_separate_ranges(matrix):
    data = matrix(GgmlType.Q4_K, 200, 512)
    want = pack("w", GgmlType.Q4_K, (200, 512), data)
    packed = allocate("w", GgmlType.Q4_K, 200, 512)
    ranges = [(0, 4), (4, 9), (9, 13)]
    threads = [threading.Thread(target=pack_rows, args=(packed, data, *r)) for r in ranges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, part in packed.parts.items():
        assert part.tobytes() == want.parts[name].tobytes()


def test_accepts_read_only_unaligned_data(matrix, assert_same_bits):
    data = matrix(GgmlType.Q6_K, 16, 256)
    shifted = np.empty(data.size + 3, np.uint8)[3:]
    shifted[:] = data
    shifted.flags.writeable = False
    got = unpack(pack("w", GgmlType.Q6_K, (16, 256), shifted))
    assert_same_bits(got, dequantize(GgmlType.Q6_K, data).reshape(16, 256))


def test_stacked_matrices_are_rows(matrix):
    data = matrix(GgmlType.Q8_0, 48, 64)
    packed = pack("experts", GgmlType.Q8_0, (3, 16, 64), data)
    assert (packed.n_row, packed.n_col) == (48, 64)


def bit_of(words, row, column):
    """Return the byte of a 64-byte vector that belongs to one weight, as ``pack_format`` describes it."""
    return words[4 * row + column % 4]


def test_layout_of_quants(matrix):
    """Spot checks against the table in ``pack_format``, without going through ``unpack``."""
    data = matrix(GgmlType.Q5_K, 16, 512)
    blocks = data.reshape(16, 2, 176)
    packed = pack("w", GgmlType.Q5_K, (16, 512), data)
    for row, column in [(0, 0), (3, 37), (15, 511), (7, 300), (9, 64 + 33)]:
        block, inside = blocks[row, column // 256], column % 256
        nibble = block[48 + inside // 64 * 32 + inside % 32] >> (4 * (inside // 32 % 2)) & 15
        high = block[16 + inside % 32] >> (inside // 32) & 1
        vector = column % 32 // 4
        q5 = packed.parts["q5"][0, column // 32]
        q4 = bit_of(q5[1 + vector // 2], row, column)
        assert (q4 >> (4 * (vector % 2))) & 15 == nibble
        assert bit_of(q5[0], row, column) >> vector & 1 == high


def test_layout_of_two_bit_quants(matrix):
    data = matrix(GgmlType.Q2_K, 16, 256)
    blocks = data.reshape(16, 84)
    packed = pack("w", GgmlType.Q2_K, (16, 256), data)
    for row, column in [(0, 0), (3, 37), (15, 255), (7, 130)]:
        crumb = blocks[row, 16 + column // 128 * 32 + column % 32] >> (2 * (column % 128 // 32)) & 3
        vector = column % 32 // 4
        q2 = bit_of(packed.parts["q2"][0, column // 32, vector // 4], row, column)
        assert (q2 >> (2 * (vector % 4))) & 3 == crumb
    assert np.array_equal(packed.parts["s4"][0, 0], blocks[:, :16].T)


@pytest.mark.parametrize(
    ("ggml_type", "n_row", "n_col"), [(GgmlType.Q4_K, 4, 288), (GgmlType.Q8_0, 0, 32), (GgmlType.Q8_0, 4, 0)]
)
def test_refuses_impossible_shapes(ggml_type, n_row, n_col):
    with pytest.raises(FormatError, match=rf"tensor 'w' has {n_row} rows of {n_col} columns, expected"):
        allocate("w", ggml_type, n_row, n_col)


def test_refuses_types_without_layout():
    with pytest.raises(FormatError, match="tensor 'w': no kernel layout for type IQ2_XXS, expected one of Q4_0"):
        allocate("w", GgmlType.IQ2_XXS, 16, 256)


def test_refuses_data_of_another_size():
    with pytest.raises(FormatError, match="tensor 'w' has 33 bytes of data, expected 34 for 1 rows of 32 columns"):
        pack("w", GgmlType.Q8_0, (1, 32), np.zeros(33, np.uint8))


def test_refuses_ranges_outside():
    packed = allocate("w", GgmlType.Q8_0, 16, 32)
    with pytest.raises(ValueError, match=r"row groups 0\.\.2 of 1"):
        pack_rows(packed, np.zeros(16 * 34, np.uint8), 0, 2)
