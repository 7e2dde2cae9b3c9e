"""The output matrix of a draft: which tokens its rows belong to, and that they are those tokens' rows."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.record import replace
from llmrun.quant.narrow import narrow
from llmrun.quant.pack import pack
from llmrun.quant.unpack import unpack
from llmrun.runtime.engine import Engine
from llmrun.runtime.kv_cache import KvSequence
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.speculation import draft_head
from llmrun.runtime.speculation.draft_head import N_MISSING, SPACES, DraftHead, is_by_frequency, output_matrix
from llmrun.runtime.speculation.draft_model import DraftModel
from llmrun.runtime.speculation.settings import SpeculationSettings
from llmrun.runtime.tokenizer.vocabulary import Attr

from ... import tiny_models
from ..bits import assert_same_bits
from ..machine import token_ids
from .drafters import FixedPlanner
from .test_draft_model import AffordingSource, greedy_answer

N_FREQUENT, N_EXCHANGED = 40, 24  # of 301 tokens
SPACE = SPACES["gpt2"]


@pytest.fixture(scope="module")
def target(machine, tiny_path):
    with Engine.open(tiny_path("llama", "Q4_0"), n_ctx=160, n_threads=1, n_ubatch=32) as engine:
        yield engine


@pytest.fixture(params=["Q4_0", "Q8_0"])
def draft(target, tiny_path, request):
    path = tiny_path("llama", request.param)
    model = DraftModel.open(path, target, n_frequent=N_FREQUENT, n_exchanged=N_EXCHANGED)
    yield model
    model.close()


def rows_of(draft):
    """Return the packed rows of the output matrix, by token."""
    packed = draft.executor.weights.packed(output_matrix(draft.executor.program))
    places = np.concatenate((np.arange(draft.tokens.n_first), draft.tokens.places))
    return dict(zip(draft.tokens.ids.tolist(), unpack(packed)[places], strict=True))


def rows_of_file(draft):
    """Return what packing makes of all rows of the tensor."""
    weight = output_matrix(draft.executor.program)
    info = draft._file.tensors[weight.name]
    data, shape = draft._file.data(info), tuple(info.shape)
    if weight.packed != info.ggml_type.name:
        data = narrow(info.ggml_type, data, GgmlType[weight.packed])
    return unpack(pack(weight.name, GgmlType[weight.packed], shape, data))


def test_rows_are_those_of_their_tokens(draft):
    want, chance = rows_of_file(draft), random.Random(1)
    assert list(rows_of(draft)) == list(range(N_FREQUENT + N_EXCHANGED))
    for n in (1, 3, 24, 7, 30, 16):
        wanted = chance.sample(range(301), n)
        before = draft.tokens
        draft.head.want(wanted, at_once=True)
        rows = rows_of(draft)
        assert draft.tokens is not before or before.ids.tolist() == list(rows)
        assert len(rows) == N_FREQUENT + N_EXCHANGED
        assert list(rows) == sorted(rows)
        assert {t for t in wanted if t >= N_FREQUENT} <= rows.keys() or n == 30
        for token_id, row in rows.items():
            assert_same_bits(row, want[token_id])


def test_those_not_wanted_for_longest_make_room(draft):
    def rare():
        return set(draft.tokens.ids[draft.tokens.n_first :].tolist())

    draft.head.want(range(100, 110), at_once=True)
    assert rare() == {*range(50, 64), *range(100, 110)}
    draft.head.want([50, 3, 51], at_once=True)  # there already: now they are the latest
    draft.head.want(range(200, 222), at_once=True)
    assert rare() == {50, 51, *range(200, 222)}
    draft.head.want(range(230, 301), at_once=True)  # more than there is room for
    assert rare() == set(range(301 - N_EXCHANGED, 301))


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_no_more_is_read_than_the_rows(target, tiny_path, monkeypatch, name, use_mmap):
    """The matrix is the embeddings', or one of its own."""
    draft = DraftModel.open(
        tiny_path(name, "Q8_0"), target, use_mmap=use_mmap, n_frequent=N_FREQUENT, n_exchanged=N_EXCHANGED
    )
    read, sizes = draft._file.data, []
    with monkeypatch.context() as patch:
        patch.setattr(draft._file, "data", lambda *place: sizes.append(len(read(*place))) or read(*place))
        draft.head.want([200, 201, 100], at_once=True)
    assert len(sizes) == 3
    assert max(sizes) < 1000
    want = rows_of_file(draft)
    assert all((row == want[token_id]).all() for token_id, row in rows_of(draft).items())
    draft.close()


def test_a_few_tokens_wait_for_others(draft):
    draft.head.want(range(100, 99 + N_MISSING), at_once=False)
    assert 100 not in draft.tokens.ids
    draft.head.want([100, 101], at_once=False)  # waiting already
    assert 100 not in draft.tokens.ids
    draft.head.want([150], at_once=False)
    assert {100, 150} <= set(draft.tokens.ids.tolist())


