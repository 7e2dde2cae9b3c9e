"""A draft model, of the same vocabulary or another, follows the text and changes nothing of it."""

import math
import os

import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.record import replace
from llmrun.runtime.batch import Batch
from llmrun.runtime.engine import Engine
from llmrun.runtime.kernels.layout import PAGE_SLOTS
from llmrun.runtime.kv_cache import KvSequence
from llmrun.runtime.sampling.chain import Sampler
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.skim import skim
from llmrun.runtime.speculation import draft_model, draft_weights
from llmrun.runtime.speculation.draft_model import DraftModel
from llmrun.runtime.speculation.earlier_text import LEAD, LEAST_PIECE, EarlierText
from llmrun.runtime.speculation.loop import verify
from llmrun.runtime.speculation.model_source import FIRST_WINDOW, N_OUT, STEP_TOKENS, ModelSource
from llmrun.runtime.speculation.picking import DraftTokens
from llmrun.runtime.speculation.settings import SpeculationSettings
from llmrun.runtime.speculation.source import Answer
from llmrun.runtime.speculation.vocabulary_map import VocabularyMap

from ..machine import token_ids
from .drafters import FixedPlanner

OFF = SpeculationSettings(mode="off")
PROMPT = token_ids("p", 40)


class AffordingSource(ModelSource):
    """May read whatever it wants, at once."""

    def guess(self, context):
        self.budget_s, self._model.token_s = 1e9, 1e-9
        return super().guess(context)


def greedy_answer(engine):
    sampler = Sampler(SamplerSettings(temperature=0.0), engine.info.n_vocab, engine.tokenizer.piece)
    return Answer(sampler=sampler, seed=1, sample=0, ends=frozenset())


@pytest.fixture(scope="module")
def target(machine, tiny_path):
    with Engine.open(tiny_path("llama", "Q4_0"), n_ctx=160, n_threads=1, n_ubatch=32) as engine:
        yield engine


@pytest.fixture
def other_words(monkeypatch):
    """Make a draft's vocabulary another one: the same tokens with other ids count as another vocabulary."""
    make = VocabularyMap.__init__

    def between(cls, file, tokenizer):
        from llmrun.runtime.tokenizer.load import load_tokenizer

        made = cls.__new__(cls)
        make(made, tokenizer, load_tokenizer(file.metadata))
        for token_id in range(0, 301, 3):  # a third of the tokens have no counterpart
            made._to_draft.pop(token_id, None)
        is_kept = made.tokens.ids % 3 != 0
        made.tokens = DraftTokens(made.tokens.ids[is_kept], 0, made.tokens.places[is_kept])
        return made

    monkeypatch.setattr(VocabularyMap, "between", classmethod(between))


def answers(engine, draft, sampler, lengths, n=50):
    """Return the ids without and with a draft, and the planner."""
    session = engine.session()
    settings = GenerationParams(sampler=sampler, seed=7, max_tokens=n, ignore_eos=True, speculation=OFF)
    try:
        want = [t.token_id for t in session.generate(PROMPT, settings)]
        planner = session._controller = FixedPlanner(AffordingSource(draft, engine.lock), lengths)
        drafting = replace(settings, speculation=SpeculationSettings())
        got = [[t.token_id for t in session.generate(PROMPT, drafting)] for _ in range(2)]
    finally:
        session.close()
    assert draft.pages.n_page == len(draft.pages._free)
    return want, got, planner


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.8, 1.2])
def test_the_target_as_its_own_draft_is_always_right(target, tiny_path, temperature, monkeypatch):
    """It sees the same noise, so it picks the same at any temperature."""
    monkeypatch.setattr(draft_weights, "can_narrow", lambda *_: False)
    draft = DraftModel.open(tiny_path("llama", "Q4_0"), target)
    want, got, planner = answers(target, draft, SamplerSettings(temperature=temperature, repeat_penalty=1.2), [4])
    draft.close()
    assert got == [want, want]
    assert planner.n_right == [n_row - 1 for n_row in planner.n_row]
    assert len(planner.n_row) == 2 * 10  # 49 tokens after the first


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.2])
@pytest.mark.parametrize("n_frequent", [32, 16384])
def test_a_random_draft_with_a_cut_head(target, tiny_path, temperature, n_frequent):
    draft = DraftModel.open(tiny_path("qwen2", "Q8_0"), target, n_frequent=n_frequent, n_exchanged=32)
    want, got, planner = answers(target, draft, SamplerSettings(temperature=temperature), [3, 1])
    draft.close()
    assert got == [want, want]
    assert draft.executor.program.outputs["logits"].n_col == min(n_frequent + 32, 301)
    kinds = {w.packed for op in draft.executor.program.ops if op.kind == "matmul" for w in op.weights if w.n_out}
    assert kinds == {"Q3_0", "Q4_0"}  # smaller than in the file
    assert len(planner.n_row) > 40


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_draft_of_another_vocabulary(target, tiny_path, other_words, name, temperature):
    draft = DraftModel.open(tiny_path(name, "Q4_0"), target)
    assert not draft.vocabulary.is_same
    assert draft.vocabulary.n_shared == 200
    want, got, planner = answers(target, draft, SamplerSettings(temperature=temperature), [3])
    draft.close()
    assert got == [want, want]
    if name == "llama" and temperature:  # the greedy text is mostly of tokens that are not shared
        assert sum(planner.n_right) > 5


