"""Weights of a file: checked against what the model asks for, packed by any number of threads, kept once."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.gguf import GgufFile
from llmrun.quant.dequantize import dequantize
from llmrun.quant.unpack import unpack
from llmrun.runtime import weights as weights_module
from llmrun.runtime.engine import Engine
from llmrun.runtime.program import ProgramBuilder
from llmrun.runtime.weights import GgufWeights, look_up

from ..tiny_gguf import random_blocks, write_gguf
from .bits import assert_same_bits
from .machine import rng_for

N_OUT, N_IN = 2500, 96  # several pieces for every thread


@pytest.fixture
def opened(tmp_path):
    """A file with matrices of two types, a vector of an odd width and one of integers."""
    rng = rng_for("weights")
    blocks = random_blocks(rng, GgmlType.Q8_0, (N_OUT, N_IN))
    blocks.reshape(-1, 34)[:, :2] = np.full(1, 0.01, np.float16).view(np.uint8)  # scales: numbers
    tensors = {
        "q.weight": (blocks, GgmlType.Q8_0),
        "f.weight": rng.normal(size=(33, 40)).astype(np.float16),
        "norm.weight": rng.normal(size=33).astype(np.float32),
        "count.weight": np.arange(8, dtype=np.int32),
    }
    path = write_gguf(tmp_path / "w.gguf", {"general.architecture": "llama"}, tensors)
    with GgufFile.open(path) as file:
        yield file


def values_of(file, name):
    info = file.tensors[name]
    return dequantize(info.ggml_type, file.data(info)).reshape(info.shape)


@pytest.mark.parametrize("n_thread", [1, 2, 5])
def test_matrices_are_packed_by_any_number_of_threads(opened, n_thread):
    weights = GgufWeights(opened, n_thread)
    described = [weights.matrix("q.weight", N_OUT, N_IN), weights.matrix("f.weight", 33, 40)]
    seen = []
    weights.load([*described, described[0]], lambda what, done, total: seen.append((what, done, total)))
    total = N_OUT * N_IN + 33 * 40
    assert seen == [("loading", N_OUT * N_IN, total), ("loading", total, total)]
    for weight in described:
        assert_same_bits(unpack(weights.packed(weight)), values_of(opened, weight.name))
        assert weights.packed(weight) is weights.packed(weight)
    assert weights.packed_bytes(described) == sum(weights.packed(w).n_bytes for w in described)


def test_rows_of_a_matrix_are_matrices(opened):
    weights = GgufWeights(opened, 2)
    parts = weights.split(weights.matrix("q.weight", N_OUT, N_IN), (100, 17, N_OUT - 117))
    whole = values_of(opened, "q.weight")
    for part, start, stop in zip(parts, (0, 100, 117), (100, 117, N_OUT), strict=True):
        assert (part.row_start, part.n_out) == (start, stop - start)
        assert_same_bits(unpack(weights.packed(part)), whole[start:stop])


def test_vectors_are_padded_with_zeros_and_aligned(opened):
    weights = GgufWeights(opened)
    got = weights.values(weights.vector("norm.weight", 33))
    assert_same_bits(got[:33], values_of(opened, "norm.weight"))
    assert got.shape == (64,)
    assert not got[33:].any()
    assert got.ctypes.data % 64 == 0


@pytest.mark.parametrize("use_mmap", [True, False])
def test_tables_are_looked_up_in_the_file(opened, use_mmap):
    with GgufFile.open(opened.path, use_mmap=use_mmap) as file:
        weights = GgufWeights(file)
        weight = weights.matrix("q.weight", N_OUT, N_IN)
        ids = np.array([0, N_OUT - 1, 7, 7])
        assert_same_bits(look_up(weights, weight, ids), values_of(opened, "q.weight")[ids])
        assert weights.table(weight) is weights.table(weight)  # read once where it is not mapped


class AtOnce(threading.Thread):
    """A thread that has ended when it has started."""

    def start(self):
        super().start()
        self.join()


@pytest.fixture
def fetched(monkeypatch):
    """(file, tensor) of everything that the system was asked to read."""
    seen = []
    monkeypatch.setattr(weights_module, "threading", SimpleNamespace(Thread=AtOnce))
    monkeypatch.setattr(GgufFile, "fetch", lambda self, info: seen.append((self.path, info.name)))
    return seen


@pytest.mark.parametrize(("n_packed", "is_fetched"), [(0, True), (117, True), (N_OUT, False)])
def test_tables_are_fetched_that_packing_does_not_read(opened, fetched, n_packed, is_fetched):
    """As of a model with an output matrix of its own, of a draft with a cut one, of one that is the embeddings."""
    weights, b = GgufWeights(opened), ProgramBuilder()
    weight = weights.matrix("q.weight", N_OUT, N_IN)
    x = b.embed(weight)
    if n_packed:
        b.matmul(x, weights.split(weight, (n_packed, N_OUT - n_packed))[0])
    weights.fetch_tables([b.build(1)])
    assert fetched == [(opened.path, "q.weight")] * is_fetched


@pytest.mark.parametrize(("name", "is_tied"), [("llama", False), ("qwen2", True)])
def test_an_engine_fetches_its_tables(machine, tiny_path, fetched, name, is_tied):
    path, draft = tiny_path(name, "Q8_0"), tiny_path(name, "Q4_0")
    with Engine.open(path, n_ctx=64, n_threads=1, draft=draft):
        assert fetched == [(p, "token_embd.weight") for p in (path, draft) if not is_tied]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda w: w.matrix("none.weight", 2, 2), "tensor 'none.weight' is missing"),
        (lambda w: w.vector("none.bias", 2), "tensor 'none.bias' is missing"),
        (
            lambda w: w.matrix("q.weight", 5, N_IN),
            f"tensor 'q.weight' has shape [{N_OUT}, {N_IN}], expected [5, {N_IN}]",
        ),
        (lambda w: w.matrix("norm.weight", 33, 1), "tensor 'norm.weight' has shape [33], expected [33, 1]"),
        (lambda w: w.vector("count.weight", 8), "tensor 'count.weight' has type I32, expected floating-point weights"),
    ],
)
def test_what_does_not_fit_is_named(opened, ask, message):
    with pytest.raises(FormatError) as caught:
        ask(GgufWeights(opened))
    assert str(caught.value) == f"{opened.path}: {message}"


def test_what_nobody_asked_for_is_named(opened):
    weights = GgufWeights(opened)
    weights.matrix("q.weight", N_OUT, N_IN)
    with pytest.raises(FormatError, match=r"tensor 'f.weight' \(and 2 more\) is not part of a llama model"):
        weights.check_all_used()
    weights.matrix("f.weight", 33, 40)
    weights.vector("norm.weight", 33)
    with pytest.raises(FormatError, match=r"tensor 'count\.weight' is not part"):
        weights.check_all_used()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("row", [0, 1234, N_OUT - 1])
def test_weights_that_are_not_numbers_are_refused(tmp_path, bad, row):
    """Wherever in the file, and whichever thread packs it."""
    values = np.ones((N_OUT, 64), np.float32)
    values[row, 63] = bad
    path = write_gguf(tmp_path / "w.gguf", {"general.architecture": "llama"}, {"w.weight": values, "v": values[row]})
    with GgufFile.open(path) as file:
        weights = GgufWeights(file, 3)
        with pytest.raises(FormatError) as caught:
            weights.packed(weights.matrix("w.weight", N_OUT, 64))
        assert str(caught.value) == f"{path}: tensor 'w.weight' holds infinite or NaN weights. The file is damaged"
        with pytest.raises(FormatError, match="tensor 'v' holds infinite or NaN weights"):
            weights.values(weights.vector("v", 64))


def test_an_interrupt_while_loading_ends_the_threads(opened):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = threading.active_count()
    weights = GgufWeights(opened, 3)
    with pytest.raises(KeyboardInterrupt):
        weights.load([weights.matrix("q.weight", N_OUT, N_IN)], interrupt)
    assert threading.active_count() == before
