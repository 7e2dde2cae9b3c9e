"""What is drafted at one step, and how many tokens: what is worth most tokens a second, nothing included.

A draft of k tokens of which place i is reached and right with probability P_i is worth
``sum(P_i) - rate * (price with the draft - price without)`` tokens, where ``rate`` is how many tokens are made in the
time of a plain step anyway. Sources work on one draft together: what a draft model guesses goes on with copies of the
text as far as the model agrees with them, which it finds out in one pass, and then with its next guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from math import prod
from typing import TypeVar

from ...formats.record import Record
from .account import Account
from .costs import StepCosts
from .drafter import PROBE_AFTER, PROBE_LATEST, Drafter
from .settings import SpeculationSettings
from .source import Guess

_T = TypeVar("_T")

PROBE_TOKENS = 2
# Steps in which a source is asked again after it has read, whatever came of the first: a single guess says too little
# for what reading takes. Not where so many tokens a plain step are made anyway.
TRIES, TRY_RATE = 4, 1.5
PAY_RATE = 1.4  # tokens that are made in the time of a plain step where drafts pay
RISK = 0.7  # share of what may be lost that one draft may lose: some wrong ones in a row must not end everything
LOOK_AHEAD = 2  # guesses, over whose rows the price of a further one is taken: where tiles end, one row is dear
UNLIKELY = 0.05  # a guess that is reached less often than this is never worth a row
COPY_CHANCE = 0.5  # a copy goes on with another source's draft only if it is at least as likely right as this
ASK_CHANCE = 0.05  # the other source is asked what it thinks of one that is at least this likely


class Draft(Record, frozen=False):
    """Guesses of one source, to which another may have added copies of the text; how many to verify, and their gain."""

    drafter: Drafter
    guesses: list[Guess]
    chances: list[float]  # of each, if those before are right
    n_own: int
    copier: Drafter | None = None
    n: int = 0
    gain: float = 0.0


class DraftChooser:
    """Chooses the draft of a step.

    Args:
        costs: of passes, in plain steps.
        account: what may be lost by trying, and how many tokens are made anyway.

    Attributes:
        spent_s, price: what sources have taken for the last choice, in seconds and in plain steps,
        reading: which are without those that went into reading a text.
    """

    def __init__(self, costs: StepCosts, account: Account) -> None:
        self._costs, self._account = costs, account
        self._drafters: Sequence[Drafter] = ()
        self._settings, self._ends = SpeculationSettings(), frozenset[int]()
        self._leftover: list[Guess] = []  # what the last draft said of the tokens to come, after a wrong guess
        self.spent_s = self.price = self.reading = 0.0

    def begin(self, drafters: Sequence[Drafter], settings: SpeculationSettings, ends: frozenset[int]) -> None:
        """Begin an answer, which some tokens end."""
        self._drafters, self._settings, self._ends = drafters, settings, ends
        self._leftover = []

    def verified(self, draft: Draft, n_right: int) -> None:
        """Take note of how many guesses of the last draft were right."""
        self._leftover = draft.guesses[n_right + 1 :]

    def choose(self, context: Sequence[int], limit: int) -> Draft | None:
        """Return the draft of at most so many tokens that is worth most, perhaps none."""
        self.spent_s = self.price = self.reading = 0.0
        best = self._choose(context, limit)
        self._leftover = []
        return best

    def _choose(self, context: Sequence[int], limit: int) -> Draft | None:
        best: Draft | None = None
        for drafter in self._drafters:
            if drafter.source.is_free:
                draft = self._likely(drafter, context, max(1, limit))
                drafter.guesses, drafter.base = draft.guesses, len(context)
                best = self._better(best, self._measured(draft, limit))
        if self._costs.is_due or not self._costs.is_known:  # a plain step is to be measured
            return None
        for drafter in self._drafters:
            if not drafter.source.is_free and limit > 0:
                best = self._better(best, self._draw(drafter, context, limit, 0.0 if best is None else best.gain))
        return best

    @staticmethod
    def _better(one: Draft | None, other: Draft | None) -> Draft | None:
        return one if other is None or other.gain <= (0.0 if one is None else one.gain) else other

    def _may_try(self, n: int, drafting: float = 0.0) -> bool:
        """Whether the answer can bear that a draft of n tokens is wrong, for which so many plain steps were spent."""
        return self._costs.at_worst(1 + n) - 1 + drafting < RISK * self._account.allowance

    def _until_end(self, guesses: Iterable[Guess]) -> list[Guess]:
        """Return guesses up to the first that ends the answer."""
        result = []
        for guess in guesses:
            result.append(guess)
            if guess.token_id in self._ends:
                break
        return result

    def _likely(self, drafter: Drafter, context: Sequence[int], limit: int) -> Draft:
        """Return the guesses of a free source as far as they are likely enough."""
        draft, reached = Draft(drafter, [], [], 0), 1.0
        for guess in islice(drafter.source.guess(context), limit):
            chance = drafter.rates[guess.sureness]
            draft.guesses.append(guess)
            draft.chances.append(chance)
            reached *= chance
            if reached < UNLIKELY or guess.token_id in self._ends:
                break
        draft.n_own = len(draft.guesses)
        return draft

    def _measured(self, draft: Draft, limit: int) -> Draft:
        """Work out how many of a draft's guesses are best verified, and what that gains in tokens."""
        total, reached, rate = 0.0, 1.0, self._account.rate
        for n, chance in enumerate(draft.chances[:limit], 1):
            reached *= chance
            total += reached
            gain = total - rate * (self._costs(1 + n) - 1)
            if gain > draft.gain and n >= self._settings.draft_min and self._may_try(n):
                draft.gain, draft.n = gain, n
        return draft

    def _copies(self, draft: Draft, limit: int) -> tuple[Drafter | None, list[Guess]]:
        """Return how a draft may go on, none of it certain, and which free source says so.

        Without a likely copy that is what the last draft said of these tokens, if this one says the same so far.
        """
        drafted, n_most = [guess.token_id for guess in draft.guesses], limit - len(draft.guesses)
        unlikely: tuple[Drafter | None, list[Guess]] = None, []
        for copier in self._drafters:
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

    def _draw(self, drafter: Drafter, context: Sequence[int], limit: int, best: float) -> Draft | None:
        """Let a source that costs time guess, as long as each further guess is worth it."""
        n_most = self._n_asked(drafter, limit, best)
        if not n_most:
            return None
        was_used, drafter.n_skipped = drafter.is_warm, 0
        drafter.is_warm, drafter.tries = True, max(0, drafter.tries - 1) if was_used else TRIES
        # Where copies are worth something anyway, reading is not.
        pays = best <= 0 and self._account.rate > PAY_RATE
        drafter.source.budget_s = self._account.for_reading(pays=pays) * self._costs.plain_s
        draft, guesses = Draft(drafter, [], [], 0), drafter.source.guess(context)
        reached, is_usual = 1.0, was_used
        while len(draft.guesses) < n_most:
            agreed = self._agreed(draft, limit, is_usual=is_usual and not draft.guesses)
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
            if guess.token_id in self._ends or not self._goes_on(draft, limit, reached):
                break
        drafter.guesses, drafter.base = list(draft.guesses), len(context)
        self._add_copies(draft, limit)
        return self._measured(draft, limit)

    def _n_asked(self, drafter: Drafter, limit: int, best: float) -> int:
        """Return how many guesses a source is asked for at most: none where it would not pay, unless a try is due."""
        n_most, wait = limit, PROBE_AFTER
        if self._expected(drafter, limit) <= best:
            wait = drafter.wait
            if best > 0 or not drafter.tries or self._account.rate >= TRY_RATE:
                drafter.n_skipped += 1
                drafter.is_warm = drafter.is_warm and drafter.n_skipped > drafter.wait
                if drafter.n_skipped <= drafter.wait or best > 0:
                    return 0
                wait = min(2 * drafter.wait, PROBE_LATEST)
            n_most = min(limit, PROBE_TOKENS)
        if not self._may_try(1) or self._account.allowance < max(drafter.first, self._account.reserve):
            return 0
        drafter.wait = wait
        return n_most if drafter.is_timed else 1  # it may be dear

    def _agreed(self, draft: Draft, limit: int, *, is_usual: bool) -> list[Guess] | None:
        """Let a source look at a copy of what may come with what it must read, which takes hardly longer.

        Returns:
            What of it the source would guess; None if it did not look.
        """
        source = draft.drafter.source
        copies = self._copies(draft, limit)[1] if source.n_agree else []
        if not copies:
            return None
        look = partial(source.agree, [copy.token_id for copy in copies])
        return self._timed(draft.drafter, look, 0, is_usual=is_usual)

    def _goes_on(self, draft: Draft, limit: int, reached: float) -> bool:
        """Return whether a further guess is worth its time, and not too much to lose."""
        drafter, rate = draft.drafter, self._account.rate
        typical = drafter.overall[0]
        further = self._costs.further(draft.n_own + 1, min(limit, draft.n_own + LOOK_AHEAD) + 1)
        if reached * typical <= rate * (drafter.further + further):
            return False
        if not self._may_try(draft.n_own + 1, drafter.first + draft.n_own * drafter.further):
            return False
        return drafter.source.n_agree > 0 or not self._is_copied(draft, limit, typical - rate * drafter.further)

    def _is_copied(self, draft: Draft, limit: int, least: float) -> bool:
        """Return whether a copy of the text may go on with a draft without another look."""
        copier, copies = self._copies(draft, limit)
        return copier is not None and copier.rates[copies[0].sureness] >= max(COPY_CHANCE, least)

    def _add_copies(self, draft: Draft, limit: int) -> None:
        """Let a draft go on with copies that its source has not looked at: they cost their rows alone."""
        if not draft.guesses or draft.guesses[-1].token_id in self._ends:
            return
        copier, copies = self._copies(draft, limit)
        if copier is not None:
            draft.copier, copier.copies, copier.copies_base = copier, copies, draft.drafter.base + draft.n_own
            draft.guesses += copies
            draft.chances += [copier.rates[copy.sureness] for copy in copies]

    @staticmethod
    def _append(draft: Draft, guesses: Sequence[Guess]) -> float:
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
        self.spent_s += elapsed
        price, reading = drafter.timed(place, elapsed, is_usual=is_usual)
        self.price += price
        self.reading += reading
        return result

    def _expected(self, drafter: Drafter, limit: int) -> float:
        """Return the gain in tokens that a source's best draft has on average, its own time included."""
        best, total, reached, rate = 0.0, 0.0, 1.0, self._account.rate
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
        free = (drafter for drafter in self._drafters if drafter.source.is_free and drafter.guesses)
        return next(([drafter.rates[guess.sureness] for guess in drafter.guesses] for drafter in free), [])
