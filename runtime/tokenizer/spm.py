"""SentencePiece vocabularies of the byte-pair kind (Llama 2, Mistral, Gemma): merges by score.

Two neighbours merge when their texts joined are a token; the highest score goes first. What is no token at
the end is spelled with byte tokens. The sentencepiece library on a model rebuilt from the same pieces gives the
same ids for valid text (the tests keep it as an oracle), but not for bytes that are not UTF-8, which it
replaces, and it refuses vocabularies with two unknown tokens (Phi-3). So the merges are written out here.

Source: llama.cpp src/llama-vocab.cpp (`llm_tokenizer_spm_session`).
"""

from __future__ import annotations

import re
from functools import cached_property

from .base import Tokenizer, has_escaped_bytes, raw_bytes
from .bpe_merge import merge
from .vocabulary import Attr, Vocabulary

_SPACE = "▁"
_MAX_CACHED = 1 << 14  # words
_UTF8_LENGTH = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4)  # bytes of a character by its first four bits


class SpmTokenizer(Tokenizer):
    """Merges neighbours by the score of the token that they form."""

    def __init__(self, vocabulary: Vocabulary, *, add_bos: bool, add_eos: bool, add_space_prefix: bool) -> None:
        """Take over the vocabulary.

        Args:
            vocabulary: the tokens and their scores.
            add_bos: whether a prompt begins with bos.
            add_eos: whether a prompt ends with eos.
            add_space_prefix: whether text at the start and after special tokens gets a space in front.
        """
        super().__init__(vocabulary, add_bos=add_bos, add_eos=add_eos)
        self._add_space_prefix = add_space_prefix
        self._costs: list[float] = (-vocabulary.scores).tolist()
        self._cache: dict[str, list[int]] = {}

    @property
    def adds_space(self) -> bool:
        """Whether a space is put in front of a text before it is tokenized."""
        return self._add_space_prefix

    @cached_property
    def _never_text(self) -> frozenset[int]:
        """Control tokens: no text becomes one by merging, whatever its letters are."""
        return frozenset((self.vocabulary.attrs & Attr.CONTROL).nonzero()[0].tolist())

    @cached_property
    def _boundary(self) -> re.Pattern[str]:
        """Where a text can be cut without changing its tokens: before a space where no token goes on.

        A token that holds another character and then a space makes that character unsafe.
        """
        joined = "\0".join(self.vocabulary.texts)
        unsafe = {pair[0] for pair in re.findall(f"[^\0{_SPACE}]{_SPACE}", joined)} | {"\0", _SPACE}
        return re.compile(f"(?<=[^{re.escape(''.join(sorted(unsafe)))}])(?={_SPACE})")

    def _encode_text(self, text: str, *, is_after_special: bool) -> list[int]:
        if self._add_space_prefix and is_after_special:
            text = " " + text
        text = text.replace(" ", _SPACE)
        if has_escaped_bytes(text):  # such a byte may take the first bytes of the next word with it
            return self._encode_word(text)
        ids: list[int] = []
        for word in self._boundary.split(text):
            known = self._cache.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                self._cache[word] = known
            ids += known
        return ids

    def _encode_word(self, word: str) -> list[int]:
        known, ids = self.vocabulary.ids, []
        for part in merge(_symbols(word), self._cost):
            token_id = known.get(part)
            if token_id is not None and token_id not in self._never_text:
                ids.append(token_id)
            else:
                ids += self._spell(part)
        return ids

    def _cost(self, left: str, right: str) -> float | None:
        token_id = self.vocabulary.ids.get(left + right)
        if token_id is None or token_id in self._never_text:
            return None
        return self._costs[token_id]

    def _spell(self, part: str) -> list[int]:
        """Return the byte tokens of a text; a byte without one is the unknown token."""
        known, unknown = self.vocabulary.ids, self.vocabulary.special.get("unk")
        found = (known.get(f"<0x{byte:02X}>", unknown) for byte in raw_bytes(part))
        return [token_id for token_id in found if token_id is not None]

    def _normal_piece(self, text: str) -> bytes:
        return text.replace(_SPACE, " ").encode()


def _symbols(text: str) -> list[str]:
    """Return the characters; where bytes are not UTF-8, as many bytes as the first one announces."""
    if not has_escaped_bytes(text):
        return list(text)
    data, symbols, i = raw_bytes(text), [], 0
    while i < len(data):
        n = _UTF8_LENGTH[data[i] >> 4]
        symbols.append(data[i : i + n].decode("utf-8", "surrogateescape"))
        i += n
    return symbols
