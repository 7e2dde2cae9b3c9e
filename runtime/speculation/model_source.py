"""Drafts of a small model: it follows the text with a KV cache of its own and picks as the target would."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import LlmrunError
from ..kv_cache import KvSequence
from .picking import PRIORS, pick
from .source import Answer, Guess

if TYPE_CHECKING:
    from .draft_model import DraftModel

F32 = NDArray[np.float32]

N_TOK = 64  # rows of a pass that catches up
N_OUT = 9  # rows whose logits are wanted at most: the last guess, and copies that may go on with it

FIRST_WINDOW = 40  # tokens that are read before anything is known of what they cost
WIDEN = 2  # a window that has proved itself is read anew, so many times as long


class ModelSource:
    """Lets a draft model guess.

    It reads no more of a text than the planner's budget allows: at first a short window of its end, and more once
    that has paid.

    Args:
        model: the draft model.
        lock: of the target's threads, which both use.
    """

    name = "draft"
    priors: Sequence[float] = PRIORS
    is_free = False

    def __init__(self, model: DraftModel, lock: threading.Lock) -> None:
        self._model, self._lock = model, lock
        self._sequence = KvSequence(model.pages, model.n_ctx)
        self._ids: list[int] = []  # the text in the draft's vocabulary
        self._start = 0  # where in it the window begins
        self._cached: list[int] = []  # what the sequence holds: the window's tokens, perhaps followed by old guesses
        self._n_sure = 0  # of the cached ones, certainly the window's
        self._n_context = 0
        self._history: list[int] = []  # the context and what is drafted
        self._unread: int | None = None  # the last guess, where it was not read yet
        self.budget_s = 0.0

    def begin(self, context: Sequence[int], answer: Answer) -> None:
        """Translate the prompt; nothing is computed yet."""
        self._answer = answer
        self._ids = self._model.vocabulary.prompt(context)
        self._n_context = len(context)
        self._n_sure = 0
        if self._start >= len(self._ids):
            self._restart(len(self._ids))

    def guess(self, context: Sequence[int]) -> Iterator[Guess]:
        """Read what is new, then yield the draft model's picks; none when it cannot go on."""
        self._ids += self._model.vocabulary.further(context[self._n_context :])
        self._n_context = len(context)
        self._history, self._unread = list(context), None
        try:
            self._choose_window()
            self._catch_up()
            while True:
                guess = Guess(*pick(self._answer, self._model.vocabulary.row(self._logits), self._history))
                self._history.append(guess.token_id)
                self._unread = guess.token_id
                yield guess
                if self._sequence.n_past >= self._model.n_ctx:
                    return
                if self._unread is not None:
                    for draft_id in self._model.vocabulary.further([self._unread]):
                        self._run([draft_id])
        except LlmrunError:
            # No page is free, or the draft's logits are no numbers or forbidden: there is no draft.
            return

    def agree(self, copied: Sequence[int]) -> list[Guess] | None:
        """Read the last guess and the copies in one pass; keep the copies that it would have picked."""
        if self._unread is None or not self._model.vocabulary.is_same:
            return None
        read, guesses = [self._unread, *copied[: N_OUT - 1]], list[Guess]()
        if self._sequence.n_past + len(read) > self._model.n_ctx:
            return None
        try:
            rows = self._run(read, n_output=len(read))
            for token_id, row in zip(read[1:], rows, strict=False):
                guess = Guess(*pick(self._answer, self._model.vocabulary.row(row), self._history))
                if guess.token_id != token_id:
                    break
                guesses.append(guess)
                self._history.append(token_id)
        except LlmrunError:
            return None
        n_wrong = len(read) - 1 - len(guesses)
        del self._cached[len(self._cached) - n_wrong :]
        self._sequence.rollback(self._sequence.n_past - n_wrong)
        self._logits, self._unread = rows[len(guesses)], None
        return guesses

    def after(self, drafted: Sequence[int]) -> Iterator[Guess]:  # noqa: ARG002
        """Yield nothing: it is not free."""
        return iter(())

    def close(self) -> None:
        """Give the pages back."""
        self._cached.clear()
        self._sequence.close()

    # ---- the window ----------------------------------------------------------------------------------------

    def _restart(self, start: int) -> None:
        self._start, self._n_sure = start, 0
        self._cached.clear()
        self._sequence.rollback(0)

    def _choose_window(self) -> None:
        """Keep what is cached of the text; begin a new window where that is too little, or too much to read."""
        window = self._ids[self._start :]
        n = self._n_sure
        while n < min(len(self._cached), len(window) - 1) and self._cached[n] == window[n]:
            n += 1
        n = min(n, len(window) - 1)
        del self._cached[max(n, 0) :]
        self._sequence.rollback(len(self._cached))
        most = self._model.n_ctx // 2
        affordable = int(min(most, self.budget_s / self._model.token_s)) if self._model.token_s else FIRST_WINDOW
        affordable = max(affordable, FIRST_WINDOW // 2)
        n_behind = len(window) - len(self._cached)
        is_full = len(window) + N_TOK > self._model.n_ctx
        wider = min(WIDEN * len(window), len(self._ids), most)
        if is_full or n_behind > affordable:
            self._restart(max(0, len(self._ids) - min(affordable, most)))
        elif self._start and WIDEN * wider <= affordable and wider > len(window):
            self._restart(len(self._ids) - wider)

    def _catch_up(self) -> None:
        """Read the window's tokens that are not cached; the last one's logits are wanted."""
        window = self._ids[self._start :]
        started, n_new = time.perf_counter(), len(window) - len(self._cached)
        while len(self._cached) < len(window):
            chunk = window[len(self._cached) : len(self._cached) + N_TOK]
            self._run(chunk, n_output=int(len(self._cached) + len(chunk) == len(window)))
        self._n_sure = len(self._cached)
        if n_new >= N_TOK // 4:
            self._model.token_s = (time.perf_counter() - started) / n_new

    def _run(self, ids: list[int], *, n_output: int = 1) -> F32:
        """Run one pass; return the logits of the last rows, the last one's are kept."""
        with self._lock:
            self._model.run(self._sequence, ids, n_output=n_output)
            rows: F32 = self._model.executor.output("logits", n_output).copy()
        self._cached += ids
        if n_output:
            self._logits = rows[-1]
        return rows
