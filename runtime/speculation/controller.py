"""Which source drafts at each step, and how many tokens: what is worth most tokens a second, nothing included.

Three things are learnt while the text is made, each within tens of tokens: the price of a pass by its number of rows
(``costs.py``), how often the guesses of each source and class of sureness are right, and what a guess costs
(``drafter.py``). Prices are in plain steps, the time of a pass of one row at that moment.

A draft of k tokens of which place i is reached and right with probability P_i is worth
``sum(P_i) - rate * (price with the draft - price without)`` tokens, where ``rate`` is how many tokens are made in the
time of a plain step anyway. Sources work on one draft together: what a draft model guesses goes on with copies of the
text as far as the model agrees with them, which it finds out in one pass, and then with its next guess.

The account keeps the promise that speculation does not cost time: once an answer is behind what plain decoding would
have taken by more than ALLOWANCE, nothing that costs time is tried until it has caught up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice, product
from math import prod
from typing import TYPE_CHECKING, TypeVar

from ...formats.record import Record
from .costs import Measured, StepCosts
from .drafter import PROBE_AFTER, PROBE_LATEST, Drafter
from .settings import SourceStats, SpeculationSettings, SpeculationStats
from .source import Answer, DraftSource, Guess
from .speed_file import SpeedFile

if TYPE_CHECKING:
    from ..engine import Engine
    from ..kv_cache import KvSequence

_T = TypeVar("_T")

RATE_FADE = 0.9
LEAST_GAIN = 0.02  # tokens
ALLOWANCE, ALLOWANCE_TOKENS = 0.018, 200  # plain steps for each of the tokens, of at least so many
PROBE_TOKENS = 2
READING = 0.5  # share of what may be lost that a source may take to read a text
RESERVE = 0.05  # share of it that is left to copies: a draft model that is wrong at first must not end everything
# Share of it that is kept from a draft model at first, and tokens until none is: how an answer begins is seldom like
# what follows, and a model that has lost all by then would be silent for the rest (bench/LOG.md).
HELD, HELD_TOKENS = 0.45, 48
RISK = 0.35  # share of it that one draft may lose: some wrong ones in a row must not end everything
# Seconds that a pass takes longer after planning, whose Python has displaced the pass' own data from the caches
# (bench/LOG.md): 2 % of a step of a 135M model, nothing for large ones.
AFTERMATH_S = 60e-6
# Seconds of a plain step below which copies alone are left aside unless asked for: looking for them is not
# shown to cost less than 3 % there (bench/LOG.md).
QUICK_STEP_S = 0.01
QUICK_LOOK = 16  # passes of such a target after which one is measured: it may have been quick by chance
LOOK_AHEAD = 2  # guesses, over whose rows the price of a further one is taken: where tiles end, one row is dear
UNLIKELY = 0.05  # a guess that is reached less often than this is never worth a row
COPY_CHANCE = 0.5  # a copy goes on with another source's draft only if it is at least as likely right as this
ASK_CHANCE = 0.05  # the other source is asked what it thinks of one that is at least this likely


class _Draft(Record, frozen=False):
    """Guesses of one source, to which another may have added copies of the text; how many to verify, and their gain."""

    drafter: Drafter
    guesses: list[Guess]
    chances: list[float]  # of each, if those before are right
    n_own: int
    copier: Drafter | None = None
    n: int = 0
    gain: float = 0.0


class Controller:
    """Plans the drafts of one session; a ``Planner`` of the loop.

    Args:
        sources: what can draft.
        costs: of passes; shared by the sessions of an engine.
        file: where they are kept.
        calibrate: measures some of them, and returns what steps of the source that costs time took, in seconds;
            called once, before its first draft. Copies are worth no such look: widths become known as they are tried.
    """

    def __init__(
        self,
        sources: Sequence[DraftSource],
        costs: StepCosts,
        file: SpeedFile,
        calibrate: Callable[[], Sequence[float]] | None = None,
    ) -> None:
        self._drafters = [Drafter(source, costs) for source in sources]
        self._costs, self._file, self._calibrate = costs, file, calibrate
        self._settings = SpeculationSettings()
        self._ends: frozenset[int] = frozenset()
        self._stats = SpeculationStats()
        self._n_prompt = self._n_seen = 0
        self._rate_tokens = self._rate_price = 0.0
        self._balance, self._n_balance = 0.0, 0  # plain steps that speculation has saved, over so many tokens
        self._step_s = self._step_price = 0.0  # since the last plan
        self._rests = False  # nothing is planned until the account is no longer empty
        self._draft_s = 0.0
        self._passed: Measured | None = None  # the last pass
        self._instead: list[tuple[int, Measured]] = []  # (tokens that a pass made, its time beside a plain step's)
        self._draft: _Draft | None = None  # what is being verified
        self._leftover: list[Guess] = []  # what the last draft said of the tokens to come, after a wrong guess

    @classmethod
    def for_engine(cls, engine: Engine, sequence: KvSequence) -> Controller:
        """Return the controller of a new session, whose tokens a sequence holds."""
        from .calibration import calibrate
        from .ngram import NgramSource

        costs, file = engine.pass_costs()
        return cls([NgramSource(), *engine.draft_sources(sequence)], costs, file, partial(calibrate, engine, costs))

    def begin(self, prompt: Sequence[int], answer: Answer, settings: SpeculationSettings) -> None:
        """Begin an answer. What the last one has lost is not forgotten."""
        started = time.perf_counter()
        self._settings, self._ends = settings, answer.ends
        self._n_prompt = self._n_seen = len(prompt)
        if self._balance > 0:
            self._balance, self._n_balance = 0.0, 0
        self._step_s = self._step_price = 0.0
        self._costs.expire()
        self._stats = SpeculationStats()
        for drafter in self._active():
            drafter.source.begin(prompt, answer)
            drafter.stats, drafter.guesses = SourceStats(), []
        self._leftover = []
        self._stats.spent_s += time.perf_counter() - started

    def _active(self) -> list[Drafter]:
        mode = self._settings.mode
        return [d for d in self._drafters if mode == "auto" or d.source.name == mode]

    def _not_timed(self) -> list[Drafter]:
        return [drafter for drafter in self._active() if not (drafter.source.is_free or drafter.is_timed)]

    @property
    def _is_quick(self) -> bool:
        """Whether the target is too quick for copies to be looked for where nobody asked for them."""
        is_asked = self._settings.mode != "auto" or not all(drafter.source.is_free for drafter in self._active())
        return not is_asked and self._costs.is_known and self._costs.plain_s < QUICK_STEP_S

    # ---- what the loop calls -------------------------------------------------------------------------------

    def plan(self, context: Sequence[int], limit: int) -> list[int]:
        """Return the draft that is worth most, perhaps none."""
        started, self._draft_s = time.perf_counter(), 0.0
        if self._calibrate is not None and limit > 0 and (unknown := self._not_timed()):
            taken = self._calibrate()
            for drafter, seconds in product(unknown, taken if self._costs.is_known else ()):
                drafter.expect(seconds)
            self._stats.spent_s += time.perf_counter() - started
            self._calibrate, started = None, time.perf_counter()
        self._learn(context)
        self._rests = self._allowance <= 0 or self._is_quick
        if self._rests:  # not even looking for drafts may cost anything until that is made up for
            self._draft = None
            return []
        widest = max(2 * self._costs.widest + 1, self._settings.draft_min)  # widths are tried step by step
        draft = self._draft = self._choose(context, min(limit, self._settings.draft_max, widest))
        self._leftover = []
        planning_s = time.perf_counter() - started - self._draft_s
        self._step_s += planning_s
        if self._costs.is_known:
            self._step_price += (planning_s + AFTERMATH_S) / self._costs.plain_s
        return [] if draft is None else [guess.token_id for guess in draft.guesses[: draft.n]]

    def _choose(self, context: Sequence[int], limit: int) -> _Draft | None:
        best: _Draft | None = None
        for drafter in self._active():
            if drafter.source.is_free:
                draft = self._likely(drafter, context, max(1, limit))
                drafter.guesses, drafter.base = draft.guesses, len(context)
                best = self._better(best, self._measured(draft, limit))
        if self._costs.is_due or not self._costs.is_known:  # a plain step is to be measured
            return None
        for drafter in self._active():
            if not drafter.source.is_free and limit > 0:
                best = self._better(
                    best, self._draw(drafter, context, limit, LEAST_GAIN if best is None else best.gain)
                )
        return best

    @staticmethod
    def _better(one: _Draft | None, other: _Draft | None) -> _Draft | None:
        if other is None or other.gain <= (LEAST_GAIN if one is None else one.gain):
            return one
        return other

    def passed(self, n_row: int, elapsed_s: float) -> None:
        """Take note of the time of a pass."""
        self._stats.n_pass += 1
        self._step_s += elapsed_s
        if self._rests:
            if self._is_quick and self._stats.n_pass % QUICK_LOOK == 0:
                self._costs.learn(n_row, elapsed_s)
            self._step_price += 1.0
            self._passed = Measured(elapsed_s, elapsed_s)
            return
        started = time.perf_counter()
        price, self._passed = self._costs.learn(n_row, elapsed_s)
        learning_s = time.perf_counter() - started
        self._step_price += price
        self._step_s += learning_s
        if self._costs.is_known:
            self._step_price += learning_s / self._costs.plain_s

    def verified(self, n_right: int) -> None:
        """Count the last draft."""
        draft = self._draft
        if draft is None:
            return
        self._leftover = draft.guesses[n_right + 1 :]
        n_own = min(draft.n, draft.n_own)
        draft.drafter.stats.count(n_own, min(n_right, n_own))
        if draft.copier is not None and draft.n > n_own <= n_right:  # what was not reached says nothing
            draft.copier.stats.count(draft.n - n_own, n_right - n_own)

    def end(self, context: Sequence[int], decode_s: float = 0.0) -> SpeculationStats:
        """End the answer, which took so many seconds after its first token; return its numbers."""
        self._learn(context)
        self._draft = self._passed = None
        self._stats.plain_s = sum(n_token * measured.plain_s for n_token, measured in self._instead)
        self._instead.clear()
        self._stats.other_s = max(0.0, decode_s - self._stats.spent_s)
        self._stats.sources = {d.source.name: d.stats for d in self._active()}
        self._file.write(self._costs)
        return self._stats

    def close(self) -> None:
        """Close the sources."""
        for drafter in self._drafters:
            drafter.source.close()

    # ---- what is learnt ------------------------------------------------------------------------------------

    def _learn(self, context: Sequence[int]) -> None:
        """Take note of the tokens since the last plan, and of the time they took."""
        for drafter in self._active():
            if drafter.guesses or drafter.copies:
                drafter.learn(context)
        n_new = len(context) - max(self._n_seen, self._n_prompt + 1)  # the first token is the prompt's
        self._n_seen = len(context)
        if self._step_price and n_new > 0:
            self._rate_tokens = RATE_FADE * self._rate_tokens + n_new
            self._rate_price = RATE_FADE * self._rate_price + self._step_price
            self._balance += n_new - self._step_price
            self._n_balance += n_new
            self._stats.n_token += n_new
            if self._passed is not None:
                self._instead.append((n_new, self._passed))
            self._stats.spent_s += self._step_s
            self._step_s = self._step_price = 0.0

    # ---- what pays -----------------------------------------------------------------------------------------

    @property
    def _rate(self) -> float:
        """Tokens that are made at present in the time of a plain step, at least one."""
        return max(1.0, self._rate_tokens / self._rate_price if self._rate_price else 0.0)

    @property
    def _allowance(self) -> float:
        """Plain steps that the answer may still lose by trying."""
        return self._balance + ALLOWANCE * max(ALLOWANCE_TOKENS, self._n_balance)

    @property
    def _reserve(self) -> float:
        """What of that is left to sources that cost nothing, at first also to later tries of the others."""
        held = HELD * max(0.0, 1 - (self._n_seen - self._n_prompt) / HELD_TOKENS)
        return max(RESERVE, held) * ALLOWANCE * max(ALLOWANCE_TOKENS, self._n_balance)

    def _may_try(self, n: int, drafting: float = 0.0) -> bool:
        """Whether the answer can bear that a draft of n tokens is wrong, for which so many plain steps were spent."""
        return self._costs.at_worst(1 + n) - 1 + drafting < RISK * self._allowance

    def _until_end(self, guesses: Iterable[Guess]) -> list[Guess]:
        """Return guesses up to the first that ends the answer."""
        result = []
        for guess in guesses:
            result.append(guess)
            if guess.token_id in self._ends:
                break
        return result

    def _likely(self, drafter: Drafter, context: Sequence[int], limit: int) -> _Draft:
        """Return the guesses of a free source as far as they are likely enough."""
        draft, reached = _Draft(drafter, [], [], 0), 1.0
        for guess in islice(drafter.source.guess(context), limit):
            chance = drafter.rates[guess.sureness]
            draft.guesses.append(guess)
            draft.chances.append(chance)
            reached *= chance
            if reached < UNLIKELY or guess.token_id in self._ends:
                break
        draft.n_own = len(draft.guesses)
        return draft

    def _measured(self, draft: _Draft, limit: int) -> _Draft:
        """Work out how many of a draft's guesses are best verified, and what that gains in tokens."""
        total, reached, rate = 0.0, 1.0, self._rate
        for n, chance in enumerate(draft.chances[:limit], 1):
            reached *= chance
            total += reached
            gain = total - rate * (self._costs(1 + n) - 1)
            if gain > draft.gain and n >= self._settings.draft_min and self._may_try(n):
                draft.gain, draft.n = gain, n
        return draft

    def _copies(self, draft: _Draft, limit: int) -> tuple[Drafter | None, list[Guess]]:
        """Return how a draft may go on, none of it certain, and which free source says so.

        Without a likely copy that is what the last draft said of these tokens, if this one says the same so far.
        """
        drafted, n_most = [guess.token_id for guess in draft.guesses], limit - len(draft.guesses)
        unlikely: tuple[Drafter | None, list[Guess]] = None, []
        for copier in self._active():
            if copier.source.is_free:
                further = copier.source.after(drafted) if drafted else copier.guesses
                copies = self._until_end(islice(further, n_most))
                chance = copier.rates[copies[0].sureness] if copies else 0.0
                if chance >= COPY_CHANCE:
                    return copier, copies
                if chance >= ASK_CHANCE:
                    unlikely = copier, copies
        is_as_before = drafted == [guess.token_id for guess in self._leftover[: len(drafted)]]
        if is_as_before and (copies := self._until_end(self._leftover[len(drafted) : limit])):
            return None, copies
        return unlikely

    def _draw(self, drafter: Drafter, context: Sequence[int], limit: int, best: float) -> _Draft | None:
        """Let a source that costs time guess, as long as each further guess is worth it."""
        typical, rate, n_most = drafter.overall[0], self._rate, limit
        if self._expected(drafter, limit) <= best:
            drafter.n_skipped += 1
            drafter.is_warm = drafter.is_warm and drafter.n_skipped > drafter.wait
            if drafter.n_skipped <= drafter.wait or best > LEAST_GAIN:
                return None
            n_most, wait = min(limit, PROBE_TOKENS), min(2 * drafter.wait, PROBE_LATEST)
        else:
            wait = PROBE_AFTER
        if not self._may_try(1) or self._allowance < max(drafter.first, self._reserve):
            return None
        drafter.wait = wait
        if not drafter.is_timed:  # it may be dear
            n_most = 1
        was_used, drafter.n_skipped = drafter.is_warm, 0
        drafter.is_warm = True
        # What is spent on reading must be earned by guessing: half is left for that.
        drafter.source.budget_s = max(0.0, READING * self._allowance * self._costs.plain_s)
        draft, guesses = _Draft(drafter, [], [], 0), drafter.source.guess(context)
        reached, is_usual = 1.0, was_used
        while len(draft.guesses) < n_most:
            # With what it must read it looks at a copy of what may come, which takes hardly longer.
            copies = self._copies(draft, limit)[1] if drafter.source.n_agree else []
            if copies:
                look = partial(drafter.source.agree, [copy.token_id for copy in copies])
                agreed = self._timed(drafter, look, 0, is_usual=is_usual and not draft.guesses)
                if agreed is not None:
                    reached *= self._append(draft, agreed)
                    is_usual = False  # the next guess is read already
                    if len(draft.guesses) >= n_most or (agreed and agreed[-1].token_id in self._ends):
                        break
            guess = self._timed(drafter, lambda: next(guesses, None), len(draft.guesses), is_usual=is_usual)
            if guess is None:
                break
            reached *= self._append(draft, [guess])
            is_usual = True
            further = self._costs.further(draft.n_own + 1, min(limit, draft.n_own + LOOK_AHEAD) + 1)
            if guess.token_id in self._ends or reached * typical <= rate * (drafter.further + further):
                break
            if not self._may_try(draft.n_own + 1, drafter.first + draft.n_own * drafter.further):
                break
            if not drafter.source.n_agree and self._is_copied(draft, limit, typical - rate * drafter.further):
                break
        drafter.guesses, drafter.base = list(draft.guesses), len(context)
        self._add_copies(draft, limit)
        return self._measured(draft, limit)

    def _is_copied(self, draft: _Draft, limit: int, least: float) -> bool:
        """Return whether a copy of the text may go on with a draft without another look."""
        copier, copies = self._copies(draft, limit)
        return copier is not None and copier.rates[copies[0].sureness] >= max(COPY_CHANCE, least)

    def _add_copies(self, draft: _Draft, limit: int) -> None:
        """Let a draft go on with copies that its source has not looked at: they cost their rows alone."""
        if not draft.guesses or draft.guesses[-1].token_id in self._ends:
            return
        copier, copies = self._copies(draft, limit)
        if copier is not None:
            draft.copier, copier.copies, copier.copies_base = copier, copies, draft.drafter.base + draft.n_own
            draft.guesses += copies
            draft.chances += [copier.rates[copy.sureness] for copy in copies]

    @staticmethod
    def _append(draft: _Draft, guesses: Sequence[Guess]) -> float:
        """Add a source's own guesses to its draft; return the chance that all of them are right."""
        chances = [draft.drafter.rates[guess.sureness] for guess in guesses]
        draft.guesses += guesses
        draft.chances += chances
        draft.n_own = len(draft.guesses)
        return prod(chances)

    def _timed(self, drafter: Drafter, function: Callable[[], _T], place: int, *, is_usual: bool) -> _T:
        """Call a function of a source; put its time down to the source, and to this step."""
        started = time.perf_counter()
        result = function()
        elapsed = time.perf_counter() - started
        self._draft_s += elapsed
        self._step_s += elapsed
        self._step_price += drafter.timed(place, elapsed, is_usual=is_usual)
        return result

    def _expected(self, drafter: Drafter, limit: int) -> float:
        """Return the gain in tokens that a source's best draft has on average, its own time included."""
        best, total, reached, rate = 0.0, 0.0, 1.0, self._rate
        typical, spent, further = drafter.overall[0], drafter.first, drafter.further
        copied, chances = 1.0, iter(self._chances_of_copies()[: drafter.source.n_agree])
        for n in range(1, limit + 1):
            reached *= typical
            total += reached
            best = max(best, total - rate * (self._costs(1 + n) - 1 + spent))
            copied *= next(chances, 0.0)
            spent += (1 - copied) * further  # a copy that it agrees with takes no step of its own
        return best

    def _chances_of_copies(self) -> list[float]:
        """Return the chances of the copies that go on with the text, if those before are right."""
        free = (drafter for drafter in self._active() if drafter.source.is_free and drafter.guesses)
        return next(([drafter.rates[guess.sureness] for guess in drafter.guesses] for drafter in free), [])
