"""The vectorised search for strings against the obvious loop."""

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrun.formats.string_offsets import StringTooLongError, find_strings


def pack(strings):
    return b"".join(struct.pack("<Q", len(s)) + s for s in strings)


def one_by_one(strings, start):
    offsets = [start]
    for s in strings:
        offsets.append(offsets[-1] + 8 + len(s))
    return offsets


def find(data, start, count, limit=None, **options):
    return find_strings(lambda i, n: data[i : i + n], start, count, limit or len(data), **options)


short = st.binary(max_size=12)
with_zeros = st.text("\0a", max_size=30).map(str.encode)
like_headers = st.lists(st.sampled_from([bytes(8), bytes(7), b"\1" + bytes(7), b"\x09" + bytes(7), b"x"])).map(b"".join)
long = st.integers(200, 700).map(lambda n: b"y" * n)


@settings(deadline=None, max_examples=300)
@given(
    strings=st.one_of(st.lists(short), st.lists(st.one_of(short, with_zeros, like_headers, long), max_size=60)),
    before=st.binary(max_size=20),
    after=st.binary(max_size=40),
    piece_bytes=st.sampled_from([8, 9, 31, 100, 1000, 1 << 16]),
    few=st.sampled_from([0, 0, 0, 5, 400]),
)
@example(strings=[b""] * 200, before=b"", after=bytes(50), piece_bytes=1 << 16, few=0)
@example(strings=[b"a" * 255, b"b" * 256, b"c" * 257], before=b"x", after=b"", piece_bytes=300, few=0)
@example(strings=[b"abc"] * 10, before=b"", after=pack([b"abc"] * 10), piece_bytes=1 << 16, few=0)
def test_finds_every_string(strings, before, after, piece_bytes, few):
    data = before + pack(strings) + after
    offsets = find(data, len(before), len(strings), piece_bytes=piece_bytes, few=few)
    assert offsets.tolist() == one_by_one(strings, len(before))


@pytest.mark.parametrize("n_long", [0, 1, 40, 3000])
def test_vocabulary_with_some_long_strings(n_long):
    rng = np.random.default_rng(n_long)
    strings = [rng.bytes(n) for n in rng.integers(1, 20, 20_000)]
    for i in rng.choice(20_000, n_long, replace=False):
        strings[i] = bytes(rng.integers(256, 600))
    data = pack(strings)
    assert find(data, 0, len(strings)).tolist() == one_by_one(strings, 0)


@pytest.mark.parametrize("strings", [[b"abc", b"defg"], [b"x" * 300] * 3, [b""] * 9, [b"a" * 20] * 5000])
def test_array_that_passes_the_limit_is_refused(strings):
    data = pack(strings) + bytes(100)
    end = len(data) - 100
    assert find(data, 0, len(strings), end)[-1] == end
    with pytest.raises(StringTooLongError) as caught:
        find(data, 0, len(strings), end - 1)
    index, n_bytes, n_left = caught.value.args
    assert index == len(strings) - 1
    assert (n_bytes, n_left) == ((len(strings[-1]), len(strings[-1]) - 1) if strings[-1] else (8, 7))


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 12, 2**64 - 1])
def test_length_near_the_end_of_64_bits_is_refused(length):
    data = pack([b"abcd"]) + struct.pack("<Q", length) + pack([b"abcd"] * 5)
    with pytest.raises(StringTooLongError) as caught:
        find(data, 0, 5)
    assert caught.value.args[:2] == (1, length)
