"""``llmrun quantize``: whole files written, refusals in one line, nothing left behind."""

import gguf
import numpy as np
import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.gguf import GgufFile
from llmrun.quant.dequantize import dequantize
from llmrun.quant.imatrix import Imatrix
from llmrun.quant.quantize import quantize

from ..hf_tiny import write_hf_folder
from ..tiny_gguf import write_gguf
from ..tiny_models import tiny_model_path


@pytest.fixture
def source(tmp_path):
    return tiny_model_path(tmp_path, "llama_256")


def weights(path):
    with GgufFile.open(path) as file:
        return {
            name: (t.ggml_type.name, dequantize(t.ggml_type, file.data(t)).reshape(t.shape))
            for name, t in file.tensors.items()
        }


def test_the_result_holds_what_the_specification_gives(cli, source, tmp_path):
    result = cli("quantize", source, tmp_path / "out.gguf", "Q4_K_M", "-t", 2)
    assert (result.code, result.out) == (0, f"{tmp_path / 'out.gguf'}\n")
    before, after = weights(source), weights(tmp_path / "out.gguf")
    assert sorted(after) == sorted(before)
    kinds = {name: kind for name, (kind, _) in after.items()}
    assert kinds["blk.0.attn_v.weight"] == "Q6_K" or kinds["blk.1.attn_v.weight"] == "Q6_K"
    assert (kinds["blk.0.attn_q.weight"], kinds["output_norm.weight"]) == ("Q4_K", "F32")
    for name, (kind, values) in after.items():
        old = before[name][1]
        blocks = quantize(old.reshape(-1, old.shape[-1]), GgmlType[kind])
        assert np.array_equal(dequantize(GgmlType[kind], blocks).reshape(old.shape), values), name
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.file_type"].contents() == 15
    assert reader.fields["general.quantization_version"].contents() == 2
    assert result.lines[0].split("\t") == ["type", "tensors", "weights", "before", "after"]
    assert result.lines[-1].startswith("Q4_K_M, ")


def test_threads_do_not_change_a_byte(cli, source, tmp_path):
    for n in (1, 3):
        assert cli("quantize", source, tmp_path / f"{n}.gguf", "IQ4_XS", "-t", n).code == 0
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_the_default_name_is_beside_the_source(cli, source, tmp_path):
    result = cli("quantize", source, "q8_0")
    assert result.out == f"{tmp_path / 'tiny-llama_256-Q8_0.gguf'}\n"
    assert cli("quantize", source, "Q8_0").err == f"error: {result.out.strip()}: exists already; --force replaces it\n"
    assert cli("quantize", source, "Q8_0", "--force").code == 0
    assert sorted(p.name for p in tmp_path.glob("*")) == ["tiny-llama_256-Q8_0.gguf", "tiny-llama_256-f32.gguf"]


def test_there_and_back(cli, source, tmp_path):
    """Q8_0 to F16 keeps every weight: 8 bits times a half-precision scale has at most 18 bits, rounded to 11."""
    assert cli("quantize", source, tmp_path / "q8.gguf", "Q8_0").code == 0
    refused = cli("quantize", tmp_path / "q8.gguf", tmp_path / "f16.gguf", "F16")
    assert refused.code == 1
    assert "is quantised already" in refused.err
    assert cli("quantize", tmp_path / "q8.gguf", tmp_path / "f16.gguf", "F16", "--allow-requantize").code == 0
    q8, f16 = weights(tmp_path / "q8.gguf"), weights(tmp_path / "f16.gguf")
    for name, (kind, values) in f16.items():
        assert kind == ("F32" if values.ndim == 1 else "F16")
        assert np.array_equal(values, q8[name][1] if values.ndim == 1 else q8[name][1].astype(np.float16))


def test_importance_reaches_the_weights_and_is_noted_in_the_file(cli, source, tmp_path):
    imatrix = Imatrix(chunk_size=8, datasets=["text.txt"])
    rng = np.random.default_rng(0)
    before = weights(source)
    for name, (_, values) in before.items():
        if values.ndim == 2 and name.startswith("blk."):
            imatrix.add(name, rng.standard_normal((8, values.shape[1])).astype(np.float32))
    imatrix.save(tmp_path / "i.gguf")
    result = cli("quantize", source, tmp_path / "out.gguf", "Q4_K_S", "--imatrix", tmp_path / "i.gguf")
    assert result.code == 0
    kind, values = weights(tmp_path / "out.gguf")["blk.0.attn_q.weight"]
    old = before["blk.0.attn_q.weight"][1]
    blocks = quantize(old, GgmlType[kind], Imatrix.load(tmp_path / "i.gguf").importance("blk.0.attn_q.weight", 256))
    assert np.array_equal(dequantize(GgmlType[kind], blocks), values)
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["quantize.imatrix.dataset"].contents() == "text.txt"


