"""Second moments, error feedback onto GGML grids, and scaled channels."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.quant import hessian as hessian_module
from llmrun.quant.channel_scales import Fold, apply_scales, choose_scales, folds_of_layer
from llmrun.quant.dequantize import dequantize
from llmrun.quant.feedback import HAS_FEEDBACK, quantize_with_feedback
from llmrun.quant.hessian import Hessian, factor
from llmrun.quant.quantize import quantize
from llmrun.quant.scale_search import NumpySearch

SEARCH = NumpySearch()


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def rows(seed, n_row, n_in):
    """Return correlated inputs f32 [n_row, n_in] with columns of different sizes."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((n_in, n_in)) + 3 * rng.standard_normal((n_in, 1))
    return (rng.standard_normal((n_row, n_in)) @ mix * np.exp(rng.standard_normal(n_in)) / n_in).astype(np.float32)


def measured(x, pool, **settings):
    result = Hessian(("w",), x.shape[1], **settings)
    for start in range(0, len(x), 100):
        result.add(x[start : start + 100], pool)
    result.finish()
    return result


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(hessian_module, "TILE", 32)


def test_moments_are_means_of_products(pool, small_tiles):
    x = rows(0, 230, 80)
    result = measured(x, pool, largest_row=1e9)
    expected = x.T.astype(np.float64) @ x / len(x)
    np.testing.assert_allclose(result.sums, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert (result.sums == result.sums.T).all()


def test_one_huge_row_does_not_rule_the_moments(pool):
    x = rows(1, 100, 32)
    huge = x.copy()
    huge[0] *= 1000
    a, b = measured(x, pool), measured(huge, pool)
    assert np.trace(b.sums) < 1.1 * np.trace(a.sums)


def test_infinite_inputs_are_refused(pool):
    x = rows(2, 50, 32)
    x[3, 4] = np.inf
    result = Hessian(("blk.0.attn_q.weight",), 32)
    with np.errstate(all="ignore"):
        result.add(x, pool)
        with pytest.raises(FormatError, match="attn_q"):
            result.finish()


@pytest.mark.parametrize("n", [32, 80])
def test_factors_multiply_to_the_damped_moments(n, pool, small_tiles):
    h = measured(rows(n, 300, n), pool).sums
    damped = h.astype(np.float64) + 0.1 * h.diagonal().mean() * np.eye(n)
    upper, d = factor(h.copy(), pool, 0.1)
    assert (np.tril(upper, -1) == 0).all()
    np.testing.assert_allclose(upper.diagonal(), 1, rtol=1e-6)
    product = (upper.astype(np.float64) * d) @ upper.T
    np.testing.assert_allclose(product, damped, rtol=0, atol=1e-5 * np.abs(damped).max())


@pytest.mark.parametrize("bad", [np.zeros((64, 64)), -np.eye(64), np.full((64, 64), np.nan)])
def test_what_cannot_be_factored_gives_none(bad, pool):
    assert factor(bad.astype(np.float32), pool) is None


@pytest.mark.parametrize("kind", sorted(HAS_FEEDBACK), ids=lambda kind: kind.name)
def test_feedback_makes_the_outputs_better(kind, pool):
    n_in = 512 if kind in (GgmlType.Q4_K, GgmlType.Q6_K) else 256
    hessian = measured(rows(kind, 800, n_in), pool)
    w = np.random.default_rng(kind).standard_normal((24, n_in)).astype(np.float32)
    plain = dequantize(kind, quantize(w, kind, hessian.diagonal, search=SEARCH)) - w
    blocks, loss = quantize_with_feedback(w, kind, factor(hessian.sums.copy(), pool), search=SEARCH, pool=pool)
    error = dequantize(kind, blocks) - w
    assert hessian.output_error(error) < 0.6 * hessian.output_error(plain)
    damped = hessian.output_error(error) + 0.05 * float(hessian.diagonal.mean()) * float(np.square(error).sum())
    assert loss == pytest.approx(damped, rel=1e-3)


def test_no_bit_depends_on_threads(monkeypatch):
    monkeypatch.setattr(hessian_module, "TILE", 32)
    monkeypatch.setattr("llmrun.quant.feedback.ROWS", 16)
    w = np.random.default_rng(7).standard_normal((40, 128)).astype(np.float32)
    results = []
    for n_thread in (1, 3):
        with ThreadPoolExecutor(n_thread) as threads:
            h = measured(rows(7, 400, 128), threads).sums
            results.append(quantize_with_feedback(w, GgmlType.Q4_0, factor(h, threads), search=SEARCH, pool=threads))
    assert (results[0][0] == results[1][0]).all()
    assert results[0][1] == results[1][1]


def test_scales_keep_the_product_and_help(pool):
    rng = np.random.default_rng(3)
    x = rows(3, 500, 64)
    norm = np.ones(64, np.float32)
    tensors = {"n.weight": norm, "w": (rng.standard_normal((32, 64)) * np.exp(rng.standard_normal(64))).astype("f4")}
    fold, hessian = Fold("n.weight", ("w",)), measured(x, pool)
    before = dict(tensors)

    def quantizer(name, w, importance):
        return dequantize(GgmlType.Q4_0, quantize(w, GgmlType.Q4_0, importance, search=SEARCH))

    plain = hessian.output_error(quantizer("w", tensors["w"], hessian.diagonal) - tensors["w"])
    scales = choose_scales(fold, tensors, hessian, quantizer, pool)
    apply_scales(fold, scales, tensors, hessian)
    np.testing.assert_allclose(tensors["w"] * tensors["n.weight"], before["w"], rtol=1e-6)
    scaled = hessian.output_error(quantizer("w", tensors["w"], hessian.diagonal) - tensors["w"])
    assert scaled < 0.8 * plain


def test_folds_know_the_heads_and_the_fused_matrices():
    shapes = {
        "blk.0.attn_norm.weight": (64,), "blk.0.attn_qkv.weight": (128, 64), "blk.0.attn_output.weight": (64, 64),
        "blk.0.ffn_norm.weight": (64,), "blk.0.ffn_up.weight": (192, 64), "blk.0.ffn_down.weight": (64, 96),
    }  # fmt: skip
    norm, ffn, value, down = folds_of_layer(0, shapes, 4, 2, 16)
    assert norm.consumers == ("blk.0.attn_qkv.weight",)
    assert ffn.consumers == ("blk.0.ffn_up.weight",)
    assert (value.row_start, value.n_shared) == (96, 2)
    assert down.row_start == 96
    spread = value.spread(np.arange(32, dtype=np.float32))
    assert spread.reshape(4, 16)[0].tolist() == spread.reshape(4, 16)[1].tolist() == list(range(16))
