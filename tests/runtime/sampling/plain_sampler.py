"""A plain sampler chain over lists of (token id, logit): the definition that the fast one is compared with.

Only `math` and loops; the noise alone comes from the package, where it has tests of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from llmrun.runtime.sampling.noise import NoiseKey, Stream, coin, gumbel, stream_seed
from llmrun.runtime.sampling.settings import SamplerSettings

Tokens = list[tuple[int, float]]  # in order of id


def probabilities(tokens: Tokens) -> list[float]:
    top = max(x for _, x in tokens)
    mass = [math.exp(x - top) for _, x in tokens]
    total = math.fsum(mass)
    return [m / total for m in mass]


def leading(tokens: Tokens, scores: list[float], reaches: Callable[[float], bool], min_keep: int) -> Tokens:
    p = probabilities(tokens)
    total = 0.0
    kept = []
    for i in sorted(range(len(tokens)), key=lambda i: -scores[i]):
        kept.append(i)
        total += p[i]
        if reaches(total) and len(kept) >= min_keep:
            break
    return [tokens[i] for i in sorted(kept)]


def entropy(tokens: Tokens) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities(tokens) if p > 0)


def longest_repeats(window: list[int], n_free: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for stop in range(1, len(window)):
        length = 0
        while length < min(stop, n_free) and window[stop - 1 - length] == window[-1 - length]:
            length += 1
        found[window[stop]] = max(length, found.get(window[stop], -1))
    return found


def apply(
    name: str, tokens: Tokens, s: SamplerSettings, history: list[int], key: NoiseKey, breakers: set[int]
) -> Tokens:
    top = max(x for _, x in tokens)
    if name == "penalties" and s.repeat_last_n:
        window = history[-s.repeat_last_n :]
        changed = []
        for i, x in tokens:
            if i in window:
                x = x * s.repeat_penalty if x <= 0 else x / s.repeat_penalty
                x -= window.count(i) * s.frequency_penalty + s.presence_penalty
            changed.append((i, x))
        return changed
    if name == "dry" and s.dry_multiplier and s.dry_penalty_last_n:
        window = history[-s.dry_penalty_last_n :]
        n_free = next((n for n, i in enumerate(reversed(window)) if i in breakers), len(window))
        repeats = longest_repeats(window, n_free)
        if len(window) <= s.dry_allowed_length or n_free < s.dry_allowed_length:
            return tokens
        return [
            (i, x - s.dry_multiplier * s.dry_base ** (repeats[i] - s.dry_allowed_length))
            if repeats.get(i, -1) >= s.dry_allowed_length and i not in breakers
            else (i, x)
            for i, x in tokens
        ]
    if name == "top_n_sigma" and s.top_n_sigma > 0:
        mean = math.fsum(x for _, x in tokens) / len(tokens)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for _, x in tokens) / len(tokens))
        return [(i, x) for i, x in tokens if x >= top - s.top_n_sigma * deviation]
    if name == "top_k" and s.top_k > 0:
        return sorted(sorted(tokens, key=lambda token: (-token[1], token[0]))[: s.top_k])
    if name == "typ_p" and s.typical_p < 1:
        h = entropy(tokens)
        distance = [-abs(-math.log(p) - h) if p > 0 else -math.inf for p in probabilities(tokens)]
        return leading(tokens, distance, lambda total: total > s.typical_p, s.min_keep)
    if name == "top_p" and s.top_p < 1:
        return leading(tokens, [x for _, x in tokens], lambda total: total >= s.top_p, s.min_keep)
    if name == "min_p" and s.min_p > 0:
        kept = [(i, x) for i, x in tokens if x >= top + math.log(s.min_p)]
        best = sorted(sorted(tokens, key=lambda token: (-token[1], token[0]))[: s.min_keep])
        return kept if len(kept) >= s.min_keep else best
    if name == "xtc" and s.xtc_probability > 0 and s.xtc_threshold <= 0.5 and len(tokens) > 1:
        p = probabilities(tokens)
        likely = sorted((i for i in range(len(tokens)) if p[i] >= s.xtc_threshold), key=lambda i: (-p[i], i))
        excluded = likely[:-1]
        if coin(key, Stream.XTC) > s.xtc_probability or len(tokens) - len(excluded) < s.min_keep:
            return tokens
        return [token for i, token in enumerate(tokens) if i not in excluded]
    if name == "temperature":
        value = s.temperature
        if s.dynatemp_range > 0:
            if len(tokens) == 1:
                return tokens
            low, high = max(0.0, value - s.dynatemp_range), value + s.dynatemp_range
            value = low + (high - low) * (entropy(tokens) / math.log(len(tokens))) ** s.dynatemp_exponent
        if value < 1e-9:
            return [max(tokens, key=lambda token: (token[1], -token[0]))]
        return [(i, x / value) for i, x in tokens]
    return tokens


def plain_pick(
    logits: np.ndarray, s: SamplerSettings, history: list[int], key: NoiseKey, breakers: set[int] = frozenset()
) -> tuple[int, list[int]]:
    """Return the token and the ids among which it was chosen."""
    biased = dict(enumerate(logits.tolist()))
    for i, bias in s.logit_bias:
        biased[i] += bias
    tokens = [(i, x) for i, x in biased.items() if x > -math.inf]
    for name in s.samplers:
        tokens = apply(name, tokens, s, history, key, breakers)
    noise = gumbel(stream_seed(key, Stream.TOKEN), np.array([i for i, _ in tokens], dtype=np.int64))
    best = max(range(len(tokens)), key=lambda n: tokens[n][1] + noise[n])
    return tokens[best][0], [i for i, _ in tokens]
