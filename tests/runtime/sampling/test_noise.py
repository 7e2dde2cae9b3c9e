"""The noise: known bits, the right distribution, and a draw that skips work without changing the winner."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrun.runtime.sampling import noise
from llmrun.runtime.sampling.noise import NoiseKey, Stream


def ids(n: int) -> noise.Ids:
    return np.arange(n, dtype=np.int64)


def test_bits_are_splitmix64():
    """Source: the reference implementation's outputs for seed 1234567 (Vigna, splitmix64.c)."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert noise.random_bits(1234567, ids(5)).tolist() == expected


# Every bit counts: a change here changes every text of every seed.
def test_golden_seeds():
    assert noise.stream_seed(NoiseKey(0, 0, 0), Stream.TOKEN) == 2558736989570252433
    assert noise.stream_seed(NoiseKey(42, 1, 1000), Stream.TOKEN) == 355555085234032471
    assert noise.stream_seed(NoiseKey(42, 1, 1000), Stream.XTC) == 1041931896388958585


def test_golden_gumbel():
    seed = noise.stream_seed(NoiseKey(42, 0, 7), Stream.TOKEN)
    got = [value.hex() for value in noise.gumbel(seed, np.array([0, 1, 151935], dtype=np.int64)).tolist()]
    assert got == ["0x1.12f9cd837f18fp-4", "-0x1.099469c984c41p-1", "0x1.093f55eac6e92p-4"]


def test_seed_is_taken_modulo_2_64():
    assert noise.stream_seed(NoiseKey(-1, 0, 0), Stream.TOKEN) == noise.stream_seed(
        NoiseKey(2**64 - 1, 0, 0), Stream.TOKEN
    )


def test_every_part_of_the_key_changes_the_noise():
    keys = [NoiseKey(seed, sample, position) for seed in range(4) for sample in range(4) for position in range(64)]
    seeds = {noise.stream_seed(key, stream) for key in keys for stream in Stream}
    assert len(seeds) == len(keys) * len(Stream)


def test_noise_of_an_id_does_not_depend_on_the_others():
    seed = noise.stream_seed(NoiseKey(5, 0, 3), Stream.TOKEN)
    everyone = noise.gumbel(seed, ids(5000))
    few = np.array([3, 77, 4999], dtype=np.int64)
    assert noise.gumbel(seed, few).tolist() == everyone[few].tolist()


def test_uniform_is_never_0_or_1_and_noise_is_bounded():
    extremes = noise.uniform(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert extremes.tolist() == [2.0**-53, 1 - 2.0**-53]
    assert -math.log(-math.log(2.0**-53)) == pytest.approx(-3.6, abs=0.01)
    assert -math.log(-math.log1p(-(2.0**-53))) == pytest.approx(36.74, abs=0.01)


@pytest.mark.parametrize("axis", ["id", "position", "sample", "seed"])
def test_noise_is_uniform_along_every_part_of_the_key(axis):
    """Chi-square over 64 cells, and the correlation of neighbours, both within 5 standard deviations."""
    n = 10_000
    if axis == "id":
        u = noise.uniform(noise.random_bits(noise.stream_seed(NoiseKey(1, 0, 0), Stream.TOKEN), ids(n)))
    else:
        u = np.array(
            [noise.coin(NoiseKey(**{"seed": 1, "sample": 0, "position": 0} | {axis: i}), Stream.XTC) for i in range(n)]
        )
    counts = np.bincount((u * 64).astype(np.int64), minlength=64)
    chi_square = float((((counts - n / 64) ** 2) / (n / 64)).sum())
    assert abs(chi_square - 63) < 5 * math.sqrt(2 * 63)
    neighbours = float(np.mean((u[1:] - 0.5) * (u[:-1] - 0.5))) * 12
    assert abs(neighbours) < 5 / math.sqrt(n)


def plain_draw(logits: np.ndarray, key: NoiseKey) -> int:
    return int(np.argmax(logits + noise.gumbel(noise.stream_seed(key, Stream.TOKEN), ids(len(logits)))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0, 20.0])
def test_draw_skips_work_but_not_the_winner(scale, dtype):
    rng = np.random.default_rng(7)
    for position in range(40):
        logits = (rng.standard_normal(20_000) * scale).astype(dtype)
        logits[rng.integers(0, 20_000, 50)] = -np.inf
        key = NoiseKey(9, 0, position)
        assert noise.draw(ids(20_000), logits, key) == plain_draw(logits, key)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30), st.integers(0, 2**64 - 1))
def test_draw_equals_the_plain_definition(values, seed):
    logits = np.resize(np.array(values, dtype=np.float32), 1500)
    assert noise.draw(ids(len(logits)), logits, NoiseKey(seed, 0, 0)) == plain_draw(logits, NoiseKey(seed, 0, 0))


def test_a_removed_loser_changes_nothing():
    logits = np.random.default_rng(1).standard_normal(300)
    key = NoiseKey(1, 2, 3)
    winner = noise.draw(ids(300), logits, key)
    kept = np.array([i for i in range(300) if i % 3 or i == winner], dtype=np.int64)
    assert noise.draw(kept, logits[kept], key) == winner
