"""``llmrun quantize --method``: calibrated files, an interrupted run that goes on, refusals."""

import json
from contextlib import closing
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from llmrun.cli.checkpoint_source import open_source
from llmrun.cli.render.text import size
from llmrun.formats.gguf import GgufFile
from llmrun.quant.dequantize import dequantize
from llmrun.quant.file_types import MIXTURES
from llmrun.quant.quantize_plan import QuantizeOptions, plan_quantization
from llmrun.runtime import calibrated
from llmrun.runtime.texts import calibration_text

from ..hf_tiny import write_hf_folder
from ..models.off_grid import move_off_grid
from ..tiny_models import tiny_model_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    move_off_grid(tiny_model_path(folder, "qwen2", gguf.GGMLQuantizationType.F32), folder / "tiny.gguf", sigma=0.8)
    return folder / "tiny.gguf"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_text(calibration_text()[:3000])
    return tmp_path / "text"


def files(folder):
    return sorted(p.name for p in folder.iterdir() if p.is_file())


def divergence(cli, path, base, text):
    return json.loads(cli("eval", "kld", path, base, "-f", text, "-c", 64, "--json").out)["kld_mean"]


def test_a_dry_run_counts_what_a_method_takes(cli, tiny, text, tmp_path):
    """Of disk: the result, a journal as large, and the rows of the text between two layers."""
    from llmrun.runtime.calibrated_plan import Calibration, needs_of

    result = cli("quantize", tiny, tmp_path / "out.gguf", "Q4_0", "--method", "gptq", "-f", text, "--dry-run")
    assert result.code == 0, result.err
    with closing(open_source(str(tiny))) as checkpoint:
        plan = plan_quantization(checkpoint, QuantizeOptions(mixture=MIXTURES["Q4_0"]))
        needs = {
            method: needs_of(plan, method and Calibration(method, text.read_text(), "text"))
            for method in (None, "imatrix", "gptq")
        }
        n_embd, n_ff = (
            checkpoint.metadata[f"qwen2.{key}"].value for key in ("embedding_length", "feed_forward_length")
        )
        n_hidden = needs["gptq"].disk - 2 * plan.n_bytes
        assert needs[None].disk == plan.n_bytes
        assert n_hidden % (4 * n_embd) == 0
        assert 100 < n_hidden / (4 * n_embd) <= 24 * 512
        assert needs["gptq"].memory - needs["imatrix"].memory == 2 * 4 * n_ff * n_ff
    shown = dict((line[:20].strip(), line[20:]) for line in result.out.splitlines())  # noqa: C402 (reads better)
    assert shown["memory to quantise"] == f"about {size(needs['gptq'].memory)} at most"
    assert shown["disk to quantise"].startswith(f"{size(needs['gptq'].disk)}, ")
    assert files(tmp_path) == ["text"]


def test_methods_get_better_and_say_how_they_were_made(cli, tiny, text, tmp_path):
    found = {}
    for method in ("rtn", "imatrix", "awq+gptq"):
        path = tmp_path / f"{method}.gguf"
        more = () if method == "rtn" else ("-f", text)
        result = cli("quantize", tiny, path, "Q4_0", "--method", method, *more, "-t", 2)
        assert (result.code, result.out) == (0, f"{path}\n"), result.err
        found[method] = divergence(cli, path, tiny, text)
    assert found["awq+gptq"] < 0.7 * found["rtn"]
    with GgufFile.open(tmp_path / "awq+gptq.gguf") as made, GgufFile.open(tmp_path / "rtn.gguf") as plain:
        assert made.metadata.required("llmrun.quantize.method", str) == "awq+gptq"
        assert made.metadata.required("llmrun.quantize.text", str) == "text"
        kinds = [{n: (t.ggml_type, t.shape) for n, t in f.tensors.items()} for f in (made, plain)]
        assert kinds[0] == kinds[1]
        norm = "blk.1.ffn_norm.weight"
        values = [dequantize(f.tensors[norm].ggml_type, f.data(f.tensors[norm])) for f in (made, plain)]
        assert not np.array_equal(*values)
    assert not any("calibration" in name for name in files(tmp_path))


@pytest.fixture
def imatrix(cli, tiny, text, tmp_path):
    assert cli("imatrix", tiny, "-f", text, "-o", tmp_path / "imatrix", "-c", 64).code == 0
    return tmp_path / "imatrix"


def test_an_importance_matrix_alone_says_how_channels_are_scaled(cli, tiny, text, imatrix, tmp_path):
    found = {}
    for method in ("rtn", "awq"):
        path = tmp_path / f"{method}.gguf"
        result = cli("quantize", tiny, path, "Q4_0", "--method", method, "--imatrix", imatrix)
        assert (result.code, result.out) == (0, f"{path}\n"), result.err
        found[method] = divergence(cli, path, tiny, text)
    assert found["awq"] < 0.9 * found["rtn"]
    with GgufFile.open(path) as made:
        assert made.metadata.required("llmrun.quantize.method", str) == "awq"
        assert made.metadata.required("quantize.imatrix.file", str) == str(imatrix)
    assert cli("quantize", tiny, tmp_path / "t.gguf", "--target-bpw", 7, "--imatrix", imatrix, "-f", text).code == 0
    with GgufFile.open(tmp_path / "t.gguf") as made:
        assert made.metadata.required("llmrun.quantize.method", str) == "awq"


