"""The loop's inner half: logits after each token of one sequence, verified drafts in one pass.

``Verifier.logits_after`` stands where a single decode step stood. It runs a pass over the last token and the
draft that the planner offers, and hands the rows out one by one as long as the tokens picked from them are the
drafted ones. The first other token ends the draft: its slots are rolled back (page table truncation).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..batch import Batch
from ..kv_cache import KvSequence

if TYPE_CHECKING:
    from ..engine import Engine

F32 = NDArray[np.float32]


class Planner(Protocol):
    """Decides what is drafted at each step, and learns from how it went."""

    def plan(self, context: Sequence[int], limit: int) -> list[int]:
        """Return at most ``limit`` token ids to verify after the context, perhaps none."""

    def passed(self, n_row: int, elapsed_s: float) -> None:
        """Take note of the time of a verification pass."""

    def verified(self, n_right: int, logits: F32) -> None:
        """Take note of how many tokens of the last plan were right, and of the logits behind the last of these."""


class Verifier:
    """Logits after the tokens of one sequence.

    Args:
        engine: the target.
        sequence: its cached state.
        tokens: ids of the sequence that are final; kept up to date, shared with the session.
    """

    def __init__(self, engine: Engine, sequence: KvSequence, tokens: list[int]) -> None:
        self._engine, self._sequence, self._tokens = engine, sequence, tokens
        self.is_best_wanted = False  # of each row only the largest logit
        self._draft: list[int] = []
        self._n_right = 0  # of the draft's tokens
        self._is_open = False  # whether the sequence may hold slots that are not final
        self._logits: F32 = np.empty((0, engine.info.n_vocab), np.float32)

    def logits_after(self, context: Sequence[int], planner: Planner | None, n_wanted: int | None) -> F32:
        """Return the logits after a context, valid until the next call.

        Args:
            context: all tokens; all but the last are cached already.
            planner: offers drafts; None: none.
            n_wanted: tokens that will be asked for at most, None: until the context is full.
        """
        token_id = context[-1]
        if self._n_right < len(self._draft) and self._draft[self._n_right] == token_id:
            self._n_right += 1
            self._tokens.append(token_id)
            confirmed: F32 = self._logits[self._n_right]
            return confirmed
        self.settle(planner)
        draft = [] if planner is None else planner.plan(context, self._room(n_wanted))
        started = time.perf_counter()
        self._is_open = True
        (self._logits,) = verify(
            self._engine, [(self._sequence, [token_id, *draft])], self._logits, is_best_wanted=self.is_best_wanted
        )
        self._tokens.append(token_id)
        self._draft, self._n_right = draft, 0
        if planner is not None:
            planner.passed(1 + len(draft), time.perf_counter() - started)
        if self.is_best_wanted:
            self._engine.prepare_best(1 + len(draft))
        first: F32 = self._logits[0]
        return first

    def settle(self, planner: Planner | None) -> None:
        """Forget the part of the last draft that was not confirmed."""
        if self._is_open:
            self._sequence.rollback(len(self._tokens))
            if self._draft and planner is not None:
                planner.verified(self._n_right, self._logits[self._n_right])
            self._draft, self._n_right, self._is_open = [], 0, False

    def _room(self, n_wanted: int | None) -> int:
        """Return how long a draft may be: beyond the context and the wanted tokens nothing is computed."""
        executor = self._engine.executor
        room = min(executor.n_tok, executor.n_out, self._engine.n_ctx - len(self._tokens)) - 1
        return room if n_wanted is None else min(room, n_wanted - 1)


def verify(
    engine: Engine,
    chains: Sequence[tuple[KvSequence, Sequence[int]]],
    room: F32 | None = None,
    *,
    is_best_wanted: bool = False,
) -> list[F32]:
    """Append a chain of tokens to each of several sequences in one pass.

    Args:
        engine: the target.
        chains: sequences, each with the tokens that follow its past.
        room: logits ``[at least n_row, n_vocab]`` to be overwritten where there are enough rows.
        is_best_wanted: of each row only the largest logit; the others are then only smaller than it.

    Returns:
        For each chain the logits after every one of its tokens, [n_token, n_vocab].
    """
    n_row = sum(len(ids) for _, ids in chains)
    pasts = [sequence.n_past for sequence, _ in chains]
    if room is None or len(room) < n_row:
        room = np.empty((n_row, engine.info.n_vocab), np.float32)
    with engine.lock:
        try:
            for sequence, ids in chains:
                sequence.append(len(ids))
            batch = Batch.of_chains(
                [(sequence.page_table, past, ids) for (sequence, ids), past in zip(chains, pasts, strict=True)]
            )
            room[:n_row] = engine.logits_of(batch, is_best_wanted=is_best_wanted)
        except BaseException:
            for (sequence, _), past in zip(chains, pasts, strict=True):
                sequence.rollback(min(past, sequence.n_past))
            raise
    stops = np.cumsum([len(ids) for _, ids in chains])
    return [room[stop - len(ids) : stop] for stop, (_, ids) in zip(stops, chains, strict=True)]
