"""What every tokenizer shares: special tokens in the text, begin and end tokens, pieces.

A tokenizer of one kind (`bpe.py`, `spm.py`, `unigram.py`, `wordpiece.py`) says how ordinary text
between special tokens becomes ids, and what bytes a token stands for.

Source: llama.cpp src/llama-vocab.cpp (`tokenizer_st_partition`, `tokenize`, `token_to_piece`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from ...formats.errors import FormatError
from .vocabulary import Attr, Vocabulary

_SPECIAL = Attr.UNKNOWN | Attr.CONTROL
_C_SPACE = " \t\n\v\f\r"  # isspace() of the C locale, which strips around special tokens
_SURROGATE = re.compile("[\ud800-\udfff]")
Fragment = str | int  # text that is still to be tokenized, or the id of a special token


class Tokenizer(ABC):
    """Text to token ids and back. Safe to use from several threads.

    Attributes:
        n_vocab: number of tokens.
        bos_id: begin of sequence, None when the model has none.
        eos_id: end of sequence, None when the model has none.
        eog_ids: every token that ends a generation (eos, end of turn, end of message, ...).
        add_bos: whether a prompt begins with ``bos_id``.
        add_eos: whether a prompt ends with ``eos_id``.
        vocabulary: texts and types of the tokens.
    """

    def __init__(self, vocabulary: Vocabulary, *, add_bos: bool, add_eos: bool) -> None:
        self.vocabulary = vocabulary
        self.n_vocab = vocabulary.n_vocab
        self.bos_id: int | None = vocabulary.special.get("bos")
        self.eos_id: int | None = vocabulary.special.get("eos")
        self.eog_ids = vocabulary.eog_ids
        self.add_bos = add_bos
        self.add_eos = add_eos
        for name, wanted, token_id in (("bos", add_bos, self.bos_id), ("eos", add_eos, self.eos_id)):
            if wanted and token_id is None:
                raise FormatError(f"{vocabulary.where}: a prompt should have a {name} token, but there is none")

    def encode(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: the text. Bytes that are not UTF-8 (or their ``surrogateescape`` form) are tokenized as
                llama.cpp does: as byte tokens where the vocabulary has them, otherwise as U+FFFD.
            add_special: add bos and eos where the model wants them.
            parse_special: whether text that looks like a control token is that token. Otherwise it is
                ordinary text; user-defined tokens are found either way.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        return self.encode_fragments(self.partition(text, parse_special=parse_special), add_special=add_special)

    def encode_fragments(self, fragments: Iterable[Fragment], *, add_special: bool) -> list[int]:
        """Return the ids of a text that ``partition`` has cut, with begin and end tokens if wanted."""
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        is_after_special = True
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
                is_after_special = True
            elif fragment:
                ids.extend(self._encode_text(fragment, is_after_special=is_after_special))
                is_after_special = False
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def partition(self, text: str, *, parse_special: bool) -> list[Fragment]:
        """Cut the special tokens out of a text: the longest ones first, each from left to right.

        With ``parse_special`` false only user-defined tokens are cut out.
        """
        groups = self._special_by_first if parse_special else self._user_defined_by_first
        found = [
            token_id
            for first in groups.keys() & set(text)
            for token_id in groups[first]
            if self.vocabulary.texts[token_id] in text
        ]
        fragments: list[Fragment] = [text] if text else []
        for token_id in sorted(found, key=self._special_rank.__getitem__):
            fragments = [
                part
                for fragment in fragments
                for part in ([fragment] if isinstance(fragment, int) else self._cut(fragment, token_id))
            ]
        return fragments

    def _cut(self, text: str, token_id: int) -> list[Fragment]:
        """Cut one special token out of a text, and the white space that belongs to it."""
        special, attrs = self.vocabulary.texts[token_id], self.vocabulary.attrs[token_id]
        fragments: list[Fragment] = []
        while True:
            left, match, right = text.partition(special)
            if not match:
                break
            if attrs & Attr.LSTRIP:
                left = left.rstrip(_C_SPACE)
            if attrs & Attr.RSTRIP:
                right = right.lstrip(_C_SPACE)
            fragments += [left, token_id] if left else [token_id]
            text = right
        if text:
            fragments.append(text)
        return fragments

    @cached_property
    def _special_rank(self) -> dict[int, int]:
        """Rank of every special token: the longer its UTF-8, the earlier it is cut out."""
        texts = self.vocabulary.texts
        special = np.flatnonzero(self.vocabulary.attrs & (_SPECIAL | Attr.USER_DEFINED)).tolist()
        order = sorted(special, key=lambda token_id: -len(texts[token_id].encode()))
        return {token_id: rank for rank, token_id in enumerate(order)}

    @cached_property
    def _special_by_first(self) -> dict[str, list[int]]:
        return _by_first(self.vocabulary.texts, self._special_rank)

    @cached_property
    def _user_defined_by_first(self) -> dict[str, list[int]]:
        attrs = self.vocabulary.attrs
        return _by_first(self.vocabulary.texts, [i for i in self._special_rank if not attrs[i] & _SPECIAL])

    @cached_property
    def control_texts(self) -> frozenset[str]:
        """Texts that mean more than they say: those that ``parse_special`` makes tokens of, without user-defined."""
        attrs = self.vocabulary.attrs
        return frozenset(self.vocabulary.texts[i] for i in self._special_rank if attrs[i] & _SPECIAL)

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """Return the bytes that a token stands for; they may be a part of a character.

        Args:
            token_id: a token.
            special: whether control tokens have their text; otherwise they are empty.

        Raises:
            FormatError: there is no such token.
        """
        if not 0 <= token_id < self.n_vocab:
            raise FormatError(f"{self.vocabulary.where}: token id {token_id}, expected 0 to {self.n_vocab - 1}")
        attrs, text = Attr(int(self.vocabulary.attrs[token_id])), self.vocabulary.texts[token_id]
        if attrs & (_SPECIAL | Attr.USER_DEFINED):
            return text.encode() if special or not attrs & _SPECIAL else b""
        if attrs & Attr.NORMAL:
            return self._normal_piece(text)
        return bytes([int(text[3:5], 16)]) if attrs & Attr.BYTE else b""

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of a whole sequence; bytes that are not UTF-8 become U+FFFD.

        The space that the tokenizer put in front of the text is taken off again. For a text that
        continues another, or that grows token by token, use `StreamDecoder`.
        """
        ids = ids[1:] if not special and ids and ids[0] == self.bos_id else ids
        data = b"".join(self.piece(token_id, special=special) for token_id in ids)
        if ids and self.adds_space and self.piece(ids[0], special=special).startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    @property
    def adds_space(self) -> bool:
        """Whether a space is put in front of a text before it is tokenized."""
        return False

    @abstractmethod
    def _encode_text(self, text: str, *, is_after_special: bool) -> list[int]:
        """Return the ids of text without special tokens; ``is_after_special`` at the start of a prompt too."""

    @abstractmethod
    def _normal_piece(self, text: str) -> bytes:
        """Return the bytes of an ordinary token's text."""


