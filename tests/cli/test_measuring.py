"""``llmrun imatrix`` and ``eval kld`` from the command line, on tiny real models."""

import json

import gguf
import numpy as np
import pytest

from llmrun.formats.gguf import GgufFile
from llmrun.formats.logits_file import LogitsFile
from llmrun.quant.imatrix import Imatrix
from llmrun.runtime.texts import CALIBRATION, calibration_text

from ..hf_tiny import write_hf_folder
from ..tiny_models import tiny_model_path

SMALL = ("-c", 64, "--chunks", 2, "-t", 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    kinds = gguf.GGMLQuantizationType
    return tiny_model_path(folder, "qwen2", kinds.F32), tiny_model_path(folder, "qwen2", kinds.Q8_0)


def test_imatrix_with_the_text_that_comes_along(cli, tiny, tmp_path):
    result = cli("imatrix", tiny[1], "-o", tmp_path / "m.gguf", *SMALL)
    assert (result.code, result.out) == (0, "")
    assert result.err.endswith("m.gguf: 21 matrices, 2 chunks of 64 tokens (128 tokens)\n")
    matrix = Imatrix.load(tmp_path / "m.gguf")
    assert (matrix.datasets, matrix.n_chunk, matrix.chunk_size) == ([CALIBRATION], 2, 64)
    again = cli("imatrix", tiny[1], "-o", tmp_path / "m.gguf", *SMALL)
    assert again.code == 2
    assert "--force replaces it" in again.err
    more = cli(
        "imatrix", tiny[1], "-o", tmp_path / "m.gguf", *SMALL, "--force", "--output-format", "dat",
        "--in-file", tmp_path / "m.gguf", "--process-output",
    )  # fmt: skip
    assert more.code == 0, more.err
    matrix = Imatrix.load(tmp_path / "m.gguf", chunk_size=64)
    assert (len(matrix.names), matrix.n_chunk) == (22, 4)


def test_kld_of_two_models(cli, tiny, tmp_path):
    text = tmp_path / "text"
    text.write_text(calibration_text()[:2000])
    plain = cli("eval", "kld", tiny[1], tiny[0], *SMALL, "-f", text)
    assert (plain.code, plain.err) == (0, "")
    assert "Mean    KLD:" in plain.out
    record = json.loads(cli("eval", "kld", tiny[1], tiny[0], *SMALL, "-f", text, "--json").out)
    assert record["n_token"] == 62
    assert 0 < record["kld_mean"] < 0.1
    assert f"Mean    KLD: {record['kld_mean']:10.6f}" in plain.out
    int8 = json.loads(cli("eval", "kld", tiny[1], tiny[0], *SMALL, "-f", text, "--json", "--activations", "int8").out)
    assert int8["kld_mean"] > record["kld_mean"]


def test_kld_through_a_file(cli, tiny, tmp_path):
    file = tmp_path / "base"
    assert cli("eval", "kld", tiny[0], "--save-base", file, *SMALL).code == 0
    assert LogitsFile(file).n_chunk == 2
    through = json.loads(cli("eval", "kld", tiny[1], "--kl-divergence-base", file, "--json").out)
    direct = json.loads(cli("eval", "kld", tiny[1], tiny[0], *SMALL, "--json").out)
    assert through["kld_mean"] == pytest.approx(direct["kld_mean"], rel=0.05)
    assert cli("eval", "kld", tiny[0], "--save-base", file, *SMALL).code == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give either BASE"),
        (("--activations", "int4", "x"), "expected float or int8"),
        (("--save-base", "x", "--kl-divergence-base", "y"), "give either BASE"),
        (("--kl-divergence-base", "y", "-f", "z"), "holds its text already"),
    ],
)
def test_usage(args, message, cli, tiny):
    result = cli("eval", "kld", tiny[0], *args)
    assert result.code == 2
    assert message in " ".join(result.err.split())


def test_a_text_that_is_too_short(cli, tiny, tmp_path):
    (tmp_path / "t").write_text("a few words")
    result = cli("imatrix", tiny[0], "-f", tmp_path / "t", "-o", tmp_path / "m")
    assert result.code == 1
    assert len(result.lines) == 1
    assert "expected at least 1024 for a context of 512" in result.err
    assert not (tmp_path / "m").exists()


def test_compare_shows_what_differs(cli, tiny, tmp_path):
    plain = cli("eval", "compare", *tiny, *SMALL, "--top", 3)
    assert (plain.code, plain.err) == (0, "")
    for words in ("KL divergence     mean 0.", "flipped probes    ", "most divergent tokens", "stand out: none"):
        assert words in plain.out, words
    record = json.loads(cli("eval", "compare", *tiny, *SMALL, "--top", 3, "--json").out, parse_constant=pytest.fail)
    assert [len(record[k]) for k in ("probes", "divergent", "suspicious", "notes")] == [24, 3, 0, 0]
    assert record["divergent"][0]["kld"] == pytest.approx(record["kld_q1"])
    assert record["divergent"][0]["kld"] >= record["divergent"][1]["kld"]


def test_compare_finds_another_models_tensor(cli, tiny, tmp_path):
    """One matrix with its rows in reverse: the same values, another function."""
    with GgufFile.open(tiny[0]) as file:
        info = file.tensors["blk.1.ffn_up.weight"]
    data = bytearray(tiny[0].read_bytes())
    rows = np.frombuffer(data, "<f4", 128 * 64, info.offset).reshape(128, 64)[::-1].copy()
    data[info.offset : info.offset + info.n_bytes] = rows.tobytes()
    (tmp_path / "other.gguf").write_bytes(data)
    result = cli("eval", "compare", tiny[0], tmp_path / "other.gguf", *SMALL)
    assert "tensors that stand out: 1" in result.out
    assert "blk.1.ffn_up.weight (F32 -> F32): " in result.out
    assert "other weights, not a rounding" in result.out


def test_a_folder_is_measured_like_its_file(cli, tiny, tmp_path):
    """A Hugging Face checkpoint and the GGUF file that is made of it are one model."""
    folder = write_hf_folder(tmp_path / "hf", "llama_llama3")
    assert cli("quantize", folder, tmp_path / "f32.gguf", "F32").code == 0
    record = json.loads(cli("eval", "kld", tmp_path / "f32.gguf", folder, *SMALL, "--json").out)
    assert record["kld_q1"] == pytest.approx(0, abs=1e-12)
    assert cli("imatrix", folder, "-o", tmp_path / "m.gguf", *SMALL).code == 0