def test_stacked_matrices_have_an_importance_each(cli, tmp_path):
    rng = np.random.default_rng(1)
    stack = rng.standard_normal((2, 20, 64)).astype(np.float32)
    meta = {"general.architecture": "llama", "llama.block_count": 1, "llama.expert_count": 2}
    write_gguf(tmp_path / "m.gguf", meta, {"blk.0.ffn_up_exps.weight": stack})
    imatrix = Imatrix(chunk_size=8)
    imatrix._sums["blk.0.ffn_up_exps.weight"] = rng.uniform(1, 100, (2, 64))
    imatrix._counts["blk.0.ffn_up_exps.weight"] = np.array([1, 1])
    imatrix.save(tmp_path / "i.gguf")
    assert cli("quantize", tmp_path / "m.gguf", tmp_path / "o.gguf", "Q4_0", "--imatrix", tmp_path / "i.gguf").code == 0
    got = weights(tmp_path / "o.gguf")["blk.0.ffn_up_exps.weight"][1]
    each = Imatrix.load(tmp_path / "i.gguf").stacked("blk.0.ffn_up_exps.weight", 64)
    for i in range(2):
        assert np.array_equal(got[i], dequantize(GgmlType.Q4_0, quantize(stack[i], GgmlType.Q4_0, each[i])))


def test_split_models_stay_split_if_wanted(cli, tmp_path):
    rng = np.random.default_rng(2)
    tensors = {f"blk.{i}.ffn_up.weight": rng.standard_normal((4, 64)).astype(np.float32) for i in range(3)}
    meta = {"general.architecture": "llama", "llama.block_count": 3}
    first = write_gguf(tmp_path / "m.gguf", meta, tensors, split_max_tensors=1)
    result = cli("quantize", first, tmp_path / "o.gguf", "Q8_0", "--keep-split")
    assert result.out.splitlines() == [str(tmp_path / f"o-0000{i}-of-00003.gguf") for i in (1, 2, 3)]
    assert cli("quantize", first, tmp_path / "whole.gguf", "Q8_0").code == 0
    split, whole = weights(tmp_path / "o-00002-of-00003.gguf"), weights(tmp_path / "whole.gguf")
    for name in tensors:
        assert np.array_equal(split[name][1], whole[name][1])
    assert "exists already" in cli("quantize", first, tmp_path / "o.gguf", "Q8_0", "--keep-split").err


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(cli, tmp_path, bad):
    matrix, norm = np.ones((4, 64), np.float32), np.ones(64, np.float32)
    matrix[2, 5] = bad
    meta = {"general.architecture": "llama", "llama.block_count": 1}
    write_gguf(tmp_path / "m.gguf", meta, {"blk.0.ffn_up.weight": matrix, "output_norm.weight": norm})
    for kind in ("Q8_0", "F16", "F32"):
        result = cli("quantize", tmp_path / "m.gguf", tmp_path / "o.gguf", kind)
        assert result.code == 1
        assert result.lines[-1] == (
            f"error: {tmp_path / 'm.gguf'}: tensor 'blk.0.ffn_up.weight' holds {bad} in row 2, column 5;"
            " --allow-nan converts it nevertheless"
        )
        assert not (tmp_path / "o.gguf").exists()
    assert cli("quantize", tmp_path / "m.gguf", tmp_path / "o.gguf", "F16", "--allow-nan").code == 0
    assert np.array_equal(weights(tmp_path / "o.gguf")["blk.0.ffn_up.weight"][1], matrix, equal_nan=True)
    assert cli("quantize", tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0", "--allow-nan").code == 0
    finite = np.nan_to_num(matrix, nan=0, posinf=1)
    assert np.allclose(weights(tmp_path / "q.gguf")["blk.0.ffn_up.weight"][1], finite, rtol=1e-3)


def test_a_hugging_face_folder_is_a_source(cli, tmp_path):
    folder = write_hf_folder(tmp_path / "hf", "llama")
    result = cli("quantize", folder, tmp_path / "o.gguf", "Q8_0")
    assert result.code == 0, result.err
    assert weights(tmp_path / "o.gguf")["blk.0.attn_q.weight"][0] == "Q8_0"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("{in}", "Q9"), "Q9 is no file type, expected one of: F32, F16"),
        (("{in}", "{in}", "Q8_0"), "is the file that is read"),
        (("{in}", "{dir}", "Q8_0"), "is a folder, expected a file to write"),
        (("{in}", "{dir}/no/o.gguf", "Q8_0"), "cannot be written: No such file"),
        (("{dir}/no.gguf", "Q8_0"), "no such file or model"),
        (("{in}", "Q8_0", "--tensor-type", "zzz=Q8_0"), "no tensor's name matches 'zzz'"),
        (("{in}", "Q8_0", "--imatrix", "{in}"), "tiny"),
        (("{in}", "Q8_0", "--leave-output-tensor", "--output-tensor-type", "F16"), "exclude each other"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(cli, source, tmp_path, args, message):
    result = cli("quantize", *(a.format(**{"in": source, "dir": tmp_path}) for a in args))
    assert result.code == 1
    assert len(result.lines) == 1
    assert message in result.err
    assert list(tmp_path.iterdir()) == [source]


def test_one_or_four_arguments_are_wrong_usage(cli, source):
    assert cli("quantize", source).code == 2
    assert cli("quantize", source, "a", "b", "Q8_0").code == 2


def test_a_dry_run_writes_nothing(cli, source, tmp_path):
    result = cli("quantize", source, "Q4_K_M", "--dry-run")
    assert result.code == 0
    assert [line[:20].strip() for line in result.out.splitlines()] == [
        "would write", "size", "memory", "speed here", "memory to quantise",
        "disk to quantise",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [source]