def head_of(texts, encode=None, n_out=8):
    vocabulary = SimpleNamespace(model="gpt2", texts=texts, ids={text: i for i, text in enumerate(texts)})
    return DraftHead(
        None, SimpleNamespace(n_out=n_out), n_out, 99, SimpleNamespace(vocabulary=vocabulary, encode=encode)
    )


def test_words_with_something_else_before_them():
    head = head_of(["x", "Name", SPACE + "name", "(name", SPACE, "it", ".Name", SPACE + "it", "names"])
    assert sorted(head.of_text([1])) == [1, 2, 3, 6]
    assert list(head.of_text([3]))[-1] == 3
    assert sorted(head.of_text([3])) == [1, 2, 3, 6]
    assert list(head.of_text([5, 5, 0, 4])) == [5, 0, 4]  # too short


def test_a_word_that_is_several_tokens_without_its_space():
    head = head_of(["Cam", "bridge", SPACE + "Cambridge"], lambda text, **_: [0, 1] if text == "Cambridge" else [])
    assert list(head.of_text([2])) == [0, 1, 2]


def sentencepiece():
    """Return a vocabulary: control and byte tokens, pairs by frequency, then characters by frequency."""
    texts = ["<s>", "<0x41>", "in", "▁t", "the", "▁the", "▁", "e", "Z", "é"]
    attrs = [Attr.CONTROL, Attr.BYTE, *[Attr.NORMAL] * 8]
    scores = [0, 0, *(-float(i) for i in range(8))]
    return SimpleNamespace(
        model="llama", texts=texts, ids={text: i for i, text in enumerate(texts)},
        attrs=np.array(attrs, np.uint8), scores=np.array(scores, np.float32), has=lambda i, attr: bool(attrs[i] & attr),
    )  # fmt: skip


def test_vocabularies_in_order_of_frequency():
    vocabulary = sentencepiece()
    assert is_by_frequency(vocabulary)
    vocabulary.scores[4] = vocabulary.scores[3]
    assert not is_by_frequency(vocabulary)
    vocabulary.scores[:] = np.linspace(-1, -9.5, 10)  # logarithms of probabilities
    assert not is_by_frequency(vocabulary)
    assert is_by_frequency(SimpleNamespace(model="gpt2"))
    assert not is_by_frequency(SimpleNamespace(model="t5"))


def test_frequent_characters_stay(monkeypatch):
    monkeypatch.setattr(draft_head, "N_CHARACTER", 2)
    exchanged = []
    weights = SimpleNamespace(exchange_rows=lambda _, rows, with_rows: exchanged.append((list(rows), list(with_rows))))
    tokenizer = SimpleNamespace(vocabulary=sentencepiece(), encode=None)
    head = DraftHead(weights, SimpleNamespace(n_out=7), 6, 10, tokenizer)
    assert exchanged == [([4, 5], [7, 8])]
    assert head.tokens.ids.tolist() == [0, 1, 2, 3, 6, 7, 8]
    for wanted, rare in ((9, 9), (4, 4), (7, 4), (5, 5), (6, 6)):
        head.want([wanted], at_once=True)
        assert head.tokens.ids.tolist() == sorted([0, 1, 2, 3, 7, 8, rare])
    assert list(head.of_text([5])) == [4, 5]


def test_what_the_target_thinks_of():
    head = DraftHead(
        None, SimpleNamespace(n_out=60), 40, 300, SimpleNamespace(vocabulary=SimpleNamespace(model="gpt2"))
    )
    logits = np.linspace(-50, -20, 300).astype(np.float32)
    logits[[7, 250, 45]] = 12.0, 11.0, 3.0
    assert head.thought_of(logits) == [45, 250]  # the likeliest last
    logits[100:200] = 11.5
    assert len(head.thought_of(logits)) == draft_head.N_THOUGHT


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_learns_the_tokens_of_its_text(target, tiny_path, temperature, monkeypatch):
    """The target as its own draft is right wherever it has the token's row; the text is the same."""
    path, prompt = tiny_path("llama", "Q4_0"), token_ids("p", 40)
    settings = GenerationParams(
        sampler=SamplerSettings(temperature=temperature), seed=7, max_tokens=80, ignore_eos=True,
        speculation=SpeculationSettings(mode="off"),
    )  # fmt: skip
    session, n_pass = target.session(), {}
    want = [t.token_id for t in session.generate(prompt, settings)]
    for n_exchanged in (1, 150):
        draft = DraftModel.open(path, target, n_frequent=N_FREQUENT, n_exchanged=n_exchanged)
        planner = session._controller = FixedPlanner(AffordingSource(draft, target.lock), [3])
        drafting = replace(settings, speculation=SpeculationSettings())
        got = [t.token_id for t in session.generate(prompt, drafting)]
        assert got == want
        n_pass[n_exchanged] = len(planner.n_row)
        planner.close()
        draft.close()
    session._controller = None
    session.close()
    assert n_pass[150] < 0.9 * n_pass[1]


