"""The controller on simulated machines: it finds what pays, follows changes, and never loses more than 3 %."""

import pytest

from llmrun.runtime.speculation.account import Account
from llmrun.runtime.speculation.controller import Controller
from llmrun.runtime.speculation.costs import StepCosts
from llmrun.runtime.speculation.drafter import Drafter
from llmrun.runtime.speculation.source import Guess
from llmrun.runtime.speculation.speed_file import SpeedFile

from .simulation import Machine

# Seconds of a pass of n rows: nearly free rows, dear rows, and a machine on which nothing can be saved.
WIDE = lambda n: 0.05 * (1 + 0.08 * (n - 1))  # noqa: E731
NARROW = lambda n: 0.05 * (1 + 0.4 * (n - 1))  # noqa: E731
FLAT = lambda n: 0.05 * n  # noqa: E731
MACHINES = pytest.mark.parametrize("pass_s", [WIDE, NARROW, FLAT], ids=["wide", "narrow", "flat"])


def always(chance):
    return lambda at: chance


@MACHINES
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5])
def test_bad_copies_cost_nothing(monkeypatch, pass_s, is_known, chance):
    machine = Machine(monkeypatch, pass_s, {n: pass_s(n) for n in (1, 2, 4, 8, 16)} if is_known else None)
    spent, plain, *_ = machine.generate([machine.source("ngram", always(chance), is_free=True)], 200)
    assert spent <= 1.03 * plain


@MACHINES
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("guess_s", [0.005, 0.014, 0.05])
@pytest.mark.parametrize("n_token", [200, 1000])
def test_a_bad_draft_model_costs_at_most_three_percent(monkeypatch, pass_s, is_known, chance, guess_s, n_token):
    """What it takes to read the prompt included."""
    machine = Machine(monkeypatch, pass_s, {n: pass_s(n) for n in (1, 2, 4, 8, 16)} if is_known else None)
    draft = machine.source("draft", always(chance), is_free=False, guess_s=guess_s, start_s=0.1)
    spent, plain, *_ = machine.generate([draft], n_token)
    assert spent <= 1.03 * plain


@MACHINES
@pytest.mark.parametrize("chance", [0.2, 0.5, 0.7, 0.8])
@pytest.mark.parametrize("n_agree", [0, 3])
def test_a_long_text_that_brings_nothing_costs_at_most_three_percent(monkeypatch, pass_s, chance, n_agree):
    """What a source reads while it is used is paid for as well: all of this text would take 400 plain steps."""
    machine = Machine(monkeypatch, pass_s, {n: pass_s(n) for n in (1, 2, 4, 8, 16)})
    draft = machine.source("draft", always(chance), is_free=False, guess_s=0.009, text_s=20.0)
    draft.n_agree = n_agree
    spent, plain, *_ = machine.generate([draft, machine.source("ngram", always(0.5), is_free=True)], 200)
    assert spent <= 1.03 * plain


