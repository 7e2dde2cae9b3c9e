"""The text is the same with and without drafts: every sampler, whatever is drafted, wherever it ends."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmrun.formats.record import replace
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.speculation.loop import verify
from llmrun.runtime.speculation.settings import SpeculationSettings

from ..bits import assert_same_bits
from ..machine import token_ids
from ..sampling.all_chains import CHAINS
from .drafters import FixedPlanner, ListedSource

OFF = SpeculationSettings(mode="off")
N_EXAMPLE, N_DRAFT = 600, 4  # 2400 cases: so many answers, each drafted so many ways
QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=N_EXAMPLE,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a smaller example is no clearer, and takes minutes
)
TEMPERATURES = (None, 0.0, 0.3, 0.8, 1.2)
# Every chain of the samplers' own tests, as it is and at four temperatures; biases fit the tiny vocabulary.
SAMPLERS = [
    SamplerSettings(**(options if t is None else {**options, "temperature": t}))
    for options in CHAINS.values()
    for t in TEMPERATURES
]


def params(**options):
    return GenerationParams(
        **{"sampler": SamplerSettings(), "seed": 3, "max_tokens": 30, "ignore_eos": True, "speculation": OFF} | options
    )


def everything(session, prompt, settings_, n_take=None):
    """Return all that a caller sees of an answer, and what the session keeps of it."""
    answer = session.generate(prompt, settings_)
    seen = [next(answer) for _ in range(n_take)] if n_take is not None else list(answer)
    answer.close()
    return (
        [(t.token_id, t.text, t.logprobs) for t in seen],
        session.stats.finish_reason,
        session.stats.n_generated,
        list(session.tokens),
        session._sequence.n_past,
    )


def plain_and_drafted(engine, prompt, settings_, planner_of, n_take=None):
    """Return what is seen without drafts, with them, and the planner; ``planner_of(true ids)`` makes it."""
    session = engine.session()
    try:
        want = everything(session, prompt, settings_, n_take)
        session.close()
        planner = planner_of([token_id for token_id, _, _ in want[0] if token_id >= 0])
        session._controller = planner
        got = everything(session, prompt, replace(settings_, speculation=SpeculationSettings()), n_take)
        assert session._sequence.n_past == len(session.tokens)
    finally:
        session.close()
    assert engine.pages.n_page == len(engine.pages._free)
    return want, got, planner


@QUICK
@given(data=st.data())
def test_random_drafts_random_settings(targets, data):
    engine = targets(*data.draw(st.sampled_from([("llama", "Q8_0"), ("qwen2", "Q4_1"), ("gemma3", "Q8_0")])))
    # Short ones, because they take little time, and some of any length; n_ctx is 160.
    n_prompt = data.draw(st.integers(1, 24) | st.integers(1, 158) | st.integers(140, 158))
    n_max = data.draw(st.integers(0, 12) | (st.integers(0, 60) if n_prompt < 140 else st.none()))
    prompt = token_ids(data.draw(st.integers(0, 5)), n_prompt)
    chosen = params(
        sampler=data.draw(st.sampled_from(SAMPLERS)),
        seed=data.draw(st.integers(0, 2**63)),
        sample=data.draw(st.integers(0, 3)),
        max_tokens=n_max,
        n_logprobs=data.draw(st.sampled_from([0, 0, 3])),
        ignore_eos=data.draw(st.booleans()),
        stop=data.draw(st.sampled_from([(), ("e",), ("th", "a\n"), ("\x00",)])),
    )
    session = engine.session()
    try:
        want = everything(session, prompt, chosen)
        truth = [token_id for token_id, _, _ in want[0] if token_id >= 0]
        for _ in range(N_DRAFT):
            wrong = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
            lengths = data.draw(st.lists(st.integers(0, 31), min_size=1, max_size=5))
            if data.draw(st.booleans()):  # nothing of the prompt is cached
                session.close()
            session._controller = FixedPlanner(ListedSource(truth, 301, wrong), lengths)
            assert everything(session, prompt, replace(chosen, speculation=SpeculationSettings())) == want
            assert session._sequence.n_past == len(session.tokens)
    finally:
        session.close()
    assert engine.pages.n_page == len(engine.pages._free)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=range(len(SAMPLERS)))
def test_every_sampler(targets, sampler):
    """Drafts that are right three times of four, so that rows are confirmed and thrown away."""
    want, got, planner = plain_and_drafted(
        targets(), token_ids("p", 20), params(sampler=sampler, seed=5, max_tokens=40),
        lambda truth: FixedPlanner(ListedSource(truth, 301, 0.25), [7, 3]),
    )  # fmt: skip
    assert got == want
    assert len(planner.n_row) < 39  # passes


def test_planners_see_the_logits_behind_the_last_right_token(targets):
    want, got, planner = plain_and_drafted(
        targets(), token_ids("p", 20), params(sampler=SamplerSettings(temperature=0.0), max_tokens=40),
        lambda truth: FixedPlanner(ListedSource(truth, 301, 0.25), [5]),
    )  # fmt: skip
    assert got == want
    tokens, at = [token_id for token_id, _, _ in want[0]], 1  # greedy: the likeliest is the token that follows
    for n_right, likeliest in zip(planner.n_right, planner.likeliest, strict=True):
        at += n_right
        assert likeliest == tokens[at]
        at += 1
    assert len(set(planner.n_right)) > 2


@pytest.mark.parametrize("n_threads", [2, 3])
def test_any_number_of_threads(targets, n_threads):
    settings_ = params(sampler=SAMPLERS[0], max_tokens=12)
    alone, _, _ = plain_and_drafted(targets(), token_ids("p", 20), settings_, lambda _: FixedPlanner(None, [0]))
    want, got, _ = plain_and_drafted(
        targets(n_threads=n_threads), token_ids("p", 20), settings_,
        lambda truth: FixedPlanner(ListedSource(truth, 301, 0.3), [3, 6]),
    )  # fmt: skip
    assert got == want == alone


def test_right_drafts_save_passes(targets):
    want, got, planner = plain_and_drafted(
        targets(), token_ids("p", 20), params(max_tokens=33),
        lambda truth: FixedPlanner(ListedSource(truth, 301), [7]),
    )  # fmt: skip
    assert got == want
    assert planner.n_row == [8] * 4  # 32 tokens after the first
    assert planner.n_right == [7] * 4


def test_wrong_drafts_cost_a_pass_each(targets):
    _, got, planner = plain_and_drafted(
        targets(), token_ids("p", 20), params(max_tokens=5), lambda _: FixedPlanner(ListedSource([300] * 9, 301), [2])
    )
    assert planner.n_row == [3, 3, 2, 1]  # at the end fewer tokens are wanted
    assert got[2] == 5


@pytest.mark.parametrize("room", range(1, 9))
def test_the_end_of_the_context(targets, room):
    engine = targets()
    prompt = token_ids("full", engine.n_ctx - room)
    want, got, planner = plain_and_drafted(
        engine, prompt, params(max_tokens=None), lambda truth: FixedPlanner(ListedSource(truth, 301), [5])
    )
    assert got == want
    assert got[1] == "length"
    assert len(got[3]) == engine.n_ctx
    assert all(limit >= 0 for limit in planner.limits)


@pytest.mark.parametrize("n_max", range(1, 12))
def test_no_row_is_computed_that_nobody_wants(targets, n_max):
    _, got, planner = plain_and_drafted(
        targets(), token_ids("p", 9), params(max_tokens=n_max),
        lambda truth: FixedPlanner(ListedSource(truth, 301), [4]),
    )  # fmt: skip
    assert got[2] == n_max
    assert sum(planner.n_row) == n_max - 1


@pytest.mark.parametrize("n_take", range(1, 20))
def test_stopping_anywhere_leaves_the_same_session(targets, n_take):
    """Closing an answer, as Ctrl-C in a chat does, keeps what was seen and no slot more."""
    want, got, _ = plain_and_drafted(
        targets(), token_ids("p", 9), params(max_tokens=40),
        lambda truth: FixedPlanner(ListedSource([*truth, *truth], 301, 0.2), [5, 2]), n_take,
    )  # fmt: skip
    assert got == want
    assert got[1] == "cancelled"


def test_an_interrupted_pass_leaves_the_session_usable(targets, monkeypatch):
    engine, prompt = targets(), token_ids("p", 9)
    session = engine.session()
    want = everything(session, prompt, params())
    truth = [token_id for token_id, _, _ in want[0]]
    drafting = params(speculation=SpeculationSettings())
    for n_before in range(1, 8):
        session._controller = FixedPlanner(ListedSource(truth, 301, 0.3), [3])
        calls = 0

        def interrupted(*args, run=engine.executor.run, n_before=n_before, **options):
            nonlocal calls
            calls += 1
            if calls == n_before:
                raise KeyboardInterrupt
            run(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(engine.executor, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(session.generate(prompt, drafting))
        assert session._sequence.n_past == len(session.tokens)
        assert session.tokens == (prompt + truth)[: len(session.tokens)]
    session._controller = FixedPlanner(ListedSource(truth, 301, 0.3), [3])
    assert everything(session, prompt, drafting) == want
    session.close()


def test_drafts_of_several_sequences_in_one_pass(targets):
    """Each row has the bits that it has alone."""
    engine = targets("qwen2", "Q4_1", n_ctx=400)
    prompts = [token_ids(i, n) for i, n in enumerate((3, 70, 64, 1))]
    chains = [token_ids(("draft", i), n) for i, n in enumerate((4, 1, 6, 2))]
    sessions = [engine.session() for _ in prompts]
    for session, prompt in zip(sessions, prompts, strict=True):
        list(session.generate(prompt, params(max_tokens=1)))
    together = verify(engine, [(s._sequence, ids) for s, ids in zip(sessions, chains, strict=True)])
    for session, prompt, ids, rows in zip(sessions, prompts, chains, together, strict=True):
        want = [block.copy() for block in engine.logits(prompt + ids, len(prompt))]
        assert_same_bits(rows, want[0])
        session.close()
