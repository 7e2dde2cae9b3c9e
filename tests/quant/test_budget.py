"""Types within a budget, against all assignments of small models."""

from itertools import product

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.budget import Budget, Option, hull, seconds_of

TYPES = (GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q6_K, GgmlType.Q8_0)


def model(seed, n_matrix=5):
    """Return options of random matrices; losses fall as bits grow, seconds are not in the order of bytes."""
    rng = np.random.default_rng(seed)
    result = {}
    for i in range(n_matrix):
        size, loss = int(rng.integers(50, 200)), float(rng.exponential())
        result[f"m{i}"] = [
            Option(t, size * bits, loss * 0.3**j * float(rng.uniform(0.7, 1.3)), float(rng.uniform(1, 2)) * size)
            for j, (t, bits) in enumerate(zip(TYPES, (4, 5, 6, 8), strict=True))
        ]
    return result


def everything(options):
    return [list(choice) for choice in product(*options.values())]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_close_to_the_best_of_all_assignments(seed, part):
    options = model(seed)
    sizes = [sum(o.n_bytes for o in choice) for choice in everything(options)]
    limit = min(sizes) + part * (max(sizes) - min(sizes))
    fits = [c for c in everything(options) if sum(o.n_bytes for o in c) <= limit]
    best = min(sum(o.loss for o in c) for c in fits)
    found = Budget(options).within(limit)
    assert found.n_bytes <= limit
    largest_step = max(
        a.loss - b.loss
        for of_matrix in options.values()
        for a, b in zip(hull(of_matrix, lambda o: o.n_bytes), hull(of_matrix, lambda o: o.n_bytes)[1:], strict=False)
    )
    assert best <= found.loss + 1e-12 <= best + largest_step + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_points_of_the_curve_are_optima(seed):
    options = model(seed)
    curve = Budget(options).curve(6)
    assert [a.n_bytes for a in curve] == sorted(a.n_bytes for a in curve)
    for point in curve:
        fits = [c for c in everything(options) if sum(o.n_bytes for o in c) <= point.n_bytes]
        assert point.loss == pytest.approx(min(sum(o.loss for o in c) for c in fits))


@pytest.mark.parametrize("seed", range(4))
def test_a_loss_is_reached_with_nothing_to_spare(seed):
    options = model(seed)
    budget = Budget(options)
    limit = 0.5 * budget.curve(2)[0].loss
    found = budget.with_loss(limit)
    assert found.loss <= limit
    for name, option in found.options.items():
        points = hull(options[name], lambda o: o.n_bytes)
        if points.index(option):
            cheaper = found.loss - option.loss + points[points.index(option) - 1].loss
            assert cheaper > limit


def test_seconds_can_be_the_budget():
    options = model(9)
    budget = Budget(options, seconds_of)
    low, high = budget.curve(2)
    middle = budget.within((low.seconds + high.seconds) / 2, "s")
    assert low.loss > middle.loss > high.loss
    assert middle.seconds <= (low.seconds + high.seconds) / 2


def test_what_cannot_be_is_refused():
    budget = Budget(model(1))
    with pytest.raises(ConfigError, match="too small"):
        budget.within(10)
    with pytest.raises(ConfigError, match="out of reach"):
        budget.with_loss(1e-9)


def test_a_worse_and_larger_type_is_never_taken():
    options = [Option(TYPES[0], 4, 1.0), Option(TYPES[1], 5, 1.5), Option(TYPES[3], 8, 0.1)]
    assert [o.ggml_type for o in hull(options, lambda o: o.n_bytes)] == [TYPES[0], TYPES[3]]
