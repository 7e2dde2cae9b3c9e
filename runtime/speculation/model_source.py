"""Drafts of a small model: it follows the text with a KV cache of its own and picks as the target would."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import LlmrunError
from ..kernels.layout import PAGE_SLOTS
from ..kv_cache import KvSequence
from .earlier_text import LEAST_PIECE, EarlierText
from .picking import PRIORS, pick
from .source import Answer, Guess

if TYPE_CHECKING:
    from .draft_model import DraftModel

F32 = NDArray[np.float32]

N_TOK = 64  # rows of a pass that catches up
N_LOOK = 2048  # tokens of a text that are looked at for what the draft should be able to say
N_OUT = 3  # rows with which copies are looked at: so many take hardly longer than one (bench/LOG.md)

# Tokens of a text that are read at first, what is before them as that pays: the answer's own tokens tell a draft model
# nearly all that the end of the prompt would (bench/LOG.md).
FIRST_WINDOW = 12
SKIMMED = 0.7  # what a token takes of which only keys and values are wanted (``DraftModel.run``): so much of another
STEP_TOKENS = 5  # tokens of a text that are read in the time of a step, until that is known


class ModelSource:
    """Lets a draft model guess.

    It reads no more of a text than the planner's budget allows: at first a short window of its end, and more once that
    has paid. What stands before the window is then read piece by piece, those first that the text's end has most in
    common with (``earlier_text.py``), each without a look at what is before it, and put in front: what follows sees all
    of it, which costs hardly an agreement (bench/LOG.md) and saves reading the window again. Source of the idea:
    parallel context windows, Ratner et al., arXiv 2212.10947.

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
        self._origin = 0  # token of the text that has position 0; the window never begins before it
        self._cached: list[int] = []  # what the sequence holds of it, perhaps followed by old guesses
        self._earlier = EarlierText([], 0, 0)  # what stands before the window
        self._n_front = 0  # slots in front of the window's, which hold what was read of that
        self._n_hidden = 0  # of them, those that nothing sees: pieces in front are whole pages
        self._n_sure = 0  # of the cached ones, certainly the window's
        self._n_context = 0
        self._history: list[int] = []  # the context and what is drafted
        self._unread: list[int] | None = []  # the last guess; None: the text's new tokens
        self._n_wanted = 0  # tokens of the text that the draft is able to say, as far as there is room
        self._thoughts: list[int] = []  # what the target thought of since
        self.n_agree = N_OUT - 1 if model.vocabulary.is_same else 0
        self.budget_s = self.expected_s = self.read_s = 0.0

    def begin(self, context: Sequence[int], answer: Answer) -> None:
        """Translate the prompt; nothing is computed yet."""
        self._answer = answer
        before, self._ids = self._ids[: self._start], self._model.vocabulary.prompt(context)
        self._n_wanted = 0
        self._n_context = len(context)
        self._n_sure = 0
        if self._start >= len(self._ids) or before != self._ids[: self._start]:
            self._restart(len(self._ids))

    def guess(self, context: Sequence[int]) -> Iterator[Guess]:
        """Return the draft model's picks; before the first it reads what is new. None when it cannot go on."""
        self._ids += self._model.vocabulary.further(context[self._n_context :])
        self._n_context = len(context)
        self._history, self._unread = list(context), None
        self.expected_s = 0.0
        return self._picks()

    def _picks(self) -> Iterator[Guess]:
        try:
            while True:
                if self._unread != []:
                    self._read([])
                guess = self._pick(self._logits)
                self._history.append(guess.token_id)
                self._unread = [guess.token_id]
                yield guess
                if self._sequence.n_past >= self._model.n_ctx:
                    return
        except LlmrunError:
            # No page is free, or the draft's logits are no numbers or forbidden: there is no draft.
            return

    def agree(self, copied: Sequence[int]) -> list[Guess] | None:
        """Read what is new, or the last guess, and copies in one pass; keep the copies that it would have picked."""
        copied = list(takewhile(self._model.vocabulary.n_shared.__gt__, copied))
        if self._unread == [] or not copied:
            return None
        guesses = list[Guess]()
        try:
            rows = self._read(copied)
            for token_id, row in zip(copied, rows[:-1], strict=False):
                guess = self._pick(row)
                if guess.token_id != token_id:
                    break
                guesses.append(guess)
                self._history.append(token_id)
        except LlmrunError:
            return None
        n_wrong = len(rows) - 1 - len(guesses)
        del self._cached[len(self._cached) - n_wrong :]
        self._sequence.rollback(self._sequence.n_past - n_wrong)
        self._logits = rows[len(guesses)]
        return guesses

    def _pick(self, row: F32) -> Guess:
        return Guess(*pick(self._answer, self._tokens, row, self._history))

    def _read(self, copied: Sequence[int]) -> F32:
        """Read what is not read yet, and a few tokens behind it; return the logits before and after each of those."""
        if self._unread is None:
            self._choose_head()
            self._choose_window()
            rows = self._catch_up(copied)
        elif ids := self._model.vocabulary.further(self._unread):
            ahead = self._ahead(len(ids), copied)
            rows = self._run([*ids, *ahead], n_output=1 + len(ahead))
        else:
            rows = self._logits[None]
        self._unread = []
        return rows

    def _choose_head(self) -> None:
        """Give rows of the draft's output matrix to the tokens that it should be able to say."""
        head, thoughts, self._thoughts = self._model.head, self._thoughts, []
        if head is not None:
            n, self._n_wanted = self._n_wanted, len(self._history)
            wanted = [*thoughts, *head.of_text(self._history[max(n, len(self._history) - N_LOOK) :])]
            with self._lock:
                head.want(wanted, at_once=n == 0)

    def _ahead(self, n_new: int, copied: Sequence[int]) -> Sequence[int]:
        """Return how much of a copy is read behind so many new tokens."""
        room = max(0, self._model.n_ctx - self._sequence.n_past - n_new)
        return copied[: min(max(1, N_OUT - n_new), room)]

    def after(self, drafted: Sequence[int]) -> Iterator[Guess]:  # noqa: ARG002
        """Yield nothing: it is not free."""
        return iter(())

    def shown(self, logits: F32) -> None:
        """Let the draft have tokens that the target thinks of."""
        if self._model.head is not None:
            self._thoughts += self._model.head.thought_of(logits)

    def close(self) -> None:
        """Give the pages back."""
        self._cached.clear()
        self._sequence.close()

    # ---- the window ----------------------------------------------------------------------------------------

    def _restart(self, start: int) -> None:
        self._start, self._n_sure = start, 0
        self._origin = max(0, min(start, len(self._ids) - self._most))
        self._earlier = EarlierText(self._ids, self._origin, start)
        self._n_front = self._n_hidden = 0
        self._cached.clear()
        self._sequence.rollback(0)

    @property
    def _shift(self) -> int:
        """How much larger positions are than slots."""
        return self._start - self._origin - self._n_front

    @property
    def _most(self) -> int:
        """Tokens of a text that are read at most; the rest of the context is for what follows."""
        return self._model.n_ctx // 2

    def _choose_window(self) -> None:
        """Keep what is cached of the text; begin a new window where that is too little, or too much to read."""
        window = self._ids[self._start :]
        n = self._n_sure
        while n < min(len(self._cached), len(window) - 1) and self._cached[n] == window[n]:
            n += 1
        n = min(n, len(window) - 1)
        del self._cached[max(n, 0) :]
        self._sequence.rollback(self._n_front + len(self._cached))
        affordable = self._affordable
        is_full = len(self._ids) - self._origin + N_TOK > self._model.n_ctx
        is_short = self._start > 0 and len(window) < FIRST_WINDOW // 2  # it began where another text was longer
        if is_full or is_short or len(window) - len(self._cached) > affordable:
            self._restart(max(0, len(self._ids) - min(affordable, FIRST_WINDOW, self._most)))

    @property
    def _affordable(self) -> int:
        """How many tokens may be read now."""
        n = int(self.budget_s / self._token_s) if self._token_s < math.inf else FIRST_WINDOW
        return max(n, FIRST_WINDOW // 2)

    @property
    def _token_s(self) -> float:
        """What reading a token takes, as far as it is known."""
        return self._model.token_s or self._model.step_s / STEP_TOKENS

    def _catch_up(self, copied: Sequence[int]) -> F32:
        """Read what may be read before the window, then its own new tokens, and some of a copy behind them.

        Returns:
            The logits before and after each of those behind.
        """
        n_new = len(self._ids) - self._start - len(self._cached)
        n_skim = n_new - FIRST_WINDOW if n_new >= FIRST_WINDOW + LEAST_PIECE else 0
        started = time.perf_counter()
        earlier = self._earlier.choose(self._ids, int((self._affordable - n_new) / SKIMMED))
        n_earlier = sum(self._earlier.lead(start) + stop - start for start, stop in earlier)
        parts = SKIMMED * n_earlier, SKIMMED * n_skim, n_new - n_skim  # in tokens that are read whole
        step_s = self._model.step_s  # that a pass takes at least
        if step_s < math.inf:
            self.expected_s = sum(max(step_s, n * self._token_s) for n in parts if n)
        for start, stop in earlier:
            self._read_earlier(start, stop)
        ahead = self._ahead(n_new, copied)
        new = self._ids[len(self._ids) - n_new :]
        for i in range(0, n_skim, N_TOK):
            self._run(new[i : min(i + N_TOK, n_skim)], n_output=0)
        if earlier or n_skim:
            self.read_s = time.perf_counter() - started
        rows = self._run([*new[n_skim:], *ahead], n_output=1 + len(ahead))
        self._n_sure = len(self._cached) - len(ahead)
        if sum(parts) >= FIRST_WINDOW:
            self._model.token_s = (time.perf_counter() - started) / sum(parts)
        return rows

    def _read_earlier(self, start: int, stop: int) -> None:
        """Read a piece of what stands before the window by itself, with a few tokens before it, and put it in front."""
        lead = self._earlier.lead(start)
        first = start - lead
        n_hidden = -(stop - first) % PAGE_SLOTS
        piece = KvSequence(self._model.pages, n_hidden + stop - first)
        try:
            piece.skip(n_hidden)
            for i in range(first, stop, N_TOK):
                ids = self._ids[i : min(i + N_TOK, stop)]
                with self._lock:
                    shift = first - self._origin - n_hidden
                    self._model.run(piece, ids, n_output=0, shift=shift, visible_start=n_hidden)
            if lead:
                piece.drop_first(1)
                n_hidden = 0
            self._sequence.prepend(piece)
        finally:
            piece.close()
        self._n_front += n_hidden + stop - start
        self._n_hidden = n_hidden

    def _run(self, ids: list[int], *, n_output: int = 1) -> F32:
        """Run one pass; return the logits of the last rows, the last one's are kept."""
        with self._lock:
            self._model.run(self._sequence, ids, n_output=n_output, shift=self._shift, visible_start=self._n_hidden)
            rows: F32 = self._model.executor.output("logits", n_output).copy()
            tokens = self._model.tokens
        self._cached += ids
        if n_output:
            self._logits, self._tokens = rows[-1], tokens
        return rows
