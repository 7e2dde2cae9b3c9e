"""Tests of a bench on a real, tiny engine: how many tokens are computed, and where they go."""

import pytest

from llmrun.runtime.engine import Engine
from llmrun.runtime.measure.bench_row import BenchTest, Measurement, Sample
from llmrun.runtime.measure.runner import Runner
from llmrun.runtime.measure.traffic import cut_prompt

from ..machine import BEST


@pytest.fixture(scope="module")
def opened(machine, tiny_path):
    machine.kernels(BEST)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=512, n_threads=1, n_ubatch=16) as engine:
        yield engine


@pytest.fixture
def passes(opened, monkeypatch):
    """The (rows, outputs) of every pass, in order."""
    seen, run = [], opened.executor.run

    def counted(batch, **options):
        seen.append((batch.n_tok, batch.n_out))
        run(batch, **options)

    monkeypatch.setattr(opened.executor, "run", counted)
    return seen


@pytest.fixture
def runner(opened):
    runner = Runner(opened, n_batch=24)
    yield runner
    runner.close()
    assert len(opened.pages._free) == opened.pages.n_page


def test_a_prompt_is_cut_into_batches_and_passes(runner, passes):
    sample = runner.sample(BenchTest(n_prompt=50))
    assert passes == [(16, 0), (8, 1), (16, 0), (8, 1), (2, 1)]
    assert [n for n, _ in passes] == cut_prompt(50, 24, 16)
    assert sample.total_ns == sample.prompt_ns > 0
    assert sample.first_token_ns > sample.prompt_ns
    assert sample.step_ns == ()


def test_generation_times_every_step(runner, passes):
    sample = runner.sample(BenchTest(n_gen=5))
    assert passes == [(1, 1)] * 5
    assert len(sample.step_ns) == 5
    assert sample.total_ns == sum(sample.step_ns)
    assert sample.first_token_ns is None


def test_depth_is_computed_once_and_not_timed(runner, passes):
    test = BenchTest(n_prompt=4, n_gen=2, n_depth=20)
    runner.sample(test)
    depth_ns = runner.depth_ns
    runner.sample(test)
    assert passes == [(16, 0), (4, 1), (4, 1), (1, 1), (1, 1), (4, 1), (1, 1), (1, 1)]
    assert runner.depth_ns == depth_ns > 0
    assert runner._sequences[0].n_past == 26
    runner.prepare(BenchTest(n_gen=1, n_depth=20))
    assert runner._sequences[0].n_past == 20


@pytest.mark.parametrize(("is_shared", "n_prefill"), [(False, 3), (True, 1)])
def test_sequences_decode_together(runner, passes, is_shared, n_prefill):
    test = BenchTest(n_gen=4, n_depth=10, n_seq=3, is_shared=is_shared)
    runner.warm_up(test)
    sample = runner.sample(test)
    assert passes == [(10, 1)] * n_prefill + [(3, 3)] * 5
    assert len(sample.step_ns) == 4
    assert [s.n_past for s in runner._sequences] == [14] * 3
    tables = {tuple(s.page_table[: s._n_page]) for s in runner._sequences}
    assert len(tables) == 3  # nobody writes into another's page


def test_numbers_of_sequences_take_turns(runner, passes):
    tests = [BenchTest(n_gen=2, n_depth=10, n_seq=n) for n in (1, 3)]
    for _ in range(2):
        for test in tests:
            runner.sample(test)
            assert [s.n_past for s in runner._sequences[: test.n_seq]] == [12] * test.n_seq
    prefill = [(10, 1)]
    assert passes == prefill + [(1, 1)] * 2 + 2 * prefill + [(3, 3)] * 2 + [(1, 1)] * 2 + [(3, 3)] * 2
    depth_ns = runner.depth_ns
    runner.prepare(tests[0])
    assert runner.depth_ns == depth_ns // 3
    runner.prepare(BenchTest(n_gen=200, n_depth=10))  # longer: the others' pages are given back
    assert len(runner._sequences) == 1


def test_names():
    assert BenchTest(n_prompt=512).name == "pp512"
    assert BenchTest(n_gen=128, n_depth=4096).name == "tg128 @ d4096"
    assert BenchTest(n_prompt=512, n_gen=128).name == "pp512+tg128"
    assert BenchTest(n_gen=32, n_seq=8, n_depth=64).name == "tg32 x8 @ d64"


def test_rates_count_the_tokens_of_all_sequences():
    measured = Measurement(
        test=BenchTest(n_gen=10, n_seq=4), samples=[Sample(total_ns=10**9), Sample(total_ns=2 * 10**9)]
    )
    assert measured.samples_ts == [40, 20]
    assert (measured.avg_ts, measured.avg_ns, measured.stddev_ns) == (30, 1_500_000_000, 707_106_781)
    measured.joules = 160.0
    assert measured.joules_per_token == 2