@pytest.mark.parametrize("pass_s", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("turns_at", [12, 18, 24, 36, 60, 100])
@pytest.mark.parametrize("text_s", [0.0, 1.0])
def test_an_answer_that_turns_loses_little_more_than_what_was_read_in_advance(monkeypatch, pass_s, turns_at, text_s):
    """No guess is right any more, right after a text was read that takes 20 plain steps and brings nothing."""
    for seed in range(4):
        machine = Machine(monkeypatch, pass_s, {n: pass_s(n) for n in (1, 2, 4, 8, 16)})
        draft = machine.source("draft", lambda at: 0.85 * (at < turns_at), is_free=False, guess_s=0.009, text_s=text_s)
        draft._random.seed(seed)
        spent, plain, *_ = machine.generate([draft], 200)
        assert spent <= (1.075 if text_s else 1.03) * plain


@pytest.mark.parametrize(("chance", "guess_s", "pays"), [(0.95, 0.009, True), (0.65, 0.001, True), (0.4, 0.009, False)])
def test_more_may_be_read_where_drafts_pay(monkeypatch, chance, guess_s, pays):
    """Whatever the share of right guesses is: where they are cheap a low one pays, and reading raises it."""
    seen, plainly = [], Account.for_reading
    monkeypatch.setattr(Account, "for_reading", lambda self, *, pays: seen.append(pays) or plainly(self, pays=pays))
    machine = Machine(monkeypatch, WIDE, {n: WIDE(n) for n in (1, 2, 4, 8, 16)})
    draft = machine.source("draft", always(chance), is_free=False, guess_s=guess_s)
    machine.generate([draft], 200)
    assert seen
    assert (sum(seen) > len(seen) / 2) == pays


def test_what_was_read_once_says_nothing_of_what_drafts_are_worth(monkeypatch):
    """Reading takes 10 plain steps in the middle: drafts are as long after it as without it."""
    lengths = []
    for text_s in (0.0, 0.5):
        machine = Machine(monkeypatch, WIDE, {n: WIDE(n) for n in (1, 2, 4, 8, 16)})
        draft = machine.source("draft", always(0.9), is_free=False, guess_s=0.009, text_s=text_s)
        _, _, passes, _ = machine.generate([draft], 200)
        lengths.append(len(passes))
    assert lengths[1] <= lengths[0] + 10


@pytest.mark.parametrize(("pass_s", "chance"), [(WIDE, 0.95), (WIDE, 0.8), (NARROW, 0.95), (NARROW, 0.8)])
def test_copies_are_verified_at_nearly_the_best_length(monkeypatch, pass_s, chance):
    machine = Machine(monkeypatch, pass_s)
    spent, plain, *_ = machine.generate([machine.source("ngram", always(chance), is_free=True)], 2000)
    best = max((1 + sum(chance**i for i in range(1, k + 1))) * pass_s(1) / pass_s(1 + k) for k in range(17))
    assert plain / spent > 0.9 * best


@pytest.mark.parametrize("chance", [0.9, 0.75])
def test_a_good_draft_model_is_used_at_nearly_the_best_length(monkeypatch, chance):
    machine, guess_s = Machine(monkeypatch, WIDE), 0.28 * WIDE(1)
    draft = machine.source("draft", always(chance), is_free=False, guess_s=guess_s)
    spent, plain, *_ = machine.generate([draft], 2000)
    best = max((1 + sum(chance**i for i in range(1, k + 1))) * WIDE(1) / (WIDE(1 + k) + k * guess_s) for k in range(17))
    assert plain / spent > 0.9 * best


def test_a_change_of_the_text_is_noticed_within_tens_of_tokens(monkeypatch):
    """Right for 200 tokens, wrong for 200, right again."""
    machine = Machine(monkeypatch, NARROW)
    source = machine.source("ngram", lambda at: 0.0 if 200 <= at < 400 else 0.97, is_free=True)
    _, _, passes, _ = machine.generate([source], 600)
    at, tokens_by_phase, passes_by_phase = 0, [0, 0, 0], [0, 0, 0]
    for n in passes:
        # The tens of tokens after a change are not looked at.
        if at % 200 >= 40:
            phase = min(at // 200, 2)
            tokens_by_phase[phase] += n
            passes_by_phase[phase] += 1
        at += n
    first, second, third = (t / p for t, p in zip(tokens_by_phase, passes_by_phase, strict=True))
    assert first > 3
    assert second < 1.1
    assert third > 3


def test_a_draft_model_that_becomes_right_is_found(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    draft = machine.source(
        "draft", lambda at: 0.0 if at < 300 else 0.95, is_free=False, guess_s=0.2 * WIDE(1), start_s=0.05
    )
    _, _, passes, _ = machine.generate([draft], 900)
    assert sum(passes[-20:]) > 30


def test_the_better_source_is_chosen(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    copies = machine.source("ngram", lambda at: 0.0 if at < 200 else 0.98, is_free=True)
    draft = machine.source("draft", always(0.85), is_free=False, guess_s=0.25 * WIDE(1))
    _, _, _, stats = machine.generate([copies, draft], 400)
    assert stats.sources["draft"].n_accepted > 100
    assert stats.sources["ngram"].n_accepted > 120


@pytest.mark.parametrize(("mode", "used"), [("ngram", "ngram"), ("draft", "draft")])
def test_only_the_chosen_source_is_asked(monkeypatch, mode, used):
    machine = Machine(monkeypatch, WIDE)
    sources = [
        machine.source("ngram", always(0.9), is_free=True),
        machine.source("draft", always(0.9), is_free=False, guess_s=0.01),
    ]
    _, _, _, stats = machine.generate(sources, 100, mode=mode)
    assert list(stats.sources) == [used]
    assert [source.n_guess > 0 for source in sources] == [source.name == used for source in sources]


def test_limits_of_a_draft(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    source = machine.source("ngram", always(1.0), is_free=True)
    _, _, passes, _ = machine.generate([source], 200, draft_max=3)
    assert max(passes) == 4
    _, _, passes, _ = machine.generate([source], 200, draft_max=0)
    assert set(passes) == {1}
    machine = Machine(monkeypatch, WIDE, {n: WIDE(n) for n in (2, 4)})
    source = machine.source("ngram", always(1.0), is_free=True)
    _, _, passes, stats = machine.generate([source], 1000, draft_min=5)
    assert set(passes) <= {1, *range(6, 18)}
    assert stats.sources["ngram"].n_pass > 0


def comes_and_goes(at):
    """Another program computes in every second stretch of 1.7 s."""
    return 2.2 if at % 3.4 > 1.7 else 1.0


def grows(at):
    """More and more other programs compute."""
    return min(8.0, 1 + at / 5)


LOADS = pytest.mark.parametrize("load", [comes_and_goes, grows, lambda at: 8.0], ids=["changing", "growing", "heavy"])


@LOADS
@MACHINES
@pytest.mark.parametrize("chance", [0.0, 0.4, 0.9])
def test_on_a_busy_machine_the_promise_holds_and_the_number_is_right(monkeypatch, load, pass_s, chance):
    """Passes take longer for other programs' sake; neither the choice nor the speed-up that is told may follow that."""
    known = {n: pass_s(n) for n in (1, 2, 4, 8, 16)}
    machine = Machine(monkeypatch, pass_s, known, load, noise=1.0)
    sources = [
        machine.source("ngram", always(chance), is_free=True),
        machine.source("draft", always(chance), is_free=False, guess_s=0.012, start_s=0.05),
    ]
    spent, plain, _, stats = machine.generate(sources, 600)
    assert spent <= 1.05 * plain  # 0.03, and what chance does to 600 tokens
    assert stats.spent_s == pytest.approx(spent)
    # Where the load changes faster than plain steps are measured the number can only be about right.
    assert stats.speedup == pytest.approx(plain / spent, rel=0.4 if load in (comes_and_goes, grows) else 0.1)


class Copying:
    """A free source that says nothing by itself, and goes on with a draft of the text 0, 1, 2, … from some token on."""

    name, priors, is_free, budget_s, read_s, n_agree = "copies", (0.9,), True, 0.0, 0.0, 0

    def begin(self, context, answer):
        pass

    def guess(self, context):
        return iter(())

    def agree(self, copied):
        return None

    def after(self, drafted):
        if drafted[-1] % 10 == 3:
            yield from (Guess(drafted[-1] + i, 0) for i in range(1, 7))

    def shown(self, logits):
        pass

    def close(self):
        pass


def test_a_copy_goes_on_with_another_sources_draft(monkeypatch):
    """Fewer guesses of the dear source, as many right tokens; where it agrees with copies it goes on behind them."""
    guesses, passes = {}, {}
    for copies in ("none", "at the end", "agreed with"):
        machine = Machine(monkeypatch, WIDE, {n: WIDE(n) for n in (1, 2, 4, 8, 16)})
        draft = machine.source("draft", always(0.95), is_free=False, guess_s=0.012)
        draft.n_agree = 3 if copies == "agreed with" else 0
        sources = [draft] if copies == "none" else [Copying(), draft]
        _, _, passes[copies], stats = machine.generate(sources, 600)
        guesses[copies] = draft.n_guess
        assert stats.n_token == sum(passes[copies])
        assert sum(s.n_accepted for s in stats.sources.values()) == sum(passes[copies]) - len(passes[copies])
        if copies == "at the end":
            assert stats.sources["copies"].acceptance > 0.9
    assert guesses["at the end"] < 0.7 * guesses["none"]
    assert len(passes["at the end"]) < 1.4 * len(passes["none"])  # a copy ends after six tokens, a draft may be longer
    assert guesses["agreed with"] < 0.7 * guesses["none"]
    assert len(passes["agreed with"]) < 0.9 * len(passes["at the end"])


def test_a_draft_that_is_wrong_at_first_is_tried_again(monkeypatch):
    """An answer begins unlike what follows: what may be lost must not be lost before that."""
    machine = Machine(monkeypatch, WIDE, {n: WIDE(n) for n in (1, 2, 4, 8, 16)})
    draft = machine.source("draft", lambda i: 0.95 * (i > 12), is_free=False, guess_s=0.015, start_s=0.1)
    spent, plain, _, _ = machine.generate([draft], 200)
    assert spent < 0.8 * plain


def test_a_source_is_shown_where_its_drafts_ended(monkeypatch):
    """The one whose draft it was, once for each."""
    machine = Machine(monkeypatch, WIDE, {n: WIDE(n) for n in (1, 2, 4, 8, 16)})
    draft = machine.source("draft", always(0.9), is_free=False, guess_s=0.01)
    copies = machine.source("ngram", lambda i: 0.95 * (i > 100), is_free=True)
    _, _, _, stats = machine.generate([copies, draft], 200)
    for source in (draft, copies):
        assert source.n_shown == stats.sources[source.name].n_pass > 0


def test_after_a_pause_a_source_is_asked_more_than_once(monkeypatch):
    """What it reads then is paid for: one wrong guess must not send it back to sleep."""
    seconds = [0.05 * (1 + 0.25 * (n - 1)) for n in range(1, 65)]
    machine = Machine(monkeypatch, lambda n: seconds[n - 1], {n: seconds[n - 1] for n in (1, 2, 4, 8, 16)})
    last = 0

    def chance(at):
        nonlocal last
        is_first, last = at - last > 3, at
        return 0.0 if at < 8 or is_first else 0.95

    draft = machine.source("draft", chance, is_free=False, guess_s=0.009)
    spent, plain, _, _ = machine.generate([draft], 200)
    assert spent < 0.9 * plain


def test_a_copy_is_looked_at_with_what_is_new(monkeypatch):
    """A source that looks at three tokens as quickly as at one reads what copies say with the text's new tokens."""
    machine = Machine(monkeypatch, lambda n: 0.03, known=dict.fromkeys((1, 2, 4, 8, 16), 0.03))
    seconds = {}
    for n_agree in (0, 3):
        copies = machine.source("ngram", always(0.6), is_free=True)
        draft = machine.source("draft", always(1.0), is_free=False, guess_s=0.006)
        draft.n_agree = n_agree
        seconds[n_agree], _, passes, stats = machine.generate([copies, draft], 400, draft_max=4)
        assert stats.n_token == sum(passes)
    assert seconds[3] < 0.9 * seconds[0]


@MACHINES
def test_a_speed_file_of_another_machine_is_measured_away(monkeypatch, pass_s):
    """It says that rows are free."""
    machine = Machine(monkeypatch, pass_s, dict.fromkeys((1, 2, 4, 8, 16), 0.05))
    source = machine.source("ngram", always(0.3), is_free=True)
    spent, plain, *_ = machine.generate([source], 400)
    assert spent <= 1.03 * plain


def test_what_answers_lose_adds_up_over_a_session(monkeypatch):
    """Twenty short answers with a draft that is always wrong cost no more than one long one."""
    machine = Machine(monkeypatch, NARROW)
    draft = machine.source("draft", always(0.0), is_free=False, guess_s=0.02)
    controller = Controller([draft], StepCosts(), SpeedFile(None))
    spent = plain = 0.0
    for _ in range(20):
        before = machine.clock.now
        machine.answer(controller, 20)
        spent += machine.clock.now - before
        plain += 20 * NARROW(1)
    assert spent <= 1.03 * plain


def test_a_target_that_was_quick_by_chance_gets_copies_after_all(monkeypatch):
    machine = Machine(monkeypatch, lambda n: 0.012 * (1 + 0.08 * (n - 1)))
    costs = StepCosts({}, 0.009)
    controller = Controller([machine.source("ngram", always(0.95), is_free=True)], costs, SpeedFile(None))
    machine.answer(controller, 400)
    assert costs.plain_s == pytest.approx(0.012, rel=0.05)
    before = machine.clock.now
    machine.answer(controller, 400)
    assert machine.clock.now - before < 0.5 * 400 * 0.012


def test_numbers(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    spent, plain, passes, stats = machine.generate([machine.source("ngram", always(0.9), is_free=True)], 500)
    source = stats.sources["ngram"]
    assert stats.n_token == sum(passes)
    assert stats.n_pass == len(passes)
    assert stats.spent_s == pytest.approx(spent)
    assert stats.speedup == pytest.approx(plain / spent, rel=0.01)
    assert source.n_accepted == sum(passes) - len(passes)
    assert sum(source.accepted_at) == source.n_accepted
    assert 0.85 < source.accepted_at[0] / source.drafted_at[0] < 0.95


def test_an_answer_bears_some_wrong_drafts_in_a_row(monkeypatch):
    """A source that is wrong at first, and right from then on, is still there to gain."""
    tried = []

    def chance(n_generated):
        tried.append(n_generated)
        return 0.0 if len(tried) <= 3 else 0.9

    machine = Machine(monkeypatch, lambda n: 0.03 * (1.0 + 0.02 * (n - 1)), known={2: 0.031, 4: 0.032, 8: 0.035})
    source = machine.source("draft", chance, is_free=False, guess_s=0.007, start_s=0.045)
    seconds, plain_s, _, _ = machine.generate([source], 200)
    assert plain_s / seconds > 1.3


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_one_slow_guess_is_not_the_price_of_all(monkeypatch, is_looked_at):
    """A first guess takes 12 plain steps, once: a look at the source beforehand has shown that this is not usual."""
    machine = Machine(monkeypatch, WIDE, known={2: WIDE(2), 4: WIDE(4), 8: WIDE(8)})
    source = machine.source("draft", always(0.9), is_free=False, guess_s=0.012)
    guess, drafts = source.guess, []

    def guess_slowly_once(context):
        drafts.append(context)
        if len(drafts) == 2:
            machine.spend(0.6)
        yield from guess(context)

    source.guess = guess_slowly_once
    costs = StepCosts({n: WIDE(n) / WIDE(1) for n in (2, 4, 8)}, WIDE(1))
    calibrate = (lambda: [0.012, 0.02, 0.012]) if is_looked_at else list
    for _ in range(3):  # sessions of one engine
        controller = Controller([source], costs, SpeedFile(None), calibrate)
        passes, _ = machine.answer(controller, 200)
    assert (len(passes) < 100) == is_looked_at


@pytest.mark.parametrize("expected_s", [0.0, 0.08])
def test_one_slow_reading_does_not_end_the_drafts(monkeypatch, expected_s):
    """Reading the prompt takes 12 plain steps, where what is known of the source says less than two."""
    machine = Machine(monkeypatch, WIDE, known={2: WIDE(2), 4: WIDE(4), 8: WIDE(8)})
    source = machine.source("draft", always(0.9), is_free=False, guess_s=0.012, start_s=0.6)
    source.expected_s = expected_s
    costs = StepCosts({n: WIDE(n) / WIDE(1) for n in (2, 4, 8)}, WIDE(1))
    controller = Controller([source], costs, SpeedFile(None), lambda: [0.012] * 3)
    passes, _ = machine.answer(controller, 200)
    assert (len(passes) < 100) == bool(expected_s)


def test_what_follows_a_wrong_guess_is_guessed_again_in_one_pass(monkeypatch):
    """The source says the same after the right token as after its own: it is asked for all of it at once."""
    machine = Machine(monkeypatch, lambda n: 0.03, known={2: 0.03, 4: 0.03, 8: 0.03, 16: 0.03})
    seconds = {}
    for agrees in (False, True):
        places = iter(range(10**6))
        source = machine.source("draft", lambda _, places=places: next(places) % 5 != 1, is_free=False, guess_s=0.006)
        source.n_agree = 3 if agrees else 0
        seconds[agrees], _, _, _ = machine.generate([source], 200)
    assert seconds[True] < seconds[False]


@pytest.mark.parametrize(("expected_s", "price"), [(0.0, 5.0), (0.001, 0.25), (0.15, 1.5), (0.3, 5.0)])
def test_a_reading_that_took_very_long_counts_as_what_it_should_have_taken(monkeypatch, expected_s, price):
    costs = StepCosts({}, 0.1)
    source = Machine(monkeypatch, WIDE).source("draft", always(0.9), is_free=False)
    source.expected_s = expected_s
    drafter = Drafter(source, costs)
    drafter.expect(0.025)
    assert sum(drafter.timed(0, 0.5, is_usual=False)) == pytest.approx(price)
    assert sum(drafter.timed(0, 0.02, is_usual=False)) == pytest.approx(0.2)


def test_what_a_source_in_use_reads_is_paid_for_and_no_price_of_a_guess(monkeypatch):
    costs = StepCosts({}, 0.1)
    source = Machine(monkeypatch, WIDE).source("draft", always(0.9), is_free=False)
    drafter = Drafter(source, costs)
    drafter.expect(0.02)
    source.read_s = source.expected_s = 0.5
    assert drafter.timed(0, 0.52, is_usual=True) == pytest.approx((0.2, 5.0))
    assert drafter.timed(0, 0.02, is_usual=True) == pytest.approx((0.2, 0.0))
    assert drafter.first == pytest.approx(0.2)
