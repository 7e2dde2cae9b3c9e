"""Calibrated methods on whole tiny models: the function stays, the outputs get better, no bit depends on threads."""

from contextlib import ExitStack

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.record import replace
from llmrun.quant.scale_search import NumpySearch
from llmrun.runtime.block_store import BlockStore
from llmrun.runtime.calibrated import CalibratedTensors
from llmrun.runtime.layerwise.runner import LayerwiseRunner
from llmrun.runtime.layerwise.source import open_gguf

from ..models.off_grid import move_off_grid
from .machine import token_ids

CHUNKS = [token_ids(str(i), 64) for i in range(4)]
OTHER = [token_ids("held out", 64)]


def logits_of(runner, chunks):
    runner.begin(chunks)
    for layer in runner.layers():
        layer.run()
    runner.finish()
    return np.concatenate([block.copy() for _, block in runner.logits(range(runner.hidden.n_row))])


@pytest.fixture
def results(tiny_path, tmp_path):
    """Return a function (model, method, type, threads) -> (tensors, logits of the result, logits of the source)."""
    with ExitStack() as stack:

        def results(name, method, kind, n_thread=2, on_warning=None):
            path = tmp_path / f"{name}.gguf"
            if not path.exists():
                move_off_grid(tiny_path(name), path, sigma=0.8)
            source = stack.enter_context(open_gguf(path))
            runner = stack.enter_context(LayerwiseRunner(source, n_ctx=64, n_threads=n_thread, folder=tmp_path))
            types = {n: kind for n, t in source.tensors.items() if len(t.shape) == 2 and n.startswith("blk")}
            store = BlockStore(folder=tmp_path)
            stack.callback(store.close)
            made = CalibratedTensors(
                runner, types, method, search=NumpySearch(), n_thread=n_thread, store=store, on_warning=on_warning
            )
            made.run(CHUNKS)
            new = replace(source, tensors=made.tensors)
            other = stack.enter_context(LayerwiseRunner(new, n_ctx=64, n_threads=2, folder=tmp_path))
            return made, logits_of(other, OTHER), logits_of(runner, OTHER)

        yield results


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3", "phi3", "mistral"])
def test_scales_do_not_change_the_function(name, results, monkeypatch):
    """With scales chosen for Q4_0 but matrices kept as floats; values are rounded to f16 in the KV cache."""
    monkeypatch.setattr(
        "llmrun.runtime.calibrated.choose_scales",
        lambda fold, values, hessian, quantizer, pool: np.exp(
            np.random.default_rng(1).standard_normal(len(fold.gather(hessian.diagonal)))
        ).astype(np.float32),
    )
    made, logits, expected = results(name, "awq", GgmlType.F32)
    assert {n for n, t in made.tensors.items() if t.raw is not None and "norm" in n and "blk" in n}
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def test_each_method_is_better_than_the_importance_alone(results):
    """Bounds for one seed of a tiny network; over five the error of gptq is 0.82 of that of imatrix."""
    errors = {}
    for method in ("imatrix", "awq", "gptq", "awq+gptq"):
        _, logits, expected = results("qwen2", method, GgmlType.Q4_0)
        errors[method] = float(np.square(logits - expected).mean())
    assert errors["awq"] < 0.9 * errors["imatrix"]
    assert errors["gptq"] < 0.95 * errors["imatrix"]
    assert errors["awq+gptq"] < 0.7 * errors["imatrix"]


def test_tensors_are_finished_and_no_bit_depends_on_threads(results):
    a, b = (results("qwen2", "awq+gptq", GgmlType.Q4_0, n)[0].tensors for n in (1, 3))
    name = "blk.1.ffn_down.weight"
    assert a[name].ggml_type is GgmlType.Q4_0
    for key, tensor in a.items():
        if (raw := tensor.read_raw()) is not None:
            assert (raw == b[key].read_raw()).all(), key


def test_a_layer_without_a_factor_is_quantised_plainly_and_said_so(results, monkeypatch):
    expected = results("qwen2", "imatrix", GgmlType.Q4_0)[0].tensors
    monkeypatch.setattr("llmrun.runtime.calibrated.factor", lambda moments, pool: None)
    warnings = []
    tensors = results("qwen2", "gptq", GgmlType.Q4_0, on_warning=warnings.append)[0].tensors
    # The last bits of the importance are not the same: its sums are taken in tiles.
    assert (tensors["blk.2.ffn_down.weight"].read_raw() == expected["blk.2.ffn_down.weight"].read_raw()).mean() > 0.9
    assert any("blk.2.ffn_down.weight" in line for line in warnings)


def test_an_unknown_method_is_refused(results):
    with pytest.raises(ConfigError, match="magic"):
        results("qwen2", "magic", GgmlType.Q4_0)
