"""Drafts copied from the text itself: what followed the last few tokens when they stood there before.

The index is over everything that the session has seen: the prompt with its files, earlier turns, and answers that
were taken back. It grows with the text, a few dictionary entries a token.

Source of the idea: Yang et al., "Inference with Reference", arXiv 2304.04487; prompt lookup decoding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .source import Answer, Guess

SIZES = (16, 10, 6, 4, 3, 2, 1)  # token counts that are looked up, the longest first; a single one for others' drafts
MAX_LENGTH = 64  # a match is measured up to this
MAX_CORPUS = 1 << 17  # tokens; a session that has seen more forgets all of it where a text branches off
OVERLAP = MAX_LENGTH  # tokens of the old text that are repeated where a new one branches off
BREAK = -1  # between two texts
# A copy is followed until it fails; then the text often goes on with it some tokens later or earlier.
NEAR_BEFORE, NEAR_AFTER, NEAR_TOKENS = 8, 24, 12

NEAR_LENGTH = 3  # tokens alike; a longer match elsewhere is better than one near the lost copy

# Classes of sureness: one token alike, near the lost copy or for another source; near with more; then by length.
BOUNDS = (3, 4, 5, 6, 8, 11, 16, 24, 40)
PRIORS = (0.3, 0.5, 0.35, 0.45, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 0.95)


class NgramSource:
    """Looks up what followed the same tokens before."""

    name = "ngram"
    priors: Sequence[float] = PRIORS
    is_free = True
    n_agree = 0
    budget_s = expected_s = read_s = 0.0

    def __init__(self) -> None:
        self._corpus: list[int] = []
        # Hash of the last few tokens -> where they ended last. About 0.45 kB a token; what is found is compared.
        self._ends: dict[int, int] = {}
        self._n_context = 0  # tokens of the context that are in the corpus, as its tail
        self._copy = 0  # where in the corpus the text goes on, as far as it is known; 0: nowhere
        self._lost = 0  # where the last copy failed; 0: too long ago
        self._n_since = 0  # tokens since then
        self._found = 0  # where the longest known match of the last tokens ended

    def begin(self, context: Sequence[int], answer: Answer) -> None:  # noqa: ARG002  # the same for every sampler
        """Index the prompt, as far as it is not known already."""
        known = self._corpus[len(self._corpus) - self._n_context :]
        n_same = next(
            (i for i, (a, b) in enumerate(zip(known, context, strict=False)) if a != b), min(len(known), len(context))
        )
        if n_same < len(known):  # another text branches off
            if len(self._corpus) + len(context) > MAX_CORPUS:
                self._corpus.clear()
                self._ends.clear()
            self._corpus.append(BREAK)
            self._corpus += context[max(0, n_same - OVERLAP) : n_same]
            self._n_context = n_same
            self._copy = self._lost = 0
        self._follow(context)

    def guess(self, context: Sequence[int]) -> Iterator[Guess]:
        """Yield what followed before."""
        self._follow(context)
        at, length, is_near = self._best()
        end, drafted = len(self._corpus), list[int]()
        while at:
            # Where the copied text ends, it goes on as the draft itself: a repetition.
            token_id = self._corpus[at] if at < end else drafted[at - end]
            if token_id == BREAK:
                return
            sureness = min(length, 2) - 1 if is_near else 1 + bisect_right(BOUNDS, length)
            yield Guess(token_id, sureness)
            drafted.append(token_id)
            at, length = at + 1, length + 1

    def after(self, drafted: Sequence[int]) -> Iterator[Guess]:
        """Yield what followed the context's end and drafted tokens before; the context is that of the last guess."""
        corpus, tail = self._corpus, [*self._corpus[-SIZES[0] :], *drafted]
        at = 0
        for size in SIZES:
            if size <= len(tail) and (at := self._ends.get(hash(tuple(tail[-size:])), 0)):
                break
        length = min(size, MAX_LENGTH) if at else 0
        while 0 < at < len(corpus) and corpus[at] != BREAK:
            yield Guess(corpus[at], 1 + bisect_right(BOUNDS, length) if length > 1 else 0)
            if length == 1:  # worth a look by a source that looks at three tokens as quickly as at one, no more
                return
            at, length = at + 1, length + 1

    def agree(self, copied: Sequence[int]) -> None:
        """Return None: nobody asks, it is free."""

    def shown(self, logits: NDArray[np.float32]) -> None:
        """Do nothing: it knows the text alone."""

    def close(self) -> None:
        """Nothing to give back."""

    def _follow(self, context: Sequence[int]) -> None:
        """Index the tokens of the context that are new, and find where its end stood before."""
        corpus, ends = self._corpus, self._ends
        n_new = len(context) - self._n_context
        if n_new <= 0:
            return
        self._n_context = len(context)
        for token_id in context[-n_new:]:
            self._step_copy(token_id)
            corpus.append(token_id)
            end = len(corpus)
            tail = corpus[max(0, end - SIZES[0]) :]
            self._found = 0
            for size in SIZES:
                if size > len(tail):
                    continue
                key = hash(tuple(tail[-size:]))
                if size > 1:
                    self._found = self._found or ends.get(key, 0)
                ends[key] = end

    def _step_copy(self, token_id: int) -> None:
        """Follow the copy that was chosen last over one more token."""
        if self._copy and self._copy < len(self._corpus):
            if self._corpus[self._copy] == token_id:
                self._copy += 1
                return
            self._lost, self._n_since = self._copy, 0
        self._copy = 0
        self._n_since += 1
        if self._n_since > NEAR_TOKENS:
            self._lost = 0

    def _best(self) -> tuple[int, int, bool]:
        """Return (where the text goes on, tokens alike before that, whether it is only near the lost copy)."""
        length, at = max((self._alike(at), at == self._copy, at) for at in (self._found, self._copy))[::2]
        is_near = False
        if length <= NEAR_LENGTH and self._lost:
            places = range(max(1, self._lost - NEAR_BEFORE), min(len(self._corpus), self._lost + NEAR_AFTER))
            near = max(((self._alike(i), -abs(i - self._lost - 1), i) for i in places), default=(0, 0, 0))
            if near[0]:
                length, at, is_near = near[0], near[2], True
        self._copy = at
        return at, length, is_near

    def _alike(self, at: int) -> int:
        """Return how many tokens before an index are those at the corpus' end, at most MAX_LENGTH."""
        corpus, end = self._corpus, len(self._corpus)
        n = 0
        while n < min(at, MAX_LENGTH) and corpus[at - 1 - n] == corpus[end - 1 - n]:
            n += 1
        return n
