"""Min-p: keep the candidates that have at least a share p of the best one's probability."""

from __future__ import annotations

from .candidates import Candidates, largest
from .portable_math import at_least, ln_scalar


def min_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep logits of at least (largest logit) + ln(p), and the min_keep largest. p <= 0 keeps all.

    Source: Nguyen et al., arXiv 2407.01082; llama.cpp, ``llama_sampler_min_p_apply``.
    """
    if p <= 0.0:
        return candidates
    log_p = ln_scalar(p) if p > 1e-300 else -1000.0
    kept = candidates.keep_where(at_least(candidates.logits, float(candidates.logits.max()) + log_p))
    if len(kept.ids) >= min_keep:
        return kept
    return candidates.keep(largest(candidates.logits, min_keep))
