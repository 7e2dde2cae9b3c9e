"""Checkpoints of every architecture become the GGUF files that are held against transformers' logits.

``tests/goldens`` holds the logits of these networks from transformers; ``tests/runtime/models/test_goldens.py``
proves that the GGUF files of ``tiny_models.py`` give them. So a converted checkpoint has to be such a file, tensor
by tensor in every bit, and key by key.
"""

import json

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.checkpoint import GgufCheckpoint
from llmrun.quant.convert.checkpoint import HfSource
from llmrun.quant.convert.families import FAMILIES

from ...hf_tiny import CONFIGS, as_bf16, hf_config, hf_tensors, tokenizer_json, write_hf_folder
from ...tiny_models import tiny_model_path

NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
# Keys that say more than the hand-made files do, with the value that engines assume without them.
_SAID = {"rope.freq_base": 10000.0, "rope.freq_base_swa": 10000.0, "attention.key_length": 16}
_SAID["attention.value_length"] = _SAID["attention.key_length"]


def values(source, prefix):
    """Return metadata of a prefix as plain values, texts decoded and floats as in the file."""
    result = {}
    for key, meta in source.metadata.items():
        if key.startswith(prefix):
            value = meta.value
            if isinstance(value, float):
                value = float(np.float32(value))
            value = value.decode() if isinstance(value, bytes) else value
            if isinstance(value, (list, np.ndarray)):
                value = [one.decode() if isinstance(one, bytes) else one for one in value]
            result[key] = meta.value_type, value
    return result


