"""How drafting models pick: by the target's own rule, with the target's own noise."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError
from ...formats.record import Record
from ..sampling.noise import Ids
from .source import Answer

F32 = NDArray[np.float32]

# Classes of sureness: how far the picked token's logit is above the best of the others.
GAPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
PRIORS = (0.2, 0.35, 0.5, 0.57, 0.62, 0.77, 0.86, 0.92, 0.98, 0.99)  # of Qwen 0.5B for 1.5B (bench/LOG.md)


class DraftTokens(Record, eq=False):
    """Which of the target's tokens a draft's logits stand for.

    Attributes:
        ids: the target's, ascending [n].
        n_first: how many of the first ids have the first logits, one after the other.
        places: of the other ids' logits in the draft's row [n - n_first].
    """

    ids: Ids
    n_first: int
    places: Ids

    @classmethod
    def first(cls, n: int) -> DraftTokens:
        """Return those of a draft whose logits are for the first ``n`` tokens."""
        return cls(np.arange(n), n, np.zeros(0, np.int64))

    def logits(self, row: F32) -> F32:
        """Return a copy of the logits of the ids."""
        return np.concatenate((row[: self.n_first], row[self.places]))


def pick(answer: Answer, tokens: DraftTokens, row: F32, history: Sequence[int]) -> tuple[int, int]:
    """Return the token that the target's rule gives after a history for a draft's logits, and how sure it is.

    Args:
        answer: the target's rule.
        tokens: what the logits stand for.
        row: the draft's logits, f32.
        history: all tokens before.

    Raises:
        LlmrunError: the logits are no numbers, or all forbidden, or stand for no token.
    """
    ids, logits = tokens.ids, tokens.logits(row)
    if not len(ids):
        raise FormatError("the draft has no token of the target's")
    token_id = answer.sampler.pick(logits, history, answer.noise(len(history)), ids)
    place = int(np.searchsorted(ids, token_id))
    kept, logits[place] = float(logits[place]), -np.inf
    return token_id, bisect_right(GAPS, kept - float(logits.max()))
