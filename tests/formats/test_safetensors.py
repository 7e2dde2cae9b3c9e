"""safetensors headers: what is read, and that nothing wrong in one is believed."""

import json
import re

import numpy as np
import pytest

from llmrun.formats.byte_file import ByteFile
from llmrun.formats.errors import FormatError
from llmrun.formats.hf_checkpoint import HfCheckpoint
from llmrun.formats.safetensors import MAX_HEADER_BYTES, read_header

from ..hf_tiny import as_bf16, safetensors_bytes, write_json, write_weights

A = np.arange(12, dtype=np.float32).reshape(3, 4)


def header(entries, data=48, *, raw=None, length=None):
    """Return a file of a header, as given, and some bytes."""
    text = json.dumps(entries).encode() if raw is None else raw
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def entry(dtype="F32", shape=(3, 4), offsets=(0, 48), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


HOSTILE = {
    "empty": (b"", "the file is empty"),
    "7 bytes": (b"\0" * 7, "has 7 bytes, too short for a safetensors file"),
    "a pickle": (b"\x80\x02}q\x00(X\x01\0\0\0" + bytes(90), "not a safetensors file: its header would have"),
    "a zip": (
        b"PK\x03\x04" + bytes(90),
        "truncated: the header of 67324752 bytes|its header would have 67324752 bytes",
    ),
    "length 2^64-1": (header({}, raw=b"{}", length=2**64 - 1), "its header would have 18446744073709551615 bytes"),
    "length over the limit": (header({}, raw=b"{}", length=MAX_HEADER_BYTES + 1), "expected at most 16777216"),
    "length beyond the file": (header({}, raw=b"{}", length=1000), "truncated: the header of 1000 bytes does not fit"),
    "no brace": (header({}, raw=b"[1,2]"), r"the header starts with '\[1,2\]'"),
    "no JSON": (header({}, raw=b'{"a": '), "header: is not JSON: .* \\(line 1, column 7\\)"),
    "no UTF-8": (header({}, raw=b'{"\xff": 1}'), r"header: is not UTF-8 \(byte 2\)"),
    "deep": (header({}, raw=b'{"a":' + b"[" * 100_000), "header: JSON is nested too deeply|is not JSON"),
    "too many values": (header({}, raw=b'{"a":[' + b"1," * 1_400_000 + b"1]}"), "holds about 1400003 JSON values"),
    "long number": (header({}, raw=b'{"a":' + b"1" * 5000 + b"}"), "is not JSON that can be read: Exceeds the limit"),
    "doubled name": (
        header({}, raw=b'{"a":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]},"a":1}'),
        "header: the key 'a' is there twice",
    ),
    "metadata no object": (header({"__metadata__": [1]}, 0), "__metadata__ of the header holds something else"),
    "metadata not texts": (header({"__metadata__": {"a": 1}}, 0), "__metadata__ of the header holds something else"),
    "entry no object": (header({"a": 1}), "tensor 'a' is not described by dtype, shape and data_offsets"),
    "entry with more": (header({"a": entry(x=1)}), "tensor 'a' is not described by"),
    "empty name": (header({"": entry()}), "tensor '' has a name of 0 characters"),
    "long name": (header({"n" * 2000: entry()}), "has a name of 2000 characters"),
    "unknown dtype": (header({"a": entry("F31")}), "tensor 'a' has dtype 'F31', expected one of BOOL"),
    "dtype no text": (header({"a": entry(3)}), "tensor 'a' has dtype int"),
    "negative dimension": (header({"a": entry(shape=(-3, -4))}), "has a shape that is no list of"),
    "bool dimension": (header({"a": entry(shape=(True, 12))}), "has a shape that is no list of"),
    "fraction dimension": (header({"a": entry(shape=(3.0, 4))}), "has a shape that is no list of"),
    "nine dimensions": (header({"a": entry(shape=[1] * 8 + [12])}), "has a shape that is no list of at most 8"),
    "product wraps to 0": (
        header({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}),
        "has 0 bytes, expected 73786976",
    ),
    "product wraps to 48": (header({"a": entry(shape=(2**62 + 12,))}), "has 48 bytes, expected 18446744073709551664"),
    "too few bytes": (header({"a": entry(offsets=(0, 44))}), "has 44 bytes, expected 48 for F32"),
    "offsets reversed": (header({"a": entry(offsets=(48, 0))}), "has -48 bytes, expected 48"),
    "three offsets": (header({"a": entry(offsets=(0, 48, 96))}), "data_offsets that are no pair of counts"),
    "huge offset": (header({"a": entry(offsets=(2**63, 2**63 + 48))}), "data_offsets that are no pair of counts"),
    "beyond the end": (header({"a": entry()}, 40), "tensor 'a' ends at byte .*, but the file has .* truncated"),
    "gap before": (header({"a": entry(offsets=(8, 56))}, 56), "tensor 'a' starts 8 bytes after the data before it"),
    "gap between": (
        header({"a": entry(), "b": entry(offsets=(52, 100))}, 100),
        "tensor 'b' starts 4 bytes after the data before it ends",
    ),
    "overlap": (header({"a": entry(), "b": entry(offsets=(44, 92))}, 92), "tensor 'b' overlaps 'a'"),
    "same place": (header({"a": entry(), "b": entry()}, 48), "tensor 'b' overlaps 'a'"),
    "bytes left over": (header({"a": entry()}, 50), "2 bytes after the last tensor belong to none"),
    "bytes without tensors": (header({}, 8, raw=b"{}"), "8 bytes after the last tensor belong to none"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_in_one_line(case, tmp_path):
    raw, message = HOSTILE[case]
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(FormatError, match=message) as caught:
        HfCheckpoint.open(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_every_prefix_is_refused(tmp_path):
    raw = safetensors_bytes({"a": A, "b": A})
    for n in range(len(raw)):
        (tmp_path / "model.safetensors").write_bytes(raw[:n])
        with pytest.raises(FormatError):
            HfCheckpoint.open(tmp_path, use_mmap=False)


def test_reads_every_kind_of_element(tmp_path):
    arrays = {
        "f64": A.astype(np.float64), "f32": A, "f16": A.astype(np.float16), "i64": A.astype(np.int64),
        "i32": A.astype(np.int32), "i8": A.astype(np.int8), "u8": A.astype(np.uint8), "scalar": np.array(7, np.int64),
        "none": np.zeros((0, 4), np.float32),
    }  # fmt: skip
    bf16 = as_bf16(A)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({**arrays, "bf16": bf16}, {"format": "pt"}))
    for use_mmap in (True, False):
        with HfCheckpoint.open(tmp_path, use_mmap=use_mmap) as checkpoint:
            for name, value in arrays.items():
                got = checkpoint.rows(name)
                assert got.dtype == value.dtype
                np.testing.assert_array_equal(got, value.reshape(got.shape))
            np.testing.assert_array_equal(checkpoint.rows("bf16", 1, 3), bf16[1][1:3])
            assert checkpoint.tensors["bf16"].dtype == "BF16"
            assert checkpoint.tensors["scalar"].shape == ()
            checkpoint.release("f32")


def test_tensors_come_in_the_order_of_their_data(tmp_path):
    raw = header({"b": entry(offsets=(48, 96)), "a": entry()}, 96)
    (tmp_path / "x").write_bytes(raw)
    file = ByteFile.open(tmp_path / "x")
    assert [tensor.name for tensor in read_header(file, 0)] == ["a", "b"]
    file.close()


def test_shards_are_one_checkpoint(tmp_path):
    arrays = {f"t{i}": A + i for i in range(7)}
    write_weights(tmp_path, arrays, n_shard=3)
    with HfCheckpoint.open(tmp_path) as checkpoint:
        for name, value in arrays.items():
            np.testing.assert_array_equal(checkpoint.rows(name), value)
    (tmp_path / "model.safetensors.index.json").unlink()
    with HfCheckpoint.open(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(arrays)


def shard(i):
    return f"model-{i:05d}-of-00003.safetensors"


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def change_index(folder, change):
    weight_map = index_of(folder)
    change(weight_map)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


SHARD_DAMAGE = {
    "missing shard": (lambda f: (f / shard(2)).unlink(), "00002-of-00003.safetensors: missing, one of 3 shards"),
    "missing without index": (
        lambda f: [(f / shard(2)).unlink(), (f / "model.safetensors.index.json").unlink()],
        "00002-of-00003.safetensors: missing, one of 3 shards",
    ),
    "extra shard": (
        lambda f: (f / "model-00004-of-00004.safetensors").write_bytes(safetensors_bytes({"x": A})),
        "00004-of-00004.safetensors: a shard that model.safetensors.index.json does not name",
    ),
    "not in the index": (lambda f: change_index(f, lambda m: m.pop("t4")), "tensor 't4' is not in model.safetensors.i"),
    "only in the index": (
        lambda f: change_index(f, lambda m: m.update(lost=shard(1))),
        "00001-of-00003.safetensors: tensor 'lost' of model.safetensors.index.json is missing",
    ),
    "in another shard": (lambda f: change_index(f, lambda m: m.update(t0=shard(2))), "tensor 't0' is not in model.s"),
    "in two shards": (
        lambda f: (f / shard(2)).write_bytes(safetensors_bytes(dict.fromkeys(("t0", "t1", "t4"), A))),
        "tensor 't0' is in model-00001-of-00003.safetensors too",
    ),
    "path in the index": (
        lambda f: change_index(f, lambda m: m.update(t0="../../etc/x.safetensors")),
        "tensor 't0' is said to be in '../../etc/x.safetensors', expected a .safetensors file",
    ),
    "pickle in the index": (
        lambda f: change_index(f, lambda m: m.update(t0="pytorch_model.bin")),
        "tensor 't0' is said to be in 'pytorch_model.bin', expected a .safetensors file",
    ),
    "number in the index": (lambda f: change_index(f, lambda m: m.update(t0=3)), "tensor 't0' is said to be in int"),
    "no weight_map": (lambda f: write_json(f / "model.safetensors.index.json", {}), "index.json: has no weight_map"),
    "index no JSON": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index.json: is not JSON"),
    "shard damaged": (lambda f: (f / shard(3)).write_bytes(b"\0" * 9), "00003-of-00003.safetensors: not a safetensors"),
}


@pytest.mark.parametrize("case", SHARD_DAMAGE)
def test_shards_that_do_not_belong_together_are_refused(case, tmp_path):
    damage, message = SHARD_DAMAGE[case]
    write_weights(tmp_path, {f"t{i}": A for i in range(7)}, n_shard=3)
    damage(tmp_path)
    with pytest.raises(FormatError, match=re.escape(message)):
        HfCheckpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["pytorch_model.bin", "config.json"],
            "only as pickle \\(pytorch_model.bin\\), which can run code .* Convert it",
        ),
        (["consolidated.00.pth"], "only as pickle \\(consolidated.00.pth\\)"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter"),
        (["model-Q4_0.gguf"], "holds GGUF files"),
        ([], "has no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_folders_without_safetensors_say_what_they_have(files, message, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FormatError, match=message):
        HfCheckpoint.open(tmp_path)
