"""Where only the largest logit is wanted, it is found without most of the work, and has the same bits."""

import numpy as np
import pytest

from llmrun.formats.record import replace
from llmrun.quant.unpack import unpack
from llmrun.runtime import best_logit
from llmrun.runtime import engine as engine_module
from llmrun.runtime.batch import Batch
from llmrun.runtime.best_logit import BestLogit, least_rows, longest_rows, with_first_records
from llmrun.runtime.engine import Engine
from llmrun.runtime.executor import threaded
from llmrun.runtime.sampling.chain import Sampler
from llmrun.runtime.sampling.noise import NoiseKey
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.simd.isa import choose_target

from .bits import assert_same_bits
from .executor.test_same_bits import plain_rows
from .machine import token_ids
from .sampling.all_chains import CHAINS

HEADS = (("llama", "Q8_0"), ("qwen2", "Q8_0"), ("llama_256", "Q6_K"), ("gemma3", "Q8_0"))


@pytest.fixture
def everywhere(monkeypatch):
    """Use it for tiny matrices and single rows, too."""
    monkeypatch.setattr(best_logit, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(engine_module, "least_rows", lambda *_: 1)
    monkeypatch.setattr(threaded, "MANY_GROUPS", 0)


def logits_of(runner, best, ids):
    """Return the logits after each of the ids as a whole, and with the largest alone found."""
    sequence, results = runner.sequence(), []
    for run in (None, best):
        sequence.append(len(ids))
        batch = Batch(plain_rows(sequence, 0, ids, has_output=True))
        if run is None:
            runner.executor.run(batch)
        results.append((runner.executor.output("logits", len(ids)) if run is None else run.run(batch)).copy())
        sequence.rollback(0)
    sequence.close()
    return results


def assert_same_best(whole, found):
    places = whole.argmax(axis=1)
    assert (found.argmax(axis=1) == places).all()
    assert_same_bits(found.max(axis=1), whole.max(axis=1))


@pytest.mark.parametrize("head", HEADS, ids="-".join)
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("n_thread", [1, 3])
def test_the_largest_logit_of_each_row(make_runner, everywhere, head, is_fused, n_thread):
    runner = make_runner(head, n_thread=n_thread, is_fused=is_fused)
    best = BestLogit(runner.executor)
    n_other = 0
    for n_row in (1, 2, 5, 8, 9, 16):
        whole, found = logits_of(runner, best, token_ids(f"best{n_row}", n_row))
        assert_same_best(whole, found)
        n_other += np.count_nonzero(whole != found)
    assert n_other > 0  # some were not worked out


@pytest.mark.parametrize("head", HEADS[:1] + HEADS[2:3], ids="-".join)
def test_of_equal_logits_the_first(make_runner, everywhere, head):
    """All row groups hold the same sixteen rows: each of the largest comes nineteen times."""
    runner = make_runner(head)
    packed = runner.executor.weights.packed(runner.program.ops[-1].weights[0])
    for part in packed.parts.values():
        part[:] = part[:1].copy()
    best = BestLogit(runner.executor)
    whole, found = logits_of(runner, best, token_ids("equal", 6))
    assert (whole.argmax(axis=1) < 16).all()
    assert_same_best(whole, found)


def test_where_first_records_say_another(make_runner, everywhere):
    """All rows of the matrix are the same but for one step in some columns: second records decide between the best."""
    runner = make_runner(("llama", "Q8_0"))
    packed = runner.executor.weights.packed(runner.program.ops[-1].weights[0])
    for part in packed.parts.values():
        part[:] = part[:1, ..., :1].copy() if part.dtype != np.int8 else np.tile(part[:1, ..., :4], 16)
    quants, rng = packed.parts["q8"], np.random.default_rng(2)
    quants += (rng.random(quants.shape) < 0.3).astype(np.int8)
    np.clip(quants, -127, 127, out=quants)
    best, n_other = BestLogit(runner.executor), 0
    for i in range(30):
        ids = token_ids(f"near{i}", 16)
        whole, found = logits_of(runner, best, ids)
        assert_same_best(whole, found)
        best._executor.run_row_groups = lambda *_: None
        _, first = logits_of(runner, best, ids)
        del best._executor.run_row_groups
        n_other += np.count_nonzero(first.argmax(axis=1) != whole.argmax(axis=1))
    assert n_other > 0


@pytest.mark.parametrize("many", [0, 10**6])
def test_few_rows_of_the_matrix_are_worked_out_by_themselves(make_runner, everywhere, monkeypatch, many):
    """Or all of them, where they are many."""
    runner = make_runner(("llama", "Q8_0"))
    best, groups = BestLogit(runner.executor), []
    run = best._executor.run_row_groups
    monkeypatch.setattr(threaded, "MANY_GROUPS", many)
    monkeypatch.setattr(
        best._executor, "run_row_groups", lambda batch, found: groups.extend(found) or run(batch, found)
    )
    whole, found = logits_of(runner, best, token_ids("few", 1))
    assert 0 < len(groups) < 5
    is_exact = np.isin(np.arange(whole.shape[1]) // 16, groups) | bool(many)
    assert_same_bits(found[:, is_exact], whole[:, is_exact])
    assert (found != whole).any() == (not many)


def test_a_row_that_is_no_number_stays_one(make_runner, everywhere):
    runner = make_runner(("llama", "Q8_0"))
    best = BestLogit(runner.executor)
    packed = runner.executor.weights.packed(runner.program.ops[-1].weights[0])
    packed.parts["d"][3, 0, 5] = np.nan
    _, found = logits_of(runner, best, token_ids("nan", 2))
    assert np.isnan(found).any(axis=1).all()


@pytest.mark.parametrize("head", [("gemma2", "Q8_0"), ("llama", "F16")], ids="-".join)
def test_not_where_logits_are_made_otherwise(make_runner, everywhere, head):
    """They are changed afterwards, or activations are not rounded."""
    runner = make_runner(head)
    assert with_first_records(runner.program) is None
    assert least_rows(runner.program, choose_target()) is None


@pytest.mark.parametrize("head", [HEADS[0], HEADS[2]], ids="-".join)
def test_no_row_is_longer_than_it_says(make_runner, head):
    runner = make_runner(head)
    packed = runner.executor.weights.packed(runner.program.ops[-1].weights[0])
    lengths = np.sqrt((unpack(packed).astype(np.float64) ** 2).sum(axis=1))
    most = longest_rows(packed, 0, packed.n_rowgroup)
    assert (lengths <= most[: len(lengths)]).all()
    assert (most[: len(lengths)] < 6 * lengths).all()
    assert_same_bits(longest_rows(packed, 2, 5), most[32:80])


def test_samplers_that_take_the_largest():
    rng = np.random.default_rng(4)
    n_largest = 0
    for chain in CHAINS.values():
        sampler = Sampler(SamplerSettings(**chain), 50, lambda _: b"x")
        n_largest += sampler.takes_largest
        for i in range(20 * sampler.takes_largest):
            logits = rng.normal(size=50).astype(np.float32)
            assert sampler.pick(logits, [1, 2, 3], NoiseKey(i, 0, 3)) == logits.argmax()
    assert n_largest
    greedy = SamplerSettings(temperature=0.0)
    for other in (replace(greedy, repeat_penalty=1.2), replace(greedy, logit_bias=((3, 1.0),)), SamplerSettings()):
        assert not Sampler(other, 50, lambda _: b"x").takes_largest
    assert not Sampler(greedy, 50, lambda _: b"x", frozenset({1}), ignore_eos=True).takes_largest


@pytest.mark.parametrize("settings", [SamplerSettings(temperature=0.0), SamplerSettings(temperature=0.8)])
@pytest.mark.parametrize("n_logprobs", [0, 3])
def test_the_same_answers(tiny_path, everywhere, monkeypatch, settings, n_logprobs):
    """With copies as drafts and without; used only where nobody sees the other logits."""
    n_run, run, answers = [], BestLogit.run, set()
    monkeypatch.setattr(BestLogit, "run", lambda self, batch: n_run.append(batch.n_out) or run(self, batch))
    params = GenerationParams(sampler=settings, seed=3, max_tokens=60, n_logprobs=n_logprobs)
    for is_used in (False, True):
        with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=200, n_threads=2) as engine:
            if not is_used:
                engine._best_from = None
            session = engine.session()
            tokens = list(session.generate(token_ids("p", 20) * 2, params))
            answers.add(tuple((token.token_id, token.logprobs) for token in tokens))
            assert bool(n_run) == (is_used and settings.temperature == 0 and not n_logprobs)
            session.close()
    assert len(answers) == 1
