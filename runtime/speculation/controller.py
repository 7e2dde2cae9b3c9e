"""Which source drafts at each step, and how many tokens: what is worth most tokens a second, nothing included.

Three things are learnt while the text is made, each within tens of tokens: the time of a pass by its number of rows
(``costs.py``), how often the guesses of each source and class of sureness are right, and what a guess costs.

A draft of k tokens of which place i is reached and right with probability P_i is worth
``sum(P_i) - rate * (time with the draft - time without)`` tokens, where ``rate`` is what is made a second anyway.
The account keeps the promise that speculation does not cost time: once an answer is behind what plain decoding would
have taken by more than ALLOWANCE, nothing that costs time is tried until it has caught up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from .costs import PassCosts, SpeedFile
from .settings import SourceStats, SpeculationSettings, SpeculationStats
from .source import Answer, DraftSource, Guess

if TYPE_CHECKING:
    from ..engine import Engine

FADE = 0.95  # of what was learnt about a class of guesses, with each further one: about the last 20 count
PRIOR_WEIGHT = 3.0
TYPICAL = 0.7  # share of right guesses of a source of which nothing is known
RATE_FADE = 0.9
LEAST_GAIN = 0.02  # tokens
ALLOWANCE, ALLOWANCE_TOKENS = 0.02, 200  # of the time of the answer's tokens, of at least so many
PROBE_AFTER, PROBE_LATEST = 24, 100  # tokens until a source that did not pay is tried again, doubled each time
PROBE_TOKENS = 2


class Rates:
    """How often guesses are right, by class of sureness."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._right = [PRIOR_WEIGHT * p for p in priors]
        self._seen = [PRIOR_WEIGHT] * len(priors)

    def __getitem__(self, sureness: int) -> float:
        """Return the share of right guesses of a class."""
        return self._right[sureness] / self._seen[sureness]

    def learn(self, sureness: int, *, is_right: bool) -> None:
        """Take note of one guess."""
        self._right[sureness] = FADE * self._right[sureness] + is_right
        self._seen[sureness] = FADE * self._seen[sureness] + 1


class _Drafter:
    """A source and what is known of it."""

    def __init__(self, source: DraftSource) -> None:
        self.source = source
        self.rates = Rates(source.priors)
        self.overall = Rates([TYPICAL])
        self.first_s = self.next_s = 0.0  # time of a draft's first guess, and of each further one
        self.n_timed = 0
        self.is_warm = False  # asked in the step before
        self.wait, self.n_skipped = PROBE_AFTER, PROBE_AFTER
        self.guesses: list[Guess] = []  # the last ones, for the tokens from ``base`` on
        self.base = 0
        self.stats = SourceStats()

    def learn(self, context: Sequence[int]) -> None:
        """Compare the last guesses with what came."""
        is_right = False
        for guess, token_id in zip(self.guesses, context[self.base :], strict=False):
            is_right = guess.token_id == token_id
            self.rates.learn(guess.sureness, is_right=is_right)
            self.overall.learn(0, is_right=is_right)
            if not is_right:
                break
        if is_right:  # a source that is being tried goes on being tried
            self.n_skipped = self.wait
        self.guesses = []

    def timed(self, place: int, seconds: float, *, is_usual: bool) -> None:
        """Take note of the time of one guess, the first of a draft (place 0) or a further one."""
        self.stats.draft_s += seconds
        if not is_usual:
            return
        if place == 0:
            self.first_s += (0.3 if self.first_s else 1.0) * (seconds - self.first_s)
        else:
            self.next_s += (0.3 if self.n_timed else 1.0) * (seconds - self.next_s)
            self.n_timed += 1