def test_the_controller_with_a_draft_model(tiny_path):
    """The whole path: an engine opened with a draft, what is used is the controller's choice."""
    path = tiny_path("llama", "Q4_0")
    texts = set()
    with Engine.open(path, n_ctx=160, n_threads=1, draft=path) as engine:
        for mode in ("off", "auto", "ngram", "draft"):
            session = engine.session()
            settings = GenerationParams(
                sampler=SamplerSettings(), seed=7, max_tokens=100, ignore_eos=True,
                speculation=SpeculationSettings(mode=mode),
            )  # fmt: skip
            texts.add(tuple(t.token_id for t in session.generate(PROMPT, settings)))
            assert (session.stats.speculation is None) == (mode == "off")
            session.close()
    assert len(texts) == 1


@pytest.mark.parametrize("cut", ["target", "draft"])
def test_a_mapped_file_that_is_cut_is_an_error(tiny_path, tmp_path, cut):
    paths = {name: tmp_path / f"{name}.gguf" for name in ("target", "draft")}
    for path in paths.values():
        path.write_bytes(tiny_path("llama", "Q8_0").read_bytes())
    with Engine.open(paths["target"], n_ctx=64, n_threads=1) as engine:
        draft = DraftModel.open(paths["draft"], engine)
        sequence = KvSequence((engine if cut == "target" else draft).pages, 64)
        passes = {
            "target": lambda: verify(engine, [(sequence, [1, 2])]),
            "draft": lambda: draft.run(sequence, [1, 2], n_output=1),
        }
        passes[cut]()
        os.truncate(paths[cut], 100)
        with pytest.raises(FormatError, match="changed while it was open"):
            passes[cut]()
        assert sequence.n_past == 2
        sequence.close()
        draft.close()


def test_agreeing_with_copies_is_guessing_them_one_by_one(tiny_path):
    """What a model agrees with, and guesses after it, is what it would have guessed anyway."""
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=128, n_threads=1) as engine:
        draft = DraftModel.open(tiny_path("llama", "Q4_0"), engine)
        answer = Answer(
            sampler=Sampler(SamplerSettings(temperature=0.8), engine.info.n_vocab, engine.tokenizer.piece),
            seed=1,
            sample=0,
            ends=frozenset(),
        )
        context = [5, 9, 14, 3, 77, 20]

        def start():
            source = draft.source(KvSequence(engine.pages, 128))
            source.begin(context, answer)
            return source, source.guess(context)

        source, guesses = start()
        alone = [next(guesses) for _ in range(12)]
        source.close()
        ids = [guess.token_id for guess in alone]
        for n_first, n_copied, n_right in ((1, 3, 3), (3, 3, 2), (2, 1, 0), (1, 8, 8), (4, 2, 2), (0, 3, 3), (0, 2, 1)):
            source, guesses = start()
            first = [next(guesses) for _ in range(n_first)]
            copied = ids[n_first : n_first + n_copied]
            if n_right < n_copied:
                copied[n_right] = (copied[n_right] + 1) % engine.info.n_vocab
            agreed = source.agree(copied)
            assert source.agree(copied) is None  # nothing is unread
            rest = [next(guesses) for _ in range(len(alone) - n_first - len(agreed))]
            assert len(agreed) == min(n_right, N_OUT - 1 if n_first else 1)  # with six new tokens it looks at one
            assert first + agreed + rest == alone
            source.close()
        draft.close()


