"""Logit bias: numbers added to the logits of chosen tokens before anything else."""

from __future__ import annotations

import numpy as np

from .candidates import Candidates
from .noise import Ids
from .portable_math import F64


def logit_bias(candidates: Candidates, token_ids: Ids, biases: F64) -> Candidates:
    """Add biases [n], each finite or -inf, to the logits of distinct token ids [n]."""
    index = candidates.locate(token_ids)
    is_candidate = index < len(candidates.ids)
    index = index[is_candidate]
    return candidates.with_logits(index, candidates.logits[index].astype(np.float64) + biases[is_candidate])
