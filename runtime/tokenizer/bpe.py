"""Byte-pair tokenizers: GPT-2's byte alphabet (SmolLM2, Llama 3, Qwen) and plain text with ``▁`` (Gemma 4).

Words are split here (`split.py`). The merges run in the `tokenizers` library; or in `bpe_merge.py` for files and texts
that it cannot represent, and as long as texts are so short that building the library's tables would take longer.

Source: llama.cpp src/llama-vocab.cpp (`llm_tokenizer_bpe_session`).
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import groupby, repeat
from typing import Any, cast

from ...formats.metadata import Metadata
from .base import Tokenizer, code_points, has_escaped_bytes
from .bpe_merge import merge
from .pre_tokenizers import PreTokenizer
from .split import split
from .unicode_table import WHITESPACE, lower
from .vocabulary import Vocabulary

_SHOWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # bytes that GPT-2 writes as they are
_HIDDEN = tuple(byte for byte in range(0x100) if byte not in _SHOWN)  # the others, written from U+0100 on
BYTE_TO_CHAR = {byte: chr(byte) for byte in _SHOWN} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
WORDS_AT_ONCE = 10_000  # 20 ms in the library, which Ctrl-C does not interrupt
SHORT_TEXT = 2000  # characters, which take 5 to 20 ms
_SPACE_RUN = re.compile("[" + "".join(map(chr, sorted(WHITESPACE))) + "]+")


class BpeTokenizer(Tokenizer):
    """Merges pairs of neighbouring symbols within words, in the order of the file's list."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: list[str],
        pre: PreTokenizer,
        *,
        add_bos: bool,
        add_eos: bool,
        drops_space: bool = False,
        lowercases: bool = False,
    ) -> None:
        """Build the tables.

        Args:
            vocabulary: the tokens.
            merges: ``left right`` texts, most important first.
            pre: how text is split.
            add_bos: whether a prompt begins with bos.
            add_eos: whether a prompt ends with eos.
            drops_space: white space separates words and is not tokenized (tokenizer model ``whitespace``).
            lowercases: whether text is put into lower case first; only with ``drops_space``.
        """
        super().__init__(vocabulary, add_bos=add_bos, add_eos=add_eos)
        self._pre = pre
        self._merges = merges
        self._drops_space = drops_space
        self._lowercases = lowercases

    @classmethod
    def from_metadata(
        cls, vocabulary: Vocabulary, metadata: Metadata, pre: PreTokenizer, **settings: Any
    ) -> BpeTokenizer:
        """Read the merges and build.

        Raises:
            FormatError: there are none.
        """
        return cls(vocabulary, metadata.strings("tokenizer.ggml.merges").to_list(), pre, **settings)

    @cached_property
    def _library(self) -> Any | None:
        """The library's tokenizer, None where it would merge differently; built in 0.05 to 0.2 s."""
        ids, n_vocab, merges = self.vocabulary.ids, self.n_vocab, self._merges
        if self._pre.byte_level:  # a byte that is no token stands between its neighbours, and is dropped later
            missing = sorted(CHAR_TO_BYTE.keys() - ids.keys())
            ids = ids | {char: n_vocab + i for i, char in enumerate(missing)} if missing else ids
        elif not all(f"<0x{byte:02X}>" in ids for byte in range(0x100)):
            return None  # nothing to spell characters with that are no tokens
        if len(set(merges)) < len(merges):
            return None  # the library takes the last rank of a pair, llama.cpp the first
        from tokenizers import Tokenizer as Library  # 20 ms, and not needed to read a file's metadata
        from tokenizers import models, pre_tokenizers

        try:
            model = models.BPE(
                ids,
                _pairs(merges),
                ignore_merges=self._pre.ignore_merges,
                byte_fallback=not self._pre.byte_level,
            )
        except Exception:  # the library raises nothing narrower: the merge of something that is not a token
            return None
        library = Library(model)
        if self._pre.byte_level:
            library.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=False, trim_offsets=False
            )
        return library

    @cached_property
    def _has_missing_bytes(self) -> bool:
        return self._pre.byte_level and not CHAR_TO_BYTE.keys() <= self.vocabulary.ids.keys()

    @cached_property
    def _ranks(self) -> dict[str, int]:
        """The first rank of every merge, by its text in the file."""
        return dict(zip(reversed(self._merges), range(len(self._merges) - 1, -1, -1), strict=True))

    def _rank(self, left: str, right: str) -> int | None:
        # The first space after the first character separates the sides (``_pairs``).
        return None if " " in left[1:] else self._ranks.get(f"{left} {right}")

    def _encode_text(self, text: str, *, is_after_special: bool) -> list[int]:  # noqa: ARG002 - no space prefix
        text = code_points(text)
        if self._drops_space:
            text = "".join(map(lower, text)) if self._lowercases else text
            words = [word for word in _SPACE_RUN.split(text) if word]
            return self._encode_words(words)
        if self._pre.escape_spaces:
            text = text.replace(" ", "▁")
        words = split(text, self._pre.steps)
        if not self._pre.whole_newlines:
            return self._encode_words(words)
        ids: list[int] = []
        known = self.vocabulary.ids
        for is_newlines, group in groupby(words, lambda word: word in known and not word.strip("\n")):
            some_words = list(group)
            ids += [known[word] for word in some_words] if is_newlines else self._encode_words(some_words)
        return ids

    def _encode_words(self, words: list[str]) -> list[int]:
        is_plain = not any(map(has_escaped_bytes, words))
        if self._pre.ignore_merges and not self.control_texts.isdisjoint(words):
            is_plain = False  # the library would take a whole word for a control token
        if "_library" not in self.__dict__ and sum(map(len, words)) <= SHORT_TEXT:
            is_plain = False
        if not is_plain or self._library is None:
            return [token_id for word in words for token_id in self._encode_word(word)]
        ids: list[int] = []
        for start in range(0, len(words), WORDS_AT_ONCE):
            some_words = words[start : start + WORDS_AT_ONCE]
            encoded = self._library.encode_batch_fast([some_words], is_pretokenized=True, add_special_tokens=False)
            ids += encoded[0].ids
        return [i for i in ids if i < self.n_vocab] if self._has_missing_bytes else ids

    def _encode_word(self, word: str) -> list[int]:
        """Return the ids of one word as llama.cpp finds them, whatever the vocabulary lacks."""
        if self._pre.byte_level:
            word = "".join(map(BYTE_TO_CHAR.__getitem__, word.encode("utf-8", "surrogatepass")))
        known = self.vocabulary.ids
        if self._pre.ignore_merges and word in known and word not in self.control_texts:
            return [known[word]]
        ids = []
        for part in merge(word, self._rank):
            if part in known:
                ids.append(known[part])
            elif self._pre.byte_level:  # llama.cpp looks for its bytes, and drops what is not there
                ids += [known[char] for char in part if char.isascii() and char in known]
            else:
                spelled = (f"<0x{byte:02X}>" for byte in part.encode("utf-8", "surrogatepass"))
                ids += [known[text] for text in spelled if text in known]
        return ids

    def _normal_piece(self, text: str) -> bytes:
        if self._pre.escape_spaces:
            return text.replace("▁", " ").encode()
        try:
            return bytes([CHAR_TO_BYTE[char] for char in text])
        except KeyError:  # not in GPT-2's alphabet; llama.cpp shows it so
            return b"".join(
                bytes([CHAR_TO_BYTE[char]])
                if char in CHAR_TO_BYTE
                else f"[UNK_BYTE_0x{char.encode().hex()}{text}]".encode()
                for char in text
            )


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    """Return the two sides of every merge: the first space that is not its first character separates them."""
    pairs = list(map(tuple, map(str.split, merges, repeat(" "))))
    if set(map(len, pairs)) <= {2} and all(pair[0] for pair in pairs):  # the usual case, 0.05 s for 150,000
        return cast("list[tuple[str, str]]", pairs)
    ends = [text.find(" ", 1) for text in merges]
    return [(text[:end], text[end + 1 :]) if end > 0 else ("", "") for text, end in zip(merges, ends, strict=True)]