@pytest.mark.parametrize("n_left", [0, LEAST_PIECE - 1, LEAST_PIECE, PAGE_SLOTS - 1])
def test_what_stands_before_the_window_is_read_by_itself_and_put_in_front(tiny_path, n_left):
    """The logits are those of one sequence whose pieces did not see each other; positions are the text's.

    Two pages are put in front, and tokens that make no page where they are worth it: slots in front of them stay empty.
    """
    text = token_ids("q", FIRST_WINDOW + 2 * PAGE_SLOTS + n_left)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=512, n_threads=1) as engine:
        draft = DraftModel.open(tiny_path("llama", "Q4_0"), engine)
        answer, source = greedy_answer(engine), draft.source(KvSequence(engine.pages, 512))
        source.begin(text, answer)
        first = next(source.guess(text))
        start = len(text) - FIRST_WINDOW
        context = [*text, first.token_id]
        source.budget_s, draft.token_s = 1.0, 1.0 / (3 * PAGE_SLOTS)
        next(source.guess(context))

        edge = 0 if n_left >= LEAST_PIECE else n_left  # tokens before it are seen by the piece, and then by none
        n_skipped, sequence = -start % PAGE_SLOTS, KvSequence(draft.pages, 512)
        sequence.skip(n_skipped)
        # The window's first pass saw the window alone, the token after it all there is.
        passes = [(begin, min(begin + PAGE_SLOTS, start), n_skipped) for begin in range(0, start, PAGE_SLOTS)]
        passes += [(start, len(text), n_skipped + start), (len(text), len(context), n_skipped + edge)]
        for begin, end, visible_start in passes:
            past = sequence.n_past
            sequence.append(end - begin)
            out_rows = [end - begin - 1]
            batch = Batch.of_tokens(
                sequence.page_table, past, context[begin:end], out_rows, shift=-n_skipped, visible_start=visible_start
            )
            draft.executor.run(batch)
        want = draft.executor.output("logits", 1)[0].copy()
        sequence.close()
        assert (source._logits == want).all()
        n_hidden = 0 if edge == n_left else PAGE_SLOTS - n_left
        n_page = draft.pages.n_page - len(draft.pages._free)
        assert n_page == -(-(n_hidden + len(context) - edge) // PAGE_SLOTS)
        alone = [next(guesses) for guesses in [source.guess(context)] for _ in range(5)]
        assert [next(guesses) for guesses in [source.guess(context)] for _ in range(5)] == alone  # rolled back
        source.close()
        assert len(draft.pages._free) == draft.pages.n_page
        draft.close()


def test_a_piece_of_the_middle_has_the_positions_that_it_has_in_the_text(tiny_path, monkeypatch):
    """The logits are those of a sequence that holds the piece and the window, and nothing of what is between.

    The piece alone has seen the tokens right before it.
    """
    text = token_ids("q", FIRST_WINDOW + 3 * PAGE_SLOTS)
    place = (PAGE_SLOTS, 2 * PAGE_SLOTS)
    monkeypatch.setattr(EarlierText, "choose", lambda _, recent, n_token: [place] if n_token >= PAGE_SLOTS else [])
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=512, n_threads=1) as engine:
        draft = DraftModel.open(tiny_path("llama", "Q4_0"), engine)
        source = draft.source(KvSequence(engine.pages, 512))
        source.begin(text, greedy_answer(engine))
        context = [*text, next(source.guess(text)).token_id]
        assert source.read_s == 0.0
        source.budget_s, draft.token_s = 1.0, 1.0 / (2 * PAGE_SLOTS)
        next(source.guess(context))
        assert source.read_s > 0.0

        start, sequence = len(text) - FIRST_WINDOW, KvSequence(draft.pages, 512)
        sequence.skip(PAGE_SLOTS - LEAD)
        for begin, end, shift, visible_start in (
            (place[0] - LEAD, place[0], 0, PAGE_SLOTS - LEAD),
            (*place, 0, PAGE_SLOTS - LEAD),
            (start, len(text), PAGE_SLOTS, place[1]),  # the window saw itself at first
            (len(text), len(context), PAGE_SLOTS, place[0]),
        ):
            past = sequence.n_past
            sequence.append(end - begin)
            out_rows = [end - begin - 1]
            batch = Batch.of_tokens(
                sequence.page_table, past, context[begin:end], out_rows, shift=shift, visible_start=visible_start
            )
            draft.executor.run(batch)
        assert (source._logits == draft.executor.output("logits", 1)[0]).all()
        for held in (sequence, source):
            held.close()
        draft.close()


