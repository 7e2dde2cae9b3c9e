"""Answers with and without drafts by turns."""

import pytest

from llmrun.formats.errors import CapacityError
from llmrun.runtime.engine import Engine
from llmrun.runtime.measure import drafts
from llmrun.runtime.speculation.settings import SpeculationSettings
from llmrun.runtime.texts import DraftPrompt

from ...tiny_models import tiny_model_path

COPIES = SpeculationSettings(mode="ngram")
PROMPT = DraftPrompt(kind="prose", name="short", text="abc abc abc")


@pytest.fixture
def engine(tmp_path):
    with Engine.open(tiny_model_path(tmp_path, "llama"), n_ctx=256, n_threads=1) as engine:
        yield engine


def test_both_answers_are_made_by_turns_and_each_round_begins_with_the_other(engine, monkeypatch):
    made = []
    honest = Engine.session

    def session(self):
        result = honest(self)
        generate = result.generate

        def told(ids, params):
            for token in generate(ids, params):
                if token.token_id >= 0:
                    made.append(params.speculation.mode)
                yield token

        result.generate = told
        return result

    monkeypatch.setattr(Engine, "session", session)
    monkeypatch.setattr(drafts, "TURN", 3)
    result = drafts.measure_drafts(engine, PROMPT, COPIES, n_gen=7, n_round=2)
    assert result.n_token == 7
    first = ["off"] * 3 + ["ngram"] * 3
    second = ["ngram"] * 3 + ["off"] * 3
    assert made == [*first, *first, "off", "ngram", *second, *second, "ngram", "off"]
    assert len(result.plain_s) == len(result.drafted_s) == len(result.told) == 2


def test_two_answers_must_fit(engine):
    long = DraftPrompt(kind="prose", name="long", text="abc " * 100)
    with pytest.raises(CapacityError, match=r"prose-long: two answers to .* do not fit the context of 256 tokens"):
        drafts.measure_drafts(engine, long, COPIES, n_gen=8, n_round=1)


def test_an_answer_is_as_long_as_half_the_context_allows(engine):
    result = drafts.measure_drafts(engine, PROMPT, COPIES, n_gen=1000, n_round=1)
    assert 2 <= result.n_token <= 128 - result.n_prompt
