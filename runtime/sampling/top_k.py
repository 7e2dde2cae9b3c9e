"""Top-k: keep the k likeliest candidates."""

from __future__ import annotations

from .candidates import Candidates, largest


def top_k(candidates: Candidates, k: int) -> Candidates:
    """Keep the k largest logits; of equal ones, those with the smallest ids. k <= 0 keeps all."""
    if k <= 0 or k >= len(candidates.ids):
        return candidates
    return candidates.keep(largest(candidates.logits, k))
