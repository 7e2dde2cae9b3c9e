"""The randomness of sampling: a function of what is drawn, never of how the draw was reached.

Every number is a hash of (seed, sample number, position, stream, token id). A token's noise is
therefore the same in a draft model and in its target, in a batch of one and of sixteen, computed
or restored; ``/regen`` takes the next sample number and gets fresh noise.

The hash is SplitMix64's output function used as a tree: number ``i`` of the sequence seeded with ``h``
is ``mix(h + (i + 1) * GAMMA)``, and each part of the key picks a number that seeds the next level.

Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014;
constants of ``mix``: Stafford's variant 13, as in SplitMix64.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...formats.record import Record
from .portable_math import CHUNK, F64, Values, at_least, ln

U64: TypeAlias = npt.NDArray[np.uint64]
Ids: TypeAlias = npt.NDArray[np.int64]

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB

# Noise has 52 random bits, so it lies in [-3.61, 36.75].
_DIRECT = 1024  # up to this many candidates, noise is drawn for all of them
_NEAR = 4.0
_HIGH_NOISE = 6.0
_HIGH_NOISE_BITS = np.uint64(int(0.9974 * 2**64))  # noise >= 6 needs a uniform number >= exp(-exp(-6)) = 0.99752


class Stream(IntEnum):
    """What a number is used for, so that two uses never see the same one."""

    TOKEN = 0  # the Gumbel noise of the final choice
    XTC = 1  # the coin that decides whether XTC acts


class NoiseKey(Record):
    """Names the noise of one token of one text.

    Attributes:
        seed: 64 bits; larger or negative numbers are taken modulo 2**64.
        sample: which of several texts of the same seed (``/regen`` takes the next).
        position: position of the token that is drawn.
    """

    seed: int
    sample: int
    position: int


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MULTIPLY_1) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLY_2) & _MASK
    return x ^ (x >> 31)


def _child(h: int, index: int) -> int:
    """Return number ``index`` of the SplitMix64 sequence seeded with h."""
    return _mix((h + (index + 1) * _GAMMA) & _MASK)


def stream_seed(key: NoiseKey, stream: Stream) -> int:
    """Return the 64-bit seed of the numbers of one stream at one position."""
    h = _mix(key.seed & _MASK)  # mixed first: neighbouring seeds share nothing
    return _child(_child(_child(h, key.sample), key.position), stream)


def random_bits(seed: int, ids: Ids) -> U64:
    """Return 64 random bits for every token id [n] under a stream's seed."""
    x = ids.view(np.uint64) * np.uint64(_GAMMA)
    x += np.uint64((seed + _GAMMA) & _MASK)
    x ^= x >> np.uint64(30)
    x *= np.uint64(_MULTIPLY_1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_MULTIPLY_2)
    x ^= x >> np.uint64(31)
    return x


def uniform(bits: U64) -> F64:
    """Turn random bits into numbers in [2**-53, 1 - 2**-53]: the centres of 2**52 equal steps."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gumbel(seed: int, ids: Ids) -> F64:
    """Return the standard Gumbel noise, -ln(-ln(u)), of every token id [n]."""
    return -ln(-ln(uniform(random_bits(seed, ids))))


def coin(key: NoiseKey, stream: Stream) -> float:
    """Return one uniform number in (0, 1)."""
    return float(uniform(random_bits(stream_seed(key, stream), np.zeros(1, dtype=np.int64)))[0])


def draw(ids: Ids, logits: Values, key: NoiseKey) -> int:
    """Return the id with the largest logit + noise; of equal ones, the smallest id.

    This draws from softmax(logits). Every id has noise of its own, so the choice among the remaining ids
    stays the same when others are removed or hardly change.

    Args:
        ids: ascending token ids [n].
        logits: [n], float32 or float64, at least one of them not -inf, no NaN, no +inf.
        key: names the noise.
    """
    seed = stream_seed(key, Stream.TOKEN)
    if len(ids) > _DIRECT:
        chosen = _contenders(ids, logits, seed)
        ids, logits = ids[chosen], logits[chosen]
    scores = logits + gumbel(seed, ids)
    return int(ids[np.argmax(scores)])


def _contenders(ids: Ids, logits: Values, seed: int) -> npt.NDArray[np.intp]:
    """Return the indexes, ascending, of a few candidates among which the winner is.

    The score of a sample near the top is a bound that the winner reaches. An id more than 6 below the bound
    needs noise above 6, which 0.25 % of the ids have: two logarithms are needed for those only. The margins
    (6.01 against 0.9974, noise 5.95) are far wider than all rounding.
    """
    near = np.flatnonzero(at_least(logits, float(logits.max()) - _NEAR))[:_DIRECT]
    bound = float(np.max(logits[near] + gumbel(seed, ids[near]))) - (_HIGH_NOISE + 0.01)
    parts = []
    for start in range(0, len(ids), CHUNK):
        stop = start + CHUNK
        is_possible = random_bits(seed, ids[start:stop]) >= _HIGH_NOISE_BITS
        is_possible |= at_least(logits[start:stop], bound)
        parts.append(np.flatnonzero(is_possible) + start)
    return np.concatenate(parts)
