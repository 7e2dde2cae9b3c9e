"""Numbers about samples of time: means and deviations as llama-bench forms them, quantiles, ratios of rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...formats.record import Record

MIN_RATIOS = 9  # quartiles of fewer say little


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean, 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample (n - 1 in the denominator), 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile, linear between the two nearest values (Hyndman and Fan 1996, definition 7).

    Raises:
        ValueError: there are no values, or ``share`` is not between 0 and 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"quantile {share} of {len(values)} values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class Spread(Record):
    """Quartiles of some values."""

    lower: float
    median: float
    upper: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the quartiles of at least one value."""
        return cls(quantile(values, 0.25), quantile(values, 0.5), quantile(values, 0.75), len(values))
