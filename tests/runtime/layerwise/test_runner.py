"""A model run layer by layer gives what the whole model gives."""

import numpy as np
import pytest

from llmrun.formats.errors import CapacityError, ConfigError, FormatError
from llmrun.formats.gguf import GgufFile
from llmrun.quant.dequantize import dequantize
from llmrun.runtime.layerwise import hidden
from llmrun.runtime.layerwise import runner as runner_module
from llmrun.runtime.layerwise.hidden import HiddenStates
from llmrun.runtime.layerwise.runner import LayerwiseRunner
from llmrun.runtime.layerwise.source import open_gguf

from ...tiny_models import MODELS, tensors
from ..machine import token_ids
from ..runner import checked_logits

CHUNKS = [token_ids("a", 20), token_ids("b", 20), token_ids("c", 11)]


@pytest.fixture
def make(tmp_path):
    """Return a function that opens a runner, closed after the test: (path, chunks, **options)."""
    opened = []

    def make(path, chunks=CHUNKS, **options):
        source = open_gguf(path)
        opened.append(source)
        runner = LayerwiseRunner(
            source.__enter__(), n_ctx=max(map(len, chunks)), n_threads=2, folder=tmp_path, **options
        )
        opened.append(runner)
        runner.begin(chunks)
        return runner

    yield make
    for context in reversed(opened):
        context.__exit__(None, None, None)


def run_all(runner, **options):
    """Run every layer and return all logits, f32 [n_row, n_vocab]."""
    for layer in runner.layers():
        layer.run(**options)
    runner.finish()
    n_row = runner.hidden.n_row
    return np.concatenate([block.copy() for _, block in runner.logits(range(n_row))])


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_floats_give_what_the_file_says(name, make, tiny_path):
    """Against the checked interpreter with float activations, which sums in float64."""
    path = tiny_path(name, "Q8_0")
    logits = run_all(make(path))[40:]  # the last chunk
    expected = checked_logits(path, CHUNKS[-1], is_exact=False)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.parametrize(("name", "kind"), [("qwen2", "Q4_0"), ("gemma3_256", "Q4_K"), ("phi3", "Q8_0")])
def test_int8_gives_the_engines_bits(name, kind, make, make_runner, tiny_path):
    logits = run_all(make(tiny_path(name, kind), is_float=False))
    engine = make_runner((name, kind), n_thread=2)
    expected = np.concatenate([engine.logits(ids) for ids in CHUNKS])
    assert (logits.view(np.uint32) == expected.view(np.uint32)).all()


def test_no_bit_depends_on_threads_passes_or_captures(make, tiny_path, monkeypatch):
    path = tiny_path("gemma3", "Q8_0")
    expected = run_all(make(path))
    monkeypatch.setattr(runner_module, "PASS_ROWS", 7)
    seen = []
    logits = run_all(make(path), on_input=lambda names, x: seen.append((names, x.copy())))
    assert (logits.view(np.uint32) == expected.view(np.uint32)).all()
    assert seen


def test_a_range_of_the_vocabulary_is_a_part_of_the_logits(make, tiny_path, monkeypatch):
    runner = make(tiny_path("gemma2", "Q8_0"))
    expected = run_all(runner)
    monkeypatch.setattr(runner_module, "BLOCK_BYTES", 4 * 64 * 128)
    blocks = runner.vocabulary_blocks(2)
    assert blocks[0] == (0, 64)
    assert blocks[-1][1] == 301
    rows = runner.gather(range(10, 30))
    for start, stop in blocks:
        part = runner.logits_maker(start, stop, 20)(rows)
        assert (part.view(np.uint32) == expected[10:30, start:stop].view(np.uint32)).all()


def test_sees_the_input_of_every_matrix(make, tiny_path):
    """For every matrix, input times matrix is what the layer computes: checked on a layer with known weights."""
    runner, seen = make(tiny_path("qwen2")), {}

    def collect(names, x):
        seen.setdefault(names, []).append(x.copy())

    layer = next(iter(runner.layers()))
    layer.run(on_input=collect, advance=False)
    names = ["attn_q attn_k attn_v", "attn_output", "ffn_gate ffn_up", "ffn_down"]
    assert list(seen) == layer.inputs == [tuple(f"blk.0.{n}.weight" for n in group.split()) for group in names]
    x = {group: np.concatenate(parts) for group, parts in zip(names, seen.values(), strict=True)}
    assert {group: value.shape for group, value in x.items()} == {
        group: (51, 128 if group == "ffn_down" else 64) for group in names
    }
    weights = tensors("qwen2")
    gate, up = (x["ffn_gate ffn_up"] @ weights[f"blk.0.{n}.weight"].T for n in ("ffn_gate", "ffn_up"))
    np.testing.assert_allclose(x["ffn_down"], gate / (1 + np.exp(-gate)) * up, rtol=0, atol=1e-4)
    embedded = weights["token_embd.weight"][[i for chunk in CHUNKS for i in chunk]]
    normed = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + 1e-6) * weights["blk.0.attn_norm.weight"]
    np.testing.assert_allclose(x[names[0]], normed, rtol=0, atol=1e-5)


