"""What the controller knows of one source of drafts: how often it is right, and what its guesses cost."""

from __future__ import annotations

from collections.abc import Sequence

from .costs import OUTLIER, StepCosts
from .settings import SourceStats
from .source import DraftSource, Guess

FADE = 0.95  # of what was learnt about a class of guesses, with each further one: about the last 20 count
# Guesses that what was known beforehand stands for: of a class of sureness, which means the same in most texts, and of
# all guesses of a source together.
PRIOR_WEIGHT, OVERALL_WEIGHT = 6.0, 4.0
TYPICAL = 0.7  # share of right guesses of a source of which nothing is known
PROBE_AFTER, PROBE_LATEST = 16, 64  # tokens until a source that did not pay is tried again, doubled each time


class Rates:
    """How often guesses are right, by class of sureness."""

    def __init__(self, priors: Sequence[float], weight: float = PRIOR_WEIGHT) -> None:
        self._right = [weight * p for p in priors]
        self._seen = [weight] * len(priors)

    def __getitem__(self, sureness: int) -> float:
        """Return the share of right guesses of a class."""
        return self._right[sureness] / self._seen[sureness]

    def learn(self, sureness: int, *, is_right: bool) -> None:
        """Take note of one guess."""
        self._right[sureness] = FADE * self._right[sureness] + is_right
        self._seen[sureness] = FADE * self._seen[sureness] + 1


class Drafter:
    """A source and what is known of it.

    Args:
        source: what guesses.
        costs: prices in plain steps; the source's own are kept there too.
    """

    def __init__(self, source: DraftSource, costs: StepCosts) -> None:
        self.source = source
        self.rates = Rates(source.priors)
        self.overall = Rates([TYPICAL], OVERALL_WEIGHT)
        self.is_warm = False  # asked in the step before
        self.wait, self.n_skipped = PROBE_AFTER, PROBE_AFTER
        self.tries = 0  # steps in which it is asked though it is not expected to pay
        self.guesses: list[Guess] = []  # the last ones, for the tokens from ``base`` on
        self.base = 0
        self.copies: list[Guess] = []  # what it added to the draft of another source, from ``copies_base`` on
        self.copies_base = 0
        self.stats = SourceStats()
        self._costs = costs
        self._first, self._next = f"{source.name} first", f"{source.name} next"

    @property
    def is_timed(self) -> bool:
        """Whether it is known what a guess costs."""
        return self._costs.other(self._first) is not None

    @property
    def first(self) -> float:
        """Price of a draft's first guess, in plain steps; 0: not known."""
        return self._costs.other(self._first) or 0.0

    @property
    def further(self) -> float:
        """Price of each further guess."""
        return self._costs.other(self._next) or self.first

    def learn(self, context: Sequence[int]) -> None:
        """Compare the last guesses with what came."""
        if self._compare(self.guesses, context[self.base :]):  # a source that is being tried goes on being tried
            self.n_skipped = self.wait
        self._compare(self.copies, context[self.copies_base :])
        self.guesses, self.copies = [], []

    def _compare(self, guesses: Sequence[Guess], came: Sequence[int]) -> bool:
        """Learn from guesses up to the first wrong one; return whether the last of them was right."""
        is_right = False
        for guess, token_id in zip(guesses, came, strict=False):
            is_right = guess.token_id == token_id
            self.rates.learn(guess.sureness, is_right=is_right)
            self.overall.learn(0, is_right=is_right)
            if not is_right:
                break
        return is_right

    def expect(self, seconds: float) -> None:
        """Take note of a step that was made to see what it takes."""
        for key in (self._first, self._next):
            self._costs.learn_other(key, seconds)

    def timed(self, place: int, seconds: float, *, is_usual: bool) -> tuple[float, float]:
        """Take note of the time of one guess; return what it and the reading before it cost in plain steps.

        Args:
            place: in the draft, from 0.
            seconds: the time.
            is_usual: whether another guess will take as long; after a pause the text since then is read first.
        """
        self.stats.draft_s += seconds
        read_s, self.source.read_s = min(self.source.read_s, seconds), 0.0
        plain_s = self._costs.plain_s
        expected = self.source.expected_s / plain_s
        if not is_usual:
            price = _undisturbed(seconds / plain_s, max(self.first, expected) if expected else 0.0)
            reading = price * read_s / seconds if seconds else 0.0
            return price - reading, reading
        key = self._next if place else self._first
        self._costs.learn_other(key, seconds - read_s)
        guess = (seconds - read_s) / plain_s
        guess = min(guess, OUTLIER * (self._costs.other(key) or guess))
        return guess, _undisturbed(read_s / plain_s, expected)


def _undisturbed(price: float, usual: float) -> float:
    """Return a price, or the usual one (0: not known) of what was very slow: the first reading of a process may be."""
    return usual if usual and price > OUTLIER * usual else price
