"""The options about guessing ahead: what they reach, what they refuse, what is reported."""

import json

import pytest

from llmrun.runtime.speculation.settings import SourceStats, SpeculationStats

from . import fake_engine


@pytest.fixture
def speculating(monkeypatch):
    """Give every fake answer the same numbers."""

    class Speculating(fake_engine.FakeSession):
        def generate(self, prompt_ids, params, **options):
            yield from super().generate(prompt_ids, params, **options)
            if params.speculation.mode != "off":
                source = SourceStats()
                source.count(4, 3)
                source.count(2, 2)
                self.stats.speculation = SpeculationStats(
                    n_token=8, n_pass=5, spent_s=1.0, plain_s=1.5, sources={"ngram": source, "draft": SourceStats()}
                )

    monkeypatch.setattr(fake_engine, "FakeSession", Speculating)


@pytest.mark.parametrize("command", ["run", "chat"])
def test_options_reach_the_engine(cli, engine, model, command):
    engine.replies = ["ok"]
    result = cli(
        command, model, "-p", "x", "-md", model, "--draft-max", "7", "--draft-min", "2", "--spec", "draft", stdin=""
    )
    assert result.code == 0, result.err
    assert str(engine.opened["draft"]) == str(model)
    spec = engine.params[0].speculation
    assert (spec.mode, spec.draft_max, spec.draft_min) == ("draft", 7, 2)


def test_it_is_on_unless_switched_off(cli, engine, model):
    engine.replies = ["ok"] * 4
    for options in ((), ("--draft", model), ("--spec", "off"), ("--spec", "ngram")):
        cli("run", model, "-p", "x", *options)
    assert [p.speculation.mode for p in engine.params] == ["auto", "auto", "off", "ngram"]
    assert engine.opened["draft"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--spec maybe", "'maybe' is not one of auto, off, draft, ngram"),
        ("--spec draft", "draft needs a draft model: --draft MODEL"),
        ("--spec off --draft x.gguf", "is not used with --spec off"),
        ("--spec ngram --draft x.gguf", "is not used with --spec ngram"),
        ("--draft-min 5 --draft-max 4", "is larger than --draft-max 4"),
        ("--spec off --verify-lossless", "has nothing to check with --spec off"),
    ],
)
def test_senseless_combinations(cli, engine, model, args, message):
    result = cli("run", model, "-p", "x", *args.split())
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert not engine.opened


def test_the_line_about_an_answer(cli, engine, model, speculating):
    engine.replies = ["answer"]
    result = cli("run", model, "-p", "x", "-s", "1", "--spec", "ngram")
    assert "speculation 1.50x (ngram 5/6 right, 1.6 tokens a pass)" in result.err


def test_json(cli, engine, model, speculating):
    engine.replies = ["answer"]
    record = json.loads(cli("run", model, "-p", "x", "--json", "--spec", "ngram").out)["speculation"]
    assert (record["tokens_per_pass"], record["speedup"], record["plain_tps"]) == (1.6, 1.5, 5.333)
    ngram = record["sources"]["ngram"]
    assert (ngram["n_pass"], ngram["n_drafted"], ngram["n_accepted"], ngram["mean_accepted"]) == (2, 6, 5, 2.5)
    assert (ngram["drafted_at"], ngram["accepted_at"]) == ([2, 2, 1, 1], [2, 2, 1, 0])
    assert record["sources"]["draft"]["acceptance"] == 0


@pytest.mark.parametrize("command", ["run", "chat"])
def test_verify_lossless_says_that_it_is_the_same(cli, engine, model, command):
    engine.replies = ["same", "same"]
    result = cli(command, model, "-p", "x", "--verify-lossless", stdin="")
    assert result.code == 0, result.err
    assert "the same 4 tokens without speculation" in result.err
    assert [p.speculation.mode for p in engine.params] == ["auto", "off"]
    assert engine.prompt_ids[0] == engine.prompt_ids[1]


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize(
    ("again", "difference"),
    [
        ("sane", "token 2 is 109, expected 110"),
        ("sam", "token 3 is 101, expected the end"),
        ("same!", "token 4 is the end, expected 33"),
    ],
)
def test_verify_lossless_finds_a_difference(cli, engine, model, command, again, difference):
    engine.replies = ["same", again]
    result = cli(command, model, "-p", "x", "--verify-lossless", stdin="")
    assert result.code == 1
    assert f"speculation changed the text: {difference}" in result.err
