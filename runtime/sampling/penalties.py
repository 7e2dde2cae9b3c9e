"""Repetition, frequency and presence penalties on the latest tokens."""

from __future__ import annotations

import numpy as np

from .candidates import Candidates
from .noise import Ids


def penalties(
    candidates: Candidates,
    window: Ids,
    repeat_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
) -> Candidates:
    """Lower (or, with negative settings, raise) the logits of the tokens in a window.

    A positive logit is divided by repeat_penalty, any other multiplied by it; then
    (occurrences) * frequency_penalty + presence_penalty is subtracted.

    Args:
        candidates: who gets the penalties.
        window: the latest token ids [n], in any order; ids outside the vocabulary have no effect.
        repeat_penalty: above 0; 1 is off.
        frequency_penalty: 0 is off.
        presence_penalty: 0 is off.

    Source: Keskar et al., arXiv 1909.05858; llama.cpp, ``llama_sampler_penalties_apply``.
    """
    if repeat_penalty == 1.0 and frequency_penalty == 0.0 and presence_penalty == 0.0:
        return candidates
    token_ids, counts = np.unique(window, return_counts=True)
    index = candidates.locate(token_ids)
    is_candidate = index < len(candidates.ids)
    index, counts = index[is_candidate], counts[is_candidate]
    if not len(index):
        return candidates
    logits = candidates.logits[index].astype(np.float64)
    logits = np.where(logits <= 0, logits * repeat_penalty, logits / repeat_penalty)
    return candidates.with_logits(index, logits - (counts * frequency_penalty + presence_penalty))
