"""An EAGLE-3 head: it computes what it should, follows the text, and changes nothing of it."""

from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest

from llmrun.formats.record import replace
from llmrun.runtime import hidden_states
from llmrun.runtime.batch import Batch
from llmrun.runtime.engine import Engine
from llmrun.runtime.executor.checked import CheckedExecutor
from llmrun.runtime.kv_cache import KvSequence
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.speculation import draft_weights, head_source
from llmrun.runtime.speculation.head_model import HeadModel
from llmrun.runtime.speculation.head_source import HeadSource
from llmrun.runtime.speculation.settings import SpeculationSettings

from ...tiny_heads import HEADS, tensors
from ...tiny_models import tensors as target_tensors
from ..bits import assert_same_bits
from ..machine import BEST, rng_for, token_ids
from .drafters import FixedPlanner
from .head_reference import HeadReference

OFF = SpeculationSettings(mode="off")
PROMPT = token_ids("p", 40)


@contextmanager
def opened(path, target, **options):
    head = HeadModel.open(path, target, **options)
    try:
        yield head
    finally:
        head.close()
        assert target.hidden is None
        assert head.pages.n_page == len(head.pages._free)


@contextmanager
def sequence_of(head):
    sequence = KvSequence(head.pages, head.n_ctx)
    try:
        yield sequence
    finally:
        sequence.close()


class AffordingSource(HeadSource):
    """May read whatever it wants, at once."""

    def guess(self, context):
        self.budget_s, self._model.row_s = 1e9, 1e-9
        return super().guess(context)


def params(**options):
    return GenerationParams(
        **{"sampler": SamplerSettings(), "seed": 7, "max_tokens": 50, "ignore_eos": True, "speculation": OFF} | options
    )


# ---- the forward pass ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_equals_the_reference(machine, tiny_path, head_path, name, monkeypatch):
    """F32 weights as they are; what is left are f32 roundings, which at most flip the last of a key's 11 bits."""
    monkeypatch.setattr(draft_weights, "can_narrow", lambda *_: False)
    machine.kernels(BEST)
    shape = HEADS[name]
    shared = {key: target_tensors("llama")[key] for key in ("token_embd.weight", "output.weight")}
    reference = HeadReference(shape, shared | tensors(shape))
    n, ids = 21, token_ids("ref", 21)
    rows = (3 * rng_for("rows").normal(size=(n, 192))).astype(np.float32)
    with (
        Engine.open(tiny_path("llama", "F32"), n_ctx=160, n_threads=2) as engine,
        opened(head_path(name), engine) as head,
        sequence_of(head) as sequence,
    ):
        for start, stop in ((0, 13), (13, 14), (14, n)):
            states = head.states(rows[start:stop])
            head.run(sequence, ids[start:stop], states, has_output=stop == n)
            for position in range(start, stop):
                want_state = reference.state(rows[position].astype(np.float64))
                assert np.abs(states[position - start] - want_state).max() <= 1e-5 * np.abs(want_state).max()
                want, state = reference.step(ids[position], want_state)
        state_of_head = head.state(stop - start - 1)
        drafted = tensors(shape).get("d2t", np.arange(301))
        assert head.tokens.ids.tolist() == sorted(drafted)
        for _ in range(6):  # on its own states
            logits = head.logits()
            assert want.std() > 0.3
            assert np.abs(logits - want).max() <= 2e-3 * np.abs(want).max()
            assert_same_bits(head.tokens.logits(logits), logits[np.argsort(drafted)])
            assert np.abs(state_of_head[0] - state).max() <= 2e-3 * np.abs(state).max()
            token_id = int(drafted[logits.argmax()])
            want, state = reference.step(token_id, state)
            head.run(sequence, [token_id], state_of_head, has_output=True)
            state_of_head = head.state(0)


@pytest.mark.parametrize("name", ["plain", "shared", "own", "residual", "fc"])
@pytest.mark.parametrize("ggml_type", ["Q8_0", "F16"])
def test_equals_the_checked_interpreter(target, head_path, name, ggml_type):
    ids, rows = token_ids("checked", 9), (3 * rng_for("rows").normal(size=(9, 192))).astype(np.float32)
    with opened(head_path(name, ggml_type), target) as head, sequence_of(head) as sequence:
        states = head.states(rows)
        head.run(sequence, ids, states, has_output=True)
        batch = Batch.of_tokens(np.zeros(1, np.int64), 0, ids, [8])
        for executor, given, output, n_row in ((head._fuse, rows, "state", 9), (head._step, states, "logits", 1)):
            checked = CheckedExecutor(executor.program, executor.weights, 9)
            checked._batch = batch
            checked.buffers[executor.program.inputs[0]] = given
            for op in executor.program.ops:
                checked._run_op(op)
            assert_same_bits(executor.output(output, n_row), checked.output(output))
        assert_same_bits(head.state(8), checked.output("state")[8:])


