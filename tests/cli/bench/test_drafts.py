"""``llmrun bench --spec`` on a real, tiny model."""

import json

import pytest

from llmrun.runtime.texts import draft_prompts


def test_rows(cli, tiny):
    result = cli(
        "bench", "-m", tiny, "--spec", "auto", "-md", tiny, "--kinds", "prose", "-n", "12", "-r", "2", "-o", "json"
    )
    assert result.code == 0, result.err
    rows = json.loads(result.out)
    assert [(row["kind"], row["name"]) for row in rows] == [("prose", "bread"), ("prose", "lighthouse")]
    for row in rows:
        assert (row["n_token"], row["n_round"], row["spec"]) == (12, 2, "auto")
        assert row["plain_ts"] > 0
        assert row["drafted_ts"] > 0
        assert 0.02 < row["speedup"] < 50
        assert 1 <= row["tokens_per_pass"] < 12
        assert set(row["sources"]) == {"ngram", "draft"}
        assert row["draft_filename"] == str(tiny)


def test_table(cli, tiny):
    result = cli("bench", "-m", tiny, "--spec", "ngram", "--kinds", "random", "-n", "8", "-r", "1")
    assert result.code == 0, result.err
    assert "| random-words     |      8 |" in result.out
    assert "1 rounds, each way by turns" in result.out


def test_a_changed_text_is_an_error(cli, tiny, monkeypatch):
    from llmrun.runtime.speculation.loop import Verifier

    honest = Verifier.logits_after

    def wrong(self, context, planner, n_wanted):
        logits = honest(self, context, planner, n_wanted)
        if planner is not None:
            logits = logits.copy()
            logits[7] = 1e9
        return logits

    monkeypatch.setattr(Verifier, "logits_after", wrong)
    result = cli("bench", "-m", tiny, "--spec", "ngram", "--kinds", "prose", "-n", "8", "-r", "1")
    assert result.code == 1
    assert "prose-bread: drafts changed the text" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--spec maybe", "'maybe': expected one of auto, draft, ngram"),
        ("--spec draft", "draft needs a draft model"),
        ("--spec ngram --draft x.gguf", "is not used with --spec ngram"),
        ("--draft x.gguf", "goes with --spec"),
        ("--kinds code", "goes with --spec"),
        ("--spec auto --kinds poems", "'poems' is not one of chat, code, edit, json, prose, random, translate"),
        ("--spec auto -o csv", "'csv': with --spec one of md, json, jsonl"),
        ("--spec auto -n 8,9", "expected one number with --spec"),
        ("--spec auto -p 512", "does not go with --spec"),
        ("--spec auto --vs llama-cpp", "does not go with --spec"),
    ],
)
def test_senseless_combinations(cli, tiny, args, message):
    result = cli("bench", "-m", tiny, *args.split())
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())


def test_the_prompts_are_there():
    kinds = {p.kind for p in draft_prompts()}
    assert kinds == {"chat", "code", "edit", "json", "prose", "random", "translate"}
    assert all(100 <= len(p.text) < 2500 for p in draft_prompts())
