"""``llmrun bench compare``: rows are matched by what they measure; a row that got worse ends with 1."""

import json

import pytest


def row(avg_ts, n_gen=128, **more):
    return {
        "model_filename": "/some/where/tiny.gguf", "n_threads": 2, "n_batch": 2048, "n_ubatch": 512, "type_k": "f16",
        "n_prompt": 0, "n_gen": n_gen, "n_depth": 0, "avg_ts": avg_ts, "stddev_ts": 1.0,
    } | more  # fmt: skip


WRONG = [[row(float("inf"))], [row(1.0, type_k=[])], [row(1.0, n_seq="x")], [row(1.0, cpu_info={})]]


@pytest.fixture
def compare(cli, tmp_path):
    def run(old, new, *args):
        (tmp_path / "a.json").write_text(json.dumps(old))
        (tmp_path / "b.json").write_text("\n".join(map(json.dumps, new)))  # JSONL is as good
        return cli("bench", "compare", tmp_path / "a.json", tmp_path / "b.json", *args)

    return run


def test_rows_side_by_side(compare):
    result = compare([row(100.0), row(50.0, 32)], [row(60.0, 32), row(90.0)], "--json")
    assert result.code == 0
    changes = [json.loads(line) for line in result.out.splitlines()]
    assert [(c["test"], round(c["change_pct"], 6)) for c in changes] == [("tg128", -10), ("tg32", 20)]
    assert changes[0]["sigma"] == pytest.approx(-10 / 2**0.5)
    table = compare([row(100.0)], [row(90.0)]).out
    assert "tg128" in table
    assert "-10.00 %" in table


@pytest.mark.parametrize(("after", "code"), [(97.5, 0), (97.0, 1), (60.0, 1), (130.0, 0)])
def test_fail_if_slower(compare, after, code):
    result = compare([row(100.0)], [row(after)], "--fail-if", "-3%")
    assert result.code == code
    assert ("slower than -3 % allows: tg128" in result.err) == bool(code)


def test_other_settings_are_other_rows(compare):
    pps = row(1.0, n_seq=4, is_shared=True)
    result = compare([row(100.0), row(1.0, n_seq=4)], [row(100.0), pps, row(1.0, n_seq=4)], "--fail-if", "-3")
    assert result.code == 0
    assert len(result.lines) == 1
    assert result.err.endswith("b.json: tg128 x4\n")
    assert len(result.out.splitlines()) == 4


def test_a_row_that_is_gone_fails_where_slower_rows_do(compare):
    rows = [row(100.0), row(70.0, 32)], [row(100.0)]
    assert compare(*rows).code == 0
    result = compare(*rows, "--fail-if", "-3%")
    assert result.code == 1
    assert "b.json: lacks rows of " in result.lines[-1]
    assert result.lines[-1].endswith("a.json: tg32")


def test_other_machines_and_other_files_of_the_same_name_are_said(compare):
    about = {"cpu_info": "A", "model_size": 5, "model_n_params": 7}
    assert compare([row(1.0, **about)], [row(1.0, **about)]).err == ""
    other = row(1.0, **about | {"cpu_info": "B\x1b", "model_size": 6})
    result = compare([row(1.0, **about), row(2.0, 32, **about)], [other, other | {"n_gen": 32}])
    assert result.code == 0
    assert result.lines == [
        "warning: different processors: A and B\\x1b",
        "warning: different model sizes: 5 and 6",
    ]


def test_settings_that_differ_are_columns(compare):
    rows = [row(100.0), row(70.0, type_k="q8_0")]
    lines = compare(rows, rows).out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[2:5]] for line in lines]
    assert cells[0] == ["threads", "type_k", "test"]
    assert cells[2:] == [["2", "f16", "tg128"], ["2", "q8_0", "tg128"]]


def test_nothing_in_common(compare):
    result = compare([row(1.0)], [row(1.0, 7)])
    assert (result.code, result.out) == (1, "")
    assert "no row in common" in result.err


@pytest.mark.parametrize(
    "text",
    ["", "[", "[1]", '{"a": 1}', "[" * 100_000, '[{"model_filename": "x", "avg_ts": "1"}]', *map(json.dumps, WRONG)],
)
def test_other_files_are_one_line(cli, tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    result = cli("bench", "compare", path, path)
    assert result.code == 1
    assert len(result.lines) == 1


def test_other_than_a_percentage(compare):
    assert compare([row(1.0)], [row(1.0)], "--fail-if", "some").code == 2
