"""Which source drafts at each step, and how many tokens: what is worth most tokens a second, nothing included.

Three things are learnt while the text is made, each within tens of tokens: the price of a pass by its number of rows
(``costs.py``), how often the guesses of each source and class of sureness are right, and what a guess costs
(``drafter.py``). Prices are in plain steps, the time of a pass of one row at that moment.

A draft of k tokens of which place i is reached and right with probability P_i is worth
``sum(P_i) - rate * (price with the draft - price without)`` tokens, where ``rate`` is how many tokens are made in the
time of a plain step anyway. The account keeps the promise that speculation does not cost time: once an answer is behind
what plain decoding would have taken by more than ALLOWANCE, nothing that costs time is tried until it has caught up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from .costs import StepCosts
from .drafter import PROBE_AFTER, PROBE_LATEST, Drafter
from .settings import SourceStats, SpeculationSettings, SpeculationStats
from .source import Answer, DraftSource, Guess
from .speed_file import SpeedFile

if TYPE_CHECKING:
    from ..engine import Engine

RATE_FADE = 0.9
LEAST_GAIN = 0.02  # tokens
ALLOWANCE, ALLOWANCE_TOKENS = 0.02, 200  # plain steps for each of the tokens, of at least so many
PROBE_TOKENS = 2


class Controller:
    """Plans the drafts of one session; a ``Planner`` of the loop.

    Args:
        sources: what can draft.
        costs: of passes; shared by the sessions of an engine.
        file: where they are kept.
        calibrate: measures some of them; called once, before the first draft, if nothing is known.
    """

    def __init__(
        self,
        sources: Sequence[DraftSource],
        costs: StepCosts,
        file: SpeedFile,
        calibrate: Callable[[], None] | None = None,
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
        self._draft_s = 0.0
        self._plain_s = 0.0  # what a plain step would have taken instead of the last pass
        self._n_planned = 0
        self._drafter: Drafter | None = None  # whose draft is being verified

    @classmethod
    def for_engine(cls, engine: Engine) -> Controller:
        """Return the controller of a new session."""
        from .calibration import calibrate
        from .ngram import NgramSource

        costs, file = engine.pass_costs()
        return cls([NgramSource(), *engine.draft_sources()], costs, file, partial(calibrate, engine, costs))

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
        self._stats.spent_s += time.perf_counter() - started

    def _active(self) -> list[Drafter]:
        mode = self._settings.mode
        return [d for d in self._drafters if mode == "auto" or d.source.name == mode]

    # ---- what the loop calls -------------------------------------------------------------------------------

    def plan(self, context: Sequence[int], limit: int) -> list[int]:
        """Return the draft that is worth most, perhaps none."""
        started, self._draft_s = time.perf_counter(), 0.0
        if self._calibrate is not None and limit > 0 and not self._costs.is_known:
            self._calibrate()
            self._calibrate, started = None, time.perf_counter()
        self._learn(context)
        widest = max(2 * self._costs.widest + 1, self._settings.draft_min)  # widths are tried step by step
        draft = self._choose(context, min(limit, self._settings.draft_max, widest))
        self._n_planned = len(draft)
        planning_s = time.perf_counter() - started - self._draft_s
        self._step_s += planning_s
        if self._costs.is_known:
            self._step_price += planning_s / self._costs.plain_s
        return [guess.token_id for guess in draft]

    def _choose(self, context: Sequence[int], limit: int) -> list[Guess]:
        self._drafter, draft, best = None, list[Guess](), LEAST_GAIN
        for drafter in self._active():
            if not drafter.source.is_free:
                continue
            guesses = self._until_end(islice(drafter.source.guess(context), max(1, limit)))
            drafter.guesses, drafter.base = guesses, len(context)
            gain, n = self._best_length(drafter, guesses, limit)
            if gain > best:
                best, self._drafter, draft = gain, drafter, guesses[:n]
        if self._costs.is_due or not self._costs.is_known:  # a plain step is to be measured
            self._drafter = None
            return []
        for drafter in self._active():
            if not drafter.source.is_free and limit > 0:
                guesses = self._draw(drafter, context, limit, best)
                gain, n = self._best_length(drafter, guesses, limit)
                if gain > (best if self._drafter else LEAST_GAIN):
                    best, self._drafter, draft = gain, drafter, guesses[:n]
        return draft

    def passed(self, n_row: int, elapsed_s: float) -> None:
        """Take note of the time of a pass."""
        self._step_price += self._costs.learn(n_row, elapsed_s)
        self._step_s += elapsed_s
        self._plain_s = elapsed_s / self._costs(n_row)
        self._stats.n_pass += 1

    def verified(self, n_right: int) -> None:
        """Count the last draft."""
        if self._drafter is not None:
            self._drafter.stats.count(self._n_planned, n_right)

    def end(self, context: Sequence[int]) -> SpeculationStats:
        """End the answer; return its numbers."""
        self._learn(context)
        self._drafter = None
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
            drafter.learn(context)
        n_new = len(context) - max(self._n_seen, self._n_prompt + 1)  # the first token is the prompt's
        self._n_seen = len(context)
        if self._step_price and n_new > 0:
            self._rate_tokens = RATE_FADE * self._rate_tokens + n_new
            self._rate_price = RATE_FADE * self._rate_price + self._step_price
            self._balance += n_new - self._step_price
            self._n_balance += n_new
            self._stats.n_token += n_new
            self._stats.plain_s += n_new * self._plain_s
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

    def _may_try(self, n: int) -> bool:
        """Whether the answer can bear that a draft of n tokens is wrong."""
        return self._costs.at_worst(1 + n) - 1 < self._allowance

    def _until_end(self, guesses: islice[Guess]) -> list[Guess]:
        """Return guesses up to the first that ends the answer."""
        result = []
        for guess in guesses:
            result.append(guess)
            if guess.token_id in self._ends:
                break
        return result

    def _best_length(self, drafter: Drafter, guesses: Sequence[Guess], limit: int) -> tuple[float, int]:
        """Return the gain in tokens of verifying the first n guesses, and the best n."""
        best, best_n, total, reached, rate = 0.0, 0, 0.0, 1.0, self._rate
        for n, guess in enumerate(guesses[:limit], 1):
            reached *= drafter.rates[guess.sureness]
            total += reached
            gain = total - rate * (self._costs(1 + n) - 1)
            if gain > best and n >= self._settings.draft_min and self._may_try(n):
                best, best_n = gain, n
        return best, best_n

    def _draw(self, drafter: Drafter, context: Sequence[int], limit: int, best: float) -> list[Guess]:
        """Let a source that costs time guess, as long as each further guess is worth it."""
        typical, rate, n_most = drafter.overall[0], self._rate, limit
        if self._expected(drafter, limit) <= best:
            drafter.n_skipped += 1
            drafter.is_warm = drafter.is_warm and drafter.n_skipped > drafter.wait
            if drafter.n_skipped <= drafter.wait or best > LEAST_GAIN:
                return []
            n_most = min(limit, PROBE_TOKENS if drafter.is_timed else 1)
            drafter.wait = min(2 * drafter.wait, PROBE_LATEST)
        else:
            drafter.wait = PROBE_AFTER
            if not drafter.is_timed:  # it may be dear
                n_most = 1
        if not self._may_try(1) or self._allowance < drafter.first:
            return []
        was_used, drafter.n_skipped = drafter.is_warm, 0
        drafter.is_warm = True
        drafter.source.budget_s = max(0.0, self._allowance * self._costs.plain_s)
        guesses: list[Guess] = []
        reached, source = 1.0, drafter.source.guess(context)
        while len(guesses) < n_most:
            started = time.perf_counter()
            guess = next(source, None)
            elapsed = time.perf_counter() - started
            self._draft_s += elapsed
            self._step_s += elapsed
            self._step_price += drafter.timed(len(guesses), elapsed, is_usual=was_used or bool(guesses))
            if guess is None:
                break
            guesses.append(guess)
            reached *= drafter.rates[guess.sureness]
            further = drafter.further + self._costs.further(len(guesses) + 1)
            if guess.token_id in self._ends or reached * typical <= rate * further:
                break
        drafter.guesses, drafter.base = guesses, len(context)
        return guesses

    def _expected(self, drafter: Drafter, limit: int) -> float:
        """Return the gain in tokens that a source's best draft has on average, its own time included."""
        best, total, reached, rate = 0.0, 0.0, 1.0, self._rate
        for n in range(1, limit + 1):
            reached *= drafter.overall[0]
            total += reached
            spent = self._costs(1 + n) - 1 + drafter.first + (n - 1) * drafter.further
            best = max(best, total - rate * spent)
        return best