def test_its_larger_weights_become_q4_0_and_the_target_s_stay(target, head_path):
    with opened(head_path("shared", "Q8_0"), target) as head:
        kinds = {w.name: w.packed for w in head._step.program.weights() if w.n_out}
        assert kinds.pop("target.output.weight") == "Q8_0"
        kinds.pop("target.token_embd.weight")  # only looked up
        assert set(kinds.values()) == {"Q4_0"}
        own = [w for w in head._step.program.weights() if w.name == "target.output.weight"]
        assert head._step.weights.packed(own[0]) is target.executor.weights.packed(
            next(w for w in target.executor.program.weights() if w.name == "output.weight")
        )


def test_a_cut_output_of_the_target(target, head_path):
    """The first tokens' logits are those of the whole matrix."""
    rows = rng_for("cut").normal(size=(3, 192)).astype(np.float32)
    found = []
    for n in (301, 64):
        with opened(head_path("shared"), target, n_head_token=n) as head, sequence_of(head) as sequence:
            assert head.n_shared == n
            head.run(sequence, [1, 2, 3], head.states(rows), has_output=True)
            found.append(head.logits())
    assert_same_bits(found[1], found[0][:64])


# ---- following the text --------------------------------------------------------------------------------


@pytest.fixture
def few_rows(monkeypatch):
    """Keep 24 rows of a sequence, so that windows have to begin anew."""
    monkeypatch.setattr(hidden_states, "N_ROW", 24)
    monkeypatch.setattr(head_source, "N_ROW", 24)


class ComparingPlanner(FixedPlanner):
    """Verifies true and drafted tokens in turn, and compares the drafts with those of a source that knows nothing."""

    def __init__(self, source, truth, lengths, fresh):
        super().__init__(source, lengths)
        self._truth, self._fresh, self.n_compared = truth, fresh, 0

    def begin(self, prompt, answer, settings):
        super().begin(prompt, answer, settings)
        self._n_prompt, self._answer = len(prompt), answer

    def plan(self, context, limit):
        drafted = super().plan(context, limit)
        if self._fresh is not None:
            fresh = self._fresh()
            fresh.begin(context, self._answer)
            fresh._start = self._source._start  # positions are counted from a window's first row
            want = [guess.token_id for guess in islice(fresh.guess(context), len(drafted))]
            assert drafted == want
            fresh.close()
            self.n_compared += len(drafted)
        if self._step % 3:
            return drafted
        at = len(context) - self._n_prompt
        return self._truth[at : at + len(drafted)]


@pytest.mark.parametrize("name", ["d2t", "residual"])
def test_what_was_read_before_is_as_good_as_new(target, head_path, name):
    """After accepted and refused drafts, and in a second answer, the guesses are those of a source that reads all."""
    with opened(head_path(name), target) as head:
        session = target.session()
        rows = target.hidden.follow(session._sequence)
        for prompt in (PROMPT, PROMPT[:30] + token_ids("other", 12)):
            truth = [t.token_id for t in session.generate(prompt, params(max_tokens=30))]
            planner = session._controller or ComparingPlanner(
                AffordingSource(head, rows, target.lock), truth, [3, 1, 4],
                lambda: AffordingSource(head, rows, target.lock),
            )  # fmt: skip
            planner._truth, session._controller = truth, planner
            drafting = params(max_tokens=30, speculation=SpeculationSettings())
            assert [t.token_id for t in session.generate(prompt, drafting)] == truth
        assert planner.n_compared > 50
        assert sum(planner.n_right) > 10
        session.close()


def test_guesses_need_the_rows_of_the_text(target, head_path):
    with opened(head_path("plain"), target) as head:
        session = target.session()
        answer = session._answer(params())
        source = AffordingSource(head, target.hidden.follow(session._sequence), target.lock)
        source.begin(PROMPT, answer)
        assert not list(islice(source.guess(PROMPT), 3))  # nothing was computed
        list(session.generate(PROMPT, params(max_tokens=1)))
        assert len(list(islice(source.guess([*PROMPT, 5]), 3))) == 3
        again = [list(islice(source.guess([*PROMPT, 5]), 3)) for _ in range(2)]  # asked again: the same
        assert again[0] == again[1]
        source.begin(PROMPT[:1], answer)
        assert not list(islice(source.guess(PROMPT[:1]), 3))  # no row before the first token
        source.close()
        session.close()


def test_a_source_reads_no_more_than_its_budget_allows(target, head_path, few_rows):
    with opened(head_path("plain"), target) as head:
        session = target.session()
        list(session.generate(PROMPT, params(max_tokens=1)))
        source = HeadSource(head, target.hidden.follow(session._sequence), target.lock)
        source.begin(PROMPT, session._answer(params()))
        head.row_s, source.budget_s = 1.0, 20.0
        context = [*PROMPT, 5]
        next(source.guess(context))
        assert (source._start, source._sequence.n_past) == (16, 24)  # 24 rows are kept of 40
        source.close()
        session.close()


