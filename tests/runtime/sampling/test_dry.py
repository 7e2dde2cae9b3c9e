"""DRY: the repetitions it finds, the breakers it honours, the penalties it gives."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrun.runtime.sampling.candidates import Candidates
from llmrun.runtime.sampling.dry import continued_repetitions, dry, matching_prefixes, tokens_after_breaker

small_windows = st.lists(st.integers(0, 2), max_size=40)


def as_ids(tokens) -> np.ndarray:
    return np.array(list(tokens), dtype=np.int64)


def equal_row(n: int) -> Candidates:
    return Candidates(np.arange(n, dtype=np.int64), np.zeros(n, dtype=np.float32))


def penalise(window, n_vocab, *, multiplier=1.0, base=1.1, allowed=2, breakers=()):
    """Run DRY with single-token breakers; return the penalty of every token."""
    n_free = next((i for i, token in enumerate(reversed(window)) if token in breakers), len(window))
    got = dry(
        equal_row(n_vocab),
        as_ids(window),
        n_free,
        lambda i: i in breakers,
        multiplier=multiplier,
        base=base,
        allowed_length=allowed,
    )
    return [-x for x in got.logits.tolist()]


# The windows of llama.cpp's tests/test-sampling.cpp, with penalties instead of probabilities.
@pytest.mark.parametrize(
    ("window", "n_vocab", "options", "expected"),
    [
        ([0, 1], 4, {}, {}),
        ([0, 1, 2, 0, 1], 4, {}, {2: 1.0}),
        ([0, 1, 3, 4, 0, 1], 5, {"breakers": {3}}, {}),  # the token after the repetition is the breaker
        ([0, 1, 2, 0, 1], 5, {"multiplier": 2.0}, {2: 2.0}),
        ([0, 1, 2, 3, 4, 0, 1], 5, {"allowed": 4}, {}),
        ([5, 0, 1, 2, 3, 0, 1, 2], 6, {}, {3: 1.1}),  # length 3: base ** 1
        ([0, 1, 2, 3, 0, 1, 4, 0, 1], 5, {}, {2: 1.0, 4: 1.0}),  # two continuations
        ([9, 0, 1, 2, 8, 0, 1, 2, 7, 9, 0, 1], 10, {"allowed": 1}, {2: 1.21}),
        ([0, 1, 2, 5, 0, 1, 2], 6, {"breakers": {0}}, {5: 1.0}),  # only 1 2 after the breaker
        ([0, 1, 2, 5, 0, 1, 2], 6, {"breakers": {1}}, {}),
        ([0, 1, 2, 5, 0, 1, 2], 6, {"breakers": {2}, "allowed": 0}, {0: 1.0, 1: 1.0, 5: 1.0}),
        ([0, 0, 0, 0], 2, {}, {0: 1.1}),  # the last three at a distance of one
    ],
)
def test_penalties(window, n_vocab, options, expected):
    wanted = [expected.get(token, 0.0) for token in range(n_vocab)]
    assert penalise(window, n_vocab, **options) == pytest.approx(wanted, rel=1e-6)


def test_off_without_multiplier_or_base():
    assert penalise([0, 1, 2, 0, 1], 4, multiplier=0.0) == [0.0] * 4
    assert penalise([0, 1, 2, 0, 1], 4, base=0.0) == [0.0] * 4


def test_reaches_candidates_that_are_left_by_id():
    left = Candidates(np.array([1, 7], dtype=np.int64), np.array([0.5, 0.5]))
    got = dry(left, as_ids([0, 1, 7, 3, 0, 1, 8, 0, 1]), 9, lambda i: False, multiplier=1.0, base=2.0, allowed_length=2)
    assert got.logits.tolist() == [0.5, -0.5]


def test_exponent_is_limited_so_that_logits_stay_finite():
    window = [0] * 3000
    penalty = penalise(window, 2, multiplier=1.0, base=1.75, allowed=2)
    exponent = int(math.log(float(np.finfo(np.float32).max)) / math.log(1.75))
    assert penalty == pytest.approx([1.75**exponent, 0.0], rel=1e-6)


def test_base_1_gives_the_multiplier():
    assert penalise([0] * 50, 2, multiplier=0.75, base=1.0) == [0.75, 0.0]


@given(small_windows)
def test_matching_prefixes_are_what_they_say(tokens):
    expected = []
    for k in range(len(tokens)):
        length = 0
        while k + length < len(tokens) and tokens[length] == tokens[k + length]:
            length += 1
        expected.append(length)
    assert matching_prefixes(tokens) == expected


def plain_repetitions(window: list[int], n_free: int, allowed_length: int) -> dict[int, int]:
    """For every place, compare the tokens that end there with the tokens that end the window."""
    found: dict[int, int] = {}
    for stop in range(1, len(window)):
        length = 0
        while length < min(stop, n_free) and window[stop - 1 - length] == window[-1 - length]:
            length += 1
        if length >= allowed_length:
            found[window[stop]] = max(length, found.get(window[stop], 0))
    return found


@given(small_windows, st.integers(0, 45), st.integers(0, 5))
def test_continued_repetitions_equal_the_definition(window, n_free, allowed_length):
    expected = plain_repetitions(window, n_free, allowed_length)
    assert continued_repetitions(as_ids(window), n_free, allowed_length) == expected


@pytest.mark.parametrize("n_free", [0, 1, 3, 2000])
@pytest.mark.parametrize("allowed_length", [0, 1, 2, 7])
@pytest.mark.parametrize("n_different", [1, 2, 30, 1000])
def test_continued_repetitions_of_long_windows(n_different, allowed_length, n_free):
    rng = np.random.default_rng(n_different)
    window = rng.integers(0, n_different, 700).tolist()
    for window_ in (window, window[:350] * 2, [*window, 5, *window[:90]]):
        expected = plain_repetitions(window_, n_free, allowed_length)
        assert continued_repetitions(as_ids(window_), n_free, allowed_length) == expected


def test_time_is_linear_in_the_window():
    """The worst cases of a quadratic search: it would need 10**9 comparisons here."""
    for window in ([7] * 30_000, [1, 2] * 15_000, ([1] * 99 + [2]) * 300):
        started = time.perf_counter()
        continued_repetitions(as_ids(window), len(window), 2)
        assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize(
    ("pieces", "breakers", "expected"),
    [
        ([b"a", b"b", b"c"], [b"\n"], 3),
        ([b"a", b"\n", b"b", b"c"], [b"\n"], 2),
        ([b"a", b"b", b"c\n"], [b"\n"], 0),
        ([b"a", b".\n\n ", b"b"], [b"\n", b":"], 1),
        ([b"x", b"\n", b"Us", b"er", b" hello"], [b"\nUser"], 1),  # over three tokens
        ([b"x", b"y\nUs", b"erland", b" z"], [b"\nUser"], 1),  # begins and ends inside of tokens
        ([b"\n", b"a", b":", b"b"], [b"\n", b":"], 1),
        ([b"a", b"", b"\n", b"", b"b"], [b"\n"], 2),  # an empty piece is a token too
        ([], [b"\n"], 0),
        ([b"a"], [], 1),
    ],
)
def test_tokens_after_breaker(pieces, breakers, expected):
    assert tokens_after_breaker(as_ids(range(len(pieces))), lambda i: pieces[i], breakers) == expected


@pytest.mark.parametrize(("at", "expected"), [(0, 999), (1, 998), (500, 499), (999, 0)])
def test_a_breaker_far_back_is_found(at, expected):
    pieces = [b"z"] * 1000
    pieces[at] = b"\n"
    assert tokens_after_breaker(as_ids(range(1000)), lambda i: pieces[i], [b"\n"]) == expected


def test_a_breaker_that_contains_another_and_begins_far_back_is_found():
    long = b"x" * 30 + b"\n" + b"x" * 39
    text = b"z" * 200 + long + b"z" * 5
    pieces = [text[i : i + 1] for i in range(len(text))]
    assert tokens_after_breaker(as_ids(range(len(pieces))), lambda i: pieces[i], [b"\n", long]) == 5


@given(st.lists(st.sampled_from([b"a", b"b", b"ab", b"", b"\n"]), min_size=1, max_size=300), st.integers(0, 3))
def test_tokens_after_breaker_looks_far_enough_back(pieces, which):
    breakers = [[b"\n"], [b"abab", b"b\n"], [b"a" * 70], [b"aab" * 30, b"\n\n\n"]][which]
    text = b"".join(pieces)
    end = max((text.rfind(breaker) + len(breaker) for breaker in breakers if breaker in text), default=0)
    n_before = next(n for n in range(len(pieces) + 1) if len(b"".join(pieces[:n])) >= end)
    assert tokens_after_breaker(as_ids(range(len(pieces))), lambda i: pieces[i], breakers) == len(pieces) - n_before
