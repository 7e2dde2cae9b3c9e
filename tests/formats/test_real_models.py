"""The real models of a folder: fast to open, and as the ``gguf`` package's reader sees them.

Run by hand: ``LLMRUN_TEST_MODELS=<folder with *.gguf> pytest -m models tests/formats``.
"""

import os
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from llmrun.formats.gguf import GgufFile

FOLDER = os.environ.get("LLMRUN_TEST_MODELS")
MODELS = sorted(Path(FOLDER).glob("*.gguf")) if FOLDER else []

pytestmark = pytest.mark.models


@pytest.fixture(params=MODELS or [None], ids=lambda path: path.stem if path else "none")
def path(request):
    if request.param is None:
        pytest.skip("LLMRUN_TEST_MODELS names no folder with models")
    return request.param


def read_metadata(model):
    return {key: model.metadata.get(key) for key in model.metadata.keys()}  # noqa: SIM118


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.to_list() if hasattr(value, "to_list") else value


def test_opens_within_300_ms(path):
    start = time.process_time()  # processor time: other programs may be busy
    with GgufFile.open(path) as model:
        values = [plain(value) for value in read_metadata(model).values()]
        elapsed_s = time.process_time() - start
    assert values
    assert elapsed_s < 0.3


@pytest.mark.parametrize("use_mmap", [True, False])
def test_equals_gguf_reader(path, use_mmap):
    reader = gguf.GGUFReader(path)
    with GgufFile.open(path, use_mmap=use_mmap) as model:
        theirs = {key: f.contents() for key, f in reader.fields.items() if not key.startswith("GGUF.")}
        assert {key: plain(value) for key, value in read_metadata(model).items()} == theirs
        assert list(model.tensors) == [t.name for t in reader.tensors]
        for t in reader.tensors:
            info = model.tensor(t.name)
            assert (int(info.ggml_type), info.n_bytes, info.offset) == (int(t.tensor_type), t.n_bytes, t.data_offset)
            assert info.shape == tuple(t.shape.tolist())[::-1]
        last = reader.tensors[-1]
        assert np.array_equal(model.data(model.tensor(last.name)), last.data.reshape(-1).view(np.uint8))