@pytest.mark.parametrize("by_imatrix", [False, True])
def test_a_card_of_scaled_weights_names_no_tensors(cli, tiny, text, imatrix, tmp_path, by_imatrix):
    more = ("--imatrix", imatrix) if by_imatrix else ("-f", text)
    result = cli("quantize", tiny, tmp_path / "o.gguf", "Q4_0", "--method", "awq", *more, "--quality-text", text)
    assert result.code == 0, result.err
    assert "quality: KL divergence" in result.err
    assert "worst tensors" not in result.err


def test_an_ended_run_goes_on_and_gives_the_same_bytes(cli, tiny, text, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole.gguf", tmp_path / "resumed.gguf"
    arguments = ("Q4_0", "--method", "awq+gptq", "-f", text)
    assert cli("quantize", tiny, whole, *arguments).code == 0
    run_layer, n_run = calibrated.CalibratedTensors._run_layer, []

    def ends_in_layer_2(self, layer, pool):
        if layer.index == 2:
            raise KeyboardInterrupt
        run_layer(self, layer, pool)

    monkeypatch.setattr(calibrated.CalibratedTensors, "_run_layer", ends_in_layer_2)
    ended = cli("quantize", tiny, resumed, *arguments)
    assert ended.code == 130
    assert "the same command goes on from there" in ended.err
    assert files(tmp_path) == [".resumed.gguf.calibration", "text", "whole.gguf"]

    def counts(self, layer, pool):
        n_run.append(layer.index)
        run_layer(self, layer, pool)

    monkeypatch.setattr(calibrated.CalibratedTensors, "_run_layer", counts)
    assert cli("quantize", tiny, resumed, *arguments).code == 0
    assert n_run == list(range(2, 2 + len(n_run)))
    assert resumed.read_bytes() == whole.read_bytes()
    assert files(tmp_path) == ["resumed.gguf", "text", "whole.gguf"]


@pytest.mark.parametrize("name", ["llama_llama3", "gemma3"])
def test_a_checkpoint_folder_gives_what_its_gguf_gives(cli, name, text, tmp_path):
    folder = write_hf_folder(tmp_path / "hf", name)
    assert cli("quantize", folder, tmp_path / "f32.gguf", "F32").code == 0
    for source, out in ((folder, "one.gguf"), (tmp_path / "f32.gguf", "other.gguf")):
        result = cli("quantize", source, tmp_path / out, "Q4_0", "--method", "awq+gptq", "-f", text)
        assert result.code == 0, result.err
    with GgufFile.open(tmp_path / "one.gguf") as one, GgufFile.open(tmp_path / "other.gguf") as other:
        for key, info in one.tensors.items():
            assert (one.data(info) == other.data(other.tensors[key])).all(), key


def test_what_is_quantised_already_is_refused(cli, tiny, text, tmp_path):
    assert cli("quantize", tiny, tmp_path / "q8.gguf", "Q8_0").code == 0
    arguments = ("quantize", tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q8_0", "--method", "awq", "-f", text)
    result = cli(*arguments)
    assert (result.code, (tmp_path / "out.gguf").exists()) == (1, False)
    assert "is quantised already (tensor" in result.lines[-1]
    assert cli(*arguments, "--allow-requantize").code == 0
    of_target = cli("quantize", tmp_path / "q8.gguf", tmp_path / "o.gguf", "--target-bpw", 4, "--method", "rtn")
    assert "is quantised already (tensor" in of_target.lines[-1]


def test_a_full_disk_is_told_before_the_work(cli, tiny, text, tmp_path, monkeypatch):
    monkeypatch.setattr("llmrun.formats.atomic_file.shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    result = cli("quantize", tiny, tmp_path / "out.gguf", "Q4_0", "--method", "awq", "-f", text)
    assert (result.code, files(tmp_path)) == (1, ["text"])
    assert "needs" in result.lines[-1]
    assert "free" in result.lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic"), "expected one of rtn, imatrix, awq, gptq, awq+gptq"),
        (("-f", "text"), "a text is for methods that measure"),
        (("--method", "awq", "--chunks", 0), "0 chunks"),
        (("--method", "awq", "-f", "missing"), "missing: No such file"),
        (("--method", "awq", "-f", "short"), "expected at least"),
    ],
)
def test_refusals_are_one_line(cli, tiny, text, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("Hi")
    result = cli("quantize", tiny, tmp_path / "out.gguf", "Q4_0", *arguments)
    assert result.code in (1, 2)
    assert message in result.lines[-1], result.err
    assert files(tmp_path) == ["short", "text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "gptq"), "gptq measures what matters itself; for rtn and awq this can be given"),
        (("--method", "awq", "-f", "text"), "a text is for methods that measure"),
    ],
)
def test_what_excludes_an_importance_matrix_is_said(cli, tiny, imatrix, tmp_path, arguments, message):
    result = cli("quantize", tiny, tmp_path / "out.gguf", "Q4_0", "--imatrix", imatrix, *arguments)
    assert (result.code, files(tmp_path)) == (2, ["imatrix", "text"])
    assert message in result.lines[-1]
