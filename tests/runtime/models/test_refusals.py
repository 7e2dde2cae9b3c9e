"""What a model file may not say: one line that names the file, what is wrong and what was expected."""

import math
from decimal import Decimal

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from llmrun.formats.errors import FormatError, LlmrunError
from llmrun.formats.gguf import GgufFile
from llmrun.runtime.engine import load_program
from llmrun.runtime.models.rope import frequencies
from llmrun.runtime.weights import GgufWeights

from ...tiny_gguf import write_gguf
from ...tiny_models import MODELS


def rewritten(source, target, changes, drop_tensors=(), reshape=None):
    """Copy a GGUF file with other metadata (None removes a key), without some tensors, or with one of another shape."""
    reader = GGUFReader(source)
    metadata = {}
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        value = field.contents()
        kind = field.types[0]
        if kind == gguf.GGUFValueType.FLOAT32:
            value = float(value)
        metadata[key] = value
    arch = metadata["general.architecture"]
    for key, value in changes.items():
        name = key if key.startswith(("general.", "tokenizer.")) else f"{arch}.{key}"
        if value is None:
            metadata.pop(name, None)
        else:
            metadata[name] = value
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name in drop_tensors:
            continue
        data = np.array(tensor.data)
        if reshape and tensor.name == reshape:
            data = np.concatenate([data, data[:1]])
        is_float = tensor.tensor_type == GGMLQuantizationType.F32
        tensors[tensor.name] = data if is_float else (data, tensor.tensor_type)
    return write_gguf(target, metadata, tensors)


def load(path, n_ctx=64):
    with GgufFile.open(path) as file:
        return load_program(file, GgufWeights(file, 1), n_ctx)


METADATA = [
    ("llama", {"general.architecture": "mamba9"}, "'mamba9' is not supported, expected one of llama, qwen2"),
    ("llama", {"block_count": 0}, "block_count is 0, expected 1 to"),
    ("llama", {"block_count": 2_000_000_000}, "block_count is 2000000000, expected 1 to"),
    ("llama", {"embedding_length": None}, "embedding_length"),
    ("llama", {"embedding_length": 128}, "expected [301, 128]"),
    ("llama", {"embedding_length": 72}, "embedding_length is 72, expected a multiple of 16"),
    ("llama", {"attention.head_count": 3}, "do not fit together"),
    ("llama", {"attention.head_count_kv": 3}, "do not fit together"),
    ("llama", {"attention.key_length": 16, "attention.value_length": 32}, "do not fit together"),
    ("llama", {"attention.layer_norm_rms_epsilon": 2.0}, "expected 0 to 1"),
    ("llama", {"attention.layer_norm_rms_epsilon": math.nan}, "layer_norm_rms_epsilon' is not finite"),
    ("llama", {"rope.dimension_count": 15}, "rope.dimension_count is 15"),
    ("llama", {"rope.dimension_count": 18}, "rope.dimension_count is 18"),
    ("llama", {"rope.freq_base": 0.0}, "rope.freq_base is 0"),
    ("llama", {"rope.freq_base": math.nan}, "rope.freq_base' is not finite"),
    ("llama", {"rope.scaling.type": "ntk"}, "'ntk' is not supported"),
    ("llama_linear", {"rope.scaling.factor": 0.0}, "rope.scaling.factor is 0"),
    ("llama_yarn", {"rope.scaling.factor": math.inf}, "rope.scaling.factor' is not finite"),
    ("gemma2", {"attn_logit_softcapping": -1.0}, "soft"),
    ("gemma2", {"final_logit_softcapping": math.nan}, "soft"),
    ("gemma3", {"rope.freq_base_swa": -5.0}, "freq_base_swa is -5"),
    ("qwen2", {"feed_forward_length": 64}, "has shape [128, 64], expected [64, 64]"),
]


@pytest.mark.parametrize(
    ("name", "changes", "message"), METADATA, ids=lambda v: "-".join(v) if isinstance(v, dict) else None
)
def test_metadata_that_cannot_be(name, changes, message, tiny_path, tmp_path):
    path = rewritten(tiny_path(name), tmp_path / "m.gguf", changes)
    with pytest.raises(FormatError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "phi3", "qwen2", "qwen3"])
def test_a_missing_tensor_is_named(name, tiny_path, tmp_path):
    source = tiny_path(name)
    optional = {"output.weight"}  # tied to the embeddings where it is missing
    for tensor in [t.name for t in GGUFReader(source).tensors if not t.name.startswith("blk.") or ".1." in t.name]:
        if tensor in optional or tensor.endswith(".bias") or "_q_norm" in tensor or "_k_norm" in tensor:
            continue
        path = rewritten(source, tmp_path / "m.gguf", {}, drop_tensors=[tensor])
        with pytest.raises(LlmrunError, match="missing") as caught:
            load(path)
        assert tensor in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
def test_a_tensor_of_another_shape_is_named(name, tiny_path, tmp_path):
    for tensor in ("blk.1.ffn_down.weight", "blk.1.attn_output.weight", "output_norm.weight", "blk.0.ffn_up.weight"):
        path = rewritten(tiny_path(name), tmp_path / "m.gguf", {}, reshape=tensor)
        with pytest.raises(FormatError, match="has shape") as caught:
            load(path)
        assert tensor in str(caught.value)


def test_a_tensor_that_would_not_be_used_is_named(tiny_path, tmp_path):
    """Nothing is silently dropped: biases of a llama file's output, for example."""
    reader = GGUFReader(tiny_path("llama"))
    metadata = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    tensors["blk.0.attn_sinks.weight"] = np.zeros(4, np.float32)
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(FormatError, match="attn_sinks"):
        load(path)


@pytest.mark.parametrize("theta", [5000.0, 10_000.0, 1e6])
@pytest.mark.parametrize("n_rot", [2, 12, 64, 128])
def test_frequencies_are_rounded_once(theta, n_rot):
    """Computed with 40 digits: the nearest f64, which float arithmetic gets to within an ulp or two."""
    got = [float(f) for f in frequencies(theta, n_rot)]
    assert got == pytest.approx([theta ** (-2 * i / n_rot) for i in range(n_rot // 2)], rel=1e-15)
    assert got[0] == 1.0
    assert frequencies(theta, 2) == [Decimal(1)]


def test_every_model_lists_its_program(tiny_path):
    """The listing that ``inspect --program`` prints: one line an operation, and the outputs."""
    for name in MODELS:
        _, program = load(tiny_path(name))
        lines = str(program).splitlines()
        assert len(lines) == len(program.ops) + len(program.outputs)
        assert lines[-1].startswith("output logits = %")
        assert "embed(@token_embd.weight:F32)" in lines[0]