def test_a_window_that_pays_is_widened(target, head_path, monkeypatch):
    monkeypatch.setattr(head_source, "FIRST_WINDOW", 16)
    with opened(head_path("plain"), target) as head:
        session = target.session()
        truth = [t.token_id for t in session.generate(PROMPT, params(max_tokens=4))]
        source = HeadSource(head, target.hidden.follow(session._sequence), target.lock)
        source.begin(PROMPT, session._answer(params()))
        seen = []
        for n, budget_s in ((1, 10.0), (2, 10.0), (3, 1000.0), (3, 1000.0)):
            head.row_s, source.budget_s = 1.0, budget_s
            next(source.guess(PROMPT + truth[:n]))
            seen.append((source._start, source._n_read))
        assert seen == [(30, 10), (30, 11), (18, 24), (18, 24)]  # twice as many, and then enough is read
        source.close()
        session.close()


# ---- the text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.8, 1.2])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("lengths", [[4], [3, 0, 9, 1]])
def test_a_head_changes_no_text(target, head_path, name, temperature, lengths):
    with opened(head_path(name), target) as head:
        session = target.session()
        settings = params(sampler=SamplerSettings(temperature=temperature, repeat_penalty=1.1))
        want = [t.token_id for t in session.generate(PROMPT, settings)]
        rows = target.hidden.follow(session._sequence)
        source = AffordingSource(head, rows, target.lock)
        planner = session._controller = ComparingPlanner(source, want, lengths, None)
        drafting = replace(settings, speculation=SpeculationSettings())
        assert [[t.token_id for t in session.generate(PROMPT, drafting)] for _ in range(2)] == [want, want]
        session.close()
        assert len(planner.n_row) > 10
        assert sum(planner.n_right) > 5  # true ones among them
        assert target.pages.n_page == len(target.pages._free)


@pytest.mark.parametrize("seed", range(40))
def test_random_texts_lengths_and_ends_of_the_context(target, head_path, few_rows, seed):
    """Windows that begin anew, prompts that share a beginning, answers that end where the context does."""
    rng = rng_for("head", seed)
    with opened(head_path(list(HEADS)[seed % len(HEADS)], "Q8_0"), target) as head:
        session = target.session()
        source = HeadSource(head, target.hidden.follow(session._sequence), target.lock)
        base = token_ids(seed, 140)
        for _ in range(4):
            prompt = base[: rng.integers(1, 140)] + token_ids(int(rng.integers(100)), int(rng.integers(1, 18)))
            settings = params(
                sampler=SamplerSettings(temperature=float(rng.choice([0.0, 0.8, 1.2]))), seed=int(rng.integers(1000)),
                max_tokens=None if rng.random() < 0.3 else int(rng.integers(1, 40)), ignore_eos=bool(rng.integers(2)),
            )  # fmt: skip
            session._controller = None
            want = [t.token_id for t in session.generate(prompt, settings)]
            truth = [token_id for token_id in want if token_id >= 0]
            lengths = rng.integers(0, 9, 4).tolist()
            session._controller = ComparingPlanner(source, truth, lengths, None)
            source.budget_s, head.row_s = float(rng.choice([0.0, 1e-3, 1.0])), 1e-4
            drafting = replace(settings, speculation=SpeculationSettings())
            assert [t.token_id for t in session.generate(prompt, drafting)] == want
            assert session._sequence.n_past == len(session.tokens)
        session.close()


def test_two_conversations_share_a_head(target, head_path):
    with opened(head_path("d2t"), target) as head:
        sessions = [target.session() for _ in range(2)]
        prompts, wants = (PROMPT, token_ids("q", 30)), []
        for session, prompt in zip(sessions, prompts, strict=True):
            wants.append([t.token_id for t in session.generate(prompt, params(max_tokens=30))])
            rows = target.hidden.follow(session._sequence)
            session._controller = FixedPlanner(AffordingSource(head, rows, target.lock), [3])
        drafting = params(max_tokens=30, speculation=SpeculationSettings())
        answers = [s.generate(p, drafting) for s, p in zip(sessions, prompts, strict=True)]
        together = list(zip(*answers, strict=True))  # in turn
        assert [[pair[i].token_id for pair in together] for i in range(2)] == wants
        for session in sessions:
            session.close()


@pytest.mark.parametrize("name", ["d2t", "shared"])
def test_the_controller_with_a_head(machine, tiny_path, head_path, name):
    """The whole path: an engine opened with a head, what is used is the controller's choice."""
    machine.kernels(BEST)
    texts = set()
    path = tiny_path("qwen2", "Q4_0")
    with Engine.open(path, n_ctx=160, n_threads=2) as plain:
        want = plain.executor.program
    with Engine.open(path, n_ctx=160, n_threads=2, draft=head_path(name)) as engine:
        assert isinstance(engine.draft, HeadModel)
        ops = [str(op) for op in engine.executor.program.ops]
        assert ops == [str(op) for op in want.ops]  # nothing more is computed
        for mode in ("off", "auto", "ngram", "draft"):
            session = engine.session()
            settings = params(max_tokens=100, speculation=SpeculationSettings(mode=mode))
            texts.add(tuple(t.token_id for t in session.generate(PROMPT, settings)))
            assert (session.stats.speculation is None) == (mode == "off")
            session.close()
    assert len(texts) == 1
