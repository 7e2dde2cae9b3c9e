"""Unigram vocabularies (T5, XLM-RoBERTa): the tokens whose scores add up to the most.

Source: llama.cpp src/llama-vocab.cpp (`llm_tokenizer_ugm_session`), T. Kudo, Subword Regularization (2018).
"""

from __future__ import annotations

from bisect import bisect_left
from math import inf

import numpy as np

from ...formats.errors import FormatError
from ...formats.metadata import Metadata
from .base import Tokenizer, code_points, raw_bytes
from .charsmap import Charsmap
from .special_tokens import correct_token_types
from .vocabulary import Attr, Vocabulary

_SPACE = "▁"
_UNKNOWN_PENALTY = np.float32(10.0)


class UnigramTokenizer(Tokenizer):
    """Finds the most likely tokens of a text (Viterbi)."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        pieces: Pieces,
        charsmap: Charsmap,
        *,
        add_bos: bool,
        add_eos: bool,
        add_space_prefix: bool,
        merges_spaces: bool,
    ) -> None:
        """Take over the tables.

        Args:
            vocabulary: the tokens and their scores.
            pieces: the tokens that text can become.
            charsmap: replacements to make first.
            add_bos: whether a prompt begins with bos.
            add_eos: whether a prompt ends with eos.
            add_space_prefix: whether a text gets a space in front of its first word.
            merges_spaces: whether a run of spaces is one, and there is one in front of every word.

        Raises:
            FormatError: there is no unknown token.
        """
        super().__init__(vocabulary, add_bos=add_bos, add_eos=add_eos)
        if "unk" not in vocabulary.special:
            raise FormatError(f"{vocabulary.where}: a t5 tokenizer needs an unknown token")
        self._unknown = vocabulary.special["unk"]
        self._pieces = pieces
        self._charsmap = charsmap
        self._add_space_prefix = add_space_prefix
        self._merges_spaces = merges_spaces

    @classmethod
    def from_metadata(cls, vocabulary: Vocabulary, metadata: Metadata) -> UnigramTokenizer:
        """Read the settings and build; corrects the token types of ``vocabulary``.

        Raises:
            FormatError: a part is damaged.
        """
        key, charsmap = "tokenizer.ggml.precompiled_charsmap", b""
        if key in metadata:
            values = metadata.numbers(key)
            if values.dtype.itemsize != 1:
                raise FormatError(
                    f"{vocabulary.where}: metadata key {key} has type {metadata.type_name(key)}, expected bytes"
                )
            charsmap = values.tobytes()
        pieces = Pieces(vocabulary)  # with the types of the file: llama.cpp builds its own before it corrects them
        correct_token_types(vocabulary, metadata)
        return cls(
            vocabulary,
            pieces,
            Charsmap(charsmap, vocabulary.where),
            add_bos=metadata.optional("tokenizer.ggml.add_bos_token", bool, False),
            add_eos=metadata.optional("tokenizer.ggml.add_eos_token", bool, True),
            add_space_prefix=metadata.optional("tokenizer.ggml.add_space_prefix", bool, False),
            merges_spaces=metadata.optional("tokenizer.ggml.remove_extra_whitespaces", bool, False),
        )

    @property
    def adds_space(self) -> bool:
        """Whether a space is put in front of a text before it is tokenized."""
        return self._add_space_prefix

    def _encode_text(self, text: str, *, is_after_special: bool) -> list[int]:  # noqa: ARG002 - no space prefix
        text = self._normalized(raw_bytes(text))
        n_char = len(text)
        best = [-inf] * (n_char + 1)  # [n_char + 1], the highest sum of scores of a text that ends here
        best[0] = 0.0
        last: list[tuple[int, int]] = [(self._unknown, 0)] * (n_char + 1)  # its last token and where that begins
        for start in range(n_char):
            has_single = False
            for stop, token_id, score in self._pieces.at(text, start):
                has_single |= stop == start + 1
                if best[start] + score > best[stop]:
                    best[stop], last[stop] = best[start] + score, (token_id, start)
            if not has_single and best[start] + self._pieces.unknown_score > best[start + 1]:
                best[start + 1] = best[start] + self._pieces.unknown_score
                last[start + 1] = (self._unknown, start)
        ids: list[int] = []
        stop, was_unknown = n_char, False
        while stop > 0:
            token_id, stop = last[stop]
            if not (was_unknown and token_id == self._unknown):
                ids.append(token_id)
            was_unknown = token_id == self._unknown
        return ids[::-1]

    def _normalized(self, data: bytes) -> str:
        """Return the text with replacements made and spaces written as the vocabulary has them."""
        space = _SPACE.encode()
        out, in_word, has_space, at = bytearray(), False, False, 0
        while at < len(data):
            text, n_bytes = self._replace(data, at)
            for byte in text:
                if byte != 0x20:
                    if not in_word and ((self._add_space_prefix and not has_space) or self._merges_spaces):
                        out += space
                        has_space = True
                    in_word = True
                    out.append(byte)
                else:
                    in_word = False
                    if not self._merges_spaces:
                        out += space
            at += n_bytes
        return out.decode("utf-8", "surrogateescape")

    def _replace(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Return what the text at a byte becomes, and how many bytes that replaces."""
        n_kept = self._pieces.kept_prefix(data, at)
        if n_kept:
            return data[at : at + n_kept], n_kept
        replaced = self._charsmap.replace(data, at)
        if replaced is not None:
            return replaced
        n_bytes = 1 if data[at] < 0xC0 else 2 if data[at] < 0xE0 else 3 if data[at] < 0xF0 else 4
        char = data[at : at + n_bytes]
        if code_points(char.decode("utf-8", "surrogateescape"))[:1] == "\ufffd" and char != b"\xef\xbf\xbd":
            return b"\xef\xbf\xbd", 1
        return char, n_bytes

    def _normal_piece(self, text: str) -> bytes:
        return text.replace(_SPACE, " ").encode()


