"""A GGUF file as a source: metadata and tensors come out as they lie in the file."""

import gguf
import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.metadata import ValueType
from llmrun.quant.checkpoint import GgufCheckpoint

from ..tiny_gguf import write_gguf


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((6, 64)).astype(np.float32)
    metadata = {
        "general.architecture": "llama",
        "a.text": "hé",
        "a.u64": np.uint64(7),
        "a.bools": np.array([True, False]),
        "a.floats": np.array([1.5, 2.5], np.float32),
        "a.texts": ["x", "y"],
    }
    tensors = {
        "norm": matrix[0],
        "half": matrix.astype(np.float16),
        "quant": (gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0), GgmlType.Q8_0),
        "stack": matrix.reshape(2, 3, 64),
        "ids": np.arange(5, dtype=np.int32),
    }
    checkpoint = GgufCheckpoint.open(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    yield checkpoint, matrix
    checkpoint.close()


def test_metadata_keeps_types_and_order(model):
    found = model[0].metadata
    assert [k for k in found if k.startswith("a.")] == ["a.text", "a.u64", "a.bools", "a.floats", "a.texts"]
    assert (found["a.text"].value_type, found["a.text"].value) == (ValueType.STR, "hé".encode())
    assert (found["a.u64"].value_type, found["a.u64"].value) == (ValueType.U64, 7)
    assert found["a.bools"].value.tolist() == [True, False]
    assert found["a.floats"].value.dtype == np.float32
    assert found["a.texts"].is_array
    assert found["a.texts"].value == [b"x", b"y"]
    assert model[0].architecture == "llama"


def test_rows_are_float32_of_the_stored_values(model):
    checkpoint, matrix = model
    tensors = {t.name: t for t in checkpoint.tensors}
    assert [t.n_rows for t in checkpoint.tensors] == [1, 6, 6, 6, 1]
    assert np.array_equal(tensors["norm"].read_rows(0, 1), matrix[:1])
    assert np.array_equal(tensors["half"].read_rows(2, 5), matrix[2:5].astype(np.float16).astype(np.float32))
    assert np.array_equal(tensors["stack"].read_rows(3, 6), matrix[3:6])
    raw = tensors["quant"].read_raw()
    assert raw.shape == (6, 68)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(tensors["quant"].read_rows(1, 6), values[1:])


def test_data_that_are_no_weights_can_only_be_copied(model):
    ids = model[0].tensors[-1]
    assert ids.read_raw().view(np.int32).tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(FormatError, match="'ids' of type I32 holds no weights"):
        ids.read_rows(0, 1)


def test_rows_out_of_range_are_refused(model):
    with pytest.raises(IndexError):
        model[0].tensors[0].read_rows(0, 2)


def test_a_file_without_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "")
    writer.add_uint32("a", 1)
    writer.add_tensor("t", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"'general\.architecture' is missing"):
        GgufCheckpoint.open(tmp_path / "m.gguf")
