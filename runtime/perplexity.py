"""Perplexity of a model on a text, computed as llama.cpp's ``llama-perplexity`` does.

The token ids of the whole text are cut into chunks of ``n_ctx``. Each chunk is a sequence of its own,
whose first token is replaced by BOS where the vocabulary asks for one; of each chunk the tokens in its
second half count, so that every one has at least half a context before it. A rest shorter than a chunk
is left out. Source: llama.cpp, tools/perplexity/perplexity.cpp, ``perplexity()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..formats.errors import ConfigError
from ..formats.record import Record, field


class _Tokenizer(Protocol):
    bos_id: int | None
    add_bos: bool
    add_eos: bool

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...


class _Engine(Protocol):
    def logits(self, ids: Sequence[int], first: int) -> Iterator[npt.NDArray[np.float32]]: ...


class Perplexity(Record, kw_only=True, frozen=False):
    """The measurement so far.

    Attributes:
        n_ctx: tokens of a chunk.
        n_chunk: chunks that are measured in all.
        n_done: chunks measured so far.
        count: tokens that counted.
        nll: negative log-likelihood (natural logarithm) of each of them, in the text's order.
    """

    n_ctx: int
    n_chunk: int
    n_done: int = 0
    nll: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of tokens that counted."""
        return len(self.nll)

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return math.fsum(self.nll) / self.count

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean negative log-likelihood; infinite where it is too large for a float."""
        return _exp(self.mean_nll)

    @property
    def error(self) -> float:
        """Standard error of the perplexity, as llama.cpp reports it (``+/-``); 0 with fewer than two tokens."""
        if self.count < 2:
            return 0.0
        mean = self.mean_nll
        variance = math.fsum(value * value for value in self.nll) / self.count - mean * mean
        return math.sqrt(max(variance, 0.0) / (self.count - 1)) * self.perplexity


def plan_chunks(tokenizer: _Tokenizer, text: str, *, n_ctx: int, max_chunks: int | None = None) -> list[list[int]]:
    """Return the chunks of a text: token ids as they stand in the text, [n_chunk][n_ctx].

    Raises:
        ConfigError: the text is shorter than two chunks, the context too small, or the vocabulary ends
            every text with EOS (there, perplexity over chunks has no meaning).
    """
    if n_ctx < 4:
        raise ConfigError(f"context of {n_ctx} tokens, expected at least 4")
    if tokenizer.add_eos:
        raise ConfigError("this model's vocabulary adds an end token to every text: its perplexity is not defined")
    ids = tokenizer.encode(text, add_special=True, parse_special=False)
    if len(ids) < 2 * n_ctx:
        raise ConfigError(f"the text has {len(ids)} tokens, expected at least {2 * n_ctx} for a context of {n_ctx}")
    n_chunk = len(ids) // n_ctx
    if max_chunks is not None:
        n_chunk = min(n_chunk, max_chunks)
    return [ids[i * n_ctx : (i + 1) * n_ctx] for i in range(n_chunk)]


def measure(
    engine: _Engine,
    tokenizer: _Tokenizer,
    chunks: Sequence[Sequence[int]],
    *,
    on_chunk: Callable[[Perplexity], None] | None = None,
) -> Perplexity:
    """Return the perplexity over ``chunks`` (from ``plan_chunks``).

    Args:
        engine: gives logits of a fresh sequence.
        tokenizer: the model's tokenizer.
        chunks: token ids, all chunks of the same length.
        on_chunk: called after each chunk with the measurement so far.
    """
    result = Perplexity(n_ctx=len(chunks[0]), n_chunk=len(chunks))
    first = result.n_ctx // 2
    for chunk in chunks:
        inputs = list(chunk)
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            inputs[0] = tokenizer.bos_id
        # Logits after token i predict token i + 1; the last token of a chunk predicts nothing that counts.
        targets = np.asarray(chunk[first + 1 :], dtype=np.int64)
        n_done = 0
        for rows in engine.logits(inputs[:-1], first):  # [n, n_vocab]
            result.nll += negative_log_likelihood(rows, targets[n_done : n_done + len(rows)]).tolist()
            n_done += len(rows)
        assert n_done == len(targets), f"the engine gave {n_done} rows of logits, expected {len(targets)}"
        result.n_done += 1
        if on_chunk is not None:
            on_chunk(result)
    return result


def negative_log_likelihood(logits: npt.NDArray[np.float32], targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return -ln softmax(logits)[target] of each row, [n], in float64.

    Args:
        logits: [n, n_vocab].
        targets: token ids, [n].
    """
    largest = logits.max(axis=1)  # [n]
    result = np.empty(len(logits), dtype=np.float64)
    for i, row in enumerate(logits):  # row by row: a float64 copy of all rows would double the memory
        total = np.exp(row.astype(np.float64) - np.float64(largest[i])).sum()
        result[i] = np.log(total) - (np.float64(row[targets[i]]) - np.float64(largest[i]))
    return result


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
