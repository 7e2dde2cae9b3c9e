"""GPTQ, AWQ, compressed-tensors and fp8 checkpoints: the weights that they mean, and which grids survive exactly."""

import zlib

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.convert.carry import encode, minimum_error
from llmrun.quant.convert.checkpoint import HfSource
from llmrun.quant.convert.grids import Grid
from llmrun.quant.convert.sources import rope_order, to_f32
from llmrun.quant.dequantize import dequantize

from ...hf_tiny import hf_tensors, write_hf_folder
from .packers import awq, compressed, gptq

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
N_GROUP_COLUMNS = 32


def rng_for(*parts):
    return np.random.default_rng(zlib.crc32("/".join(map(str, parts)).encode()))


class Quantised:
    """The tiny llama with every linear matrix replaced by random integers, and the weights that these mean.

    Args:
        pack: makes the tensors of a matrix from q, zero, scale and group.
        bits: of an integer.
        is_symmetric: all zero points are in the middle.
        size: columns of a group.
        scatter: columns belong to groups at random (GPTQ's desc_act).
        bf16: scales are rounded to bfloat16 instead of half precision.
        scales: smallest and largest scale.
    """

    def __init__(self, pack, *, bits=4, is_symmetric=True, size=32, scatter=False, bf16=False, scales=(1e-3, 0.1)):
        self.arrays, self.weights = {}, {}
        for name, value in hf_tensors("llama").items():
            module = name.removesuffix(".weight")
            if not module.endswith(LINEAR):
                self.arrays[name] = value
                continue
            rng = rng_for(name, bits, is_symmetric, size)
            n_out, n_in = value.shape
            n_group, middle = -(-n_in // size), 1 << (bits - 1)
            group = np.arange(n_in) // size
            group = rng.permutation(group) if scatter else group
            q = rng.integers(0, 1 << bits, value.shape)
            zero = np.full((n_out, n_group), middle) if is_symmetric else rng.integers(0, 1 << bits, (n_out, n_group))
            scale = rng.uniform(*scales, (n_out, n_group)).astype(np.float32)
            if bf16:
                scale = (scale.view(np.uint32) >> 16 << 16).view(np.float32)
            else:
                scale = scale.astype(np.float16).astype(np.float32)
            self.weights[module] = ((q - zero[:, group]) * scale[:, group].astype(np.float64)).astype(np.float32)
            self.arrays |= {f"{module}.{part}": tensor for part, tensor in pack(q, zero, scale, group).items()}

    def open(self, folder, settings, **options):
        config = {"quantization_config": settings}
        return HfSource.open(write_hf_folder(folder, "llama", arrays=self.arrays, config=config), **options)


def module_of(gguf_name):
    _, layer, part, _ = gguf_name.split(".")
    places = {"attn_q": "self_attn.q", "attn_k": "self_attn.k", "attn_v": "self_attn.v", "attn_output": "self_attn.o"}
    places |= {"ffn_gate": "mlp.gate", "ffn_up": "mlp.up", "ffn_down": "mlp.down"}
    return f"model.layers.{layer}.{places[part]}_proj"


def expected(weights, tensor):
    """Return the weights of a tensor in the order of GGUF's rows."""
    value = weights[module_of(tensor.name)]
    return value[rope_order(len(value), 16)] if ".attn_q." in tensor.name or ".attn_k." in tensor.name else value


def linear(source):
    return [t for t in source.tensors if len(t.shape) == 2 and t.name.startswith("blk.")]


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def ct(**weights):
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32} | weights,
    }
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