class Controller:
    """Plans the drafts of one session; a ``Planner`` of the loop.

    Args:
        sources: what can draft.
        costs: of passes; shared by the sessions of an engine.
        file: where they are kept.
    """

    def __init__(self, sources: Sequence[DraftSource], costs: PassCosts, file: SpeedFile) -> None:
        self._drafters = [_Drafter(source) for source in sources]
        self._costs, self._file = costs, file
        self._settings = SpeculationSettings()
        self._ends: frozenset[int] = frozenset()
        self._stats = SpeculationStats()
        self._n_prompt = self._n_seen = 0
        self._rate_tokens = self._rate_s = 0.0
        self._balance_s = 0.0  # what speculation has saved in this answer
        self._step_s = 0.0  # since the last plan
        self._n_new_pass = self._n_planned = 0
        self._drafter: _Drafter | None = None  # whose draft is being verified

    @classmethod
    def for_engine(cls, engine: Engine) -> Controller:
        """Return the controller of a new session."""
        from .ngram import NgramSource

        costs, file = engine.pass_costs()
        return cls([NgramSource(), *engine.draft_sources()], costs, file)

    def begin(self, prompt: Sequence[int], answer: Answer, settings: SpeculationSettings) -> None:
        """Begin an answer."""
        self._settings, self._ends = settings, answer.ends
        self._n_prompt = self._n_seen = len(prompt)
        self._balance_s = self._step_s = 0.0
        self._n_new_pass = 0
        self._stats = SpeculationStats()
        for drafter in self._active():
            drafter.source.begin(prompt, answer)
            drafter.stats, drafter.guesses = SourceStats(), []

    def _active(self) -> list[_Drafter]:
        mode = self._settings.mode
        return [d for d in self._drafters if mode == "auto" or d.source.name == mode]

    # ---- what the loop calls -------------------------------------------------------------------------------

    def plan(self, context: Sequence[int], limit: int) -> list[int]:
        """Return the draft that is worth most, perhaps none."""
        self._learn(context)
        self._drafter, draft = None, []
        widest = max(2 * self._costs.widest + 1, self._settings.draft_min)  # widths are tried step by step
        limit = min(limit, self._settings.draft_max, widest)
        best = LEAST_GAIN
        for drafter in self._active():
            if not drafter.source.is_free:
                continue
            guesses = self._until_end(islice(drafter.source.guess(context), max(1, limit)))
            drafter.guesses, drafter.base = guesses, len(context)
            gain, n = self._best_length(drafter, guesses, limit)
            if gain > best and self._may_try(n):
                best, self._drafter, draft = gain, drafter, guesses[:n]
        for drafter in self._active():
            if not drafter.source.is_free and limit > 0 and self._costs.is_known:
                guesses = self._draw(drafter, context, limit, best)
                gain, n = self._best_length(drafter, guesses, limit)
                if gain > (best if self._drafter else LEAST_GAIN) and self._may_try(n):
                    best, self._drafter, draft = gain, drafter, guesses[:n]
        self._n_planned = len(draft)
        return [guess.token_id for guess in draft]

    def passed(self, n_row: int, elapsed_s: float) -> None:
        """Take note of the time of a pass."""
        self._costs.learn(n_row, elapsed_s)
        self._step_s += elapsed_s
        self._n_new_pass += 1
        self._stats.n_pass += 1
        if n_row > 1 and self._costs.is_known:  # as it is usually: a disturbed pass is not the draft's fault
            self._balance_s -= self._costs(n_row) - self._costs(1)

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
        if self._step_s and n_new > 0:
            self._rate_tokens = RATE_FADE * self._rate_tokens + n_new
            self._rate_s = RATE_FADE * self._rate_s + self._step_s
            plain_s = n_new * self._costs(1) if self._costs.is_known else self._step_s
            self._balance_s += plain_s - self._n_new_pass * self._costs(1) if self._costs.is_known else 0.0
            self._stats.n_token += n_new
            self._stats.spent_s += self._step_s
            self._stats.plain_s += plain_s
            self._step_s, self._n_new_pass = 0.0, 0

    # ---- what pays -----------------------------------------------------------------------------------------

    @property
    def _rate(self) -> float:
        """Tokens a second that are made at present, at least those of plain decoding."""
        plain = 1 / self._costs(1)
        return max(plain, self._rate_tokens / self._rate_s if self._rate_s else 0.0)

    @property
    def _allowance_s(self) -> float:
        """Seconds that the answer may still lose by trying."""
        n_token = max(ALLOWANCE_TOKENS, self._n_seen - self._n_prompt)
        return self._balance_s + ALLOWANCE * n_token * self._costs(1)

    def _may_try(self, n: int) -> bool:
        """Whether the answer can bear that a draft of n tokens is wrong."""
        return self._costs(1 + n) - self._costs(1) < self._allowance_s

    def _until_end(self, guesses: islice[Guess]) -> list[Guess]:
        """Return guesses up to the first that ends the answer."""
        result = []
        for guess in guesses:
            result.append(guess)
            if guess.token_id in self._ends:
                break
        return result

    def _best_length(self, drafter: _Drafter, guesses: Sequence[Guess], limit: int) -> tuple[float, int]:
        """Return the gain in tokens of verifying the first n guesses, and the best n."""
        if not self._costs.is_known:
            return 0.0, 0
        best, best_n, total, reached, rate, plain = 0.0, 0, 0.0, 1.0, self._rate, self._costs(1)
        for n, guess in enumerate(guesses[:limit], 1):
            reached *= drafter.rates[guess.sureness]
            total += reached
            gain = total - rate * (self._costs(1 + n) - plain)
            if gain > best and n >= self._settings.draft_min:
                best, best_n = gain, n
        return best, best_n

    def _draw(self, drafter: _Drafter, context: Sequence[int], limit: int, best: float) -> list[Guess]:
        """Let a source that costs time guess, as long as each further guess is worth it."""
        typical, rate, n_most = drafter.overall[0], self._rate, limit
        if self._expected(drafter, limit) <= best:
            drafter.n_skipped += 1
            drafter.is_warm = drafter.is_warm and drafter.n_skipped > drafter.wait
            if drafter.n_skipped <= drafter.wait or best > LEAST_GAIN:
                return []
            n_most = min(limit, PROBE_TOKENS if drafter.first_s else 1)
            drafter.wait = min(2 * drafter.wait, PROBE_LATEST)
        else:
            drafter.wait = PROBE_AFTER
            if not drafter.first_s:  # it may be dear
                n_most = 1
        if not self._may_try(1) or self._allowance_s < drafter.first_s:
            return []
        was_used, drafter.n_skipped = drafter.is_warm, 0
        drafter.is_warm = True
        drafter.source.budget_s = max(0.0, self._allowance_s)
        guesses: list[Guess] = []
        reached, source = 1.0, drafter.source.guess(context)
        while len(guesses) < n_most:
            started = time.perf_counter()
            guess = next(source, None)
            elapsed = time.perf_counter() - started
            self._step_s += elapsed
            self._balance_s -= elapsed
            # After a pause the first guess takes longer, because the text since then is read.
            drafter.timed(1 if guesses else 0, elapsed, is_usual=was_used or bool(guesses))
            if guess is None:
                break
            guesses.append(guess)
            reached *= drafter.rates[guess.sureness]
            further_s = (
                (drafter.next_s or drafter.first_s) + self._costs(len(guesses) + 2) - self._costs(len(guesses) + 1)
            )
            if guess.token_id in self._ends or reached * typical <= rate * further_s:
                break
        drafter.guesses, drafter.base = guesses, len(context)
        return guesses

    def _expected(self, drafter: _Drafter, limit: int) -> float:
        """Return the gain in tokens that a source's best draft has on average, its own time included."""
        best, total, reached, rate, plain = 0.0, 0.0, 1.0, self._rate, self._costs(1)
        for n in range(1, limit + 1):
            reached *= drafter.overall[0]
            total += reached
            spent_s = self._costs(1 + n) - plain + drafter.first_s + (n - 1) * (drafter.next_s or drafter.first_s)
            best = max(best, total - rate * spent_s)
        return best
