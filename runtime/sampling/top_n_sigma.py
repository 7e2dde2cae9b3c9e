"""Top-n-sigma: keep the logits within n standard deviations of the largest."""

from __future__ import annotations

import math

import numpy as np

from .candidates import Candidates
from .portable_math import at_least, fixed_sum


def top_n_sigma(candidates: Candidates, n: float) -> Candidates:
    """Keep logits of at least (largest) - n * (standard deviation of all logits). n <= 0 keeps all.

    Logits of -inf do not count.

    Source: Tang et al., arXiv 2411.07641; llama.cpp, ``llama_sampler_top_n_sigma_apply``, which leaves the
    candidates that fall out in the list, as impossible ones; here they are gone.
    """
    if n <= 0.0 or len(candidates.ids) <= 1:
        return candidates
    logits = candidates.logits
    possible = logits[logits > -np.inf].astype(np.float64)
    mean = fixed_sum(possible) / len(possible)
    difference = possible - mean
    deviation = math.sqrt(fixed_sum(difference * difference) / len(possible))
    return candidates.keep_where(at_least(logits, float(logits.max()) - n * deviation))
