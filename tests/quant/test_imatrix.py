"""The importance matrix as an object: means, merging, and what does not fit."""

from pathlib import Path

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError, FormatError
from llmrun.quant.imatrix import Imatrix

GOLDENS = Path(__file__).parents[1] / "goldens" / "imatrix"


def test_importance_is_the_mean_square_of_each_column():
    matrix = Imatrix(chunk_size=2)
    matrix.add("w", np.array([[1, 2], [3, 0]], np.float32))
    matrix.add("w", np.array([[2, 2]], np.float32))
    assert matrix.importance("w", 2).tolist() == pytest.approx([14 / 3, 8 / 3])
    assert matrix.importance("v", 2) is None
    assert (matrix.names, matrix.n_chunk) == (["w"], 1)


def test_another_width_is_another_model():
    matrix = Imatrix.load(GOLDENS / "qwen2.gguf")
    with pytest.raises(FormatError, match=r"qwen2\.gguf: entry 'blk\.0\.attn_k\.weight' has 64 columns, expected 65"):
        matrix.importance("blk.0.attn_k.weight", 65)


def test_both_layouts_hold_the_same():
    one, other = Imatrix.load(GOLDENS / "qwen2.gguf"), Imatrix.load(GOLDENS / "qwen2.dat", chunk_size=64)
    assert (one.n_chunk, one.chunk_size) == (other.n_chunk, other.chunk_size) == (3, 64)
    for name in one.names:
        n_in = 128 if "ffn_down" in name else 64
        np.testing.assert_allclose(one.importance(name, n_in), other.importance(name, n_in), rtol=1e-6)


@pytest.mark.parametrize("layout", ["gguf", "dat"])
def test_saving_and_loading(layout, tmp_path):
    matrix = Imatrix.load(GOLDENS / "qwen2.gguf")
    matrix.save(tmp_path / "m", layout)
    assert (tmp_path / "m").read_bytes() == (GOLDENS / f"qwen2.{layout}").read_bytes()


def test_nothing_measured_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match="nothing was measured"):
        Imatrix(chunk_size=1).save(tmp_path / "m")


def test_merging_adds_rows():
    one, other, both = (Imatrix(chunk_size=1, datasets=[n]) for n in "abc")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    one.add("w", x[:1])
    other.add("w", x[1:])
    other.add("v", x)
    both.add("w", x)
    both.add("v", x)
    one.merge(other)
    assert one.datasets == ["a", "b"]
    for name in "wv":
        assert one.importance(name, 3).tolist() == both.importance(name, 3).tolist()
    wide = Imatrix(chunk_size=1)
    wide.add("w", np.ones((1, 4), np.float32))
    with pytest.raises(FormatError, match="has shape"):
        one.merge(wide)


def test_an_expert_without_rows_is_flat():
    matrix = Imatrix(chunk_size=1)
    matrix._sums["e"], matrix._counts["e"] = np.array([[8.0, 2.0], [0.0, 0.0]]), np.array([2, 0])
    assert matrix.stacked("e", 2).tolist() == [[4, 1], [1, 1]]
    assert matrix.importance("e", 2).tolist() == [4, 1]


def test_infinite_activations_are_named():
    with pytest.raises(FormatError, match="input of tensor 'w' becomes infinite"):
        Imatrix(chunk_size=1).add("w", np.array([[np.inf]], np.float32))
