"""The whole chain: against the plain definition, its promises (pure, same bits everywhere), its errors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.formats.errors import ConfigError, FormatError
from llmrun.runtime.sampling.chain import Sampler
from llmrun.runtime.sampling.noise import NoiseKey
from llmrun.runtime.sampling.settings import DEFAULT_SAMPLERS, SamplerSettings

from . import all_chains
from .all_chains import CHAINS, NO_FILTERS, digest, piece, sampler
from .plain_sampler import plain_pick

KEY = NoiseKey(1, 0, 0)


def random_row(seed: int, n_vocab: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n_vocab) * scale).astype(np.float32)


@pytest.mark.parametrize("n_vocab", [50, 3000])
@pytest.mark.parametrize("name", CHAINS)
def test_picks_what_the_plain_definition_picks(name, n_vocab):
    options = SamplerSettings(**CHAINS[name])
    fast = Sampler(options, n_vocab, piece)
    breakers = set(range(0, n_vocab, 10))
    for position in range(12 if n_vocab > 100 else 60):
        rng = np.random.default_rng(position)
        logits = random_row(position, n_vocab, scale=1.0 + position % 4)
        logits[rng.integers(0, n_vocab, 3)] = -np.inf
        logits[3] = 0.0  # not everything is impossible
        # Repetitive, so that DRY has something to do.
        history = (rng.integers(0, 12, 7).tolist() * 9)[: int(rng.integers(0, 60))]
        key = NoiseKey(7, 1, position)
        expected, survivors = plain_pick(logits, options, history, key, breakers)
        assert fast.pick(logits, history, key) == expected, f"position {position}, from {survivors}"


@pytest.mark.parametrize("name", CHAINS)
def test_tokens_that_have_no_logit_are_left_out(name):
    sampler = Sampler(SamplerSettings(**CHAINS[name]), 3000, piece)
    for position in range(12):
        rng = np.random.default_rng(position)
        ids = np.sort(rng.choice(3000, 700, replace=False)) if position % 2 else np.arange(700)
        row = random_row(position, 3000)
        whole = np.full(3000, -np.inf, np.float32)
        whole[ids] = row[ids]
        history = rng.integers(0, 3000, 40).tolist()
        key = NoiseKey(7, 1, position)
        assert sampler.pick(row[ids], history, key, ids) == sampler.pick(whole, history, key)


@given(st.sampled_from(sorted(CHAINS)), st.integers(0, 2**64 - 1), st.integers(2, 2000), st.lists(st.integers(0, 99)))
@settings(deadline=None, max_examples=60)
def test_is_pure(name, seed, n_vocab, history):
    logits = random_row(seed % 1000, n_vocab)
    logits[:3] = 1.0
    logits.flags.writeable = False
    before = logits.copy()
    history_array = np.array(history, dtype=np.int32)
    fresh = Sampler(SamplerSettings(**{**CHAINS[name], "logit_bias": ()}), n_vocab, piece)
    keys = [NoiseKey(seed, 0, position) for position in (3, 1, 2, 3)]
    picks = [fresh.pick(logits, history, key) for key in keys]
    assert picks[0] == picks[3]
    assert picks == [fresh.pick(logits, history_array, key) for key in keys]
    assert np.array_equal(logits, before)
    assert all(0 <= token_id < n_vocab for token_id in picks)


@pytest.mark.parametrize("value", [0.5, 1.0, 2.0])
def test_frequencies_match_softmax(value):
    """Chi-square of 8000 draws; with 19 degrees of freedom, 60 is exceeded once in 200 000 times. Seeds are fixed."""
    logits = random_row(5, 20, scale=1.0)
    hot = sampler(20, **NO_FILTERS, temperature=value)
    n = 8000
    counts = np.bincount([hot.pick(logits, [], NoiseKey(3, 0, position)) for position in range(n)], minlength=20)
    mass = np.exp(logits.astype(np.float64) / value)
    expected = n * mass / mass.sum()
    assert float(((counts - expected) ** 2 / expected).sum()) < 60


def test_frequencies_of_a_large_vocabulary_match_softmax():
    """Where the draw skips work: eight likely tokens of 1/16 each, the other half spread over 20 000."""
    logits = np.zeros(20_000, dtype=np.float32)
    logits[::2500] = math.log(20_000 / 8 - 1)
    hot = sampler(20_000, **NO_FILTERS, temperature=1.0)
    n = 1500
    picks = np.array([hot.pick(logits, [], NoiseKey(0, 0, position)) for position in range(n)])
    is_likely = picks % 2500 == 0
    assert is_likely.mean() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))
    assert np.unique(picks[~is_likely]).size > 0.9 * np.count_nonzero(~is_likely)


def test_next_sample_number_gives_another_text():
    logits = random_row(1, 500, scale=0.5)
    chain = sampler(500, temperature=1.0)
    texts = [[chain.pick(logits, [], NoiseKey(1, sample, position)) for position in range(30)] for sample in range(3)]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_survivors_do_not_change_the_noise():
    """A draft whose logits are close to the target's mostly picks the same token, because the noise is the same."""
    agree = 0
    for position in range(300):
        target = random_row(position, 1000, scale=2.0)
        draft = target + random_row(position + 1000, 1000, scale=0.1)
        chain = sampler(1000, temperature=1.0)
        key = NoiseKey(4, 0, position)
        agree += chain.pick(target, [], key) == chain.pick(draft, [], key)
    assert agree > 240  # independent noise would give about 50


