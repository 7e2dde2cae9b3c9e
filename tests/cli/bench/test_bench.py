"""The command, on a tiny model: every form of output, and what goes where."""

import csv
import functools
import io
import json
import sqlite3
import time

import pytest

from llmrun.cli.bench.record import LLAMA_FIELDS, OWN_FIELDS, quant_description
from llmrun.runtime.engine import Engine
from llmrun.runtime.measure import energy
from llmrun.runtime.measure.runner import Runner

OTHER = ("-ub", "8", "-mmp", "0", "-fa", "on")
QUICK = ("-p", "12", "-n", "3", "-r", "2", "-t", "1")


@pytest.fixture
def bench(cli, tiny):
    return lambda *args: cli("bench", "-m", tiny, *QUICK, *args)


def test_markdown_is_llama_benchs_table(bench):
    result = bench()
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    # Heading and rule as llama-bench b6 prints them on a CPU.
    assert lines[0] == (
        "| model                          |       size |     params | backend    | threads |"
        "            test |                  t/s |"
    )
    assert lines[1] == (
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: |"
        " --------------: | -------------------: |"
    )
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[2:4]]
    assert [c[6] for c in cells] == ["pp12", "tg3"]
    assert all(c[4:6] == ["CPU", "1"] and " ± " in c[7] for c in cells)
    assert {len(line) for line in lines[:4]} == {len(lines[0])}
    assert any(line.startswith("build: llmrun ") for line in lines)


def test_other_settings_become_columns(bench):
    heads, _, row = ([c.strip() for c in line.split("|")] for line in bench(*OTHER).out.splitlines()[:3])
    assert heads[5:10] == ["threads", "n_ubatch", "fa", "lm", "test"]  # as llama-bench orders and names them
    assert row[6:9] == ["8", "1", "none"]


def test_json_has_llama_benchs_keys_and_nothing_else_is_on_standard_output(bench):
    result = bench("-o", "json", "--progress")
    rows = json.loads(result.out)
    assert [list(row) for row in rows] == [[*LLAMA_FIELDS, *OWN_FIELDS, "samples_ns", "samples_ts"]] * 2
    prompt, generation = rows
    assert (prompt["n_prompt"], prompt["n_gen"], generation["n_prompt"], generation["n_gen"]) == (12, 0, 0, 3)
    assert [len(row["samples_ns"]) for row in rows] == [2, 2]
    assert prompt["avg_ts"] == pytest.approx(sum(prompt["samples_ts"]) / 2)
    assert prompt["ttft_ns"] >= prompt["avg_ns"]
    assert prompt["itl_p50_ns"] is None
    assert generation["ttft_ns"] is None
    assert 0 < generation["itl_p50_ns"] <= generation["itl_p90_ns"] <= generation["itl_p99_ns"]
    assert prompt["peak_bytes"] > 1e6
    assert "run 2/2" in result.err


def test_jsonl_and_csv_say_the_same(bench):
    rows = [json.loads(line) for line in bench("-o", "jsonl").out.splitlines()]
    table = list(csv.DictReader(io.StringIO(bench("-o", "csv").out)))
    assert list(table[0]) == [*LLAMA_FIELDS, *OWN_FIELDS]
    assert [row["test"] for row in table] == [row["test"] for row in rows] == ["pp12", "tg3"]
    assert table[0]["model_size"] == str(rows[0]["model_size"])
    assert table[0]["cpu_strict"] == "0"


def test_sql_fits_a_table_that_llama_bench_made(bench):
    base = sqlite3.connect(":memory:")
    base.execute(f"CREATE TABLE llama_bench ({', '.join(LLAMA_FIELDS)})")
    base.executescript(bench("-o", "sql").out)
    assert base.execute("SELECT n_prompt, n_gen FROM llama_bench").fetchall() == [("12", "0"), ("0", "3")]
    assert base.execute("SELECT test, n_seq FROM llmrun_bench").fetchall() == [("pp12", 1), ("tg3", 1)]
    base.close()


def test_a_second_form_goes_to_standard_error(bench):
    result = bench("-o", "jsonl", "-oe", "md")
    assert result.out.startswith("{")
    assert "| model " in result.err


def test_sequences_decoded_together(cli, tiny):
    result = cli("bench", "-m", tiny, "-npl", "1,3", "-npp", "8", "-ntg", "4", "-r", "2", "-t", "1", "-o", "json")
    rows = json.loads(result.out)
    assert [(r["test"], r["n_seq"], r["n_depth"]) for r in rows] == [("tg4 @ d8", 1, 8), ("tg4 x3 @ d8", 3, 8)]
    assert rows[1]["avg_ts"] == pytest.approx(12e9 / rows[1]["samples_ns"][0], rel=2)
    assert rows[1]["depth_ns"] > 0


