"""Locally typical sampling: keep the candidates whose surprise is nearest to the entropy."""

from __future__ import annotations

import numpy as np

from .candidates import Candidates, leading_mass
from .portable_math import exp, fixed_sum
from .temperature import mean_below_top


def typical(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep the fewest candidates with the smallest |-ln(probability) - entropy| that have more than p together.

    Of equal ones, the smallest ids. p >= 1 keeps all.

    Source: Meister et al., arXiv 2202.00666; llama.cpp, ``llama_sampler_typical_apply``.
    """
    if p >= 1.0:
        return candidates
    top = float(candidates.logits.max())
    mass = exp(candidates.logits, top)
    total = fixed_sum(mass)
    # -ln(probability) - entropy, with ln(total) cancelled: both are relative to the largest logit.
    below_top = top - candidates.logits.astype(np.float64)  # [n]
    distance = np.abs(below_top + mean_below_top(candidates, top, mass, total))
    return candidates.keep(leading_mass(-distance, mass, p * total, min_keep, is_strict=True))
