"""Every sampler by itself: small logits, expected survivors worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.runtime.sampling.candidates import Candidates, largest, leading_mass
from llmrun.runtime.sampling.logit_bias import logit_bias
from llmrun.runtime.sampling.min_p import min_p
from llmrun.runtime.sampling.noise import NoiseKey
from llmrun.runtime.sampling.penalties import penalties
from llmrun.runtime.sampling.portable_math import exp
from llmrun.runtime.sampling.temperature import dynamic_temperature, entropy, temperature
from llmrun.runtime.sampling.top_k import top_k
from llmrun.runtime.sampling.top_n_sigma import top_n_sigma
from llmrun.runtime.sampling.top_p import top_p
from llmrun.runtime.sampling.typical import typical
from llmrun.runtime.sampling.xtc import xtc

INF = math.inf
KEY = NoiseKey(0, 0, 0)


def row(*logits: float) -> Candidates:
    return Candidates(np.arange(len(logits), dtype=np.int64), np.array(logits, dtype=np.float32))


def of_probabilities(*p: float) -> Candidates:
    """Logits ln(p) in float64, so that a table can speak of probabilities."""
    return Candidates(np.arange(len(p), dtype=np.int64), np.array([math.log(x) if x else -INF for x in p]))


def probabilities(candidates: Candidates) -> list[float]:
    mass = exp(candidates.logits, float(candidates.logits.max()))
    mass[candidates.logits == -INF] = 0.0
    return (mass / mass.sum()).tolist()


RISING = (0.1, 0.2, 0.3, 0.4)
FALLING = (0.4, 0.3, 0.2, 0.1)
THIRDS = (0.4, 0.2, 0.2, 0.2)
Case = tuple[str, Candidates, Callable[[Candidates], Candidates], list[int]]
# Where llama.cpp's tests/test-sampling.cpp has a case, the numbers are the same.
KEPT_IDS: list[Case] = [
    ("top-k 1", of_probabilities(*RISING), lambda c: top_k(c, 1), [3]),
    ("top-k 3", of_probabilities(*RISING), lambda c: top_k(c, 3), [1, 2, 3]),
    ("top-k of all", of_probabilities(*RISING), lambda c: top_k(c, 4), [0, 1, 2, 3]),
    ("top-k above all", of_probabilities(*RISING), lambda c: top_k(c, 9), [0, 1, 2, 3]),
    ("top-k 0 is off", of_probabilities(*RISING), lambda c: top_k(c, 0), [0, 1, 2, 3]),
    ("top-k -1 is off", of_probabilities(*RISING), lambda c: top_k(c, -1), [0, 1, 2, 3]),
    ("top-k, equal: smallest ids", row(1, 5, 5, 5), lambda c: top_k(c, 2), [1, 2]),
    ("top-k, no impossible ones", row(-INF, 1, -INF, 0), lambda c: top_k(c, 3), [1, 3]),
    ("top-p 0 keeps one", of_probabilities(*RISING), lambda c: top_p(c, 0.0), [3]),
    ("top-p 0.69", of_probabilities(*RISING), lambda c: top_p(c, 0.69), [2, 3]),
    ("top-p 0.8", of_probabilities(*RISING), lambda c: top_p(c, 0.8), [1, 2, 3]),
    ("top-p 1 is off", of_probabilities(*RISING), lambda c: top_p(c, 1.0), [0, 1, 2, 3]),
    ("top-p with min_keep", of_probabilities(*RISING), lambda c: top_p(c, 0.1, 3), [1, 2, 3]),
    ("top-p, equal: smallest ids", row(0, 0, 0, 0), lambda c: top_p(c, 0.5), [0, 1]),
    ("top-p reached exactly", row(0, 0, 0, 0), lambda c: top_p(c, 0.25), [0]),
    ("min-p 0 is off", of_probabilities(*RISING), lambda c: min_p(c, 0.0), [0, 1, 2, 3]),
    ("min-p 0.24", of_probabilities(*RISING), lambda c: min_p(c, 0.24), [0, 1, 2, 3]),
    ("min-p 0.26", of_probabilities(*RISING), lambda c: min_p(c, 0.26), [1, 2, 3]),
    ("min-p 0.51", of_probabilities(*RISING), lambda c: min_p(c, 0.51), [2, 3]),
    ("min-p 0.76", of_probabilities(*RISING), lambda c: min_p(c, 0.76), [3]),
    ("min-p 1", of_probabilities(*RISING), lambda c: min_p(c, 1.0), [3]),
    ("min-p 1, equal", row(2, 7, 7), lambda c: min_p(c, 1.0), [1, 2]),
    ("min-p with min_keep", of_probabilities(*RISING), lambda c: min_p(c, 0.76, 2), [2, 3]),
    ("min-p of a tiny share", row(0, -800, -2000), lambda c: min_p(c, 1e-308), [0, 1]),
    ("typical 0.5, one is certain", of_probabilities(0.97, 0.01, 0.01, 0.01), lambda c: typical(c, 0.5), [0]),
    ("typical 0.5, the rest is typical", of_probabilities(*THIRDS), lambda c: typical(c, 0.5), [1, 2, 3]),
    ("typical 1 is off", of_probabilities(*THIRDS), lambda c: typical(c, 1.0), [0, 1, 2, 3]),
    ("typical must exceed p", row(0, 0, 0, 0), lambda c: typical(c, 0.25), [0, 1]),
    ("typical with min_keep", of_probabilities(*THIRDS), lambda c: typical(c, 0.1, 3), [1, 2, 3]),
    ("top-n-sigma 1", of_probabilities(*RISING), lambda c: top_n_sigma(c, 1.0), [2, 3]),
    ("top-n-sigma 0 is off", of_probabilities(*RISING), lambda c: top_n_sigma(c, 0.0), [0, 1, 2, 3]),
    ("top-n-sigma 3", of_probabilities(*RISING), lambda c: top_n_sigma(c, 3.0), [0, 1, 2, 3]),
    # mean 4, deviation sqrt((16 + 0 + 16) / 3) = 3.27; with the -inf it could not be computed
    ("top-n-sigma ignores the impossible", row(0, 4, 8, -INF), lambda c: top_n_sigma(c, 1.23), [1, 2]),
    ("top-n-sigma, all equal", row(3, 3, 3), lambda c: top_n_sigma(c, 0.5), [0, 1, 2]),
    ("xtc 0.09", of_probabilities(*FALLING), lambda c: xtc(c, 1.0, 0.09, 0, KEY), [3]),
    ("xtc 0.19", of_probabilities(*FALLING), lambda c: xtc(c, 1.0, 0.19, 0, KEY), [2, 3]),
    ("xtc 0.29", of_probabilities(*FALLING), lambda c: xtc(c, 1.0, 0.29, 0, KEY), [1, 2, 3]),
    ("xtc 0.39, only one is likely", of_probabilities(*FALLING), lambda c: xtc(c, 1.0, 0.39, 0, KEY), [0, 1, 2, 3]),
    ("xtc above 0.5 is off", row(1, 1), lambda c: xtc(c, 1.0, 0.51, 0, KEY), [0, 1]),
    ("xtc of probability 0 is off", of_probabilities(*FALLING), lambda c: xtc(c, 0.0, 0.09, 0, KEY), [0, 1, 2, 3]),
    ("xtc, min_keep forbids", of_probabilities(*FALLING), lambda c: xtc(c, 1.0, 0.19, 3, KEY), [0, 1, 2, 3]),
    ("xtc, min_keep allows", of_probabilities(*FALLING), lambda c: xtc(c, 1.0, 0.19, 2, KEY), [2, 3]),
    ("xtc, equal: the largest id stays", row(1, 1, 1), lambda c: xtc(c, 1.0, 0.1, 0, KEY), [2]),
    ("xtc, no impossible ones", row(-INF, 2, 2, -INF), lambda c: xtc(c, 1.0, 0.0, 0, KEY), [2]),
    ("temperature 0", row(1, 7, 7, 2), lambda c: temperature(c, 0.0), [1]),
    ("dynatemp that reaches 0", of_probabilities(1, 0.0, 1e-30), lambda c: dynamic_temperature(c, 0.3, 0.5, 1.0), [0]),
]


@pytest.mark.parametrize(
    ("candidates", "sampler", "expected"), [case[1:] for case in KEPT_IDS], ids=[c[0] for c in KEPT_IDS]
)
def test_keeps(candidates, sampler, expected):
    before = candidates.logits.copy()
    kept = sampler(candidates)
    assert kept.ids.tolist() == expected
    assert kept.logits.tolist() == before[expected].tolist()
    assert candidates.logits.tolist() == before.tolist()


EQUAL = (0.2,) * 5
PENALTY_CASES = [
    ("repeat", 50.0, 0.0, 0.0, [0], (0, 0.25, 0.25, 0.25, 0.25)),
    ("repeat, three tokens", 50.0, 0.0, 0.0, [0, 1, 2], (0, 0, 0, 0.5, 0.5)),
    ("repeat, once however often", 50.0, 0.0, 0.0, [0, 1, 2, 0, 0], (0, 0, 0, 0.5, 0.5)),
    ("frequency and presence", 1.0, 5.0, 5.0, [0], (0.000011, 0.249997, 0.249997, 0.249997, 0.249997)),
    ("of three tokens", 1.0, 5.0, 5.0, [0, 1, 2], (0.000023, 0.000023, 0.000023, 0.499966, 0.499966)),
    ("each occurrence", 1.0, 5.0, 5.0, [0, 1, 2, 0, 0], (0.0, 0.000023, 0.000023, 0.499977, 0.499977)),
    ("ids that are no tokens", 1.0, 5.0, 5.0, [-1, 5, 99], EQUAL),
    ("an empty window", 2.0, 5.0, 5.0, [], EQUAL),
]


@pytest.mark.parametrize(
    ("repeat", "frequency", "presence", "window", "expected"),
    [c[1:] for c in PENALTY_CASES],
    ids=[c[0] for c in PENALTY_CASES],
)
def test_penalties(repeat, frequency, presence, window, expected):
    got = penalties(of_probabilities(*EQUAL), np.array(window, dtype=np.int64), repeat, frequency, presence)
    assert probabilities(got) == pytest.approx(expected, abs=1e-5)


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits():
    got = penalties(row(4, -4, 0, 4, -INF, 0.5), np.array([0, 1, 2, 4, 5], dtype=np.int64), 2.0, 0.0, 0.0)
    assert got.logits.tolist() == [2, -8, 0, 4, -INF, 0.25]


def test_penalties_reach_candidates_that_are_left_by_id():
    left = Candidates(np.array([3, 10, 40], dtype=np.int64), np.array([1.0, 2.0, 3.0]))
    got = penalties(left, np.array([10, 11, 40, 40, 41], dtype=np.int64), 1.0, 0.5, 0.25)
    assert got.logits.tolist() == [1.0, 1.25, 1.75]


def test_enormous_penalties_stay_finite():
    got = penalties(row(1, 2), np.array([0, 0, 0], dtype=np.int64), 1.0, 3e38, 3e38)
    assert got.logits.tolist() == [-float(np.finfo(np.float32).max), 2.0]


def test_logit_bias_adds_and_forbids():
    got = logit_bias(row(1, 2, 3), np.array([2, 0], dtype=np.int64), np.array([-INF, 0.5]))
    assert got.logits.tolist() == [1.5, 2, -INF]


@pytest.mark.parametrize(("value", "expected"), [(1.0, RISING), (0.5, (1 / 30, 4 / 30, 9 / 30, 16 / 30))])
def test_temperature(value, expected):
    assert probabilities(temperature(of_probabilities(*RISING), value)) == pytest.approx(expected)


def test_entropy_in_nats():
    assert entropy(row(5, 5, 5, 5)) == pytest.approx(math.log(4))
    assert entropy(of_probabilities(0.5, 0.25, 0.25, 0.0)) == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        (row(0, 0, 0), 1.5),  # largest entropy: the upper end
        (row(0, 0, -INF), 1.5),  # what is impossible does not count
        (of_probabilities(0.5, 0.25, 0.25), 0.5 + 1.0 * (1.5 * math.log(2) / math.log(3)) ** 2),
    ],
)
def test_dynamic_temperature_follows_the_entropy(candidates, expected):
    got = dynamic_temperature(candidates, 1.0, 0.5, 2.0)
    possible = candidates.logits > -INF
    assert got.logits[possible].tolist() == pytest.approx((candidates.logits[possible] / expected).tolist())


def test_dynamic_temperature_starts_at_0_where_the_range_is_wider():
    candidates = of_probabilities(0.5, 0.25, 0.25)
    expected = (0.3 + 0.5) * 1.5 * math.log(2) / math.log(3)
    got = dynamic_temperature(candidates, 0.3, 0.5, 1.0)
    assert got.logits.tolist() == pytest.approx((candidates.logits / expected).tolist())


def test_dynamic_temperature_leaves_one_candidate_alone():
    assert dynamic_temperature(row(3), 1.0, 0.5, 1.0).logits.tolist() == [3]


def test_dynamic_temperature_of_exponent_0_is_the_upper_end():
    assert dynamic_temperature(of_probabilities(*RISING), 1.5, 0.5, 0.0).logits[0] == pytest.approx(math.log(0.1) / 2)


def test_xtc_acts_with_its_probability():
    kept = [len(xtc(row(1, 1, 0), 0.3, 0.1, 0, NoiseKey(1, 0, position)).ids) for position in range(4000)]
    assert set(kept) == {1, 3}
    assert kept.count(1) == pytest.approx(0.3 * 4000, abs=5 * math.sqrt(4000 * 0.3 * 0.7))


logit_lists = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, -INF])), min_size=1, max_size=400
).filter(lambda values: max(values) > -INF)


@given(logit_lists, st.integers(1, 500))
def test_largest_is_the_front_of_a_stable_sort(values, k):
    x = np.array(values, dtype=np.float32)
    order = [i for i in np.argsort(-x, kind="stable").tolist() if x[i] > -INF]
    assert largest(x, k).tolist() == sorted(order[:k])


@pytest.mark.parametrize("spread", [0, 3, 1000])
@pytest.mark.parametrize("k", [1, 40, 256, 5000])
def test_largest_of_many(k, spread):
    x = np.random.default_rng(k).integers(0, spread + 1, 40_037).astype(np.float32)
    assert largest(x, k).tolist() == np.sort(np.argsort(-x, kind="stable")[:k]).tolist()


def slow_leading_mass(values: np.ndarray, mass: np.ndarray, target: float, min_keep: int, is_strict: bool) -> list[int]:
    order = [i for i in np.argsort(-values, kind="stable").tolist() if values[i] > -INF]
    total = 0.0
    for n, i in enumerate(order, 1):
        total += mass[i]
        if (total > target if is_strict else total >= target) and n >= min_keep:
            return sorted(order[:n])
    return sorted(order)


@given(logit_lists, st.floats(0, 1.1), st.integers(0, 500), st.booleans())
def test_leading_mass_of_whole_numbers(values, share, min_keep, is_strict):
    """Masses are whole numbers, so that no order of adding can differ."""
    x = np.array(values)
    mass = np.random.default_rng(len(values)).integers(1, 9, len(values)).astype(np.float64)
    target = float(round(share * mass.sum()))
    got = leading_mass(x, mass, target, min_keep, is_strict=is_strict).tolist()
    assert got == slow_leading_mass(x, mass, target, max(min_keep, 1), is_strict)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 0.1, 2.0, 50.0])
def test_leading_mass_of_many(scale, share):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal(20_000) * scale).astype(np.float32)
    x[rng.integers(0, 20_000, 300)] = -INF
    mass = rng.integers(1, 9, 20_000).astype(np.float64)
    target = float(round(share * mass.sum()))
    got = leading_mass(x, mass, target, 300, is_strict=False).tolist()
    assert got == slow_leading_mass(x, mass, target, 300, False)


@given(logit_lists, st.floats(0, 1))
@settings(deadline=None)
def test_top_p_keeps_enough_and_not_too_much(values, p):
    candidates = row(*values)
    kept = top_p(candidates, p)
    share = np.array(probabilities(candidates))
    inside = share[kept.ids]
    assert inside.sum() >= p - 1e-9
    assert inside.sum() - inside.min() <= p + 1e-9
    if p < 1.0:
        outside = np.delete(share, kept.ids)
        assert not len(outside) or outside.max() <= inside.min()


@given(logit_lists, st.floats(0.001, 1))
def test_min_p_bound(values, p):
    candidates = row(*values)
    share = np.array(probabilities(candidates)) / max(probabilities(candidates))
    kept = set(min_p(candidates, p).ids.tolist())
    assert kept >= {i for i, x in enumerate(share) if x > p * (1 + 1e-9)}
    assert kept <= {i for i, x in enumerate(share) if x >= p * (1 - 1e-9)}
