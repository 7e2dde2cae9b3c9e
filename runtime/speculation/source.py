"""What makes drafts: the interface that the loop and the planner know, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...formats.record import Record
from ..kv_cache import KvSequence
from ..sampling.chain import Sampler
from ..sampling.noise import NoiseKey


class Answer(Record, kw_only=True):
    """What is fixed while one answer is generated: the target's rule for picking tokens, and its noise.

    Attributes:
        sampler: the target's own sampler.
        seed: of the noise.
        sample: of the noise.
        ends: tokens that end the answer; nothing is drafted after one.
    """

    sampler: Sampler
    seed: int
    sample: int
    ends: frozenset[int]

    def noise(self, position: int) -> NoiseKey:
        """Return the key of the noise that the target uses at a position."""
        return NoiseKey(self.seed, self.sample, position)


class Guess(Record):
    """One drafted token and how sure its source is of it: a class of guesses that turn out alike.

    The planner learns for every class how often its guesses are right; 0 to the source's ``n_class - 1``.
    """

    token_id: int
    sureness: int


class DraftSource(Protocol):
    """Guesses what the target will say. Whatever it guesses, the text stays the same.

    Attributes:
        name: in statistics ("ngram", "draft").
        priors: for each class of sureness, how often its guesses are right as long as nothing is known.
        is_free: whether guessing costs nothing, so that it is done at every step and learnt from even where the
            guess is not verified.
        budget_s: seconds that reading the text before the first guess may take; set before each guess where
            guessing is not free.
        expected_s: seconds that reading before the last guess should have taken by all that was known; 0: not known.
        read_s: seconds that went into reading since somebody last looked and set it to 0: spent once, whatever comes.
        n_agree: most of another source's tokens that it looks at in about the time of a guess; 0: it cannot.
    """

    name: str
    priors: Sequence[float]
    is_free: bool
    budget_s: float
    expected_s: float
    read_s: float
    n_agree: int

    def begin(self, context: Sequence[int], answer: Answer) -> None:
        """Learn the prompt of the next answer."""

    def guess(self, context: Sequence[int]) -> Iterator[Guess]:
        """Yield guesses for the tokens after a context, one after the other.

        Only as many are drawn as will be verified; each is made when it is asked for. The context is the prompt
        of ``begin`` and what was generated since; the list grows between calls and is not modified.
        """

    def after(self, drafted: Sequence[int]) -> Iterator[Guess]:
        """Yield guesses for the tokens after the context of the last ``guess`` and a draft of another source.

        Only sources that are free are asked; what they cannot say they leave out.
        """

    def agree(self, copied: Sequence[int]) -> list[Guess] | None:
        """Return those of another source's tokens that this one would guess next as well, up to the first it would not.

        They come after the last guess that was drawn, or after the context; the next one drawn comes after those that
        are returned. None: it cannot tell now, and nothing has changed. Asked once before each guess that is drawn, and
        only where ``n_agree`` is not 0.
        """

    def shown(self, logits: NDArray[np.float32]) -> None:
        """Take note of the target's logits [n_vocab] behind the last right token of this source's draft.

        They are overwritten later. All but the largest may be a little off (``Engine.logits_of``).
        """

    def close(self) -> None:
        """Give back what the source holds."""


class Draft(Protocol):
    """A file that was opened to draft for an engine; its sources, one for each session, share it.

    Attributes:
        path: the file.
        packed_bytes: of its weights in memory.
    """

    path: Path
    packed_bytes: int

    @property
    def is_same_vocabulary(self) -> bool:
        """Whether it has the target's tokens with the same ids."""

    @property
    def n_shared(self) -> int:
        """Tokens that it can draft."""

    def source(self, sequence: KvSequence) -> DraftSource:
        """Return a new source for the session whose tokens a sequence holds."""

    def step(self) -> None:
        """Make one guess of nothing in particular: what that takes is measured."""

    def close(self) -> None:
        """Close the file; its sources are of no use any more."""
