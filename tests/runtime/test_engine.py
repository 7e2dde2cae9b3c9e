"""The engine and its sessions: what ends an answer, what is computed again, what is refused."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from llmrun.formats.errors import CapacityError, ConfigError, FormatError
from llmrun.runtime import engine as engine_module
from llmrun.runtime import memory, threads
from llmrun.runtime.engine import Engine
from llmrun.runtime.kernels.layout import KV_TYPES
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams

from ..tiny_models import tiny_model_path
from .bits import assert_same_bits
from .machine import BEST, TARGET_NAMES, WHOLE_TARGETS, token_ids

GREEDY = SamplerSettings(temperature=0.0)
WARM = SamplerSettings(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)
PROMPT = token_ids("prompt", 20)


def params(sampler=GREEDY, **options):
    return GenerationParams(**{"sampler": sampler, "seed": 1, "max_tokens": 12, "ignore_eos": True} | options)


@pytest.fixture(scope="module")
def opened(machine, tiny_path):
    machine.kernels(BEST)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=128, n_threads=2, n_ubatch=16) as engine:
        yield engine


@pytest.fixture
def session(opened):
    session = opened.session()
    yield session
    session.close()


def ids_of(session, prompt=PROMPT, settings=None, **options):
    return [t.token_id for t in session.generate(prompt, settings or params(**options)) if t.token_id >= 0]


def fresh_ids(engine, prompt=PROMPT, **options):
    """Return the answer of a session of its own."""
    session = engine.session()
    try:
        return ids_of(session, prompt, **options)
    finally:
        session.close()


def text_of(session, prompt=PROMPT, **options):
    return "".join(t.text for t in session.generate(prompt, params(**options)))


# ---- what ends an answer ----------------------------------------------------------------------


def test_max_tokens(session):
    for n in (0, 1, 5):
        assert len(ids_of(session, max_tokens=n)) == n
        assert session.stats.finish_reason == "length"
        assert session.stats.n_generated == n


def test_the_end_of_the_context(opened, session):
    prompt = token_ids("full", opened.n_ctx - 4)
    got = ids_of(session, prompt, max_tokens=None)
    assert len(got) == 5  # four more fit; the token after them is known but not kept
    assert session.stats.finish_reason == "length"
    assert len(session.tokens) == opened.n_ctx


def test_a_prompt_that_does_not_fit(opened, session):
    want = ids_of(session)
    for n in (opened.n_ctx, opened.n_ctx + 500):
        with pytest.raises(
            CapacityError, match=f"prompt of {n} tokens does not fit the context of {opened.n_ctx} tokens"
        ):
            next(session.generate(token_ids("long", n), params()))
    assert ids_of(session) == want
    assert len(ids_of(session, token_ids("long", opened.n_ctx - 1), max_tokens=1)) == 1


def test_an_empty_prompt(session):
    with pytest.raises(ConfigError, match="the prompt is empty"):
        next(session.generate([], params()))


def test_an_end_of_turn_token(opened, session):
    """A bias makes the end certain; ``ignore_eos`` never picks it."""
    end = opened.tokenizer.eos_id
    certain = SamplerSettings(temperature=0.0, logit_bias=((end, 1000.0),))
    assert ids_of(session, sampler=certain, ignore_eos=False) == []
    assert session.stats.finish_reason == "stop"
    assert session.stats.n_generated == 1
    got = ids_of(session, sampler=certain, ignore_eos=True)
    assert len(got) == 12
    assert end not in got
    turn = opened.tokenizer.encode("<|im_end|>", parse_special=True)[-1]
    assert (
        ids_of(session, sampler=SamplerSettings(temperature=0.0, logit_bias=((turn, 1000.0),)), ignore_eos=False) == []
    )


def test_stop_strings(session):
    whole = text_of(session, max_tokens=40)
    assert len(whole) > 10
    stop = whole[6:9]
    cut = text_of(session, max_tokens=40, stop=(stop,))
    assert cut == whole[: whole.index(stop)]
    assert session.stats.finish_reason == "stop"
    # A stop string that begins but does not come is given back at the end.
    assert text_of(session, max_tokens=40, stop=(whole[-2:] + "never",)) == whole


def test_cancelling_keeps_the_session_usable(session):
    want = ids_of(session)
    answer = session.generate(PROMPT, params())
    next(answer)
    answer.close()
    assert session.stats.finish_reason == "cancelled"
    assert ids_of(session) == want


# ---- seeds, samples and logprobs --------------------------------------------------------------


def test_what_is_done_with_a_token_outside_is_no_time_of_decoding(session):
    for _ in session.generate(PROMPT, params(max_tokens=4)):
        time.sleep(0.5)
    assert 0 < session.stats.decode_s < 1.0


def test_a_text_belongs_to_seed_and_sample(opened, session):
    first = ids_of(session, sampler=WARM)
    assert ids_of(session, sampler=WARM) == first
    assert fresh_ids(opened, sampler=WARM) == first
    assert ids_of(session, sampler=WARM, sample=1) != first
    assert ids_of(session, sampler=WARM, seed=2) != first
    again = ids_of(session, sampler=WARM, sample=1)
    assert again == ids_of(session, sampler=WARM, sample=1)


def test_a_token_depends_on_its_position_not_on_how_it_was_reached(session):
    """Continuing a text that was generated gives what generating on would have given."""
    whole = ids_of(session, sampler=WARM, max_tokens=12)
    rest = ids_of(session, PROMPT + whole[:5], sampler=WARM, max_tokens=7)
    assert rest == whole[5:]


def test_greedy_takes_the_likeliest(opened, session):
    logits = np.concatenate([block.copy() for block in opened.logits(PROMPT, 0)])
    assert ids_of(session, max_tokens=1) == [int(logits[-1].argmax())]
    tokens = list(session.generate(PROMPT, params(max_tokens=3, n_logprobs=5)))
    wide = logits[-1].astype(np.float64)
    best = np.argsort(-wide)[:5]
    log_sum = wide.max() + np.log(np.exp(wide - wide.max()).sum())
    assert [i for i, _ in tokens[0].logprobs] == best.tolist()
    assert [p for _, p in tokens[0].logprobs] == pytest.approx((wide[best] - log_sum).tolist(), abs=1e-5)
    assert all(len(t.logprobs) == 5 for t in tokens if t.token_id >= 0)


# ---- what is computed again -------------------------------------------------------------------


def test_what_is_cached_is_not_computed_again(session):
    seen = []
    first = ids_of(session, max_tokens=4)
    assert session.stats.n_cached == 0
    longer = PROMPT + first + token_ids("next turn", 6)
    list(session.generate(longer, params(max_tokens=1), on_prefill=lambda done, total: seen.append((done, total))))
    # The last token of the answer was never fed back: it is computed with the next turn.
    assert session.stats.n_cached == len(PROMPT) + 3
    assert seen == [(7, 7)]
    other = PROMPT[:9] + token_ids("branch", 30)
    list(session.generate(other, params(max_tokens=1)))
    assert session.stats.n_cached == 9
    list(session.generate(other, params(max_tokens=1)))
    assert session.stats.n_cached == len(other) - 1  # the logits of the last token are wanted


def test_a_reused_prefix_gives_the_same_answer(opened, session):
    turns = [PROMPT, PROMPT[:11] + token_ids("b", 20), PROMPT[:11], PROMPT + token_ids("c", 40), PROMPT]
    for prompt in turns:
        want = fresh_ids(opened, prompt)
        assert ids_of(session, prompt) == want


def test_two_sessions_do_not_disturb_each_other(opened):
    one, two = opened.session(), opened.session()
    prompts = [token_ids("one", 17), token_ids("two", 9)]
    want = [fresh_ids(opened, p) for p in prompts]
    answers = [s.generate(p, params()) for s, p in zip((one, two), prompts, strict=True)]
    got = [[], []]
    for _ in range(12):
        for i, answer in enumerate(answers):
            got[i].append(next(answer).token_id)
    assert got == want
    one.close()
    two.close()


def test_pages_of_closed_sessions_come_back(opened):
    for _ in range(50):
        session = opened.session()
        ids_of(session, token_ids("long", 100), max_tokens=2)
        session.close()
    assert opened.pages.n_page - len(opened.pages._free) == 0


# ---- interrupts -------------------------------------------------------------------------------


def test_an_interrupt_between_chunks_of_a_prompt(opened, session):
    """What was computed until then stays; the next answer is the right one."""
    prompt = token_ids("interrupted", 70)
    want = fresh_ids(opened, prompt)

    def interrupt(done, total):
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(session.generate(prompt, params(), on_prefill=interrupt))
    assert session.tokens == prompt[:32]
    assert ids_of(session, prompt) == want
    assert session.stats.n_cached == 32


def test_control_c_while_a_prompt_is_computed(machine, tiny_path):
    """A signal inside a long pass: the session forgets the pass and goes on."""
    with Engine.open(tiny_path("llama_256", "F32"), n_ctx=2048, n_threads=2) as engine:
        prompt = token_ids("long", 2040)
        session = engine.session()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                prefill_for_ever(session, prompt)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert session.tokens == prompt[: len(session.tokens)]
        assert ids_of(session, prompt[:50], max_tokens=3) == fresh_ids(engine, prompt[:50], max_tokens=3)


def prefill_for_ever(session, prompt):
    while True:
        next(session.generate(prompt, params()))
        session.close()


# ---- opening ----------------------------------------------------------------------------------


def test_no_more_threads_than_processors(tiny_path, monkeypatch):
    monkeypatch.setattr(engine_module, "team_size", threads.team_size)  # tests have as many as they ask for elsewhere
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=32, n_threads=threads.n_processor() + 6) as engine:
        assert engine.n_threads == threads.n_processor()
    monkeypatch.setenv("LLMRUN_THREADS", "1024")
    assert threads.team_size(None) == threads.n_processor()
    assert threads.team_size(1) == 1


def test_facts_about_the_model(opened, tiny_path):
    info = opened.info
    assert (info.architecture, info.n_vocab, info.n_layer, info.n_embd, info.n_ctx_train) == ("llama", 301, 3, 64, 512)
    assert info.file_bytes == tiny_path("llama", "Q8_0").stat().st_size
    assert (opened.n_ctx, opened.n_ctx_wanted, opened.n_threads, opened.isa) == (128, 128, 2, BEST)
    assert opened.template is not None


@pytest.mark.parametrize("option", ["n_ctx", "n_threads", "n_ubatch"])
def test_options_that_cannot_be(tiny_path, option):
    with pytest.raises(ConfigError, match="must be at least 1"):
        Engine.open(tiny_path("llama", "Q8_0"), **{option: 0})


def test_an_instruction_set_that_does_not_exist(tiny_path, monkeypatch):
    monkeypatch.setenv("LLMRUN_ISA", "avx9")
    with pytest.raises(ConfigError) as caught:
        Engine.open(tiny_path("llama", "Q8_0"))
    assert str(caught.value) == f"LLMRUN_ISA is 'avx9', but this CPU runs: {', '.join(TARGET_NAMES)}"


def test_every_instruction_set_gives_the_same_text(machine, tiny_path, monkeypatch):
    texts = set()
    for name in WHOLE_TARGETS:
        machine.kernels(name)
        monkeypatch.setenv("LLMRUN_ISA", name)
        with Engine.open(tiny_path("gemma2", "Q8_0"), n_ctx=128, n_threads=1) as engine:
            assert engine.isa == name
            texts.add(tuple(ids_of(engine.session(), sampler=WARM, max_tokens=30)))
    assert len(texts) == 1


def test_ubatch_threads_mapping_and_fusion_do_not_change_the_text(tiny_path):
    path, prompt = tiny_path("qwen2", "Q4_1"), token_ids("p", 60)
    texts = set()
    for options in (
        {"n_ubatch": 1, "n_threads": 1},
        {"n_ubatch": 7, "n_threads": 3},
        {"n_ubatch": 64, "n_threads": 2, "use_mmap": False},
        {"is_fused": False, "n_threads": 2},
        {"n_ctx": 300},
    ):
        with Engine.open(path, **{"n_ctx": 128} | options) as engine:
            texts.add(tuple(ids_of(engine.session(), prompt, sampler=WARM, max_tokens=20)))
    assert len(texts) == 1


def test_logits_come_in_blocks(tiny_path, monkeypatch):
    """Of at most LOGITS_BYTES; the same rows whatever the blocks, and only those from ``first`` on."""
    ids = token_ids("blocks", 100)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=128, n_threads=1) as engine:
        whole = np.concatenate([b.copy() for b in engine.logits(ids, 0)])
        assert whole.shape == (100, 301)
        assert_same_bits(np.concatenate([b.copy() for b in engine.logits(ids, 63)]), whole[63:])
    monkeypatch.setattr(engine_module, "LOGITS_BYTES", 7 * 4 * 301)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=128, n_threads=1, n_ubatch=32) as engine:
        blocks = [b.copy() for b in engine.logits(ids, 20)]
        assert max(len(b) for b in blocks) <= 7
        assert_same_bits(np.concatenate(blocks), whole[20:])


def test_close_ends_threads_and_lets_the_file_go(tiny_path, tmp_path):
    before = threading.active_count()
    path = tiny_model_path(tmp_path, "llama")
    engine = Engine.open(path, n_ctx=64, n_threads=3)
    assert threading.active_count() == before + 2
    engine.close()
    assert threading.active_count() == before
    path.unlink()


def test_a_failed_open_leaves_no_threads(tiny_path, monkeypatch):
    before = threading.active_count()
    monkeypatch.setattr(engine_module, "_info", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Engine.open(tiny_path("llama", "Q8_0"), n_ctx=64, n_threads=3)
    assert threading.active_count() == before


def test_an_open_engine_that_waits_uses_no_cpu(opened, session):
    ids_of(session)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


def test_a_file_that_changes_while_it_is_opened(tmp_path, monkeypatch):
    path = tiny_model_path(tmp_path, "llama")
    load = engine_module.GgufWeights.load

    def load_and_grow(self, *args):
        load(self, *args)
        with path.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(engine_module.GgufWeights, "load", load_and_grow)
    with pytest.raises(FormatError, match=path.name):
        Engine.open(path, n_ctx=64)


# ---- memory -----------------------------------------------------------------------------------


@pytest.fixture
def free_memory(monkeypatch):
    """Let the engine believe in a certain number of free bytes beside the fixed overhead."""

    def set_free(n_bytes):
        monkeypatch.setattr(engine_module, "available_bytes", lambda: n_bytes + memory.OVERHEAD_BYTES)

    return set_free


def fixed_bytes(engine):
    """Return what an engine needs without any context."""
    hp = engine.info
    logits_bytes = engine_module.LOGITS_BYTES + engine_module.MOST_ROWS * 4 * hp.n_vocab
    return hp.packed_bytes + logits_bytes + 512 * 4 * (8 * hp.n_embd + 4 * 96)


def test_a_context_that_does_not_fit_is_refused_before_anything_is_allocated(
    opened, tiny_path, free_memory, monkeypatch
):
    free_memory(fixed_bytes(opened) + 1_000_000)
    monkeypatch.setattr(engine_module, "KernelSet", None)  # nothing is compiled, packed or allocated
    with pytest.raises(CapacityError, match=r"context of 100000 tokens needs [0-9.]+ [MG]B for the KV cache") as caught:
        Engine.open(tiny_path("llama", "Q8_0"), n_ctx=100_000)
    assert "try --ctx-size" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_models_own_context_is_lowered_and_it_is_said(opened, tiny_path, free_memory):
    slot_bytes = 3 * 2 * 2 * 2 * 16
    free_memory(fixed_bytes(opened) + 300 * slot_bytes + slot_bytes)
    with Engine.open(tiny_path("llama", "Q8_0"), n_threads=1) as engine:
        assert engine.n_ctx == 256
        assert engine.n_ctx_wanted == 512
        assert engine.notices == ["context lowered from 512 to 256 tokens, which is what memory allows"]
        assert len(ids_of(engine.session(), token_ids("p", 250), max_tokens=None)) == 7


def test_a_context_beyond_the_models_own_is_given_and_it_is_said(tiny_path):
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=600, n_threads=1) as engine:
        assert engine.n_ctx == 600
        assert engine.notices == ["context of 600 tokens: the model was trained on 512"]


def test_quantised_keys_and_values_take_half_the_memory(tiny_path, free_memory):
    with Engine.open(tiny_path("gemma3", "Q8_0"), n_ctx=64, n_threads=1, kv_type="q8_0") as engine:
        assert engine.pages.kv_type == "q8_0"
        text = ids_of(engine.session(), token_ids("p", 20), max_tokens=9)
        assert ids_of(engine.session(), token_ids("p", 20), max_tokens=9) == text
        slot_bytes = {t: KvPages.slot_bytes(engine.info.n_layer, 1, 32, t) for t in KV_TYPES}
        assert slot_bytes["q8_0"] * 32 == slot_bytes["f16"] * 17
        free_memory(fixed_bytes(engine) + 100_000 * slot_bytes["q8_0"])
    with pytest.raises(ConfigError, match="no KV cache of type 'q4_0': expected one of f16, q8_0"):
        Engine.open(tiny_path("gemma3", "Q8_0"), kv_type="q4_0")
    with pytest.raises(ConfigError, match="needs heads of a multiple of 32 columns, this model's have 16"):
        Engine.open(tiny_path("llama", "Q8_0"), n_ctx=64, kv_type="q8_0")


def test_a_model_that_does_not_fit_at_all(tiny_path, free_memory):
    free_memory(1_000_000)
    path = tiny_path("llama", "Q8_0")
    with pytest.raises(
        CapacityError, match=r"the model needs [0-9.]+ [MG]B without any context, [0-9.]+ [MG]B free"
    ) as caught:
        Engine.open(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_file_cut_between_two_answers_is_an_error_where_it_is_mapped(tiny_path, tmp_path, use_mmap):
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_path("llama", "Q8_0").read_bytes())
    with Engine.open(path, n_threads=1, use_mmap=use_mmap) as engine:
        text = ids_of(engine.session(), token_ids("p", 20), max_tokens=3)
        os.truncate(path, 100)
        if not use_mmap:
            assert ids_of(engine.session(), token_ids("p", 20), max_tokens=3) == text
            return
        with pytest.raises(FormatError, match="changed while it was open"):
            ids_of(engine.session(), token_ids("p", 20), max_tokens=3)
