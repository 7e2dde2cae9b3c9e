"""Typed access: what is accepted, what is refused and in which words."""

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.gguf import GgufFile

from ..tiny_gguf import write_gguf

VALUES = {
    "u": 7,
    "i": -3,
    "u64": np.uint64(2**64 - 1),
    "f": 0.5,
    "nan": float("nan"),
    "inf": np.float64("inf"),
    "yes": True,
    "s": "grüße",
    "raw": b"\xff\xfe",
    "ints": [1, 2, 3],
    "floats": [0.5, 2.0],
    "nans": [0.5, float("nan")],
    "bools": [True, False],
    "bad_bools": np.array([0, 2, 1], np.uint8),
    "strs": ["a", "", "ß"],
    "raws": [b"ok", b"\x80"],
    "bytes": np.arange(5, dtype=np.uint8),
}


@pytest.fixture
def metadata(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", VALUES, {})
    raw = path.read_bytes()
    kind = raw.index(b"bad_bools") + len(b"bad_bools") + 4  # an array of u8 becomes one of bool
    path.write_bytes(raw[:kind] + b"\x07" + raw[kind + 1 :])
    with GgufFile.open(path) as model:
        yield model.metadata


@pytest.mark.parametrize(
    ("key", "type_", "expected"),
    [
        ("u", int, 7),
        ("i", int, -3),
        ("u64", int, 2**64 - 1),
        ("f", float, 0.5),
        ("u", float, 7.0),
        ("yes", bool, True),
        ("s", str, "grüße"),
        ("ints", list[int], [1, 2, 3]),
        ("ints", list[float], [1.0, 2.0, 3.0]),
        ("floats", list[float], [0.5, 2.0]),
        ("bools", list[bool], [True, False]),
        ("strs", list[str], ["a", "", "ß"]),
        ("bytes", list[int], [0, 1, 2, 3, 4]),
    ],
)
def test_typed_access(metadata, key, type_, expected):
    for value in (metadata.required(key, type_), metadata.optional(key, type_, None)):
        assert value == expected
        first = value[0] if isinstance(value, list) else value
        assert type(first) is type(expected[0] if isinstance(expected, list) else expected)


@pytest.mark.parametrize(
    ("key", "type_", "message"),
    [
        ("f", int, "has type f32, expected int"),
        ("yes", int, "has type bool, expected int"),
        ("u", bool, "has type u32, expected bool"),
        ("u", str, "has type u32, expected str"),
        ("s", float, "has type str, expected float"),
        ("u", list[int], "has type u32, expected list of int"),
        ("ints", int, "has type array of 3 i32, expected int"),
        ("strs", list[int], "has type array of 3 str, expected list of int"),
        ("nan", float, "is not finite"),
        ("inf", float, "is not finite"),
        ("nans", list[float], "is not finite"),
        ("raw", str, r"is not UTF-8 \(byte 0 of 2\)"),
        ("raws", list[str], r"string 1 is not UTF-8: '\\x80'"),
        ("bad_bools", list[bool], "holds the bool 2, expected 0 or 1"),
    ],
)
def test_wrong_type_names_file_and_key(metadata, key, type_, message):
    for access in (metadata.required, lambda k, t: metadata.optional(k, t, None)):
        with pytest.raises(FormatError, match=rf"m\.gguf: metadata key '{key}'.* ?{message}$"):
            access(key, type_)


def test_missing_key(metadata):
    assert metadata.optional("nothing", int, 5) == 5
    assert metadata.get("nothing") is None
    assert "nothing" not in metadata
    assert metadata.count("nothing") == 0
    for access in (metadata.strings, metadata.numbers, metadata.type_name, lambda k: metadata.required(k, int)):
        with pytest.raises(FormatError, match=r"m\.gguf: metadata key 'nothing' is missing$"):
            access("nothing")


def test_arrays(metadata):
    assert metadata.numbers("ints").tolist() == [1, 2, 3]
    assert metadata.numbers("bools").tolist() == [True, False]
    assert metadata.is_array("ints")
    assert not metadata.is_array("u")
    assert metadata.count("strs") == 3
    assert metadata.type_name("strs") == "array of 3 str"
    with pytest.raises(FormatError, match="has type array of 3 str, expected an array of numbers"):
        metadata.numbers("strs")
    with pytest.raises(FormatError, match="has type str, expected an array of str"):
        metadata.strings("s")


def test_string_array_is_a_sequence(metadata):
    strings = metadata.strings("strs")
    assert (len(strings), strings[0], strings[-1], strings[1:]) == (3, "a", "ß", ["", "ß"])
    assert list(strings) == strings.to_list() == ["a", "", "ß"]
    assert "ß" in strings
    assert strings.bytes(2) == "ß".encode()
    assert strings.lengths.tolist() == [1, 0, 2]
    with pytest.raises(IndexError):
        strings[3]


def test_undecodable_string_does_not_hide_the_others(metadata):
    strings = metadata.strings("raws")
    assert strings[0] == "ok"
    assert strings.to_byte_list() == [b"ok", b"\x80"]
    for access in (lambda: strings[1], lambda: strings[-1], strings.to_list, lambda: list(strings)):
        with pytest.raises(FormatError, match="string 1 is not UTF-8"):
            access()


def test_long_array_as_a_list_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"a": np.zeros(65537, np.uint8)}, {})
    with GgufFile.open(path) as model:
        assert len(model.metadata.numbers("a")) == 65537
        with pytest.raises(FormatError, match="'a' has 65537 elements, expected at most 65536"):
            model.metadata.required("a", list[int])
