"""Every damaged file is refused by one line that names it, at once, with flat memory."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.formats.errors import FormatError
from llmrun.formats.gguf import GgufFile
from llmrun.formats.string_offsets import find_strings

from . import damage

CASES = dict(damage.damaged_ggufs())
SPLITS = {name: (files, opened) for name, files, opened in damage.damaged_splits()}
MAX_PEAK_BYTES = 3 << 20  # windows of 64 and 256 KiB and their temporaries; the largest damaged file has 5 MiB


def read_everything(model):
    for key in model.metadata.keys():  # noqa: SIM118 (a method, not a mapping's)
        value = model.metadata.get(key)
        if hasattr(value, "to_list"):
            value.to_list()
    return {name: bytes(model.data(info)) for name, info in model.tensors.items()}


def refusal(path, **options):
    """Read the whole file and return the FormatError, or None when it can be read."""
    try:
        with GgufFile.open(path, **options) as model:
            read_everything(model)
    except FormatError as error:
        return error
    return None


def assert_refused(path, named, *, use_mmap):
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(FormatError) as caught:
            GgufFile.open(path, use_mmap=use_mmap)
        elapsed_s, peak_bytes = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(named) in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 600
    assert elapsed_s < 1
    assert peak_bytes < MAX_PEAK_BYTES


def test_there_are_enough_cases():
    assert len(CASES) == len(list(damage.damaged_ggufs())) >= 100
    assert len(SPLITS) >= 10


def test_undamaged_parts_are_accepted(tmp_path):
    path = tmp_path / "whole.gguf"
    for parts in (damage.Parts(), damage.Parts(version=2)):
        path.write_bytes(parts.build())
        with GgufFile.open(path) as model:
            assert model.version == parts.version
            assert model.metadata.strings("tokenizer.ggml.tokens").to_list() == ["<s>", "hello", ""]
            assert {t.name: t.shape for t in model.tensors.values()} == {"a.weight": (2, 32), "b.weight": (8,)}
            assert read_everything(model) == {"a.weight": bytes(36), "b.weight": bytes(32)}


def test_undamaged_split_is_accepted(tmp_path):
    for i in range(3):
        (tmp_path / f"m-0000{i + 1}-of-00003.gguf").write_bytes(damage.shard(i, 3, 3))
    for i in range(3):
        with GgufFile.open(tmp_path / f"m-0000{i + 1}-of-00003.gguf") as model:
            assert [(t.name, t.shard) for t in model.tensors.values()] == [(f"t{k}.weight", k) for k in range(3)]


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_damaged_file_is_refused(tmp_path, name, use_mmap):
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(CASES[name])
    named = tmp_path / f"{name.rsplit('-of-')[0][:-6]}" if "missing-0" in name else path  # another file of the split
    assert_refused(path, named, use_mmap=use_mmap)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic-zip", r"not a GGUF file: starts with b'PK\x03\x04', expected b'GGUF'"),
        ("version-1", "GGUF version 1 is not supported, expected 2 or 3. Convert the model again"),
        ("version-4", "GGUF version 4 is not supported, expected 2 or 3"),
        ("big-endian-v3", "big-endian GGUF is not supported. Use the little-endian file of this model"),
        ("key-count-2^64-1", "18446744073709551615 metadata keys do not fit into the "),
        ("tensor-count-2^32", "4294967296 tensors do not fit into the "),
        ("too-many-tensors", "131072 tensors, expected at most 65536"),
        ("array-of-type-4-length-2^61", "2305843009213693952 elements of metadata key 'k' do not fit into the "),
        ("array-of-str-length-2^63", "9223372036854775808 strings of metadata key 'k' do not fit into the "),
        ("string-length-2^31", "the file is truncated: metadata key 'k' needs 2147483648 bytes, "),
        ("strings-in-a-circle", "metadata key 'k': string 1 of 40 needs 18446744073709551597 bytes, "),
        ("nested-array", "metadata key 'k' is an array of arrays"),
        ("key-twice", "metadata key 'llama.block_count' appears twice"),
        ("alignment-33", "general.alignment is 33, expected a power of two from 1 to 65536"),
        ("alignment-i32", "metadata key 'general.alignment' has type i32, expected u32"),
        ("tensor-dims-5", "tensor 't' has 5 dimensions, expected 1 to 4"),
        ("tensor-type-99", "tensor 't' has type 99, expected a GGML type from 0 to "),
        ("tensor-row-not-blocks", "tensor 't' has rows of 257 weights, expected a multiple of 256 for Q4_K"),
        ("tensor-shape-2^32x2^32", "tensor 't' needs bytes "),
        ("tensor-overlap-inside", "tensors 'a.weight' and 't' overlap. The file is damaged"),
        ("split-with-an-ordinary-name", "one of the 3 files of a split model, expected a name that ends in -00001-of-"),
    ],
)
def test_message_says_what_is_wrong(tmp_path, name, message):
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(CASES[name])
    assert f"{path}: {message}" in str(refusal(path))


@pytest.mark.parametrize("name", SPLITS)
def test_damaged_split_is_refused(tmp_path, name):
    files, opened = SPLITS[name]
    for file_name, data in files.items():
        (tmp_path / file_name).write_bytes(data)
    assert_refused(tmp_path / opened, tmp_path, use_mmap=True)


def test_missing_split_file_is_named(tmp_path):
    (tmp_path / "m-00003-of-00003.gguf").write_bytes(damage.shard(2, 3))
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(damage.shard(0, 3))
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: missing, file 2 of 3"):
        GgufFile.open(tmp_path / "m-00003-of-00003.gguf")


def test_split_of_links_in_a_circle_is_refused(tmp_path):
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(damage.shard(0, 3))
    (tmp_path / "m-00002-of-00003.gguf").symlink_to("m-00003-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").symlink_to("m-00002-of-00003.gguf")
    assert_refused(tmp_path / "m-00001-of-00003.gguf", "m-00002-of-00003.gguf", use_mmap=True)


def test_control_characters_from_the_file_are_escaped(tmp_path):
    path = tmp_path / "m.gguf"
    evil = "k\x1b[2J\r\n\u202e\u2028"
    path.write_bytes(damage.Parts(keys=[damage.key(evil, damage.U32, damage.u32(1))] * 2).build())
    with pytest.raises(FormatError) as caught:
        GgufFile.open(path)
    assert str(caught.value).isprintable()
    assert r"\x1b[2J\r\n\u202e\u2028" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "count", "n_sparse_bytes"),
    [
        (damage.STR, 2**22 + 1, 2**26),  # more strings than any model has, all empty
        (damage.U8, 2**30, 2**31),
        (damage.U64, 2**27, 2**31),
    ],
)
def test_absurd_array_that_the_file_does_hold_is_refused(tmp_path, kind, count, n_sparse_bytes):
    path = tmp_path / "sparse.gguf"
    head = damage.Parts(keys=[damage.array("k", kind, count)], data=b"").fields()[:8]
    path.write_bytes(b"".join(head))
    with path.open("r+b") as file:
        file.truncate(n_sparse_bytes)
    assert_refused(path, path, use_mmap=True)


@pytest.mark.parametrize("in_array", [True, False])
def test_absurd_string_that_the_file_does_hold_is_refused(tmp_path, in_array):
    path = tmp_path / "sparse.gguf"
    long = damage.u64(2**29)
    entry = damage.array("k", damage.STR, 1, long) if in_array else damage.key("k", damage.STR, long)
    path.write_bytes(b"GGUF" + damage.u32(3) + damage.u64(0) + damage.u64(1) + b"".join(entry))
    with path.open("r+b") as file:
        file.truncate(2**30)
    assert_refused(path, path, use_mmap=True)


def test_string_array_that_defeats_the_guess_is_read_in_time():
    count = 2**18
    data = bytes(8 * count)  # all empty: every byte looks like a header
    start = time.process_time()
    offsets = find_strings(lambda offset, n: data[offset : offset + n], 0, count, len(data))
    assert time.process_time() - start < 1
    assert np.array_equal(offsets, np.arange(count + 1) * 8)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 800), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0)
)
def test_random_damage_is_refused_or_harmless(tmp_path_factory, changes, cut):
    data = bytearray(damage.Parts().build())
    for offset, value in changes:
        data[offset % len(data)] = value
    if cut % 3 == 0:
        del data[cut % len(data) :]
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    path.write_bytes(data)
    error = refusal(path)
    assert error is None or str(path) in str(error)


@settings(max_examples=200, deadline=None)
@given(
    field=st.integers(1, 60),
    value=st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**31, 2**32, 2**61, 2**63, 2**64 - 1])),
)
def test_random_number_in_a_field_is_refused_or_harmless(tmp_path_factory, field, value):
    fields = damage.Parts().fields()
    field %= len(fields)
    code = {4: "<I", 8: "<Q"}.get(len(fields[field]))
    if code:
        fields[field] = struct.pack(code, value % 2 ** (8 * len(fields[field])))
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    path.write_bytes(b"".join(fields))
    error = refusal(path, use_mmap=False)
    assert error is None or str(path) in str(error)