@pytest.mark.parametrize("n_vocab", [1, 5, 5000])
def test_equal_logits_greedy_takes_the_smallest_id(n_vocab):
    assert sampler(n_vocab, temperature=0.0).pick(np.zeros(n_vocab, dtype=np.float32), [], KEY) == 0


@pytest.mark.parametrize("order", list(permutations(("top_k", "top_p", "min_p"))))
def test_greedy_is_the_same_in_every_order(order):
    logits = random_row(2, 4000)
    chain = sampler(4000, temperature=0.0, samplers=(*order, "temperature"), top_n_sigma=1.0)
    assert chain.pick(logits, [], KEY) == int(np.argmax(logits))


def test_history_outside_the_vocabulary_is_no_text():
    logits = random_row(2, 50)
    chain = sampler(50, repeat_penalty=1.5, dry_multiplier=1.0)
    assert chain.pick(logits, [-1, 50, 10**6, -1, 50, 10**6], KEY) == chain.pick(logits, [], KEY)


def test_window_is_the_latest_tokens():
    logits = np.array([0.0, 1.0, 1.0], dtype=np.float32)
    chain = sampler(3, temperature=0.0, presence_penalty=5.0, repeat_last_n=2)
    assert chain.pick(logits, [1, 0, 0], KEY) == 1
    assert chain.pick(logits, [0, 1, 0], KEY) == 2
    assert sampler(3, temperature=0.0, presence_penalty=5.0, repeat_last_n=0).pick(logits, [1, 1], KEY) == 1


def test_ignore_eos_forbids_the_end():
    logits = np.array([1.0, 9.0, 2.0, 8.0], dtype=np.float32)
    options = SamplerSettings(temperature=0.0)
    assert Sampler(options, 4, piece, frozenset({1, 3})).pick(logits, [], KEY) == 1
    assert Sampler(options, 4, piece, frozenset({1, 3}), ignore_eos=True).pick(logits, [], KEY) == 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_are_one_line(bad, temperature):
    logits = random_row(1, 2000)
    logits[1234] = bad
    with pytest.raises(FormatError, match=r"^logits: token 1234 has (nan|inf)\. The model file is damaged$"):
        sampler(2000, temperature=temperature).pick(logits, [], KEY)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_only_impossible_tokens_are_one_line(temperature):
    with pytest.raises(FormatError, match="all are -inf"):
        sampler(9, temperature=temperature).pick(np.full(9, -np.inf, dtype=np.float32), [], KEY)


def test_bias_that_forbids_everything_is_one_line():
    logits = np.array([1.0, 2.0, -np.inf], dtype=np.float32)
    with pytest.raises(ConfigError, match=r"^logit_bias: forbids every token"):
        sampler(3, logit_bias=((0, -math.inf), (1, -math.inf))).pick(logits, [], KEY)


def test_bias_outside_the_vocabulary_is_one_line():
    with pytest.raises(ConfigError, match=r"^logit_bias: expected a token id below 3, got 3$"):
        sampler(3, logit_bias=((3, 1.0),))


@pytest.mark.parametrize("logits", [np.zeros(4, dtype=np.float32), np.zeros(3, dtype=np.float64)])
def test_a_row_of_another_shape_is_a_bug(logits):
    with pytest.raises(ValueError, match=r"expected float32 \[3\]"):
        sampler(3).pick(logits, [], KEY)


def test_extreme_logits_work():
    logits = np.array([3.4e38, -3.4e38, 0.0, 3.4e38], dtype=np.float32)
    for options in CHAINS.values():
        assert sampler(4, **options).pick(logits, [0, 1, 2] * 9, KEY) in range(4)


def test_top_logprobs_are_the_raw_distribution():
    logits = random_row(3, 2000)
    logits[77] = logits[5] = logits.max()
    logits[9] = -np.inf
    got = sampler(2000, temperature=0.0, logit_bias=((5, -9.0),)).top_logprobs(logits, 4)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    order = np.argsort(-exact, kind="stable")[:4]
    assert [token_id for token_id, _ in got] == order.tolist()
    assert got[0][0] == 5
    assert [p for _, p in got] == pytest.approx(exact[order].tolist(), abs=1e-12)


def test_top_logprobs_leaves_out_the_impossible():
    logits = np.array([0.0, -np.inf, 0.0], dtype=np.float32)
    assert sampler(3).top_logprobs(logits, 5) == [(0, -math.log(2)), (2, -math.log(2))]
    assert sampler(3).top_logprobs(logits, 0) == []


def test_golden_picks():
    """A change here changes the texts of every seed, on every machine."""
    assert digest() == "ffa5bc413150dca5f1da10688db40344e0ea23752245c8a9594c82635044cfda"


def test_bits_do_not_depend_on_the_simd_path_of_numpy():
    """Run in a process in which NumPy may use nothing above its baseline."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    enabled = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": ",".join(enabled)}
    code = f"import runpy; print(runpy.run_path({all_chains.__file__!r})['digest']())"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == digest(), result.stderr


def test_every_sampler_has_a_chain_here():
    used = {
        name
        for options in CHAINS.values()
        for name in Sampler(SamplerSettings(**options), 50, piece)._available_steps()
    }
    assert used == set(DEFAULT_SAMPLERS)
