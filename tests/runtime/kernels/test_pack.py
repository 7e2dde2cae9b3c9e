"""Packing kernels give the bytes of ``quant/pack.py``, for any shape, content and share, and see what is no number."""

import itertools

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.pack import pack_rows
from llmrun.quant.pack_format import allocate
from llmrun.runtime.kernels.layout import PACK_FORMATS
from llmrun.runtime.packing import Piece, pack_by_kernels, pack_finite, pack_kernel_of, pack_kernels_of
from llmrun.runtime.program import Weight

from ..machine import WHOLE_TARGETS, rng_for
from .blocks import SCALE_BYTES

FORMATS = (*PACK_FORMATS, "IQ4_NL")
POISON = 0xA5


def weight(name, n_row, n_col):
    return Weight("w", n_row, n_col, name, source=name)


def random_bits(name, n_row, n_col):
    """Return random bytes whose floats are numbers: ``u8 [n_row, n_block, block bytes]``."""
    n_weight, n_byte = BLOCK[GgmlType[name]]
    data = rng_for("pack", name, n_row, n_col).integers(0, 256, (n_row, n_col // n_weight, n_byte), dtype=np.uint8)
    for offset in SCALE_BYTES.get(name, (0,)):
        data[:, :, offset + 1] &= 0xBB  # one exponent bit of an f16 is clear
        if name == "BF16":
            data[:, :, offset + 1] &= 0xBF
    return data


def poisoned(name, n_row, n_col):
    packed = allocate("w", GgmlType[name], n_row, n_col)
    for part in packed.parts.values():
        part.view(np.uint8)[:] = POISON
    return packed


def kernel(machine, target_name, name, n_row, n_col, n_thread=1):
    """Return the packing of a range by a kernel."""
    kernels, team = machine.kernels(target_name), machine.team(target_name, n_thread)

    def pack(packed, data, start, stop):
        pack_by_kernels([Piece(weight(name, n_row, n_col), packed, data, start, stop, slice(0))], kernels, team)

    return pack


def assert_same_parts(got, want, what):
    for part, values in want.parts.items():
        assert np.array_equal(got.parts[part].view(np.uint8), values.view(np.uint8)), f"{part} of {what}"


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("name", FORMATS)
def test_equals_the_specification(machine, target_name, name):
    for n_row in (1, 16, 17, 48, 95):
        for n_col in (256, 768) if BLOCK[GgmlType[name]][0] == 256 else (32, 96, 576):
            data = random_bits(name, n_row, n_col)
            want, got = poisoned(name, n_row, n_col), poisoned(name, n_row, n_col)
            pack_rows(want, data.reshape(-1), 0, want.n_rowgroup)
            kernel(machine, target_name, name, n_row, n_col)(got, data.reshape(-1), 0, got.n_rowgroup)
            assert_same_parts(got, want, f"{n_row} x {n_col}")


@pytest.mark.parametrize("n_thread", [1, 2, 5])
@pytest.mark.parametrize("name", FORMATS)
def test_fills_only_its_row_groups(machine, name, n_thread):
    n_row, n_col = 90, 256
    data = random_bits(name, n_row, n_col).reshape(-1)
    for start, stop in ((0, 2), (2, 5), (4, 6), (5, 6), (3, 3)):
        want, got = poisoned(name, n_row, n_col), poisoned(name, n_row, n_col)
        pack_rows(want, data, start, stop)
        kernel(machine, WHOLE_TARGETS[0], name, n_row, n_col, n_thread)(got, data, start, stop)
        assert_same_parts(got, want, f"row groups {start} to {stop}")


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("name", FORMATS)
def test_sees_every_scale_that_is_no_number(machine, target_name, name):
    """In any lane, block and row group; the largest numbers pass."""
    n_row, n_col = 64, 512
    pack = kernel(machine, target_name, name, n_row, n_col)
    data = random_bits(name, n_row, n_col)
    packed = poisoned(name, n_row, n_col)
    largest, infinity = (b"\x7f\x7f", b"\x80\x7f") if name == "BF16" else (b"\xff\x7b", b"\x00\x7c")
    offsets = SCALE_BYTES.get(name, (0,))
    for k, offset in enumerate(offsets):
        for row in range(n_row):
            block = (7 * row + k) % data.shape[1]
            place = data[row, block, offset : offset + 2]
            kept = place.copy()
            place[:] = np.frombuffer(largest, np.uint8)
            place[1] |= 0x80 * (row % 2)
            pack(packed, data.reshape(-1), 0, 4)
            place[:] = np.frombuffer(infinity, np.uint8)
            place[0] |= row % 3 == 2  # a NaN
            place[1] |= 0x80 * (row % 2)
            with pytest.raises(FormatError, match="tensor 'w' holds infinite or NaN weights"):
                pack(packed, data.reshape(-1), 0, 4)
            place[:] = kept
    pack(packed, data.reshape(-1), 0, 4)


@pytest.mark.parametrize("n_thread", [1, 3])
def test_packs_many_pieces_in_one_call(machine, n_thread):
    """Of one matrix and of others; what is wrong with one of them is found."""
    shapes = [("Q4_1", 95, 96), ("Q8_0", 16, 32), ("Q6_K", 33, 256), ("F16", 7, 64)]
    pieces, wanted = [], []
    for name, n_row, n_col in shapes:
        data, want, got = random_bits(name, n_row, n_col), poisoned(name, n_row, n_col), poisoned(name, n_row, n_col)
        pack_rows(want, data.reshape(-1), 0, want.n_rowgroup)
        cuts = [*range(0, got.n_rowgroup, 2), got.n_rowgroup]
        pieces += [
            Piece(weight(name, n_row, n_col), got, data.reshape(-1), *cut, slice(0)) for cut in itertools.pairwise(cuts)
        ]
        wanted.append(want)
    kernels, team = machine.kernels(WHOLE_TARGETS[0]), machine.team(WHOLE_TARGETS[0], n_thread)
    pack_by_kernels(pieces, kernels, team)
    for piece in pieces:
        want = next(want for want in wanted if want.format is piece.packed.format)
        assert_same_parts(piece.packed, want, piece.packed.format.name)
    pieces[3].data[:2] = 0, 0xFC
    with pytest.raises(FormatError, match="tensor 'w' holds infinite or NaN weights"):
        pack_by_kernels(pieces, kernels, team)


def test_numpy_packs_what_no_kernel_packs():
    others = [
        weight("Q2_K", 16, 256),
        weight("F32", 16, 16),
        weight("F16", 16, 7),
        Weight("w", 16, 256, "Q8_0", source="Q8_K"),
    ]
    assert [pack_kernel_of(w) for w in others] == [""] * 4
    vector = Weight("v", 0, 32, "F32")
    assert pack_kernels_of([vector, *others, weight("IQ4_NL", 1, 32), weight("Q6_K", 5, 256)]) == {
        "pack_q4_0", "pack_q6_k",
    }  # fmt: skip


def test_the_two_ways_refuse_the_same(machine):
    data = random_bits("Q8_0", 16, 32)
    data[3, 0, :2] = 0, 0xFC
    for pack in (pack_finite, kernel(machine, WHOLE_TARGETS[0], "Q8_0", 16, 32)):
        with pytest.raises(FormatError, match="tensor 'w' holds infinite or NaN weights"):
            pack(poisoned("Q8_0", 16, 32), data.reshape(-1), 0, 1)
