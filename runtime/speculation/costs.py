"""What passes of the target and draft steps take on this machine, in plain steps: measured as they happen.

The unit is the time of a plain step (a pass of one row) *at that moment*. Everything that computes beside changes the
seconds, but hardly the ratio of two passes next to each other. So every measurement is held against the plain steps
before and after it, and the planner is told when a plain step is due to be measured (``is_due``): it yields a token
like any other, so that knowing costs next to nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping

Key = int | str  # rows of a pass, or the name of another step

N_PLAIN = 5  # plain steps that tell what one takes at present
N_KEPT = 24  # measurements of every other step
N_SOUND = 4  # of them that are enough to do without those of a moment when the load changed
OUTLIER = 2.0  # times the usual: what a longer measurement counts as
N_FILE = 2  # that a price from another run stands for, unless the first N_WRONG contradict it
N_WRONG = 2
FILE_AT_WORST = 1.5  # times what a file says of further rows: it was a machine of another hour
N_EXPECTED = 2  # measurements that the price which other widths let expect stands for
SLOPE = 0.1  # plain steps for a further row, before anything is known; optimistic, so that it is tried
DUE_AFTER, DUE_LATEST = 8, 64  # wide passes until a plain step is due; doubled while it brings nothing new
DUE_S = 4.0  # that is due after so many seconds of wide passes
NEWS = 1.15  # a plain step that took this much more or less than the last ones
SURPRISE = 1.4  # a pass likewise: the machine has changed, if two of them follow each other


def median(values: Iterable[float]) -> float:
    """Return the median; that of the standard library takes several times as long."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Measured:
    """One measurement: seconds, and those of a plain step around it, which the next plain step still corrects."""

    __slots__ = ("plain_s", "seconds")

    def __init__(self, seconds: float, plain_s: float) -> None:
        self.seconds, self.plain_s = seconds, plain_s

    @property
    def ratio(self) -> float:
        """Return the price in plain steps."""
        return self.seconds / self.plain_s


