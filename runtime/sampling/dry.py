"""DRY ("don't repeat yourself"): penalise tokens that would continue a sequence that occurred before.

If the last L tokens also occur earlier in the window, the token that followed them there gets a penalty that
grows exponentially with L. A sequence breaker, such as a line end, cuts the last tokens short.

Source: p-e-w, https://github.com/oobabooga/text-generation-webui/pull/5677; llama.cpp, ``llama_sampler_dry_apply``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from .candidates import Candidates
from .noise import Ids
from .portable_math import ln_scalar, power

_SHORT_WINDOW = 512  # up to this many tokens the plain loop is quicker
_LN_F32_MAX = 88.7228391  # llama.cpp's limit on the exponent: base ** exponent stays a float32


def dry(
    candidates: Candidates,
    window: Ids,
    n_free: int,
    is_breaker: Callable[[int], bool],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
) -> Candidates:
    """Subtract multiplier * base ** (length - allowed_length) from tokens that would continue a repetition.

    Args:
        candidates: who gets the penalties.
        window: the latest token ids [n], oldest first.
        n_free: how many tokens follow the last sequence breaker (`tokens_after_breaker`); a repetition counts as
            at most this long.
        is_breaker: whether a token contains a whole sequence breaker; such tokens get no penalty.
        multiplier: strength; 0 is off.
        base: at least 1; smaller is off.
        allowed_length: repetitions shorter than this are free.
    """
    if multiplier == 0.0 or base < 1.0 or len(window) <= allowed_length or n_free < allowed_length:
        return candidates
    lengths = continued_repetitions(window, n_free, allowed_length)
    lengths = {token_id: length for token_id, length in lengths.items() if not is_breaker(token_id)}
    if not lengths:
        return candidates
    index = candidates.locate(np.fromiter(lengths, dtype=np.int64, count=len(lengths)))
    max_exponent = int(_LN_F32_MAX / ln_scalar(base)) if base > 1.000001 else len(window)
    penalty = np.array(
        [multiplier * power(base, min(length - allowed_length, max_exponent)) for length in lengths.values()]
    )  # [n_token]
    is_candidate = index < len(candidates.ids)
    index = index[is_candidate]
    if not len(index):
        return candidates
    return candidates.with_logits(index, candidates.logits[index].astype(np.float64) - penalty[is_candidate])


def continued_repetitions(window: Ids, n_free: int, allowed_length: int) -> dict[int, int]:
    """Return, for every token that followed an earlier occurrence of the last tokens, the longest such occurrence.

    Args:
        window: token ids [n], oldest first.
        n_free: an occurrence counts as at most this long.
        allowed_length: shorter occurrences are left out.
    """
    longest: dict[int, int] = {}
    n = len(window)
    if n <= _SHORT_WINDOW:
        return _continued_by_prefixes(window, n_free, allowed_length)
    # Lengthen all occurrences together: few survive the first steps. Text that does nothing but repeat
    # itself makes this quadratic, so the work is limited, and then the linear way takes over.
    ends = np.arange(n - 1)  # where occurrences end, all of `length` at least
    work = 0
    for length in range(min(n - 1, n_free) + 1):
        if length:
            ends = ends[np.searchsorted(ends, length - 1) :]
            ends = ends[window[ends - (length - 1)] == window[n - length]]
        if not len(ends):
            return longest
        if length >= allowed_length:
            longest.update(dict.fromkeys(window[ends + 1].tolist(), length))
        work += len(ends) + 256
        if work > 32 * n:
            return _continued_by_prefixes(window, n_free, allowed_length)
    return longest


def _continued_by_prefixes(window: Ids, n_free: int, allowed_length: int) -> dict[int, int]:
    """Do the same in linear time for every window, with a loop over its tokens."""
    newest_first = window[::-1].tolist()
    longest: dict[int, int] = {}
    for k, length in enumerate(matching_prefixes(newest_first)):
        if k and (length := min(length, n_free)) >= allowed_length:
            follower = newest_first[k - 1]
            longest[follower] = max(length, longest.get(follower, 0))
    return longest


def matching_prefixes(tokens: Sequence[int]) -> list[int]:
    """Return for every k the length of the longest common prefix of tokens and tokens[k:] (the Z-function).

    Linear time: ``stop`` never moves back. Source: Gusfield, Algorithms on Strings, Trees and Sequences, 1.4.
    """
    n = len(tokens)
    z = [n] + [0] * (n - 1) if n else []
    start = stop = 0  # tokens[start:stop] == tokens[:stop - start], with the largest stop so far
    for k in range(1, n):
        length = min(z[k - start], stop - k) if k < stop else 0
        if k + length >= stop:
            while k + length < n and tokens[length] == tokens[k + length]:
                length += 1
            start, stop = k, k + length
        z[k] = length
    return z


def tokens_after_breaker(window: Ids, piece: Callable[[int], bytes], breakers: Sequence[bytes]) -> int:
    """Return how many of the last tokens follow the last sequence breaker; all of them if there is none.

    A breaker may begin and end inside of tokens and stretch over several. llama.cpp tokenises breakers instead, and
    so misses those whose end is part of a longer token; for breakers inside of one token the result is the same.

    Args:
        window: token ids [n], oldest first.
        piece: the bytes of a token.
        breakers: none of them empty.
    """
    if not breakers:
        return len(window)
    longest = max(map(len, breakers))
    n_last = 64  # look at the last tokens first; the breaker is near as a rule
    while True:
        pieces = [piece(token_id) for token_id in window[-n_last:].tolist()]
        text = b"".join(pieces)
        end = max((at + len(breaker) for breaker in breakers if (at := text.rfind(breaker)) >= 0), default=0)
        # One that begins before these tokens ends within the first `longest` bytes.
        if end >= longest or n_last >= len(window):
            break
        n_last *= 8
    if end == 0:
        return len(window)
    ends = list(accumulate(map(len, pieces)))
    return len(pieces) - 1 - bisect_left(ends, end)