@pytest.mark.parametrize("n_frequent", [N_FREQUENT, 16384])
@pytest.mark.parametrize("longer", ["target", "draft"])
def test_vocabularies_of_one_family_that_are_not_equally_long(tiny_path, tmp_path, monkeypatch, longer, n_frequent):
    """Tokens that only one of them has are neither read nor said by the draft; the text stays the same."""
    shorter, n_more = tiny_path("llama", "Q8_0"), 9
    tokens, types, merges = tiny_models.vocabulary()
    padding = [f"[PAD{i}]" for i in range(n_more)]
    monkeypatch.setattr(tiny_models, "N_VOCAB", 301 + n_more)
    monkeypatch.setattr(tiny_models, "vocabulary", lambda: (tokens + padding, types + [5] * n_more, merges))
    padded = tiny_models.tiny_model_path(tmp_path, "llama", GGMLQuantizationType.Q8_0)
    paths = {"target": padded, "draft": shorter} if longer == "target" else {"target": shorter, "draft": padded}
    with Engine.open(paths["target"], n_ctx=160, n_threads=1, n_ubatch=32) as engine:
        draft = DraftModel.open(paths["draft"], engine, n_frequent=n_frequent, n_exchanged=N_EXCHANGED)
        assert draft.is_same_vocabulary
        assert draft.n_shared == 301
        settings = GenerationParams(
            sampler=SamplerSettings(temperature=0.9), seed=7, max_tokens=80, ignore_eos=True,
            speculation=SpeculationSettings(mode="off"),
        )  # fmt: skip
        prompt = [*token_ids("p", 40), engine.info.n_vocab - 1, 5]
        session = engine.session()
        want = [t.token_id for t in session.generate(prompt, settings)]
        session._controller = planner = FixedPlanner(AffordingSource(draft, engine.lock), [3])
        got = [t.token_id for t in session.generate(prompt, replace(settings, speculation=SpeculationSettings()))]
        session.close()
        source = AffordingSource(draft, engine.lock)
        source.begin(prompt, greedy_answer(engine))
        source.guess(prompt)
        assert source.agree([engine.info.n_vocab - 1, 5]) == (None if longer == "target" else [])
        assert all(guess.token_id == 5 for guess in source.agree([5, engine.info.n_vocab - 1]) or [])
        source.close()
        draft.close()
    assert got == want
    assert longer == "draft" or max(want) >= 301  # the text has tokens that the draft does not
    assert sum(planner.n_row) > len(planner.n_row)


def test_a_source_brings_in_what_the_target_thinks_of(draft, target):
    source, prompt = AffordingSource(draft, target.lock), token_ids("p", 20)
    source.begin(prompt, greedy_answer(target))
    next(source.guess(prompt))
    thoughts = sorted(set(range(150, 150 + N_MISSING)) - set(draft.tokens.ids.tolist()))
    logits = np.full(301, -20.0, np.float32)
    logits[150 : 150 + N_MISSING] = np.arange(N_MISSING)
    source.shown(logits)
    assert thoughts
    assert not set(thoughts) & set(draft.tokens.ids.tolist())
    draft.head.want(range(200, 200 + N_MISSING - len(thoughts)), at_once=False)  # enough for an exchange
    next(source.guess([*prompt, 5]))
    assert set(thoughts) <= set(draft.tokens.ids.tolist())
    source.close()


def test_rows_that_are_no_numbers_are_refused(draft, monkeypatch):
    weight = output_matrix(draft.executor.program)
    info = draft._file.tensors[weight.name]
    data = draft._file.data(info).copy()
    row = data.reshape(301, -1)[200]
    row[:2] = np.array([np.inf], np.float16).view(np.uint8)
    monkeypatch.setattr(draft._file, "data", lambda _, start, stop: data[start:stop])
    before = rows_of(draft)
    with pytest.raises(FormatError, match="infinite or NaN"):
        draft.head.want([100, 200], at_once=True)
    draft.head.want([], at_once=True)  # not tried again and again
    after = rows_of(draft)
    assert before.keys() == after.keys()
    assert all((before[i] == after[i]).all() for i in before)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "qwen3", "phi3"])
def test_matrices_of_all_kinds_of_models_are_cut(tiny_path, name):
    """The model drafts for itself: its logits are those of its tokens, some of them exchanged."""
    path = tiny_path(name, "Q4_0")
    with Engine.open(path, n_ctx=160, n_threads=1, n_ubatch=32) as engine:
        whole, cut = (DraftModel.open(path, engine, n_frequent=n, n_exchanged=N_EXCHANGED) for n in (999, N_FREQUENT))
        cut.head.want([300, 200, 100], at_once=True)
        found = []
        for draft in (whole, cut):
            sequence = KvSequence(draft.pages, draft.n_ctx)
            draft.run(sequence, [5, 6, 7], n_output=1)
            found.append(draft.tokens.logits(draft.executor.output("logits", 1)[0]))
            sequence.close()
        assert {100, 200, 300} <= set(cut.tokens.ids.tolist())
        assert_same_bits(found[1], found[0][cut.tokens.ids])
        whole.close()
        cut.close()
