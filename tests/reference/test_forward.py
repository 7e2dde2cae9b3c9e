"""The NumPy forward pass gives the logits that transformers gave, so every tiny model means what it should."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from ..tiny_models import MODELS, RANDOM_BLOCK_TYPES, tensors, tiny_model_path
from .forward import Reference

GOLDENS = sorted((Path(__file__).parent.parent / "goldens").glob("*.npz"))


def test_every_model_has_a_golden():
    assert {str(np.load(p)["model"]) for p in GOLDENS} == {name for name in MODELS if not name.endswith("_256")}


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda p: p.stem)
def test_equals_transformers(golden, tmp_path):
    """Float32 against float64: rounding errors of 2**-24 relative, grown by a few layers.

    Measured: 3.5e-5 at most (phi3_partial, gemma2_27b), on logits of up to 20. A wrong rope base, window,
    scale or cap moves some logit by 0.05 or more (`test_golden_sees_each_setting`).
    """
    data = np.load(golden)
    model = Reference(tiny_model_path(tmp_path, str(data["model"])), n_ctx=int(data["n_ctx"]))
    error = np.abs(model.logits(data["ids"])[data["pos"]] - data["logits"]).max()
    assert error < 1e-4


SETTINGS = [
    ("llama_linear", "rope.scaling.factor", 3.5),
    ("llama_yarn", "rope.scaling.factor", 3.5),
    ("llama_yarn", "rope.scaling.original_context_length", 256),
    ("qwen2_yarn", "rope.scaling.yarn_beta_fast", 8.0),
    ("qwen2", "rope.freq_base", 5e5),
    ("qwen3", "attention.layer_norm_rms_epsilon", 0.05),
    ("gemma2", "attention.sliding_window", 9),
    ("gemma2", "attn_logit_softcapping", 6.0),
    ("gemma2", "final_logit_softcapping", 9.0),
    ("gemma3", "attention.sliding_window", 7),
    ("gemma3", "rope.freq_base_swa", 10000.0),
    ("gemma3", "rope.freq_base", 5e5),
    ("gemma3_linear", "rope.scaling.factor", 1.0),
    ("phi3_longrope", "rope.scaling.attn_factor", 1.0),
    ("phi3_longrope", "rope.scaling.original_context_length", 128),
]


@pytest.mark.parametrize(("name", "key", "value"), SETTINGS)
def test_golden_sees_each_setting(name, key, value, tmp_path):
    data = np.load(GOLDENS[0].with_name(f"{name}.npz"))
    model = Reference(tiny_model_path(tmp_path, name))
    model.metadata[f"{model.arch}.{key}"] = value
    moved = np.abs(model.logits(data["ids"])[data["pos"]] - data["logits"]).max()
    assert moved > 0.05


@pytest.mark.parametrize("name", ["llama_llama3", "phi3_partial"])
def test_golden_sees_the_rope_factors(name, tmp_path):
    data = np.load(GOLDENS[0].with_name(f"{name}.npz"))
    model = Reference(tiny_model_path(tmp_path, name))
    for tensor in [t for t in model.weights if t.startswith("rope_")]:
        model.weights[tensor][:] = 1
    assert np.abs(model.logits(data["ids"])[data["pos"]] - data["logits"]).max() > 0.05


ROUNDED = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")


@pytest.mark.parametrize("kind", [*ROUNDED, "TQ2_0", *(t.name for t in RANDOM_BLOCK_TYPES)])
def test_quantised_tiny_model_has_ordinary_logits(kind, tmp_path):
    ggml_type = GGMLQuantizationType[kind]
    path = tiny_model_path(tmp_path, "llama" if kind in ROUNDED else "llama_256", ggml_type)
    logits = Reference(path).logits(range(5, 25))
    assert 0.3 < logits.std() < 5
    assert {t.tensor_type for t in GGUFReader(path).tensors} == {ggml_type, GGMLQuantizationType.F32}


def test_overrides_change_only_the_named_tensors(tmp_path):
    q8_0, q4_0 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
    path = tiny_model_path(tmp_path, "llama", q4_0, {"output.weight": q8_0, "1.ffn_down.weight": q8_0})
    types = {t.name: t.tensor_type for t in GGUFReader(path).tensors if len(t.shape) == 2}
    assert {n for n, t in types.items() if t == q8_0} == {"output.weight", "blk.1.ffn_down.weight"} | {
        f"blk.{i}.attn_output.weight" for i in range(3)
    }


def test_weights_are_those_of_the_goldens():
    """The weight recipe must never change: the goldens were made with it."""
    got = {name: zlib.crc32(b"".join(t.tobytes() for t in tensors(name).values())) for name in ("llama", "gemma3")}
    assert got == {"llama": 186206795, "gemma3": 2203789125}
