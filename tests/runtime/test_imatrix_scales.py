"""Channel scales by an importance matrix alone: the function stays, the outputs get better."""

from contextlib import ExitStack, closing

import numpy as np
import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.record import replace
from llmrun.quant.checkpoint import GgufCheckpoint
from llmrun.quant.dequantize import dequantize
from llmrun.quant.file_types import MIXTURES
from llmrun.quant.quantize import quantize
from llmrun.quant.quantize_plan import QuantizeOptions, plan_quantization
from llmrun.quant.scale_search import NumpySearch
from llmrun.runtime.calibrate import measure_imatrix
from llmrun.runtime.imatrix_scales import with_channel_scales
from llmrun.runtime.layerwise.runner import LayerwiseRunner
from llmrun.runtime.layerwise.source import open_gguf

from ..models.off_grid import move_off_grid
from .test_calibrated import CHUNKS, OTHER, logits_of


@pytest.fixture
def opened(tiny_path, tmp_path):
    """Return a function (model, type) -> (a plan with an importance matrix, a function that returns logits)."""
    with ExitStack() as stack:

        def opened(name, kind="Q4_0"):
            path = tmp_path / f"{name}.gguf"
            move_off_grid(tiny_path(name), path, sigma=0.8)
            source = stack.enter_context(open_gguf(path))
            with LayerwiseRunner(source, n_ctx=64, n_threads=2, folder=tmp_path) as runner:
                imatrix = measure_imatrix(runner, CHUNKS)
            checkpoint = stack.enter_context(closing(GgufCheckpoint.open(path)))

            def logits(tensors):
                new = replace(source, tensors={t.name: t for t in tensors})
                with LayerwiseRunner(new, n_ctx=64, n_threads=2, folder=tmp_path) as runner:
                    return logits_of(runner, OTHER)

            return plan_quantization(checkpoint, QuantizeOptions(mixture=MIXTURES[kind], imatrix=imatrix)), logits

        yield opened


def scaled(plan):
    return with_channel_scales(plan, search=NumpySearch(), n_thread=2)


def rounded(plan):
    """Return what the file of a plan says, as sources."""

    def of(tensor):
        source, kind = tensor.source, tensor.ggml_type
        if kind is GgmlType.F32:
            return source
        importance = plan.options.imatrix.importance(source.name, source.n_in)
        values = dequantize(kind, quantize(source.read_rows(0, source.n_rows), kind, importance))
        return replace(source, ggml_type=GgmlType.F32, raw=None, rows=lambda a, b: values[a:b])

    return [of(t) for t in plan.tensors]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3", "phi3", "mistral"])
def test_scales_do_not_change_the_function(name, opened, monkeypatch):
    """Values are rounded to f16 in the KV cache."""
    monkeypatch.setattr(
        "llmrun.runtime.imatrix_scales.choose_scales",
        lambda fold, values, moments, quantizer, pool: np.exp(
            np.random.default_rng(1).standard_normal(len(fold.gather(moments.diagonal)))
        ).astype(np.float32),
    )
    plan, logits = opened(name)
    new = [t.source for t in scaled(plan).tensors]
    assert sum(t.raw is None for t in new) > 15
    expected = logits([t.source for t in plan.tensors])
    np.testing.assert_allclose(logits(new), expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def test_outputs_are_better_than_with_the_importance_alone(opened):
    plan, logits = opened("qwen2")
    expected = logits([t.source for t in plan.tensors])
    plain, better = (float(np.square(logits(rounded(p)) - expected).mean()) for p in (plan, scaled(plan)))
    assert better < 0.9 * plain


def test_matrices_that_stay_are_not_scaled(opened):
    plan, _ = opened("qwen2", "F16")
    assert all(t.source.raw is not None for t in scaled(plan).tensors)


def test_a_row_is_scaled_the_same_wherever_a_piece_begins(opened):
    plan, _ = opened("qwen2")
    for tensor in (t.source for t in scaled(plan).tensors if len(t.source.shape) == 2):
        whole = tensor.read_rows(0, tensor.n_rows)
        assert (tensor.read_rows(5, 9) == whole[5:9]).all()
