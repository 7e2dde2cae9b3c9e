"""The team of threads: no CPU when idle, no hang when interrupted, gentle when cores are few."""

import faulthandler
import linecache
import signal
import sys
import threading
import time

import numpy as np
import pytest

from llmrun.runtime.executor import team as team_module
from llmrun.runtime.executor.team import Team

from ..bits import assert_same_bits
from ..machine import BEST, token_ids

MODEL = ("llama", "Q8_0")


@pytest.fixture(autouse=True)
def no_hang(machine):
    """A team that waits for ever ends the tests with a traceback of all threads."""
    machine.kernels(BEST)  # compiled before the clock starts
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def own_team(machine):
    """Return a function that makes teams of this test's own, closed after it."""
    teams = []

    def make(n_thread):
        teams.append(Team(machine.kernels(BEST), n_thread))
        return teams[-1]

    yield make
    for team in teams:
        team.close()


def use(runner, team):
    """Let a runner use another team."""
    runner.executor._team = runner.team = team
    return runner


def test_an_idle_team_uses_no_cpu(make_runner, own_team):
    runner = use(make_runner(MODEL), own_team(3))
    runner.logits(token_ids("idle", 5))
    time.sleep(0.1)  # longer than workers spin
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


def test_parked_workers_wake(make_runner, own_team, monkeypatch):
    """Passes with and without a pause that parks the workers, in turn."""
    monkeypatch.setattr(team_module, "N_SPIN_IDLE", 200)
    runner, ids = use(make_runner(MODEL), own_team(3)), token_ids("wake", 6)
    want = make_runner(MODEL).logits(ids)
    for i in range(60):
        assert_same_bits(runner.logits(ids, chunk=2), want)
        time.sleep((0, 0.0005, 0.002)[i % 3])


def test_close_ends_the_threads(machine):
    before = threading.active_count()
    team = Team(machine.kernels(BEST), 4)
    assert threading.active_count() == before + 3
    team.close()
    assert threading.active_count() == before


def test_more_threads_than_cores_only_cost_switches(make_runner, own_team):
    """Waiting threads give up their core: eight on two cores finish hundreds of barriers soon."""
    runner, ids = use(make_runner(MODEL), own_team(8)), token_ids("crowd", 10)
    want = make_runner(MODEL).logits(ids)
    started = time.perf_counter()
    for _ in range(5):
        assert_same_bits(runner.logits(ids, chunk=5), want)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("n_thread", [1, 3])
def test_an_interrupt_at_any_line_leaves_the_team_usable(make_runner, own_team, is_long, n_thread):
    """KeyboardInterrupt at the n-th line of Python that a pass runs, for every n."""
    runner, ids = use(make_runner(MODEL), own_team(n_thread)), token_ids("interrupt", 6)
    want = make_runner(MODEL).logits(ids)
    n_line, is_over = 0, False
    while not is_over:
        n_line += 1
        assert n_line < 200
        sequence = runner.sequence()
        is_over = not interrupted(runner, sequence, ids, n_line, is_long)
        sequence.close()
        assert_same_bits(runner.logits(ids), want, f"after an interrupt at line {n_line}")
    assert n_line > 10


def interrupted(runner, sequence, ids, n_line, is_long):
    """Run a pass and raise KeyboardInterrupt at its ``n_line``-th line; return whether there were so many.

    Not at the line of a ``with`` that is left: there tracing comes before ``__exit__``, where Python handles no signal.
    """
    n_left, seen = n_line, set()

    def trace(frame, event, _argument):
        nonlocal n_left
        if frame.f_code.co_filename != team_module.__file__ or frame.f_code.co_name not in ("run", "_run_long"):
            return None
        if event == "line":
            is_leaving = frame.f_lineno in seen and "with " in linecache.getline(team_module.__file__, frame.f_lineno)
            seen.add(frame.f_lineno)
            n_left -= not is_leaving
            if n_left == 0 and not is_leaving:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        runner.extend(sequence, ids, is_long=is_long)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_control_c_stops_a_long_pass_soon(make_runner, own_team):
    """A real signal in the middle of seconds of work: the pass is given up within 0.3 s, and the next one is right."""
    runner = use(make_runner(("llama_256", "F32"), n_ctx=2048, n_tok=2048), own_team(2))
    ids = token_ids("long", 2048)
    sequence = runner.sequence()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    started = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            long_passes(runner, sequence, ids)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - started < 0.05 + 1.0  # 0.3 s, with room for a busy machine
    sequence.close()
    short = ids[:20]
    assert_same_bits(runner.logits(short), make_runner(("llama_256", "F32")).logits(short))


def long_passes(runner, sequence, ids):
    while True:
        runner.extend(sequence, ids, is_long=True)
        sequence.rollback(0)


def test_passes_from_several_python_threads_take_turns(make_runner, own_team):
    """Whoever holds a lock around passes may be any thread; the engine does so."""
    team, lock = own_team(2), threading.Lock()
    runner = use(make_runner(MODEL, n_ctx=1024), team)
    ids = [token_ids(("thread", i), 9) for i in range(4)]
    want = [make_runner(MODEL).logits(i) for i in ids]
    wrong = []

    def work(i):
        for _ in range(10):
            with lock:
                got = runner.logits(ids[i])
            if not np.array_equal(got, want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
