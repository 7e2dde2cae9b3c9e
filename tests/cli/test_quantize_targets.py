"""``llmrun quantize --target…``: files that keep to a budget, the table and page of what budgets buy, refusals."""

import json
import re
import xml.etree.ElementTree as ET

import gguf
import pytest

from llmrun.cli.render.budget_page import round_steps
from llmrun.formats.gguf import GgufFile
from llmrun.runtime import budget_plan
from llmrun.runtime.calibrated import CalibratedTensors
from llmrun.runtime.texts import calibration_text

from ..models.off_grid import move_off_grid
from ..tiny_models import tiny_model_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    move_off_grid(tiny_model_path(folder, "qwen2", gguf.GGMLQuantizationType.F32), folder / "tiny.gguf", sigma=0.8)
    return folder / "tiny.gguf"


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Short texts; kernel speeds that are not measured, in the order of their bytes."""
    speeds = {kind: 1e-9 * (i + 1) for i, kind in enumerate(budget_plan.TYPES)}
    monkeypatch.setattr(budget_plan, "seconds_per_weight", lambda *_args, **_options: speeds)
    monkeypatch.setattr(budget_plan, "PROBE_CTX", 24)
    (tmp_path / "text").write_text(calibration_text()[:3000])


def run(cli, tiny, tmp_path, *arguments):
    out = tmp_path / "out.gguf"
    result = cli("quantize", tiny, out, *arguments, "-f", tmp_path / "text", "--force")
    assert (result.code, result.out) == (0, f"{out}\n"), result.err
    return out, result


def types(path):
    with GgufFile.open(path) as file:
        return {name: t.ggml_type.name for name, t in file.tensors.items() if len(t.shape) > 1}


def divergence(cli, path, base, text):
    return json.loads(cli("eval", "kld", path, base, "-f", text, "-c", 64, "--json").out)["kld_mean"]


def test_a_size_is_kept_and_better_spent_than_by_a_mixture(cli, tiny, tmp_path):
    assert cli("quantize", tiny, tmp_path / "plain.gguf", "Q5_0").code == 0
    limit = (tmp_path / "plain.gguf").stat().st_size + 6000  # what is kept back for metadata
    out, result = run(cli, tiny, tmp_path, "--target", f"{limit / 1000}kB", "--method", "imatrix")
    assert 0.9 * limit < out.stat().st_size <= limit
    assert len(set(types(out).values())) > 1
    of_plain, of_out = (divergence(cli, p, tiny, tmp_path / "text") for p in (tmp_path / "plain.gguf", out))
    assert of_out < 0.9 * of_plain
    rows = [line.split("\t") for line in result.lines if line.count("\t") == 4]
    assert {"chosen", "Q8_0"} <= {row[0] for row in rows}
    losses = [float(row[3]) for row in rows[1:] if row[0] == ""]
    assert losses == sorted(losses, reverse=True)


def test_the_page_is_whole_and_loads_nothing(cli, tiny, tmp_path):
    run(cli, tiny, tmp_path, "--target-bpw", 6, "--method", "rtn", "--report", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    tree = ET.fromstring(re.sub("<!doctype html>|<meta [^>]*>", "", page))
    assert len(tree.findall(".//{http://www.w3.org/2000/svg}svg")) == 2
    assert "chosen" in page
    assert "blk.1.ffn_down.weight" in page
    assert "prefers-color-scheme: dark" in page
    for word in ("src=", "<script", "href=", "url("):
        assert word not in page


def test_a_divergence_is_measured_and_chosen_anew_where_it_misses(cli, tiny, tmp_path):
    run(cli, tiny, tmp_path, "--target-kld", 0.02, "--method", "imatrix", "--quality-text", tmp_path / "text")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert 0.01 < file.metadata.required("llmrun.quality.kld_mean", float) <= 0.0204


def test_a_run_that_ends_in_its_second_file_does_not_make_the_first_again(cli, tiny, tmp_path, monkeypatch):
    arguments = ("--target-kld", 0.02, "--method", "imatrix", "-f", tmp_path / "text")
    run_all, n_run = CalibratedTensors.run, []

    def counted(self, chunks):
        n_run.append(0)
        if len(n_run) == n_end:
            raise KeyboardInterrupt
        run_all(self, chunks)

    monkeypatch.setattr(CalibratedTensors, "run", counted)
    n_end = 0
    whole, result = run(cli, tiny, tmp_path, *arguments[:-2])
    n_whole, expected = len(n_run), whole.read_bytes()
    assert n_whole > 1
    whole.unlink()
    n_run, n_end = [], 2
    ended = cli("quantize", tiny, whole, *arguments)
    assert (ended.code, whole.exists()) == (130, False)
    n_run, n_end = [], 0
    resumed, again = run(cli, tiny, tmp_path, *arguments[:-2])
    assert (len(n_run), resumed.read_bytes() == expected) == (n_whole - 1, True)
    assert again.err.count("chosen anew") == result.err.count("chosen anew")


def test_a_speed_is_measured_with_a_plain_file_first(cli, tiny, tmp_path, monkeypatch):
    from llmrun.cli import quantize_target

    found = iter([50.0, 100.0])
    monkeypatch.setattr(quantize_target, "measured_speed", lambda path, n_thread: next(found))
    out, result = run(cli, tiny, tmp_path, "--target-tps", 100, "--method", "rtn")
    assert next(found, None) is None
    assert "50.0 tokens a second were measured" in result.err
    assert set(types(out).values()) != {"Q8_0"}


def test_types_that_the_user_gives_are_kept(cli, tiny, tmp_path):
    out, _ = run(cli, tiny, tmp_path, "--target-bpw", 6, "--method", "rtn", "--tensor-type", "attn_v=Q4_0")
    found = types(out)
    assert {kind for name, kind in found.items() if "attn_v" in name} == {"Q4_0"}


def test_a_dry_run_writes_nothing(cli, tiny, tmp_path):
    result = cli("quantize", tiny, tmp_path / "out.gguf", "--target-bpw", 5, "-f", tmp_path / "text", "--dry-run")
    assert result.code == 0, result.err
    assert "would write" in result.out
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["text"]


def test_what_was_measured_is_kept_for_the_next_target(cli, tiny, tmp_path, monkeypatch):
    result = cli("quantize", tiny, tmp_path / "out.gguf", "--target-kld", 1e-12, "-f", tmp_path / "text")
    assert result.code == 1
    journal = tmp_path / ".tiny.gguf.sensitivity"
    assert f"what was measured is kept in {journal}" in result.lines[-2]

    def measure_again(*_):
        raise AssertionError

    monkeypatch.setattr("llmrun.runtime.sensitivity.Sensitivity._layer", measure_again)
    monkeypatch.setattr("llmrun.runtime.sensitivity.Sensitivity._divergences_of", measure_again)
    run(cli, tiny, tmp_path, "--target-bpw", 6, "--method", "rtn")
    assert not journal.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "1kB"), "too few for this model, the least is"),
        (("--target", "much"), "'much' is no size"),
        (("--target", "1MB", "--target-bpw", 4), "exclude each other"),
        (("--target-kld", 1e-12), "out of reach"),
        (("--target-bpw", 0), "expected more than 0"),
        (("Q4_0", "--target-bpw", 4), "a target stands for TYPE"),
        (("--report", "r.html", "Q4_0"), "give a target too"),
    ],
)
def test_refusals_are_one_line(cli, tiny, tmp_path, arguments, message):
    more = ("-f", tmp_path / "text") if "--report" not in arguments else ()
    result = cli("quantize", tiny, tmp_path / "out.gguf", *arguments, *more)
    assert result.code in (1, 2)
    assert message in result.lines[-1], result.err
    assert not (tmp_path / "out.gguf").exists()
    is_measured = any("sensitivity" in p.name for p in tmp_path.iterdir())
    assert is_measured == ("--target-kld" in arguments)  # what is known before is said before


def test_a_type_is_not_taken_for_a_file(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("quantize", tiny, "q4_k_m", "--target-bpw", 4)
    assert result.code == 2
    assert "q4_k_m is a type" in result.lines[-1]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(69e6, 218e6, [100e6, 150e6, 200e6]), (0.9, 1.1, None), (5.0, 90.0, [20, 40, 60, 80])],
)
def test_sizes_below_the_curve_are_round(low, high, expected):
    found = round_steps(low, high)
    assert 3 <= len(found) <= 7
    assert low - 1e-9 <= found[0]
    assert found[-1] <= high + 1e-9
    assert expected is None or found == pytest.approx(expected)