class StepCosts:
    """Prices of steps in plain steps.

    Args:
        ratios: what is known of passes from another run, by number of rows.
        plain_s: seconds of a plain step then; only until the first one is measured.
    """

    def __init__(self, ratios: Mapping[int, float] | None = None, plain_s: float = 0.0) -> None:
        self._plain: deque[float] = deque(maxlen=N_PLAIN)
        self._plain_s = plain_s
        self._kept: dict[Key, deque[Measured]] = {}
        self._from_file = {n for n in ratios or {} if n > 1}
        self._open: list[Measured] = []  # since the last plain step
        self._prices: dict[Key, float] = {1: 1.0}  # as measured
        self._table: dict[int, float] = {}  # what is said of them, until a pass is measured
        self._widths: list[int] = [1]
        self._sound: list[int] = [1]  # of them, what others are worked out from
        self._n_wide, self._wide_s, self._n_surprise = 0, 0.0, 0
        self._due_after, self._is_due = DUE_AFTER, False
        for n in list(self._from_file):
            for _ in range(N_FILE):
                self._keep(n, Measured((ratios or {})[n], 1.0))

    # ---- prices --------------------------------------------------------------------------------------------

    @property
    def is_known(self) -> bool:
        """Whether the time of a plain step is known."""
        return self._plain_s > 0

    @property
    def plain_s(self) -> float:
        """Seconds of a plain step at present; 0: not known."""
        return self._plain_s

    @property
    def widest(self) -> int:
        """The largest number of rows that was tried."""
        return self._widths[-1]

    def __call__(self, n_row: int) -> float:
        """Return the price of a pass: as measured, or where that was seldom, also what other widths let expect."""
        price = self._table.get(n_row)
        if price is None:
            price = self._table[n_row] = self._work_out(n_row)
        return price

    def _work_out(self, n_row: int) -> float:
        if n_row == 1:
            return 1.0
        expected = self._expected(n_row)
        if n_row not in self._kept:
            return expected
        n_seen = len(self._kept[n_row])
        return (n_seen * self._prices[n_row] + N_EXPECTED * expected) / (n_seen + N_EXPECTED)

    def further(self, n_row: int, most: int) -> float:
        """Return the price of one row more, on average over as many further ones, to ``most``, as make it cheapest."""
        here = self(n_row)
        return min(((self(n) - here) / (n - n_row) for n in range(n_row + 1, most + 1)), default=math.inf)

    def at_worst(self, n_row: int) -> float:
        """Return the price of a pass; more if another run measured it; that of its rows one by one if none did."""
        if n_row in self._from_file:
            return min(float(n_row), 1 + FILE_AT_WORST * (self(n_row) - 1))
        return float(n_row) if n_row not in self._kept else self(n_row)

    def other(self, name: str) -> float | None:
        """Return the price of a step that is no pass of the target; None: it was never measured."""
        return self._prices.get(name)

    def _expected(self, n_row: int) -> float:
        """Return the price between two well-known widths; beyond them, with the least price of a row of any of them."""
        sound = self._sound if n_row not in self._kept else [n for n in self._sound if n != n_row]
        sound = sound if len(sound) > 1 else [n for n in self._widths if n != n_row]
        i = bisect_left(sound, n_row)
        if 0 < i < len(sound):
            low, high = sound[i - 1], sound[i]
            part = (n_row - low) / (high - low)
            return (1 - part) * self._prices[low] + part * self._prices[high]
        slopes = [(self._prices[n] - 1) / (n - 1) for n in sound if n > 1]
        return self._prices[sound[-1]] + max(0.0, min(slopes, default=SLOPE)) * (n_row - sound[-1])

    def forget_others(self) -> None:
        """Forget the prices of steps that are no passes of the target."""
        for key in [key for key in self._kept if isinstance(key, str)]:
            del self._kept[key], self._prices[key]
        self._open.clear()

    def ratios(self) -> dict[int, float]:
        """Return the prices of the widths that were tried."""
        return {n: self._prices[n] for n in self._widths if n > 1}

    # ---- measurements --------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether it is time for a plain step."""
        return self._is_due

    def expire(self) -> None:
        """Take note that time has passed: a plain step is due."""
        self._is_due = True

    def learn(self, n_row: int, seconds: float) -> tuple[float, Measured]:
        """Take note of one pass; return its price, the usual one as soon as that is known, and the measurement."""
        price, measured = 1.0, Measured(seconds, seconds)
        if n_row == 1:
            self._learn_plain(seconds)
        elif self._plain_s:
            measured = self.learn_other(n_row, seconds)
            self._judge_file(n_row)
            usual = self(n_row)
            if n_row in self._from_file:  # one that was slow is not the draft's fault; N_WRONG are believed
                price = usual
            else:
                price = self._prices[n_row] if len(self._kept[n_row]) >= N_SOUND else measured.ratio
            is_usual = 1 / SURPRISE < measured.ratio / usual < SURPRISE
            self._n_surprise = 0 if is_usual else self._n_surprise + 1
            self._n_wide += 1
            self._wide_s += seconds
            if self._n_wide >= self._due_after or self._wide_s > DUE_S or self._n_surprise >= 2:
                self._is_due = True
        return price, measured

    def _judge_file(self, n_row: int) -> None:
        """Forget what a file said of a width as soon as the first passes here all took much less or more."""
        if n_row in self._from_file and len(kept := self._kept[n_row]) == N_FILE + N_WRONG:
            self._from_file.remove(n_row)
            said, here = kept[0].ratio, [kept[-1 - i] for i in range(N_WRONG)]
            if all(m.ratio > SURPRISE * said for m in here) or all(m.ratio * SURPRISE < said for m in here):
                kept.clear()
                kept.extend(here)
                self._prices[n_row] = median(m.ratio for m in kept)
                self._forget_table()

    def learn_other(self, key: Key, seconds: float) -> Measured:
        """Take note of a step of any kind; a plain step must be known."""
        measured = Measured(seconds, self._plain_s)
        self._open.append(measured)
        self._keep(key, measured)
        return measured

    def _keep(self, key: Key, measured: Measured) -> None:
        if key not in self._kept:
            self._kept[key] = deque(maxlen=N_KEPT)
            self._widths = sorted({*self._widths, key}) if isinstance(key, int) else self._widths
        self._kept[key].append(measured)
        self._prices[key] = median(m.ratio for m in self._kept[key])
        if isinstance(key, int):
            self._forget_table()

    def _forget_table(self) -> None:
        """Take note that prices of passes have changed."""
        self._table.clear()
        self._sound = [n for n in self._widths if n == 1 or len(self._kept[n]) >= N_SOUND]

    def _learn_plain(self, seconds: float) -> None:
        """Take note of a plain step; what was measured since the last one is held against both."""
        before, was_away = self._plain_s, self._n_wide > 0
        is_news = not before or not 1 / NEWS < seconds / before < NEWS
        if self._is_due:
            self._due_after = DUE_AFTER if is_news else min(2 * self._due_after, DUE_LATEST)
        if was_away and is_news:
            self._plain.clear()
        self._plain.append(seconds)
        self._plain_s = median(self._plain)
        self._settle(seconds, (before + seconds) / 2, is_news=is_news)
        self._n_wide, self._wide_s, self._n_surprise = 0, 0.0, 0
        self._is_due = was_away and is_news  # once more: it may have been a disturbance

    def _settle(self, after_s: float, around_s: float, *, is_news: bool) -> None:
        """Hold what was measured since the last plain step against that and the next one.

        Where the load changed meanwhile, only the measurement right before the second says something.
        """
        opened, self._open = self._open, []
        if not opened:
            return
        for measured in opened:
            measured.plain_s = around_s
        if is_news:
            opened.pop().plain_s = after_s
        for key, kept in self._kept.items():
            if is_news and (sound := [m for m in kept if m not in opened]):
                kept.clear()
                kept.extend(sound)
            self._prices[key] = median(m.ratio for m in kept)
        self._forget_table()
