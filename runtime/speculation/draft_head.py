"""The output matrix of a draft model: the frequent tokens, and those that this text is about.

A byte-pair vocabulary begins with the pairs merged first, the frequent ones; SentencePiece's has single characters at
its end, by frequency too. A matrix cut to them is a fraction of the whole (FR-Spec, Zhao et al., arXiv 2502.14856), but
what a text is about is in the rest: its names, its rare words. So the last rows of the matrix are exchanged while the
text is made, for those of tokens that it has, of the same words with something else before them, and of tokens that the
target thought of where a draft ended. The ones not wanted for the longest time make room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ...formats.record import replace
from ..program import Buffer, Op, Program, Weight
from ..sampling.candidates import largest
from ..tokenizer.base import Tokenizer
from ..tokenizer.vocabulary import Attr, Vocabulary
from .draft_weights import DraftWeights
from .picking import DraftTokens

N_FREQUENT, N_EXCHANGED = 16384, 1024  # rows that stay, and rows that are exchanged (bench/LOG.md)
N_MISSING = 8  # tokens that are waited for before rows are exchanged, which takes half a millisecond
N_THOUGHT = 16  # rare tokens that the target thinks of at once at most …
NEAR_LARGEST = 10.0  # … their logits this far below the largest, at most
N_CHARACTER = 512  # of SentencePiece's that stay
SPACES = {"gpt2": "\u0120", "llama": "\u2581"}  # in the texts of byte-pair vocabularies
LEADS = "._([\"'/-<$"  # what else stands before words, in one token with them
LEAST_WORD = 3  # characters of a word that is looked for with others of them


class DraftHead:
    """Which tokens the rows of a packed output matrix belong to.

    At first most are the vocabulary's first. Whoever changes or uses them holds the lock of the target's threads.

    Args:
        weights: where the matrix is packed.
        weight: the matrix, cut to its first rows.
        n_frequent: rows that stay.
        n_token: first tokens that both models have.
        tokenizer: of the target; ``is_by_frequency`` holds for its vocabulary.

    Attributes:
        tokens: what the rows stand for at present; replaced, never changed.
    """

    def __init__(
        self, weights: DraftWeights, weight: Weight, n_frequent: int, n_token: int, tokenizer: Tokenizer
    ) -> None:
        self._weights, self._weight, self._n_token, self._tokenizer = weights, weight, n_token, tokenizer
        n_stay = min(n_frequent, weight.n_out)
        characters = list(
            islice(_characters(tokenizer.vocabulary, weight.n_out, n_token), min(N_CHARACTER, n_stay // 2))
        )
        self._n_first = n_stay - len(characters)
        self._space = SPACES[tokenizer.vocabulary.model]
        self._missing: dict[int, None] = {}  # tokens that wait for a row
        rows = range(self._n_first, n_stay)
        if characters:
            weights.exchange_rows(weight, rows, characters)
        self._stay = dict(zip(characters, rows, strict=True))
        self._rows = OrderedDict((i, i) for i in range(n_stay, weight.n_out))  # by token, oldest use first
        self.tokens = self._tokens()

    def want(self, token_ids: Iterable[int], *, at_once: bool) -> None:
        """See to it that tokens have rows, the last of them if they are too many.

        Args:
            token_ids: the tokens.
            at_once: whether a few of them are worth an exchange.

        Raises:
            FormatError: the file's rows are no numbers.
        """
        for token_id in token_ids:
            if token_id in self._rows:
                self._rows.move_to_end(token_id)
            elif self._n_first <= token_id < self._n_token and token_id not in self._stay:
                self._missing[token_id] = None
        if self._rows and len(self._missing) >= (1 if at_once else N_MISSING):
            self._exchange(list(self._missing)[-len(self._rows) :])

    def _exchange(self, wanted: list[int]) -> None:
        self._missing.clear()
        leaving = list(islice(self._rows, len(wanted)))
        rows = [self._rows[token_id] for token_id in leaving]
        self._weights.exchange_rows(self._weight, rows, wanted)
        for token_id in leaving:
            del self._rows[token_id]
        self._rows.update(zip(wanted, rows, strict=True))
        self.tokens = self._tokens()

    def of_text(self, token_ids: Iterable[int]) -> Iterator[int]:
        """Yield the tokens of a text, and before each those of the same word with something else before it."""
        for token_id in dict.fromkeys(token_ids):
            yield from self._kin(token_id)
            yield token_id

    def _kin(self, token_id: int) -> Iterator[int]:
        text, ids, space = self._tokenizer.vocabulary.texts[token_id], self._tokenizer.vocabulary.ids, self._space
        word = text.lstrip(space + LEADS)
        if len(word) < LEAST_WORD:
            return
        for form in dict.fromkeys((word, word[0].swapcase() + word[1:])):
            for lead in ("", space, *LEADS):
                kin = ids.get(lead + form, token_id)
                if kin != token_id:
                    yield kin
        if text == space + word and word not in ids and word.isascii() and word.isalpha():
            yield from self._tokenizer.encode(word, add_special=False)

    def thought_of(self, logits: NDArray[np.float32]) -> list[int]:
        """Return the rare tokens that the target thinks of, by its logits [n_vocab], the likeliest last."""
        rare = logits[self._n_first :]
        index = largest(rare, N_THOUGHT)
        index = index[rare[index] > logits.max() - NEAR_LARGEST]
        result: list[int] = (index[np.argsort(rare[index])] + self._n_first).tolist()
        return result

    def _tokens(self) -> DraftTokens:
        n, places = self._n_first, {**self._stay, **self._rows}
        others, rows = (np.fromiter(x, np.int64, len(places)) for x in (places.keys(), places.values()))
        order = np.argsort(others)
        return DraftTokens(np.concatenate((np.arange(n), others[order])), n, rows[order])


def is_by_frequency(vocabulary: Vocabulary) -> bool:
    """Return whether tokens are in the order in which pairs were merged, as far as they come of pairs."""
    if vocabulary.model == "llama":  # SentencePiece of the byte-pair kind; the other one has probabilities
        scores = vocabulary.scores[(vocabulary.attrs & Attr.NORMAL) != 0]
        return len(scores) > 0 and bool((scores[1:] < scores[:-1]).all()) and bool((np.rint(scores) == scores).all())
    return vocabulary.model == "gpt2"


def _characters(vocabulary: Vocabulary, start: int, stop: int) -> Iterator[int]:
    """Yield SentencePiece's single characters among some tokens, the frequent ones first."""
    if vocabulary.model == "llama":
        for token_id in range(start, stop):
            if len(vocabulary.texts[token_id]) == 1 and vocabulary.has(token_id, Attr.NORMAL):
                yield token_id


def output_matrix(program: Program) -> Weight:
    """Return the matrix that a program's logits come from."""
    logits = program.outputs["logits"]
    return next(op.weights[0] for op in program.ops if op.kind == "matmul" and logits in op.writes)


def cut_head(program: Program, n: int) -> Program:
    """Return a plain program whose logits are those of the first ``n`` tokens alone."""
    whole = program.outputs["logits"]
    if n >= whole.n_col:
        return program
    cut = Buffer(whole.name, n, whole.rows, whole.kind)

    def exchange(buffers: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
        return tuple(cut if b is whole else b for b in buffers)

    ops = []
    for op in program.ops:
        weights = op.weights
        if op.kind == "matmul" and whole in op.writes:
            weights = (replace(weights[0], n_out=n),)
        ops.append(Op(op.kind, exchange(op.reads), exchange(op.writes), weights, op.attributes))
    return replace(program, ops=ops, outputs={**program.outputs, "logits": cut})