def _by_first(texts: list[str], token_ids: Iterable[int]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for token_id in token_ids:
        groups.setdefault(texts[token_id][0], []).append(token_id)
    return groups


def has_escaped_bytes(text: str) -> bool:
    """Return whether the text holds bytes that were not UTF-8 (as lone surrogates)."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def code_points(text: str) -> str:
    """Return text whose escaped bytes (``surrogateescape``) are read as llama.cpp's decoder reads them.

    It takes over-long forms and surrogates for what they spell; any other stray byte is U+FFFD.
    """
    if not has_escaped_bytes(text):
        return text
    data = raw_bytes(text)
    chars, i = [], 0
    while i < len(data):
        n = 1 if data[i] < 0x80 else 2 if data[i] & 0xE0 == 0xC0 else 3 if data[i] & 0xF0 == 0xE0 else 4
        tail = data[i + 1 : i + n]
        is_valid = len(tail) == n - 1 and all(byte & 0xC0 == 0x80 for byte in tail)
        if not is_valid or (n == 4 and data[i] & 0xF8 != 0xF0):
            chars.append("\ufffd")
            i += 1
            continue
        value = data[i] if n == 1 else data[i] & (0x7F >> n)
        for byte in tail:
            value = value << 6 | byte & 0x3F
        chars.append(chr(value) if value <= 0x10FFFF else "\ufffd")
        i += n
    return "".join(chars)


def raw_bytes(text: str) -> bytes:
    """Return the bytes of a text in which bytes that are not UTF-8 are escaped as lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that is not an escaped byte
        return b"".join(
            char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
            for char in text
        )