def test_a_text_that_begins_otherwise_is_read_anew(tiny_path):
    """Its end is the same as before, but what was read of its begin is not what stands there now."""
    text = token_ids("q", FIRST_WINDOW + 2 * PAGE_SLOTS)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=512, n_threads=1) as engine:
        draft = DraftModel.open(tiny_path("llama", "Q4_0"), engine)
        other = [text[0] + 1, *text[1:]]
        source, new = (draft.source(KvSequence(engine.pages, 512)) for _ in range(2))
        for reader, prompts in ((source, (text, other)), (new, (other,))):
            for prompt in prompts:
                reader.begin(prompt, greedy_answer(engine))
                reader.budget_s, draft.token_s = 0.0, 0.0
                next(reader.guess(prompt))
                reader.budget_s, draft.token_s = 1.0, 1e-6
                next(reader.guess([*prompt, 7]))
                assert reader._n_front == 2 * PAGE_SLOTS
        assert (source._logits == new._logits).all()
        for held in (source, new):
            held.close()
        draft.close()


def test_before_a_reading_was_timed_a_step_says_what_is_affordable(target, tiny_path):
    """Of a long prompt that is not more than the first window, whatever a step says, until the first is read."""
    draft = DraftModel.open(tiny_path("llama", "Q4_0"), target)
    source = draft.source(KvSequence(target.pages, 160))
    n_read = []
    for step_s, budget_s in ((math.inf, 0.0), (0.1, 0.2), (0.1, 1.0)):
        text = token_ids(f"t{budget_s}", 80)
        draft.step_s, draft.token_s, source.budget_s = step_s, 0.0, budget_s
        source.begin(text, greedy_answer(target))
        source._restart(len(text))
        next(source.guess(text))
        n_read.append(len(source._cached))
    assert n_read == [FIRST_WINDOW, STEP_TOKENS * 2, FIRST_WINDOW]
    source.close()
    draft.close()


@pytest.mark.parametrize("n_new", [LEAST_PIECE + FIRST_WINDOW - 1, LEAST_PIECE + FIRST_WINDOW, 150])
def test_of_many_new_tokens_all_but_the_last_are_skimmed(tiny_path, monkeypatch, n_new):
    monkeypatch.setattr(draft_model, "skim", lambda program, _: skim(program, 0))
    text = token_ids("s", FIRST_WINDOW + n_new)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=512, n_threads=1) as engine:
        draft = DraftModel.open(tiny_path("llama", "Q4_0"), engine)
        source = draft.source(KvSequence(engine.pages, 512))
        source.begin(text[:FIRST_WINDOW], greedy_answer(engine))
        source.budget_s, draft.token_s = 1.0, 1e-9
        next(source.guess(text[:FIRST_WINDOW]))
        draft.token_s = 1e-9
        next(source.guess(text))

        sequence = KvSequence(draft.pages, 512)
        edge = len(text) - FIRST_WINDOW if n_new >= LEAST_PIECE + FIRST_WINDOW else FIRST_WINDOW
        draft.run(sequence, text[:FIRST_WINDOW], n_output=1)
        for start in range(FIRST_WINDOW, edge, 50):
            draft.run(sequence, text[start : min(start + 50, edge)], n_output=0)
        draft.run(sequence, text[edge:], n_output=1)
        assert (source._logits == draft.executor.output("logits", 1)[0]).all()
        whole = KvSequence(draft.pages, 512)
        for start in range(0, len(text), 50):
            draft.run(whole, text[start : start + 50], n_output=1)
        assert (source._logits == draft.executor.output("logits", 1)[0]).all() == (edge == FIRST_WINDOW)
        for held in (source, sequence, whole):
            held.close()
        draft.close()


@pytest.mark.parametrize("n_token", [100, 165])
def test_another_text_in_the_same_session_gets_a_window_of_its_own(tiny_path, n_token):
    """It is shorter than where the last window began, or hardly longer: what the draft sees of it is not."""
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=512, n_threads=1) as engine:
        draft = DraftModel.open(tiny_path("llama", "Q4_0"), engine)
        answer, source = greedy_answer(engine), draft.source(KvSequence(engine.pages, 512))
        for text in (token_ids("q", 200), token_ids("r", n_token)):
            source.begin(text, answer)
            draft.token_s = 0.0
            context = [*text, 7]
            next(source.guess(context))
            assert source._cached == context[-len(source._cached) :]
            assert len(source._cached) >= FIRST_WINDOW // 2
        source.close()
        draft.close()