class Pieces:
    """The tokens that text can become, found by their prefix in a sorted list.

    A trie of Python objects would need a gigabyte for 250,000 tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Collect the normal, user-defined and unused tokens."""
        attrs = vocabulary.attrs
        usable = np.flatnonzero(attrs & (Attr.NORMAL | Attr.USER_DEFINED | Attr.UNUSED)).tolist()
        self._texts = sorted(vocabulary.texts[token_id] for token_id in usable)
        self._ids = vocabulary.ids
        scores = np.where(attrs & Attr.USER_DEFINED, np.float32(0), vocabulary.scores)  # [n_vocab]
        self._scores: list[float] = scores.tolist()
        normal = vocabulary.scores[(attrs & Attr.NORMAL) != 0]
        lowest = normal.min() if normal.size else np.finfo(np.float32).max
        self.unknown_score = float(np.float32(lowest) - _UNKNOWN_PENALTY)
        kept = np.flatnonzero(attrs & Attr.USER_DEFINED).tolist()
        self._kept = sorted(vocabulary.texts[token_id].encode() for token_id in kept)

    def at(self, text: str, start: int) -> list[tuple[int, int, float]]:
        """Return (stop, token id, score) of every piece that begins at ``start``, shortest first."""
        found, low, high, texts = [], 0, len(self._texts), self._texts
        for stop in range(start + 1, len(text) + 1):
            prefix = text[start:stop]
            low = bisect_left(texts, prefix, low, high)
            if low == high or not texts[low].startswith(prefix):
                break
            if texts[low] == prefix:
                token_id = self._ids[prefix]
                found.append((stop, token_id, self._scores[token_id]))
            if prefix[-1] < "\U0010ffff":
                high = bisect_left(texts, prefix[:-1] + chr(ord(prefix[-1]) + 1), low, high)
        return found

    def kept_prefix(self, data: bytes, start: int) -> int:
        """Return how many bytes at ``start`` begin a user-defined piece; llama.cpp leaves even a part of one alone."""
        if not self._kept:
            return 0
        longest, rest = 0, data[start : start + max(map(len, self._kept))]
        at = bisect_left(self._kept, rest)
        for piece in self._kept[max(at - 1, 0) : at + 1]:
            n_common = next((i for i, (a, b) in enumerate(zip(piece, rest, strict=False)) if a != b), None)
            longest = max(longest, min(len(piece), len(rest)) if n_common is None else n_common)
        return longest