def rows(tensor):
    return tensor.read_rows(0, tensor.n_rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_becomes_the_file_with_the_golden_logits(name, tmp_path):
    source = HfSource.open(write_hf_folder(tmp_path / "hf", name))
    wanted = GgufCheckpoint.open(tiny_model_path(tmp_path, name))
    assert source.architecture == wanted.architecture
    got_tensors, wanted_tensors = ({t.name: t for t in one.tensors} for one in (source, wanted))
    assert got_tensors.keys() == wanted_tensors.keys()
    for tensor_name, tensor in wanted_tensors.items():
        got = got_tensors[tensor_name]
        assert got.shape == tensor.shape
        np.testing.assert_array_equal(rows(got), rows(tensor), err_msg=tensor_name)
        np.testing.assert_array_equal(got.read_raw().view(np.float32), rows(tensor))
    arch = wanted.architecture + "."
    got_keys, wanted_keys = values(source, arch), values(wanted, arch)
    for key, value in wanted_keys.items():
        assert got_keys.pop(key) == value, key
    for key, (_, value) in got_keys.items():
        assert value == _SAID[key.removeprefix(arch)], key
    source.close()
    wanted.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_a_family_has_one_partner(name, tmp_path):
    """Checkpoint -> GGUF by the gguf package's maps, GGUF -> checkpoint by what transformers saved."""
    source = HfSource.open(write_hf_folder(tmp_path / "hf", name))
    made = [t.name for t in source.tensors if t.name.startswith("rope_")]
    assert len(source.tensors) - len(made) == len(hf_tensors(name))
    assert len({t.name for t in source.tensors}) == len(source.tensors)
    source.close()


def test_all_families_are_tested():
    tested = {hf_config(name)["architectures"][0] for name in NAMES}
    aliases = {"LLaMAForCausalLM", "Gemma3ForConditionalGeneration"}
    assert tested == FAMILIES.keys() - aliases


@pytest.mark.parametrize("n_shard", [2, 5])
def test_shards_make_no_difference(n_shard, tmp_path):
    one = HfSource.open(write_hf_folder(tmp_path / "one", "llama"))
    many = HfSource.open(write_hf_folder(tmp_path / "many", "llama", n_shard=n_shard))
    for a, b in zip(one.tensors, many.tensors, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(rows(a), rows(b))
    one.close()
    many.close()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_halves_stay_what_they_are_and_vectors_become_f32(dtype, tmp_path):
    arrays = hf_tensors("llama")
    narrow = {
        "F16": lambda x: x.astype(np.float16),
        "BF16": as_bf16,
        "F64": lambda x: x.astype(np.float64),
    }[dtype]
    source = HfSource.open(write_hf_folder(tmp_path / "hf", "llama", arrays={n: narrow(x) for n, x in arrays.items()}))
    wanted = HfSource.open(write_hf_folder(tmp_path / "wide", "llama"))
    for tensor, exact in zip(source.tensors, wanted.tensors, strict=True):
        is_matrix = len(tensor.shape) == 2
        assert tensor.ggml_type == (GgmlType[dtype] if is_matrix and dtype != "F64" else GgmlType.F32)
        np.testing.assert_allclose(rows(tensor), rows(exact), rtol=2**-7, atol=1e-6)
        raw = tensor.read_raw()
        if tensor.ggml_type == GgmlType.F16:
            np.testing.assert_array_equal(raw.view(np.float16).astype(np.float32), rows(tensor))
        elif tensor.ggml_type == GgmlType.BF16:
            np.testing.assert_array_equal(raw.view(np.uint16).astype(np.uint32) << 16, rows(tensor).view(np.uint32))
    source.close()
    wanted.close()


def test_some_rows_are_those_of_the_whole(tmp_path):
    source = HfSource.open(write_hf_folder(tmp_path / "hf", "mistral"))
    for tensor in source.tensors:
        whole = rows(tensor)
        for start, stop in ((0, 1), (3, 17), (tensor.n_rows - 1, tensor.n_rows), (5, 5)):
            if stop <= tensor.n_rows:
                np.testing.assert_array_equal(tensor.read_rows(start, stop), whole[start:stop])
        tensor.release()
        np.testing.assert_array_equal(rows(tensor), whole)
    source.close()


def test_older_configurations_say_the_same(tmp_path):
    """Before version 5 transformers wrote rope_theta and rope_scaling, ``type`` for ``rope_type``, and no head_dim."""
    cases = {
        "llama_linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        "llama_llama3": {"rope_theta": 50000.0},
        "qwen2_yarn": {"rope_theta": 10000.0},
        "gemma3": {"rope_theta": 1e6, "rope_local_base_freq": 5000.0, "sliding_window_pattern": 6, "layer_types": None},
        "phi3_longrope": {"rope_theta": 10000.0},
    }
    for name, change in cases.items():
        rope = dict(hf_config(name)["rope_parameters"])
        rope.pop("rope_theta", None)
        rope["type"] = rope.pop("rope_type", "default")
        if name != "gemma3":
            change = {"rope_scaling": rope, **change}
        if not name.startswith("gemma"):
            change = {"head_dim": None, **change}
        new = HfSource.open(write_hf_folder(tmp_path / name / "new", name))
        old = HfSource.open(write_hf_folder(tmp_path / name / "old", name, config={"rope_parameters": None, **change}))
        skipped = {f"{new.architecture}.attention.{part}_length" for part in ("key", "value")}
        got, wanted = values(old, new.architecture), values(new, new.architecture)
        for key in skipped if not name.startswith("gemma") else ():
            wanted.pop(key, None)
        assert got == wanted, name
        for a, b in zip(old.tensors, new.tensors, strict=True):
            np.testing.assert_array_equal(rows(a), rows(b))
        new.close()
        old.close()


def test_a_model_that_also_sees_gives_its_language_model(tmp_path):
    arrays = {f"language_model.{name}": value for name, value in hf_tensors("gemma3").items()}
    arrays["vision_tower.vision_model.embeddings.patch_embedding.weight"] = np.zeros((2, 2), np.float32)
    inner = {k: v for k, v in hf_config("gemma3").items() if k != "architectures"}
    config = dict.fromkeys(inner) | {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner}
    source = HfSource.open(write_hf_folder(tmp_path / "hf", "gemma3", arrays=arrays, config=config))
    plain = HfSource.open(write_hf_folder(tmp_path / "plain", "gemma3"))
    assert values(source, "gemma3.") == values(plain, "gemma3.")
    assert [t.name for t in source.tensors] == [t.name for t in plain.tensors]
    assert any("1 tensors of the vision tower are left out" in note for note in source.notes)
    source.close()
    plain.close()


def test_a_tied_output_matrix_is_left_out_and_a_missing_one_is_tied(tmp_path):
    tied = hf_tensors("llama_llama3")
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"]
    source = HfSource.open(write_hf_folder(tmp_path / "a", "llama_llama3", arrays=tied))
    assert "output.weight" not in [t.name for t in source.tensors]
    assert any("lm_head.weight is left out" in note for note in source.notes)
    source.close()
    missing = {"tie_word_embeddings": None}
    source = HfSource.open(write_hf_folder(tmp_path / "b", "llama_llama3", config=missing))
    assert "output.weight" not in [t.name for t in source.tensors]
    source.close()


NOTES = {
    "mistral": ({"sliding_window": 4096}, "the sliding window of 4096 tokens is left out"),
    "llama": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "dynamic rope scaling is left out: it changes only texts of more than 512 tokens",
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_gguf_cannot_say_is_noted(name, tmp_path):
    config, note = NOTES[name]
    source = HfSource.open(write_hf_folder(tmp_path / "hf", name, config=config))
    assert any(note in one for one in source.notes)
    source.close()


def rope(**more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **more}}


LONG = {"rope_type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8}

REFUSED = {
    "no architectures": ("llama", {"architectures": None}, "'architectures' is missing"),
    "unknown architecture": (
        "llama",
        {"architectures": ["MambaForCausalLM"]},
        "architecture 'MambaForCausalLM' is not",
    ),
    "architecture no list": ("llama", {"architectures": "LlamaForCausalLM"}, "'architectures' is the text"),
    "no layers": ("llama", {"num_hidden_layers": 0}, "'num_hidden_layers' is 0, expected 1 to 1024"),
    "a billion layers": (
        "llama",
        {"num_hidden_layers": 10**9},
        "'num_hidden_layers' is 1000000000, expected 1 to 1024",
    ),
    "more layers": ("llama", {"num_hidden_layers": 4}, "no tensor for blk.3.attn_norm.weight, which llama needs"),
    "fewer layers": ("llama", {"num_hidden_layers": 2}, "is no part of llama with 2 layers"),
    "layers as text": ("llama", {"num_hidden_layers": "3"}, "'num_hidden_layers' is the text '3', expected int"),
    "width missing": ("llama", {"hidden_size": None}, "'hidden_size' is missing"),
    "heads do not divide": ("llama", {"num_key_value_heads": 3}, "n_head=4, n_head_kv=3"),
    "odd heads": ("llama", {"head_dim": 15}, "head_dim=15"),
    "no heads": ("llama", {"num_attention_heads": 0}, "'num_attention_heads' is 0"),
    "other heads": ("llama", {"head_dim": 32}, r"q_proj.weight' has shape \[64, 64\], expected \[128, 64\]"),
    "other vocabulary": ("llama", {"vocab_size": 300}, "has 301 rows, but vocab_size is 300"),
    "other feed-forward": (
        "llama",
        {"intermediate_size": 95},
        r"has shape \[96, 64\], expected \[95, 64\] for blk.0.ffn",
    ),
    "eps": ("llama", {"rms_norm_eps": 3.0}, "rms_norm_eps is 3, expected 0 to 1"),
    "activation": ("llama", {"hidden_act": "relu"}, "activation 'relu', expected silu"),
    "gemma activation": ("gemma2", {"hidden_activation": "silu"}, "activation 'silu', expected gelu_pytorch_tanh"),
    "experts": ("llama", {"num_local_experts": 8}, "'num_local_experts' is set"),
    "attention scale": ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100, .* means 32"),
    "no soft cap": ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0"),
    "layer types": ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types differ from those of gemma3"),
    "pattern": (
        "gemma3",
        {"layer_types": None, "sliding_window_pattern": 4},
        "sliding_window_pattern is 4, expected 6",
    ),
    "both directions": ("gemma3", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is set"),
    "theta": ("llama", rope(rope_theta=0.5), "rope_theta is 0.5, expected more than 1"),
    "theta not finite": ("llama", rope(rope_theta=float("inf")), "'rope_theta' is not finite"),
    "rope kind": ("llama", rope(rope_type="spiral"), "rope scaling 'spiral' is not known for llama"),
    "linear without factor": ("llama", rope(rope_type="linear"), "'factor' is missing"),
    "linear by 0": ("llama", rope(rope_type="linear", factor=0), "'factor' is 0, expected 0.000001 to 1000000"),
    "llama3 elsewhere": ("qwen2", rope(rope_type="llama3", factor=8.0), "rope scaling 'llama3' is not known for qwen2"),
    "llama3 incomplete": ("llama", rope(rope_type="llama3", factor=8.0), "'low_freq_factor' is missing"),
    "yarn with mscale": (
        "qwen2",
        rope(rope_type="yarn", factor=4.0, mscale=1.0),
        "yarn with 'mscale' is not supported",
    ),
    "longrope short": (
        "phi3",
        rope(**{**LONG, "long_factor": [1.0]}),
        "'long_factor' is a list of 1, expected a list of 8",
    ),
    "longrope texts": ("phi3", rope(**{**LONG, "short_factor": ["1"] * 8}), r"'short_factor'\[0\] is the text"),
    "longrope of 0": ("phi3", rope(**{**LONG, "short_factor": [0.0] * 8}), "short_factor holds values outside"),
    "longrope elsewhere": ("llama", rope(**LONG), "rope scaling 'longrope' is not known for llama"),
    "half a head": (
        "qwen3",
        rope(partial_rotary_factor=0.5),
        "partial_rotary_factor 0.5 of heads of 32 cannot be kept",
    ),
    "quantised somehow": (
        "llama",
        {"quantization_config": {"quant_method": "hqq"}},
        "quant_method 'hqq' is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configurations_that_cannot_be_kept_are_refused_in_one_line(case, tmp_path):
    name, config, message = REFUSED[case]
    folder = write_hf_folder(tmp_path / "hf", name, config=config)
    if case == "theta not finite":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("Infinity", "1e999"))
    with pytest.raises(FormatError, match=message) as caught:
        HfSource.open(folder)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(**arrays):
    return {**hf_tensors("llama"), **arrays}


def without(name):
    return {key: value for key, value in hf_tensors("llama").items() if key != name}


NORM = "model.layers.1.input_layernorm.weight"
TENSORS = {
    "missing": (without(NORM), "no tensor for blk.1.attn_norm.weight, which llama needs"),
    "missing embedding": (without("model.embed_tokens.weight"), "no tensor for token_embd.weight"),
    "missing output": (without("lm_head.weight"), "no tensor for output.weight, which llama needs"),
    "unknown": (changed(**{"model.extra.weight": np.zeros(4, np.float32)}), "'model.extra.weight' is no part of llama"),
    "of another family": (
        changed(**{"model.layers.0.self_attn.q_norm.weight": np.zeros(16, np.float32)}),
        "is no part of llama",
    ),
    "other shape": (
        changed(**{NORM: np.zeros(65, np.float32)}),
        r"has shape \[65\], expected \[64\] for blk.1.attn_norm",
    ),
    "transposed": (
        changed(**{"model.layers.0.mlp.down_proj.weight": np.zeros((96, 64), np.float32)}),
        r"has shape \[96, 64\], expected \[64, 96\]",
    ),
    "integers": (
        changed(**{NORM: np.zeros(64, np.int32)}),
        "has dtype I32, expected floats for blk.1.attn_norm.weight",
    ),
    "two names": (changed(**{"layers.1.attention_norm.weight": np.zeros(64, np.float32)}), "are both blk.1.attn_norm"),
    "quantised without a method": (
        changed(**{"model.layers.0.mlp.down_proj.scales": np.zeros((1, 64), np.float16)}),
        "is of a quantised matrix, but config.json names no method",
    ),
    "embedding a vector": (changed(**{"model.embed_tokens.weight": np.zeros(301, np.float32)}), "expected a matrix"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused_in_one_line(case, tmp_path):
    arrays, message = TENSORS[case]
    with pytest.raises(FormatError, match=message) as caught:
        HfSource.open(write_hf_folder(tmp_path / "hf", "llama", arrays=arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architectures": ' + "[" * 10000, "\xff", '{"a":1,"a":2}'])
def test_configurations_that_are_no_object(text, tmp_path):
    folder = write_hf_folder(tmp_path / "hf", "llama")
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"config\.json"):
        HfSource.open(folder)


def test_general_keys_and_recommended_sampling(tmp_path):
    source = HfSource.open(write_hf_folder(tmp_path / "Tiny Model", "llama"))
    got = {key: value for key, (_, value) in values(source, "general.").items()}
    assert got == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny Model",
        "general.sampling.temp": float(np.float32(0.6)),
    }
    source.close()
    assert json.loads((tmp_path / "Tiny Model" / "generation_config.json").read_text())["do_sample"]


def test_a_name_says_phi3_only_with_phi3s_special_tokens(tmp_path):
    """llama.cpp does not load a file whose name says so and whose vocabulary lacks them."""
    source = HfSource.open(write_hf_folder(tmp_path / "Tuned-Phi-3-PHI3", "phi3"))
    assert source.metadata["general.name"].value == "Tuned-Phi 3-PHI 3"
    source.close()
    tokenizer = tokenizer_json()
    tokenizer["added_tokens"] = [
        {"id": 297 + i, "content": text, "special": True}
        for i, text in enumerate(("<unk>", "<s>", "</s>", "<|endoftext|>"))
    ]
    source = HfSource.open(write_hf_folder(tmp_path / "mini", "phi3", tokenizer=tokenizer))
    assert source.metadata["general.name"].value == "mini (Phi-3)"
    source.close()
