"""Drafts of a head: it looks at the rows that the target's passes left of the text, and goes on from its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import LlmrunError
from ..hidden_states import N_ROW, HiddenRows
from ..kv_cache import KvSequence
from .model_source import N_TOK
from .picking import PRIORS, pick
from .source import Answer, Guess

if TYPE_CHECKING:
    from .head_model import HeadModel

F32 = NDArray[np.float32]

FIRST_WINDOW = N_TOK  # rows that are read before anything is known of what they cost
WIDEN = 2  # a window that has proved itself is read anew, so many times as long


class HeadSource:
    """Lets a head guess.

    Slot s of its sequence stands for position ``start + s``: the target's row there, and the token behind. After the
    last such slot come those of its guesses, whose rows are its own; they are rolled back before the next guess.

    Args:
        model: the head.
        rows: of the session's sequence, as the target's passes leave them.
        lock: of the target's threads, which both use.
    """

    name = "draft"
    priors: Sequence[float] = PRIORS
    is_free = False
    n_agree = 0

    def __init__(self, model: HeadModel, rows: HiddenRows, lock: threading.Lock) -> None:
        self._model, self._rows, self._lock = model, rows, lock
        self._sequence = KvSequence(model.pages, model.n_ctx)
        self._text: list[int] = []
        self._start = 0  # position of the window's first row
        self._n_read = 0  # slots with rows of the target and tokens of the text
        self.budget_s = self.expected_s = self.read_s = 0.0

    def begin(self, context: Sequence[int], answer: Answer) -> None:
        """Keep what was read of a text that begins like the prompt; nothing is computed yet."""
        self._answer = answer
        pairs = enumerate(zip(self._text, context, strict=False))
        n_same = next((i for i, (a, b) in pairs if a != b), min(len(self._text), len(context)))
        self._n_read = max(0, min(self._n_read, n_same - 1 - self._start))  # the last slot's token is the same
        self._text = list(context)

    def guess(self, context: Sequence[int]) -> Iterator[Guess]:
        """Read what is new, then yield the head's picks; none where the target's rows are not known."""
        self._text += context[len(self._text) :]
        history = list(context)
        n_row = len(history) - 1  # the last token's row is what the target computes next
        try:
            if not self._choose_window(n_row):
                return
            self._catch_up(n_row)
            while True:
                token_id, sureness = pick(self._answer, self._model.tokens, self._logits, history)
                yield Guess(token_id, sureness)
                history.append(token_id)
                if self._sequence.n_past >= self._model.n_ctx:
                    return
                self._run([token_id], self._state)
        except LlmrunError:
            # No page is free, or the head's logits are no numbers or forbidden: there is no draft.
            return

    def after(self, drafted: Sequence[int]) -> Iterator[Guess]:  # noqa: ARG002
        """Yield nothing: it is not free."""
        return iter(())

    def agree(self, copied: Sequence[int]) -> None:
        """Return None: it would have to look at the copies one by one."""

    def shown(self, logits: F32) -> None:
        """Do nothing: its tokens stay the same."""

    def close(self) -> None:
        """Give the pages back."""
        self._n_read = 0
        self._sequence.close()

    # ---- the window ----------------------------------------------------------------------------------------

    def _choose_window(self, n_row: int) -> bool:
        """Begin a new window where too much is behind, or rows between are lost; return whether there is one."""
        model, rows = self._model, self._rows
        if n_row < 1 or not rows.start < n_row <= rows.stop:
            return False
        most = min(model.n_ctx // 2, N_ROW)
        affordable = int(min(most, self.budget_s / model.row_s)) if model.row_s else FIRST_WINDOW
        affordable = min(max(affordable, FIRST_WINDOW // 2), most)
        next_row, n_seen = self._start + self._n_read, n_row - self._start
        wider = min(WIDEN * n_seen, n_row - rows.start, most)
        is_lost = n_seen < 1 or not rows.start <= next_row <= n_row
        if is_lost or n_seen + N_TOK > model.n_ctx or n_row - next_row > affordable:
            self._restart(max(rows.start, n_row - affordable))
        elif self._start and n_seen < wider and WIDEN * wider <= affordable:
            self._restart(n_row - wider)
        elif next_row == n_row:  # asked again: the last row's logits are wanted
            self._n_read -= 1
        self._sequence.rollback(self._n_read)
        return True

    def _restart(self, start: int) -> None:
        self._start, self._n_read = start, 0

    def _catch_up(self, n_row: int) -> None:
        """Read the window's rows that were not read; the last one's logits are wanted."""
        started, first = time.perf_counter(), self._start + self._n_read
        for position in range(first, n_row, N_TOK):
            stop = min(n_row, position + N_TOK)
            with self._lock:
                states = self._model.states(self._rows.get(position, stop))
            self._run(self._text[position + 1 : stop + 1], states, has_output=stop == n_row)
            self._n_read = stop - self._start
        if n_row - first >= N_TOK // 4:
            self.read_s = time.perf_counter() - started
            self._model.row_s = self.read_s / (n_row - first)

    def _run(self, ids: list[int], states: F32, *, has_output: bool = True) -> None:
        with self._lock:
            self._model.run(self._sequence, ids, states, has_output=has_output)
            if has_output:
                self._logits, self._state = self._model.logits(), self._model.state(len(ids) - 1)
