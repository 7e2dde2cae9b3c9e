"""Statistics of tensors: small even errors pass, what was tampered with stands out."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.checkpoint import SourceTensor
from llmrun.quant.imatrix import Imatrix
from llmrun.runtime import tensor_stats
from llmrun.runtime.tensor_stats import compare_tensors, suspicious

RNG = np.random.default_rng(3)
WEIGHTS = {f"blk.{i}.w": RNG.normal(size=(40, 64)).astype(np.float32) for i in range(8)}
ROUNDED = {name: w + RNG.normal(0, 0.05, w.shape).astype(np.float32) for name, w in WEIGHTS.items()}


def tensors(values, kind=GgmlType.F32):
    return {
        name: SourceTensor(name, w.shape, kind, lambda a, b, w=w: w.reshape(-1, w.shape[-1])[a:b])
        for name, w in values.items()
    }


def test_even_errors_do_not_stand_out(monkeypatch):
    monkeypatch.setattr(tensor_stats, "PIECE_WEIGHTS", 7 * 64)
    stats, notes = compare_tensors(tensors(WEIGHTS), tensors(ROUNDED))
    assert notes == []
    for s in stats:
        a, b = WEIGHTS[s.name].astype(np.float64), ROUNDED[s.name].astype(np.float64)
        assert s.error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)
        assert s.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)
        assert s.gain == pytest.approx(np.linalg.norm(b) / np.linalg.norm(a), rel=1e-6)
        assert s.largest == pytest.approx(np.abs(a - b).max() / np.sqrt((a**2).mean()), rel=1e-5)
    assert suspicious(stats) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w + RNG.normal(0, 0.2, w.shape).astype(np.float32), "% is usual"),
        (lambda w: w[::-1].copy(), "other weights"),
        (lambda w: np.where(w > 2, np.nan, w), "infinite or NaN"),
        (lambda w: np.where(w > 2, np.inf, w), "infinite or NaN"),
        (lambda w: 0 * w, "other weights"),
    ],
)
def test_what_was_changed_stands_out(change, reason):
    stats, _ = compare_tensors(tensors(WEIGHTS), tensors(ROUNDED | {"blk.3.w": change(WEIGHTS["blk.3.w"])}))
    ((found, why),) = suspicious(stats)
    assert found.name == "blk.3.w"
    assert reason in why


def test_importance_weighs_columns():
    matrix, w = Imatrix(chunk_size=1), {"w": np.ones((2, 2), np.float32)}
    matrix.add("w", np.array([[2.0, 0.0]], np.float32))
    other = {"w": np.array([[1, 9], [1, 9]], np.float32)}
    assert compare_tensors(tensors(w), tensors(other), matrix)[0][0].error == 0
    assert compare_tensors(tensors(w), tensors(other))[0][0].error == pytest.approx(8 / np.sqrt(2))


def test_missing_and_misshapen_tensors_are_noted():
    base = {"a": np.ones((2, 2), np.float32), "b": np.ones((2, 2), np.float32)}
    other = {"b": np.ones((2, 3), np.float32), "c": np.ones(2, np.float32)}
    stats, notes = compare_tensors(tensors(base), tensors(other))
    assert stats == []
    assert notes == ["a is missing", "c is not in the base", "b has shape [2, 3], [2, 2] in the base"]
