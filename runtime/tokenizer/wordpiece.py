"""WordPiece (BERT and its kin): words are normalised, then spelled with the longest tokens that fit.

Source: llama.cpp src/llama-vocab.cpp (`llm_tokenizer_wpm_session`); GGUF writes the start of a word as ``▁``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...formats.errors import FormatError
from ...formats.metadata import Metadata
from .base import Fragment, Tokenizer, code_points
from .unicode_table import WHITESPACE, base_character, category, lower
from .vocabulary import Vocabulary

_WORD_START = "▁"
# As in Hugging Face's tokenizers; the block from U+2B820 to U+2B91F is missing there, so it is here.
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPieceTokenizer(Tokenizer):
    """Spells every word with the longest tokens from its left; a word that cannot be spelled is unknown."""

    def __init__(
        self, vocabulary: Vocabulary, *, add_bos: bool, add_eos: bool, lowercases: bool, strips_accents: bool
    ) -> None:
        """Take over the vocabulary.

        Args:
            vocabulary: the tokens; ``bos`` and ``sep`` enclose a prompt.
            add_bos: kept for callers who ask; llama.cpp always encloses.
            add_eos: likewise.
            lowercases: whether text is put into lower case.
            strips_accents: whether a letter loses its accents.

        Raises:
            FormatError: there is no bos, sep or unknown token.
        """
        super().__init__(vocabulary, add_bos=add_bos, add_eos=add_eos)
        for name in ("bos", "sep", "unk"):
            if name not in vocabulary.special:
                raise FormatError(f"{vocabulary.where}: a bert tokenizer needs a {name} token")
        self._lowercases = lowercases
        self._strips_accents = strips_accents
        self._longest = max(len(text.encode()) for text in vocabulary.texts) + 1  # bytes

    @classmethod
    def from_metadata(cls, vocabulary: Vocabulary, metadata: Metadata) -> WordPieceTokenizer:
        """Read the settings and build."""
        lowercases = metadata.optional("tokenizer.ggml.normalizer.lowercase", bool, True)
        return cls(
            vocabulary,
            add_bos=metadata.optional("tokenizer.ggml.add_bos_token", bool, True),
            add_eos=False,
            lowercases=lowercases,
            strips_accents=metadata.optional("tokenizer.ggml.normalizer.strip_accents", bool, lowercases),
        )

    def encode_fragments(self, fragments: Iterable[Fragment], *, add_special: bool) -> list[int]:
        """Return the ids of a text that ``partition`` has cut, enclosed by bos and sep if wanted."""
        ids = super().encode_fragments(fragments, add_special=False)
        return [self.vocabulary.special["bos"], *ids, self.vocabulary.special["sep"]] if add_special else ids

    def _encode_text(self, text: str, *, is_after_special: bool) -> list[int]:  # noqa: ARG002 - no space prefix
        ids: list[int] = []
        for word in self._words(code_points(text)):
            ids += self._spell(_WORD_START + word) or [self.vocabulary.special["unk"]]
        return ids

    def _spell(self, word: str) -> list[int]:
        """Return the tokens of a word, none if it cannot be spelled."""
        known, ids, start = self.vocabulary.ids, [], 0
        while start < len(word):
            for stop in range(min(len(word), start + self._longest), start, -1):
                token_id = known.get(word[start:stop])
                if token_id is not None:
                    ids.append(token_id)
                    start = stop
                    break
            else:
                return []
        return ids

    def _words(self, text: str) -> list[str]:
        """Return the words; punctuation and Chinese characters are words of their own."""
        if self._strips_accents:
            text = "".join(map(base_character, text))
        words = [""]
        for char in text:
            if ord(char) in WHITESPACE:
                words.append("")
                continue
            kind = category(char)
            if char in "\0\ufffd" or kind == "C" or (kind == "M" and self._strips_accents):
                continue
            written = lower(char) if self._lowercases else char
            if kind == "P" or (kind == "S" and char < "\x7f") or _is_chinese(char):
                words += [written, ""]
            else:
                words[-1] += written
        return [word for word in words if word]

    def _normal_piece(self, text: str) -> bytes:
        return text.replace(_WORD_START, " ").encode()


def _is_chinese(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _CHINESE)