def test_what_differs_in_sequences_alone_takes_turns(cli, tiny):
    args = ("-npl", "1,3", "-npp", "8", "-ntg", "4", "-p", "8", "-n", "0", "-r", "2", "-t", "1", "--progress")
    result = cli("bench", "-m", tiny, *args, "-o", "json")
    said = [line.rpartition("benchmark ")[2] for line in result.err.splitlines() if ": run " in line]
    assert said == [f"{test}/3: run {i}/2" for test, i in ((1, 1), (1, 2), (2, 1), (3, 1), (2, 2), (3, 2))]
    rows = json.loads(result.out)
    assert [len(r["samples_ns"]) for r in rows] == [2, 2, 2]
    assert len({r["bandwidth_bytes_s"] for r in rows}) == 3  # each row has its own moments'


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "give at least one model"),
        (("-m", "x", "-o", "xml"), "expected one of md, csv, json, jsonl, sql"),
        (("-m", "x", "-p", "many"), "neither a number nor a range"),
        (("-m", "x", "-fa", "off"), "always of the flash kind"),
        (("-m", "x", "-r", "0"), "greater than or equal to 1"),
        (("-m", "x", "--price-kwh", "inf"), "less than or equal to"),
        (("-m", "x", "--peer-python", "python3"), "--peer-python: goes with --vs"),
        (("-m", "x", "--vs", "llama-cpp", "--delay", "1"), "--delay: does not go with --vs"),
        (("-m", "x", "--vs", "llama-cpp", "--hardware-cost", "1"), "--hardware-cost: does not go with --vs"),
        (("-m", "x", "--spec", "ngram", "--price-kwh", "1"), "--price-kwh: does not go with --spec"),
    ],
)
def test_wrong_usage_ends_with_2(cli, args, says):
    result = cli("bench", *args)
    assert (result.code, result.out) == (2, "")
    assert says in " ".join(result.err.split())


def test_a_model_that_does_not_exist_is_one_line(cli, tmp_path):
    result = cli("bench", "-m", tmp_path / "none.gguf", "-o", "json")
    assert (result.code, result.out) == (1, "")
    assert len(result.lines) == 1


def test_energy_and_cost_with_counters(bench, monkeypatch, tmp_path):
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    for file, value in (("name", "package-0"), ("energy_uj", 0), ("max_energy_range_uj", 10**12)):
        (counter.parent / file).write_text(f"{value}\n")
    monkeypatch.setattr(energy, "_find_rapl", functools.partial(energy._find_rapl, tmp_path))
    sample = Runner.sample

    def sample_of_six_joules(self, test):
        counter.write_text(f"{int(counter.read_text()) + 6_000_000}\n")
        return sample(self, test)

    monkeypatch.setattr(Runner, "sample", sample_of_six_joules)
    prices = ("--price-kwh", "0.36", "--hardware-cost", "1000", "--lifetime", "4")
    result = bench("-o", "json", "-oe", "md", *prices, "--no-roofline")
    assert "energy: RAPL, 1 package(s)" in result.err
    for row, n_token in zip(json.loads(result.out), (12, 3), strict=True):
        assert row["joules_per_token"] == pytest.approx(6 / n_token)
        electricity = 6e6 / n_token / 3.6e6 * 0.36
        wear = 1000 / (4 * 365.25 * 86400) * 1e6 / row["avg_ts"]
        assert row["cost_per_mtok"] == pytest.approx(electricity + wear)


def test_a_test_that_does_not_fit_into_memory_names_the_options_of_bench(cli, tiny):
    result = cli("bench", "-m", tiny, "-p", "999999999", "-n", "0", "--no-roofline")
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert result.err.endswith(" free; try smaller -p, -n, -pg, -d or -npl\n")
    assert "--ctx-size" not in result.err


def test_compiling_is_no_part_of_loading(bench, monkeypatch):
    real, opened = Engine.open, []

    def open_slowly(*args, **options):
        engine = real(*args, **options)
        if not opened:
            time.sleep(2)
            engine.n_compiled = 3
        opened.append(engine)
        return engine

    monkeypatch.setattr(Engine, "open", open_slowly)
    rows = json.loads(bench("-o", "json", "--no-roofline").out)
    assert len(opened) == 2
    assert rows[0]["load_ns"] < 2e9


def test_mixtures_are_named_as_llama_bench_names_them():
    names = ["Q4_K_M", "Q3_K_L", "Q4_1", "Q6_K", "F16", "F32", "IQ4_XS"]
    assert [quant_description(n) for n in names] == [
        "Q4_K - Medium", "Q3_K - Large", "Q4_1", "Q6_K", "F16", "all F32", "IQ4_XS",
    ]  # fmt: skip
