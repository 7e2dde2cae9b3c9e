"""Plans the drafts of a session: tells the chooser what it needs to know, and learns from how it went.

Three things are learnt while the text is made, each within tens of tokens: the price of a pass by its number of rows
(``costs.py``), how often the guesses of each source and class of sureness are right, and what a guess costs
(``drafter.py``). Prices are in plain steps, the time of a pass of one row at that moment. What is drafted follows from
them (``chooser.py``), as far as the account bears it (``account.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .account import Account
from .chooser import Draft, DraftChooser
from .costs import Measured, StepCosts
from .drafter import Drafter
from .settings import SourceStats, SpeculationSettings, SpeculationStats
from .source import Answer, DraftSource
from .speed_file import SpeedFile

if TYPE_CHECKING:
    from ..engine import Engine
    from ..kv_cache import KvSequence

F32 = NDArray[np.float32]

# Seconds that a pass takes longer after planning, whose Python has displaced the pass' own data from the caches
# (bench/LOG.md): 2 % of a step of a 135M model, nothing for large ones.
AFTERMATH_S = 60e-6
# Seconds of a plain step below which copies alone are left aside unless asked for: looking for them is not
# shown to cost less than 3 % there (bench/LOG.md).
QUICK_STEP_S = 0.01
QUICK_LOOK = 16  # passes of such a target after which one is measured: it may have been quick by chance


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
        self._stats = SpeculationStats()
        self._n_prompt = self._n_seen = 0
        self._account = Account()
        self._chooser = DraftChooser(costs, self._account)
        self._step_s = self._step_price = self._step_reading = 0.0  # since the last plan
        self._rests = False  # nothing is planned until the account is no longer empty
        self._passed: Measured | None = None  # the last pass
        self._instead: list[tuple[int, Measured]] = []  # (tokens that a pass made, its time beside a plain step's)
        self._draft: Draft | None = None  # what is being verified

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
        self._settings = settings
        self._n_prompt = self._n_seen = len(prompt)
        self._account.begin()
        self._chooser.begin(self._active(), settings, answer.ends)
        self._step_s = self._step_price = self._step_reading = 0.0
        self._costs.expire()
        self._stats = SpeculationStats()
        for drafter in self._active():
            drafter.source.begin(prompt, answer)
            drafter.stats, drafter.guesses = SourceStats(), []
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
        started = time.perf_counter()
        if self._calibrate is not None and limit > 0 and (unknown := self._not_timed()):
            taken = self._calibrate()
            for drafter, seconds in product(unknown, taken if self._costs.is_known else ()):
                drafter.expect(seconds)
            self._stats.spent_s += time.perf_counter() - started
            self._calibrate, started = None, time.perf_counter()
        self._learn(context)
        self._rests = self._account.allowance <= 0 or self._is_quick
        if self._rests:  # not even looking for drafts may cost anything until that is made up for
            self._draft = None
            return []
        widest = max(2 * self._costs.widest + 1, self._settings.draft_min)  # widths are tried step by step
        draft = self._draft = self._chooser.choose(context, min(limit, self._settings.draft_max, widest))
        elapsed = time.perf_counter() - started
        self._step_s += elapsed
        self._step_price += self._chooser.price
        self._step_reading += self._chooser.reading
        if self._costs.is_known:
            self._step_price += (elapsed - self._chooser.spent_s + AFTERMATH_S) / self._costs.plain_s
        return [] if draft is None else [guess.token_id for guess in draft.guesses[: draft.n]]

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

    def verified(self, n_right: int, logits: F32) -> None:
        """Count the last draft, and show its source what the target says where it ended."""
        draft = self._draft
        if draft is None:
            return
        started = time.perf_counter()
        self._chooser.verified(draft, n_right)
        n_own = min(draft.n, draft.n_own)
        draft.drafter.stats.count(n_own, min(n_right, n_own))
        if draft.copier is not None and draft.n > n_own <= n_right:  # what was not reached says nothing
            draft.copier.stats.count(draft.n - n_own, n_right - n_own)
        draft.drafter.source.shown(logits)
        elapsed = time.perf_counter() - started
        self._step_s += elapsed
        if self._costs.is_known:
            self._step_price += elapsed / self._costs.plain_s

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
            self._account.learn(n_new, self._step_price, self._step_reading)
            self._stats.n_token += n_new
            if self._passed is not None:
                self._instead.append((n_new, self._passed))
            self._stats.spent_s += self._step_s
            self._step_s = self._step_price = self._step_reading = 0.0
