"""How drafting models pick: by the target's own rule, with the target's own noise."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .source import Answer

# Classes of sureness: how far the picked token's logit is above the best of the others.
GAPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
PRIORS = (0.2, 0.35, 0.5, 0.57, 0.62, 0.77, 0.86, 0.92, 0.98, 0.99)  # of Qwen 0.5B for 1.5B (bench/LOG.md)


def pick(answer: Answer, row: NDArray[np.float32], history: Sequence[int]) -> tuple[int, int]:
    """Return the token that the target's rule gives after a history for a draft's logits, and how sure it is.

    Args:
        answer: the target's rule.
        row: logits f32 [at most n_vocab of the target], -inf where the draft has none; left as it is.
        history: all tokens before.

    Raises:
        LlmrunError: the logits are no numbers, or all forbidden.
    """
    token_id = answer.sampler.pick(row, history, answer.noise(len(history)))
    kept, row[token_id] = float(row[token_id]), -np.inf
    gap = kept - float(row.max())
    row[token_id] = kept
    return token_id, bisect_right(GAPS, gap)
