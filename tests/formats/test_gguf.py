"""The reader against files that the ``gguf`` package wrote, and against its reader."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import BLOCK, FILE_TYPES
from llmrun.formats.gguf import GgufFile

from ..tiny_gguf import random_blocks, write_gguf

INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


def integers(dtype):
    info = np.iinfo(dtype)
    return st.integers(int(info.min), int(info.max)).map(dtype)


numbers = st.one_of(
    *map(integers, INTEGERS),
    st.floats(width=32, allow_nan=False).map(np.float32),
    st.floats(allow_nan=False).map(np.float64),
    st.booleans().map(np.bool_),
)
texts = st.text(st.characters(codec="utf-8"), max_size=300)
number_arrays = st.one_of(
    *(st.lists(integers(t), min_size=1, max_size=20).map(np.array) for t in INTEGERS),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20).map(lambda v: np.array(v, np.float32)),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=20).map(lambda v: np.array(v, np.float64)),
    st.lists(st.booleans(), min_size=1, max_size=20).map(np.array),
)
keys = st.text("abcdefghijklmnop._0123456789", min_size=1, max_size=40).map(lambda s: "x." + s)
metadata_dicts = st.dictionaries(
    keys, st.one_of(numbers, texts, number_arrays, st.lists(texts, min_size=1, max_size=50)), max_size=12
)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
tensor_dicts = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    st.tuples(st.sampled_from(FILE_TYPES), shapes),
    max_size=6,
)


def make_tensor(rng, kind, shape):
    shape = (*shape[:-1], shape[-1] * BLOCK[kind][0])
    return shape, random_blocks(rng, kind, shape)


def assert_same_value(got, expected):
    if isinstance(expected, str):
        assert got == expected
    elif isinstance(expected, list):
        assert got.to_list() == list(got) == expected
        assert [got[i] for i in range(len(got))] == expected
        assert got.to_byte_list() == [s.encode() for s in expected]
        assert got.lengths.tolist() == [len(s.encode()) for s in expected]
    elif isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)
        assert got.flags.aligned
    else:
        assert type(got) is type(expected.item())
        assert got == expected


@settings(max_examples=150, deadline=None)
@given(
    metadata=metadata_dicts,
    tensors=tensor_dicts,
    alignment=st.sampled_from([None, 8, 32, 64, 4096, 65536]),
    use_mmap=st.booleans(),
)
def test_reads_back_what_was_written(tmp_path_factory, metadata, tensors, alignment, use_mmap):
    rng = np.random.default_rng(len(metadata))
    made = {name: (kind, *make_tensor(rng, kind, shape)) for name, (kind, shape) in tensors.items()}
    path = tmp_path_factory.getbasetemp() / "round_trip.gguf"
    write_gguf(path, metadata, {n: (raw, kind) for n, (kind, _, raw) in made.items()}, alignment=alignment)
    with GgufFile.open(path, use_mmap=use_mmap) as model:
        assert model.version == 3
        assert model.n_bytes == path.stat().st_size
        expected_keys = ["general.architecture", *["general.alignment"] * (alignment is not None), *metadata]
        assert model.metadata.keys() == expected_keys
        for key, value in metadata.items():
            assert_same_value(model.metadata.get(key), value)
        assert list(model.tensors) == list(made)
        for name, (kind, shape, raw) in made.items():
            info = model.tensor(name)
            assert (info.ggml_type, info.shape, info.n_weights) == (kind, shape, np.prod(shape))
            assert info.offset % (alignment or 32) == 0
            assert np.array_equal(model.data(info), raw.ravel())
            part = slice(info.n_bytes // 3, info.n_bytes - 1)
            assert np.array_equal(model.data(info, part.start, part.stop), raw.ravel()[part])
            with pytest.raises(ValueError, match="of a tensor of"):
                model.data(info, 0, info.n_bytes + 1)


def directory(model):
    return {t.name: (int(t.ggml_type), t.shape, t.n_bytes, t.offset) for t in model.tensors.values()}


def directory_of_gguf(reader):
    return {
        t.name: (int(t.tensor_type), tuple(t.shape.tolist())[::-1], t.n_bytes, t.data_offset) for t in reader.tensors
    }


def test_directory_equals_gguf_reader(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        f"blk.{i}.{kind.name.lower()}": (random_blocks(rng, kind, (i + 1, 3, 256)), kind)
        for i in range(2)
        for kind in FILE_TYPES
    }
    tensors["output_norm.weight"] = rng.standard_normal(7).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", {"llama.block_count": 2, "tokens": ["a", "b" * 300, "ü"]}, tensors)
    reader = gguf.GGUFReader(path)
    with GgufFile.open(path) as model:
        assert directory(model) == directory_of_gguf(reader)
        for theirs in reader.tensors:
            assert np.array_equal(model.data(model.tensor(theirs.name)), theirs.data.reshape(-1).view(np.uint8))
        theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        ours = {k: model.metadata.get(k) for k in model.metadata.keys()}  # noqa: SIM118
        ours["tokens"] = ours["tokens"].to_list()
        assert ours == theirs


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("given", [1, 2, 3])
def test_split_model_reads_as_one(tmp_path, given, use_mmap):
    tensors = {f"t{i}": np.full((2, 3 + i), i, np.float32) for i in range(5)}
    first = write_gguf(tmp_path / "big model.gguf", {"x.y": "z"}, tensors, split_max_tensors=2)
    with GgufFile.open(tmp_path / f"big model-0000{given}-of-00003.gguf", use_mmap=use_mmap) as model:
        assert model.path == first
        assert model.metadata.required("x.y", str) == "z"
        assert [t.shard for t in model.tensors.values()] == [0, 0, 1, 1, 2]
        for name, array in tensors.items():
            data = model.data(model.tensor(name)).view(np.float32)
            assert np.array_equal(data.reshape(model.tensor(name).shape), array)
        assert model.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
        model.check_unchanged()
        for info in model.tensors.values():
            model.release(info)


def test_big_endian_file_of_gguf_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"m\.gguf: big-endian GGUF is not supported"):
        GgufFile.open(tmp_path / "m.gguf")


def test_missing_tensor_is_named(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {}, {"a": np.zeros(1, np.float32)})
    with GgufFile.open(path) as model, pytest.raises(FormatError, match=r"m\.gguf: tensor 'output\.weight' is missing"):
        model.tensor("output.weight")


def test_file_without_tensors(tmp_path):
    path = write_gguf(tmp_path / "vocab.gguf", {"a.b": 1}, {})
    with GgufFile.open(path) as model:
        assert model.tensors == {}
        assert model.metadata.required("a.b", int) == 1


def test_view_outlives_the_file(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {}, {"a": np.arange(8, dtype=np.float32)})
    with GgufFile.open(path) as model:
        data = model.data(model.tensor("a"))
        assert not data.flags.writeable
    model.close()  # twice is harmless
    assert data.view(np.float32).tolist() == list(range(8))
