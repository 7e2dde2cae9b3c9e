"""XTC ("exclude top choices"): now and then, remove all likely candidates but the least likely of them."""

from __future__ import annotations

import numpy as np

from .candidates import Candidates
from .noise import NoiseKey, Stream, coin
from .portable_math import exp, fixed_sum

MAX_THRESHOLD = 0.5  # two candidates cannot both be more probable than this


def xtc(candidates: Candidates, probability: float, threshold: float, min_keep: int, key: NoiseKey) -> Candidates:
    """Remove, if the coin says so, all but the least likely of the candidates with at least `threshold` probability.

    Nothing happens if that would leave fewer than min_keep candidates. Of equal ones, the largest id stays.

    Source: p-e-w, https://github.com/oobabooga/text-generation-webui/pull/6335; llama.cpp, ``llama_sample_xtc_apply``.
    """
    if probability <= 0.0 or threshold > MAX_THRESHOLD or len(candidates.ids) < 2:
        return candidates
    if coin(key, Stream.XTC) > probability:
        return candidates
    logits = candidates.logits
    mass = exp(logits, float(logits.max()))
    is_possible = logits > -np.inf
    likely = np.flatnonzero((mass >= threshold * fixed_sum(mass)) & is_possible)
    n_left = int(np.count_nonzero(is_possible)) - (len(likely) - 1)
    if len(likely) < 2 or n_left < min_keep:
        return candidates
    least = len(likely) - 1 - int(np.argmin(logits[likely][::-1]))
    is_kept = is_possible
    is_kept[likely] = False
    is_kept[likely[least]] = True
    return candidates.keep_where(is_kept)
