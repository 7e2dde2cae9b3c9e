"""Temperature, fixed or following the entropy (dynatemp)."""

from __future__ import annotations

import numpy as np

from .candidates import Candidates
from .portable_math import F64, exp, exp_scalar, fixed_sum, ln_scalar

# Below this, logits that differ in the last bit of a float32 near 1 are already further apart than any noise.
MIN_TEMPERATURE = 1e-9


def temperature(candidates: Candidates, value: float) -> Candidates:
    """Divide the logits by a temperature; below 1e-9 it counts as 0, which keeps only the best candidate."""
    if value < MIN_TEMPERATURE:
        return candidates.best()
    if value == 1.0:
        return candidates
    return Candidates(candidates.ids, np.divide(candidates.logits, value, dtype=np.float64))


def dynamic_temperature(candidates: Candidates, value: float, spread: float, exponent: float) -> Candidates:
    """Divide the logits by a temperature between value - spread (sure) and value + spread (unsure).

    The temperature is low + (high - low) * (entropy / largest possible entropy) ** exponent, with low at least 0.
    A single candidate is left alone.

    Source: llama.cpp, src/llama-sampler.cpp, ``llama_sampler_temp_ext_apply``.
    """
    n_possible = int(np.count_nonzero(candidates.logits > -np.inf))
    if n_possible <= 1:
        return candidates
    share = entropy(candidates) / ln_scalar(float(n_possible))
    scale = _power(share, exponent)
    low = max(0.0, value - spread)
    return temperature(candidates, low + (value + spread - low) * scale)


def _power(base: float, exponent: float) -> float:
    """Return base ** exponent for base >= 0 and exponent >= 0."""
    if exponent == 0.0:
        return 1.0
    return exp_scalar(exponent * ln_scalar(base)) if base > 1e-300 else 0.0


def entropy(candidates: Candidates) -> float:
    """Return the entropy of softmax(logits) in nats."""
    top = float(candidates.logits.max())
    mass = exp(candidates.logits, top)  # [n]
    total = fixed_sum(mass)
    return ln_scalar(total) - mean_below_top(candidates, top, mass, total)


def mean_below_top(candidates: Candidates, top: float, mass: F64, total: float) -> float:
    """Return the mean of (logit - largest logit) under softmax(logits), which is ln(total) - entropy.

    Args:
        candidates: the logits [n].
        top: the largest logit.
        mass: e ** (logit - top) [n].
        total: the sum of mass.
    """
    x = np.maximum(candidates.logits.astype(np.float64) - top, -1000.0)  # a finite number for -inf; its mass is 0
    return fixed_sum(mass * x) / total
