"""The sources that quantisers are measured on: the same function, other weights (tests/models/off_grid.py)."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.gguf import GgufFile
from llmrun.quant.dequantize import dequantize

from ..models.off_grid import dithered, move_off_grid
from .machine import token_ids
from .runner import checked_logits

N_TOK = 12


def log_p(logits):
    shifted = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("name", "untie"), [("mistral", False), ("qwen2", True), ("qwen3", True), ("gemma3", False), ("phi3", False)]
)
def test_computes_the_same(name, untie, tiny_path, tmp_path):
    source, target, ids = tiny_path(name), tmp_path / "moved.gguf", token_ids(name, N_TOK)
    move_off_grid(source, target, untie=untie)
    p, q = (log_p(checked_logits(path, ids)) for path in (source, target))
    assert (np.exp(p) * (p - q)).sum(
        axis=1
    ).max() < 1e-4  # mostly values rounded to f16 in the KV cache; a wrong factor gives more than 1
    with GgufFile.open(source) as old, GgufFile.open(target) as new:
        assert set(new.metadata.keys()) >= set(old.metadata.keys()) - {"general.quantization_version"}
        scaled = [n for n in old.tensors if "blk" in n and "post_" not in n and "_norm" not in n and "bias" not in n]
        for tensor in scaled:
            one, other = (dequantize(f.tensors[tensor].ggml_type, f.data(f.tensors[tensor])) for f in (old, new))
            assert (one != other).mean() > 0.99, tensor
        assert ("output.weight" in new.tensors) == (untie or "output.weight" in old.tensors)


def test_dither_moves_every_weight_within_its_step():
    grid = 0.25 * np.random.default_rng(2).integers(-8, 8, (64, 64)).astype(np.float32)
    moved = dithered("a", grid, 0)
    assert np.abs(moved - grid).max() <= 0.125
    assert np.abs(moved - grid).std() > 0.02
    assert (dithered("a", np.ones((1, 32), np.float32), 0) == 1).all()


def test_leaves_the_grid(tiny_path, tmp_path):
    """Quantised again, the source loses next to nothing and the moved model much."""
    gguf = pytest.importorskip("gguf")
    source = tiny_path("llama_256", "Q4_0")
    errors = []
    for sigma in (0.0, 0.4):
        move_off_grid(source, tmp_path / "m.gguf", sigma=sigma, kind=GgmlType.F32)
        with GgufFile.open(tmp_path / "m.gguf") as file:
            info = file.tensors["blk.1.ffn_down.weight"]
            w = dequantize(info.ggml_type, file.data(info)).reshape(info.shape).copy()
        again = gguf.quants.dequantize(
            gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q4_0), gguf.GGMLQuantizationType.Q4_0
        )
        errors.append(float(np.linalg.norm(again - w) / np.linalg.norm(w)))
    assert errors[0] < 1e-3
    assert errors[1] > 0.05