CASES = {
    "gptq": (lambda q, z, s, g: gptq(q, z, s, g), GPTQ, {}, "Q4_0"),
    "gptq without g_idx": (lambda q, z, s, g: gptq(q, z, s, g, g_idx=False), GPTQ, {}, "Q4_0"),
    "gptq v2": (lambda q, z, s, g: gptq(q, z, s, g, version=2), GPTQ | {"checkpoint_format": "gptq_v2"}, {}, "Q4_0"),
    "gptq asymmetric": (lambda q, z, s, g: gptq(q, z, s, g), GPTQ | {"sym": False}, {"is_symmetric": False}, "Q5_0"),
    "gptq 64": (lambda q, z, s, g: gptq(q, z, s, g), GPTQ | {"group_size": 64}, {"size": 64}, "Q4_0"),
    "gptq one group": (lambda q, z, s, g: gptq(q, z, s, g), GPTQ | {"group_size": -1}, {"size": 96}, "Q4_0"),
    "gptq 8 bits": (lambda q, z, s, g: gptq(q, z, s, g, bits=8), GPTQ | {"bits": 8}, {"bits": 8}, "Q8_0"),
    "gptq desc_act": (lambda q, z, s, g: gptq(q, z, s, g), GPTQ | {"desc_act": True}, {"scatter": True}, "F32"),
    "gptq 16": (lambda q, z, s, g: gptq(q, z, s, g), GPTQ | {"group_size": 16}, {"size": 16}, "F32"),
    "awq": (lambda q, z, s, g: awq(q, z, s), AWQ, {"is_symmetric": False}, "Q5_0"),
    "awq symmetric": (lambda q, z, s, g: awq(q, z, s), AWQ, {}, "Q4_0"),
    "ct": (lambda q, z, s, g: compressed(q, z, s), ct(), {}, "Q4_0"),
    "ct bf16": (lambda q, z, s, g: compressed(q, z, s, dtype="BF16"), ct(), {"bf16": True}, "Q4_0"),
    "ct asymmetric": (
        lambda q, z, s, g: compressed(q, z, s, is_symmetric=False),
        ct(symmetric=False),
        {"is_symmetric": False},
        "Q5_0",
    ),
    "ct channel": (
        lambda q, z, s, g: compressed(q, z, s),
        ct(strategy="channel", group_size=None),
        {"size": 96},
        "Q4_0",
    ),
    "ct scattered": (lambda q, z, s, g: compressed(q, z, s, group=g), ct(actorder="group"), {"scatter": True}, "F32"),
    "ct 8 bits": (lambda q, z, s, g: compressed(q, z, s, bits=8), ct(num_bits=8), {"bits": 8}, "Q8_0"),
    "ct tiny bf16 scales": (
        lambda q, z, s, g: compressed(q, z, s, dtype="BF16"),
        ct(),
        {"bf16": True, "scales": (1e-7, 2e-7)},
        "F32",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_the_integers_and_the_grid_survives_where_a_type_holds_it(case, tmp_path):
    pack, settings, options, type_name = CASES[case]
    model = Quantised(pack, **options)
    source = model.open(tmp_path / "hf", settings)
    for tensor in linear(source):
        wanted = expected(model.weights, tensor)
        assert tensor.ggml_type.name == type_name
        np.testing.assert_array_equal(tensor.read_rows(0, tensor.n_rows), wanted, err_msg=tensor.name)
        np.testing.assert_array_equal(tensor.read_rows(5, 9), wanted[5:9])
        np.testing.assert_array_equal(dequantize(tensor.ggml_type, tensor.read_raw()), wanted, err_msg=tensor.name)
        tensor.release()
    said = "held exactly by " + type_name if type_name != "F32" else "that no GGUF type holds"
    assert any(said in note for note in source.notes)
    source.close()


def test_asymmetric_integers_keep_their_grid_in_q4_1_with_rounded_minima(tmp_path):
    """A minimum of 15 steps is off by at most half a unit in the last of 11 bits: 15 * 2**-11, 0.73 % of a step."""
    model = Quantised(lambda q, z, s, g: gptq(q, z, s, g), is_symmetric=False)
    source = model.open(tmp_path / "hf", GPTQ | {"sym": False}, wanted=GgmlType.Q4_1)
    for tensor in linear(source):
        assert tensor.ggml_type == GgmlType.Q4_1
        got, wanted = dequantize(GgmlType.Q4_1, tensor.read_raw()), expected(model.weights, tensor)
        assert np.abs(got - wanted).max() <= 0.1 * 15 * 2.0**-11
        assert np.abs(got - wanted).max() > 0
    (note,) = [note for note in source.notes if "Q4_1" in note]
    assert "minima rounded: off by at most 0.72 % of a step" in note
    source.close()


def test_q4_1_is_exact_where_the_minima_are(tmp_path):
    """Scales that are powers of two leave all eleven bits to the zero point."""
    rng = rng_for("powers")
    q, zero = rng.integers(0, 16, (8, 64)).astype(np.int32), rng.integers(0, 16, (8, 2)).astype(np.int32)
    scale = (2.0 ** rng.integers(-8, -2, (8, 2))).astype(np.float32)
    assert not minimum_error(scale, zero).any()
    grid = Grid(q, zero, scale, np.arange(64) // 32)
    np.testing.assert_array_equal(dequantize(GgmlType.Q4_1, encode(grid, GgmlType.Q4_1)), grid.values())


def test_a_zero_point_of_zero_survives_version_1(tmp_path):
    """Version 1 stores zero - 1, which is 15 for 0."""
    model = Quantised(lambda q, z, s, g: gptq(q, z * 0, s, g))
    for module in model.weights:
        assert model.arrays[f"{module}.qzeros"].view(np.uint32).min() == 0xFFFFFFFF
    source = model.open(tmp_path / "hf", GPTQ)
    assert all(tensor.read_rows(0, tensor.n_rows).min() >= 0 for tensor in linear(source))
    source.close()


@pytest.mark.parametrize("kind", ["block", "row", "column", "whole", "one"])
def test_fp8_matrices_are_scaled(kind, tmp_path):
    arrays, weights = {}, {}
    for name, value in hf_tensors("llama").items():
        module = name.removesuffix(".weight")
        if not module.endswith(LINEAR):
            arrays[name] = value
            continue
        rng = rng_for(name, kind)
        codes = rng.integers(0, 127, value.shape, dtype=np.uint8)  # all but the NaNs
        n_out, n_in = value.shape
        shape = {
            "block": (-(-n_out // 48), -(-n_in // 40)),
            "row": (n_out, 1),
            "column": (n_out,),
            "whole": (),
            "one": (1,),
        }
        scale = rng.uniform(0.5, 2, shape[kind]).astype(np.float32)
        full = scale.reshape(-1, 1) if kind == "column" else scale
        if kind == "block":
            full = np.repeat(np.repeat(scale, 48, axis=0), 40, axis=1)[:n_out, :n_in]
        weights[module] = to_f32("F8_E4M3", codes) * full
        part = "weight_scale_inv" if kind == "block" else "weight_scale"
        arrays |= {name: ("F8_E4M3", codes), f"{module}.{part}": scale, f"{module}.input_scale": np.float32([1])}
    block = {"weight_block_size": [48, 40]} if kind == "block" else {}
    config = {"quantization_config": {"quant_method": "fp8"} | block}
    source = HfSource.open(write_hf_folder(tmp_path / "hf", "llama", arrays=arrays, config=config))
    for tensor in linear(source):
        assert tensor.ggml_type == GgmlType.F32
        np.testing.assert_array_equal(tensor.read_rows(0, tensor.n_rows), expected(weights, tensor))
        np.testing.assert_array_equal(tensor.read_rows(7, 20), expected(weights, tensor)[7:20])
    source.close()


def test_values_of_8_bit_floats():
    """The largest, the smallest and the special ones of arXiv 2209.05433, table 1."""
    e4m3 = to_f32("F8_E4M3", np.array([0x00, 0x01, 0x08, 0x38, 0x7E, 0xFE, 0x80], np.uint8))
    np.testing.assert_array_equal(e4m3, np.float32([0, 2.0**-9, 2.0**-6, 1, 448, -448, -0.0]))
    assert np.isnan(to_f32("F8_E4M3", np.array([0x7F, 0xFF], np.uint8))).all()
    e5m2 = to_f32("F8_E5M2", np.array([0x01, 0x04, 0x3C, 0x7B, 0x7C, 0xFC], np.uint8))
    np.testing.assert_array_equal(e5m2, np.float32([2.0**-16, 2.0**-14, 1, 57344, np.inf, -np.inf]))
    assert np.isnan(to_f32("F8_E5M2", np.array([0x7D, 0x7E, 0x7F, 0xFF], np.uint8))).all()


def drop(part):
    return lambda arrays: {
        name: value for name, value in arrays.items() if name != f"model.layers.1.mlp.up_proj.{part}"
    }


def put(part, value):
    return lambda arrays: {**arrays, f"model.layers.1.mlp.up_proj.{part}": value}


def SAME(arrays):  # noqa: N802
    return arrays


DAMAGE = {
    "scales missing": (drop("scales"), GPTQ, "is there without its scales"),
    "zeros missing": (drop("qzeros"), GPTQ, "is there without its qzeros"),
    "integers missing": (drop("qweight"), GPTQ, "is there without its qweight"),
    "other group size": (SAME, GPTQ | {"group_size": 64}, r"qzeros' is I32 \[2, .*\], expected I32 \[1, "),
    "groups of 0": (SAME, GPTQ | {"group_size": 0}, "'group_size' is 0, expected -1 or a count"),
    "3 bits": (SAME, GPTQ | {"bits": 3}, "'bits' is 3, expected 4 or 8"),
    "8 bits said": (SAME, GPTQ | {"bits": 8}, "expected I32"),
    "groups outside": (put("g_idx", np.full(64, 9, np.int32)), GPTQ, "names groups outside 0 to 1"),
    "negative groups": (put("g_idx", np.full(64, -2, np.int32)), GPTQ, "names groups outside 0 to 1"),
    "float integers": (put("qweight", np.zeros((8, 96), np.float32)), GPTQ, "is F32 .*, expected I32"),
    "shape of integers": (put("qweight", np.zeros((7, 96), np.int32)), GPTQ, r"\[7, 96\], expected I32 \[8, 96\]"),
    "marlin": (SAME, GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin', expected gptq"),
    "awq gemv": (SAME, AWQ | {"version": "gemv"}, "AWQ of version 'gemv', expected gemm"),
    "awq said": (SAME, AWQ, "expected I32"),
    "no method": (SAME, None, "is of a quantised matrix, but config.json names no method"),
    "ct format": (SAME, ct() | {"format": "marlin-24"}, "format 'marlin-24' of int weights is not supported"),
    "ct groups": (SAME, ct() | {"config_groups": {}}, "expected one group of config_groups"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_quantised_checkpoints_are_refused_in_one_line(case, tmp_path):
    damage, settings, message = DAMAGE[case]
    model = Quantised(lambda q, z, s, g: gptq(q, z, s, g))
    model.arrays = damage(model.arrays)
    with pytest.raises(FormatError, match=message) as caught:
        model.open(tmp_path / "hf", settings)
    assert "\n" not in str(caught.value)
