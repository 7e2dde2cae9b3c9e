"""What a draft's tokens are to its target: the same tokens, or those that stand for the same bytes.

Models of one family have the same tokens with the same ids, but not always as many: larger ones may be padded to a
rounder number. What the draft does not have it neither reads nor says.

Between two vocabularies a draft is limited to the tokens that both have (token-level intersection; Timor et al.,
arXiv 2502.05202), so that target and draft use the same noise for the same token. Text of the target that has no
counterpart token by token is tokenized anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from ...formats.gguf import GgufFile
from ..tokenizer.base import Tokenizer
from ..tokenizer.vocabulary import Attr
from .picking import DraftTokens


class VocabularyMap:
    """Translates ids between a target and a draft.

    Attributes:
        is_same: whether all tokens that both go on to have the same ids.
        tokens: of the target, that the draft's logits stand for.
    """

    def __init__(self, target: Tokenizer, draft: Tokenizer | int) -> None:
        """``draft``: a number of tokens if they are the target's, as far as both go."""
        self._target, self._draft = target, None if isinstance(draft, int) else draft
        self._to_draft: dict[int, list[int]] = {}
        self.is_same = self._draft is None
        if isinstance(draft, int):
            self.tokens = DraftTokens.first(min(draft, target.n_vocab))
        else:
            of_piece = {piece: i for i, piece in reversed(list(_pieces(draft)))}
            pairs = [(i, of_piece[piece]) for i, piece in _pieces(target) if piece in of_piece]
            shared, places = np.array(pairs, np.int64).reshape(-1, 2).T
            self.tokens = DraftTokens(shared, 0, places)
            self._to_draft = {i: [j] for i, j in pairs}

    @classmethod
    def between(cls, file: GgufFile, target: Tokenizer) -> Self:
        """Return the map between a draft's file and a target.

        Raises:
            FormatError: the file's vocabulary is damaged.
        """
        texts = list(file.metadata.strings("tokenizer.ggml.tokens"))
        n_both = min(len(texts), target.n_vocab)
        if texts[:n_both] == target.vocabulary.texts[:n_both]:
            return cls(target, len(texts))
        from ..tokenizer.load import load_tokenizer

        return cls(target, load_tokenizer(file.metadata))

    @property
    def n_shared(self) -> int:
        """Tokens that can be drafted."""
        return len(self.tokens.ids)

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """Return the draft's ids of a whole prompt; its text is tokenized as the draft does it."""
        if self._draft is None:
            return self.further(ids)
        result: list[int] = []
        if self._draft.add_bos and self._draft.bos_id is not None:
            result.append(self._draft.bos_id)
        text = b""
        for token_id in ids:
            if self._is_control(token_id):
                result += self._encoded(text) + self._to_draft.get(token_id, [])
                text = b""
            else:
                text += self._target.piece(token_id)
        return result + self._encoded(text)

    def further(self, ids: Iterable[int]) -> list[int]:
        """Return the draft's ids of tokens that continue a text."""
        if self._draft is None:
            n = self.n_shared
            return [i for i in ids if i < n]
        result: list[int] = []
        for token_id in ids:
            known = self._to_draft.get(token_id)
            if known is None:
                known = [] if self._is_control(token_id) else self._encoded(self._target.piece(token_id))
                self._to_draft[token_id] = known
            result += known
        return result

    def _is_control(self, token_id: int) -> bool:
        return bool(int(self._target.vocabulary.attrs[token_id]) & (Attr.CONTROL | Attr.UNKNOWN))

    def _encoded(self, text: bytes) -> list[int]:
        assert self._draft is not None
        return self._draft.encode(text, add_special=False) if text else []


def _pieces(tokenizer: Tokenizer) -> Iterable[tuple[int, tuple[bool, bytes]]]:
    """Yield (id, (whether it is a control token, its bytes)) of every token that stands for something."""
    attrs = tokenizer.vocabulary.attrs
    for token_id in range(tokenizer.n_vocab):
        is_control = bool(int(attrs[token_id]) & Attr.CONTROL)
        piece = tokenizer.piece(token_id, special=is_control)
        if piece:
            yield token_id, (is_control, piece)
