import statistics

import pytest

from llmrun.runtime.measure.statistics import Spread, deviation, mean, quantile

VALUES = [3.0, 9.5, 1.25, 7.0, 7.0, 2.0, 40.0]


def test_mean_and_deviation_of_a_sample():
    assert mean(VALUES) == pytest.approx(statistics.fmean(VALUES))
    assert deviation(VALUES) == pytest.approx(statistics.stdev(VALUES))


def test_too_few_values_deviate_by_nothing():
    assert (mean([]), deviation([]), deviation([5.0])) == (0, 0, 0)


def test_quartiles_are_those_of_the_inclusive_method():
    got = Spread.of(VALUES)
    assert [got.lower, got.median, got.upper] == statistics.quantiles(VALUES, n=4, method="inclusive")
    assert got.n == 7


def test_the_ends_are_quantiles_too():
    assert (quantile(VALUES, 0), quantile(VALUES, 1)) == (1.25, 40)


def test_no_values_have_no_quantile():
    with pytest.raises(ValueError, match="0 values"):
        quantile([], 0.5)
