"""Mixtures: for every tensor the type that llama-quantize chooses.

``llama_quantize_types.json`` holds what its ``--dry-run`` said for two models: by mixture and part of a layer the type
of most layers ("*") and the layers with another one.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError, FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.meta_value import MetaValue
from llmrun.formats.metadata import ValueType
from llmrun.quant.checkpoint import SourceTensor
from llmrun.quant.file_types import MIXTURES, MixtureRules, ModelShape, file_type, fitting_type, is_quantized_by_rule
from llmrun.quant.imatrix import Imatrix
from llmrun.quant.quantize_plan import QuantizeOptions, parse_override, plan_quantization, weight_type

TYPES = json.loads((Path(__file__).parent / "llama_quantize_types.json").read_text())
# Model: layers, n_embd, n_ff, width of keys, query heads per key head, vocabulary, whether the output is apart.
MODELS = {"smollm2": (30, 576, 1536, 192, 3, 49152, False), "qwen2.5": (24, 896, 4864, 128, 7, 151936, True)}


class Source:
    """A checkpoint that has shapes, but no weights."""

    def __init__(self, tensors, *, n_layer=2, n_head=3, n_head_kv=1, extra=None):
        self.path, self.architecture, self.notes = Path("m.gguf"), "llama", []
        self.metadata = {
            "general.architecture": MetaValue.text("llama"),
            "llama.block_count": MetaValue.u32(n_layer),
            "llama.attention.head_count": MetaValue.u32(n_head),
            "llama.attention.head_count_kv": MetaValue.u32(n_head_kv),
            **(extra or {}),
        }
        self.tensors = tensors

    def close(self):
        pass


def tensor(name, *shape, kind=GgmlType.F16):
    return SourceTensor(name, shape, kind, lambda start, stop: None, lambda: None)


def model(name):
    n_layer, n_embd, n_ff, n_key, n_gqa, n_vocab, is_apart = MODELS[name]
    parts = {
        "attn_q.weight": (n_embd, n_embd), "attn_k.weight": (n_key, n_embd), "attn_v.weight": (n_key, n_embd),
        "attn_output.weight": (n_embd, n_embd), "ffn_gate.weight": (n_ff, n_embd), "ffn_up.weight": (n_ff, n_embd),
        "ffn_down.weight": (n_embd, n_ff),
    }  # fmt: skip
    tensors = [tensor(f"blk.{i}.{part}", *shape) for i in range(n_layer) for part, shape in parts.items()]
    tensors.append(tensor("token_embd.weight", n_vocab, n_embd))
    if is_apart:
        tensors.append(tensor("output.weight", n_vocab, n_embd))
    return Source(tensors[::-1], n_layer=n_layer, n_head=n_gqa)


def planned(source, mixture, **options):
    plan = plan_quantization(source, QuantizeOptions(mixture=file_type(mixture), **options))
    return {t.source.name: t.ggml_type.name for t in plan.tensors}


@pytest.mark.parametrize("mixture", [m for m in MIXTURES if m != "MXFP4"])
@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_of_llama_quantize(name, mixture):
    got = planned(model(name), mixture)
    for part, kinds in TYPES[name][mixture].items():
        usual = next(kind for kind, layers in kinds.items() if layers == "*")
        others = {layer: kind for kind, layers in kinds.items() if layers != "*" for layer in layers}
        for i in range(MODELS[name][0] if f"blk.0.{part}" in got else 1):
            found = got[f"blk.{i}.{part}" if f"blk.0.{part}" in got else part]
            assert found == others.get(i, usual), (part, i)


def test_small_matrices_vectors_and_norms_stay():
    for name, shape in {
        "blk.0.ffn_gate_inp.weight": (8, 256), "output_norm.weight": (2, 256), "blk.0.attn_q.bias": (256,),
        "rope_freqs.weight": (64,), "blk.0.ssm_conv1d.weight": (4, 256), "x.weight": (1, 256),
    }.items():  # fmt: skip
        assert not is_quantized_by_rule(tensor(name, *shape)), name
    assert is_quantized_by_rule(tensor("blk.0.ffn_down_exps.weight", 4, 256, 256))


def test_half_precision_vectors_become_f32():
    source = Source([tensor("blk.0.attn_norm.weight", 64, kind=GgmlType.BF16), tensor("blk.0.attn_q.weight", 64, 64)])
    assert planned(source, "Q8_0") == {"blk.0.attn_norm.weight": "F32", "blk.0.attn_q.weight": "Q8_0"}


@pytest.mark.parametrize(
    ("wanted", "n_in", "got"),
    [("Q4_K", 288, "Q5_0"), ("Q5_K", 288, "Q5_1"), ("Q6_K", 288, "Q8_0"), ("Q2_K", 288, "Q4_0"),
     ("IQ4_XS", 288, "IQ4_NL"), ("Q4_K", 100, "F16"), ("Q8_0", 100, "F16"), ("Q4_K", 512, "Q4_K"), ("F32", 7, "F32")],
)  # fmt: skip
def test_awkward_widths_fall_back(wanted, n_in, got):
    assert fitting_type(GgmlType[wanted], n_in).name == got


def test_experts():
    rules = MixtureRules(file_type("MXFP4_MOE"), ModelShape(2, 1, 4, False), ["output.weight"], has_imatrix=False)
    assert rules.choose(tensor("blk.0.ffn_up_exps.weight", 4, 64, 64)) is GgmlType.MXFP4
    assert rules.choose(tensor("blk.0.attn_q.weight", 64, 64)) is GgmlType.Q8_0
    rules = MixtureRules(file_type("Q4_K_M"), ModelShape(2, 1, 8, False), ["output.weight"], has_imatrix=False)
    assert rules.choose(tensor("blk.0.attn_k.weight", 64, 64)) is GgmlType.Q8_0
    assert rules.choose(tensor("blk.0.attn_v.weight", 64, 64)) is GgmlType.Q8_0
    assert rules.choose(tensor("blk.0.attn_output.weight", 64, 64)) is GgmlType.Q5_K


def test_options_go_before_the_rules():
    parts = [tensor(n, 256, 256) for n in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight")]
    source = Source(parts)

    def types(**wishes):
        found = planned(source, "Q4_K_M", **wishes)
        return [found[t.name] for t in parts]

    assert types() == ["Q4_K", "Q6_K", "Q4_K"]
    assert types(is_pure=True) == ["Q4_K", "Q4_K", "Q4_K"]
    assert types(leaves_output=True) == ["Q4_K", "F16", "Q4_K"]
    assert types(output_type=GgmlType.Q8_0, embedding_type=GgmlType.Q5_0) == ["Q5_0", "Q8_0", "Q4_K"]
    overrides = [parse_override("attn_.=q6_k"), parse_override("attn_q=F16")]
    assert planned(source, "Q4_K_M", overrides=overrides)["blk.0.attn_q.weight"] == "Q6_K"
    assert list(planned(Source(parts[:1]), "Q4_K_M", output_type=GgmlType.Q8_0).values()) == ["Q8_0"]


def test_wishes_that_cannot_be_carried_out_are_refused():
    source = Source([tensor("blk.0.attn_q.weight", 256, 256)])
    with pytest.raises(ConfigError, match="no tensor's name matches 'atn'"):
        planned(source, "Q4_K_M", overrides=[parse_override("atn=Q8_0")])
    with pytest.raises(ConfigError, match="has no output matrix"):
        planned(source, "Q4_K_M", output_type=GgmlType.Q8_0)
    for text, words in (
        ("x", "expected REGEX=TYPE"),
        ("=Q8_0", "expected REGEX"),
        ("(=Q8_0", "unterminated"),
        ("x=Q9", "no type"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_override(text)
    with pytest.raises(ConfigError, match="IQ1_S is no type that can be written"):
        weight_type("IQ1_S")
    with pytest.raises(ConfigError, match="IQ2_XS is a type that llama-quantize writes and llmrun does not, expected"):
        file_type("IQ2_XS")
    with pytest.raises(ConfigError, match="Q4_X is no file type"):
        file_type("Q4_X")
    assert file_type("q4_k") is MIXTURES["Q4_K_M"]


def test_quantised_tensors_need_permission_unless_they_stay():
    source = Source([tensor("blk.0.attn_q.weight", 256, 256, kind=GgmlType.Q8_0)])
    assert planned(source, "Q8_0") == {"blk.0.attn_q.weight": "Q8_0"}
    with pytest.raises(ConfigError, match=r"is quantised already \(tensor 'blk\.0\.attn_q\.weight' is Q8_0\)"):
        planned(source, "F16")
    assert planned(source, "F16", allows_requantize=True) == {"blk.0.attn_q.weight": "F16"}
    assert planned(source, "Q4_K_M", keeps_quantized=True) == {"blk.0.attn_q.weight": "Q8_0"}


def test_counts_that_are_no_counts_are_refused():
    bad = {"llama.block_count": MetaValue.text("x")}
    with pytest.raises(FormatError, match=r"'llama\.block_count' is no count"):
        planned(Source([], extra=bad), "Q8_0")
    many = {"llama.attention.head_count_kv": MetaValue.numbers(ValueType.I32, [1, 2])}
    assert planned(Source([], extra=many), "Q8_0") == {}


def test_an_importance_matrix_of_another_model_is_refused():
    source = Source([tensor("blk.0.attn_q.weight", 256, 256), tensor("blk.0.attn_k.weight", 256, 256)])
    imatrix = Imatrix(chunk_size=8, path=Path("i.gguf"), datasets=["text"])
    with pytest.raises(FormatError, match="has no entry for any tensor"):
        planned(source, "Q4_K_M", imatrix=imatrix)
    imatrix.add("blk.0.attn_q.weight", np.ones((8, 256), np.float32))
    plan = plan_quantization(source, QuantizeOptions(mixture=file_type("Q4_K_M"), imatrix=imatrix))
    assert plan.notes == ["1 tensors have no entry in the importance matrix: blk.0.attn_k.weight"]
    values = plan.metadata()
    assert values["quantize.imatrix.entries_count"].value == 1
    assert (values["general.file_type"].value, values["general.quantization_version"].value) == (15, 2)
    imatrix.add("blk.0.attn_k.weight", np.ones((8, 128), np.float32))
    with pytest.raises(FormatError, match=r"has 128 columns, expected 256"):
        planned(source, "Q4_K_M", imatrix=imatrix)
