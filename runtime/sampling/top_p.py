"""Top-p (nucleus): keep the likeliest candidates that together have probability p."""

from __future__ import annotations

from .candidates import Candidates, leading_mass
from .portable_math import exp, fixed_sum


def top_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep the fewest likeliest candidates whose probabilities add up to at least p.

    The one that reaches p is kept, so there is always one. p >= 1 keeps all.

    Source: Holtzman et al., arXiv 1904.09751; tie and limit rules as in llama.cpp, ``llama_sampler_top_p_apply``.
    """
    if p >= 1.0:
        return candidates
    mass = exp(candidates.logits, float(candidates.logits.max()))
    target = p * fixed_sum(mass)
    return candidates.keep(leading_mass(candidates.logits, mass, target, min_keep, is_strict=False))