def test_phi3_names_a_stacked_matrix_once(make, tiny_path):
    layer = next(iter(make(tiny_path("phi3")).layers()))
    assert layer.inputs[0] == ("blk.0.attn_qkv.weight",)
    assert layer.inputs[2] == ("blk.0.ffn_up.weight",)


@pytest.mark.parametrize("is_float", [True, False])
def test_replaced_weights_are_used_once(is_float, make, tiny_path):
    """Doubling up and halving down of one layer changes nothing; without the halving it does."""
    path, name = tiny_path("llama", "Q8_0"), "blk.1.ffn_{}.weight"
    with GgufFile.open(path) as file:
        up, down = (
            dequantize(i.ggml_type, file.data(i)).reshape(i.shape)
            for i in (file.tensors[name.format(n)] for n in ("up", "down"))
        )
    changes = {name.format("up"): 2 * up, name.format("down"): down / 2}
    results = []
    for replaced in ({}, {name.format("up"): up, name.format("down"): down}, changes, {name.format("up"): 2 * up}):
        runner = make(path, is_float=is_float)
        for layer in runner.layers():
            if layer.index == 1:
                layer.run(replaced=replaced)
        runner.finish()
        results.append(np.concatenate([b.copy() for _, b in runner.logits(range(51))]))
    same, scaled, other = results[1:]
    if is_float:
        assert (results[0] == same).all()
    assert (same == scaled).all()
    assert np.abs(other - same).max() > 0.1


def test_a_layer_can_be_run_on_few_chunks_before_it_advances(make, tiny_path):
    path = tiny_path("llama")
    expected, runner, rows = run_all(make(path)), make(path), []
    for layer in runner.layers():
        layer.run(advance=False, chunks=slice(0, 1), on_output=lambda first, y: rows.append((first, len(y))))
        with pytest.raises(ValueError, match="advances once"):
            layer.run(chunks=slice(0, 1))
        layer.run()
        with pytest.raises(ValueError, match="advances once"):
            layer.run()
    runner.finish()
    assert rows == [(0, 20)] * MODELS["llama"].n_layer
    assert (np.concatenate([b.copy() for _, b in runner.logits(range(51))]) == expected).all()


def test_rows_are_gathered_in_any_order(make, tiny_path):
    runner = make(tiny_path("llama"))
    rows = runner.gather([5, 6, 7, 2, 50, 0])
    for i, row in enumerate([5, 6, 7, 2, 50, 0]):
        assert (rows[i] == runner.gather([row])[0]).all()


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "no chunk"),
        ([[]], "chunk of 0 tokens"),
        ([[1] * 21], "chunk of 21"),
        ([[301]], "0 to 300"),
        ([[-1]], "got -1"),
    ],
)
def test_chunks_that_cannot_be_run(chunks, message, make, tiny_path):
    runner = make(tiny_path("llama"))
    with pytest.raises(ConfigError, match=message):
        runner.begin(chunks)


def test_weights_that_are_no_numbers_are_refused(tmp_path, make, tiny_path):
    path = tmp_path / "nan.gguf"
    data = bytearray(tiny_path("llama").read_bytes())
    with GgufFile.open(tiny_path("llama")) as file:
        offset = file.tensors["blk.2.ffn_up.weight"].offset
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"nan\.gguf: tensor 'blk\.2\.ffn_up\.weight' holds infinite or NaN"):
        run_all(make(path))


def test_the_disk_is_checked_and_left_clean(tmp_path, monkeypatch):
    states = HiddenStates(3, 4, tmp_path)
    states.write(1, np.ones((2, 4), np.float32))
    assert states.read(1, 3).tolist() == [[1.0] * 4] * 2
    states.close()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(hidden.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10**6}))
    with pytest.raises(CapacityError, match=r"hidden states of 1000000 rows need 4\.0 GB, 1 MB free"):
        HiddenStates(10**6, 1000, tmp_path)
    with pytest.raises(CapacityError, match="no temporary file"):
        HiddenStates(1, 1, tmp_path / "none")


def test_memory_is_checked(tiny_path, make, monkeypatch):
    monkeypatch.setattr(runner_module, "available_bytes", lambda: 10**6)
    with pytest.raises(CapacityError, match="the largest layer needs"):
        make(tiny_path("llama"))
