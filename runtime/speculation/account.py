"""What answers have gained or lost by drafts, and what they may still lose by trying, in plain steps.

The account keeps the promise that speculation does not cost time: once an answer is behind what plain decoding would
have taken by more than ALLOWANCE, nothing that costs time is tried until it has caught up.
"""

from __future__ import annotations

RATE_FADE = 0.9
ALLOWANCE, ALLOWANCE_TOKENS = 0.0165, 200  # plain steps for each of the tokens, of at least so many
RESERVE = 0.05  # share of it that is left to copies: a draft model that is wrong at first must not end everything
# Share of it that is kept from a draft model at first, and tokens until none is: how an answer begins is seldom like
# what follows, and a model that has lost all by then would be silent for the rest (bench/LOG.md).
HELD, HELD_TOKENS = 0.45, 24
# What reading a text takes is put down over the tokens that follow, which gain by it: an answer that had to pay at once
# would stop drafting right then. Share of what may be lost that may go into it while it is not known whether drafts
# pay; where they do it may be all, and plain steps more: what is read at once tells most (bench/LOG.md).
PAID_OVER = 48
READING, IN_ADVANCE = 0.5, 5.0


class Account:
    """The account of one session."""

    def __init__(self) -> None:
        self._balance, self._n_token = 0.0, 0  # plain steps that speculation has saved, over so many tokens
        self._pays = False
        self._unpaid = self._instalment = 0.0  # plain steps for reading that are not put down yet, and those a token
        self._n_answer = 0  # tokens of this answer
        self._rate_tokens = self._rate_price = 0.0

    def begin(self) -> None:
        """Begin an answer. What the last one has lost is not forgotten."""
        self._balance -= self._unpaid
        self._unpaid = 0.0
        if self._balance > 0:
            self._balance, self._n_token = 0.0, 0
        self._n_answer = 0

    def learn(self, n_token: int, price: float, reading: float = 0.0) -> None:
        """Take note of tokens and of the plain steps that they took, and that went into reading a text once."""
        if reading:
            self._unpaid += reading
            self._instalment = self._unpaid / (PAID_OVER if self._pays else 1)
        paid = min(self._unpaid, self._instalment * n_token)
        self._unpaid -= paid
        self._rate_tokens = RATE_FADE * self._rate_tokens + n_token
        self._rate_price = RATE_FADE * self._rate_price + price
        self._balance += n_token - price - paid
        self._n_token += n_token
        self._n_answer += n_token

    @property
    def rate(self) -> float:
        """Tokens that are made at present in the time of a plain step, at least one."""
        return max(1.0, self._rate_tokens / self._rate_price if self._rate_price else 0.0)

    @property
    def allowance(self) -> float:
        """Plain steps that the answer may still lose by trying."""
        return self._balance + self._at_first

    def for_reading(self, *, pays: bool) -> float:
        """Return the plain steps that reading a text may take now; ``pays``: whether drafts pay at present."""
        self._pays = pays
        left = self.allowance - self._unpaid
        return max(0.0, left + IN_ADVANCE if pays else READING * left)

    @property
    def reserve(self) -> float:
        """What of that is left to sources that cost nothing, at first also to later tries of the others."""
        held = HELD * max(0.0, 1 - self._n_answer / HELD_TOKENS)
        return max(RESERVE, held) * self._at_first

    @property
    def _at_first(self) -> float:
        return ALLOWANCE * max(ALLOWANCE_TOKENS, self._n_token)
