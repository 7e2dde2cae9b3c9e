"""The list of tokens of a GGUF file, filled from whatever files a checkpoint has for its tokenizer."""

from __future__ import annotations

from enum import IntEnum

from ...formats.errors import FormatError, quote
from ...formats.hf_config import HfFolder, JsonObject
from ...formats.meta_value import MetaValue
from ...formats.metadata import ValueType
from ...formats.record import Record, field

MAX_TOKEN_BYTES = 1 << 16
_ADDED_SCORE = -1000.0
_PADDING_SCORE = -10000.0
# Texts that converters take for control tokens although the checkpoint's files call them ordinary.
_LOOKS_SPECIAL = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
_BRACKETS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))  # noqa: RUF001


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class TokenTable:
    """One entry for every row of the embedding.

    Attributes:
        n_vocab: rows of the embedding.
        texts: None where no file has said anything.
        notes: what was left out.
    """

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.texts: list[str | None] = [None] * n_vocab
        self.types = [int(TokenType.UNUSED)] * n_vocab
        self.scores = [_PADDING_SCORE] * n_vocab
        self.notes: list[str] = []

    def put(self, where: str, token_id: int, text: str, kind: TokenType, score: float = 0.0) -> None:
        """Set one token of the vocabulary proper.

        Raises:
            FormatError: its id has no row in the embedding, or its text is no text.
        """
        if not 0 <= token_id < self.n_vocab:
            raise FormatError(
                f"{where}: token {quote(text)} has id {token_id}, but the embedding has {self.n_vocab} rows. "
                "The tokenizer is not this model's"
            )
        _check_text(where, token_id, text)
        self.texts[token_id], self.types[token_id], self.scores[token_id] = text, int(kind), score

    def add(self, where: str, token_id: int, text: str, *, is_special: bool) -> None:
        """Set a token that was added to the vocabulary later; without a row in the embedding it is left out.

        Raises:
            FormatError: its text is no text, or its id is negative.
        """
        if token_id < 0:
            raise FormatError(f"{where}: token {quote(text)} has id {token_id}")
        if token_id >= self.n_vocab:
            self.notes.append(f"token {quote(text)} is left out: its id {token_id} has no row in the embedding")
            return
        is_control = is_special or _looks_special(text)
        if not is_control:
            text = text.replace("▁", " ")  # GGUF has these as they stand in a text
        _check_text(where, token_id, text)
        self.texts[token_id], self.scores[token_id] = text, _ADDED_SCORE
        if self.types[token_id] != TokenType.UNKNOWN:
            self.types[token_id] = int(TokenType.CONTROL if is_control else TokenType.USER_DEFINED)

    def add_all(self, folder: HfFolder) -> None:
        """Set the added tokens of all files that list some; the more explicit file wins.

        Raises:
            FormatError: a file is damaged.
        """
        for text in folder.added_tokens.values:
            self.add(folder.added_tokens.where, folder.added_tokens.required(text, int), text, is_special=False)
        listed = folder.tokenizer_config.object("added_tokens_decoder")
        for key in listed.values if listed is not None else ():
            assert listed is not None
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise FormatError(f"{listed.where}: {quote(key)} is no token id")
            entry = listed.object(key)
            if entry is not None:
                self._add_entry(entry, int(key))
        for entry in added_entries(folder.tokenizer):
            self._add_entry(entry, entry.required("id", int))

    def _add_entry(self, entry: JsonObject, token_id: int) -> None:
        is_special = entry.optional("special", bool) or False
        self.add(entry.where, token_id, entry.required("content", str), is_special=is_special)

    def finish(self, where: str) -> list[str]:
        """Return all texts: rows without a token are named, of two tokens with one text the later one keeps it.

        Raises:
            FormatError: most rows have no token.
        """
        n_named = sum(text is not None for text in self.texts)
        if 2 * n_named < self.n_vocab:
            raise FormatError(
                f"{where}: {n_named} tokens for an embedding of {self.n_vocab} rows. The tokenizer is not this model's"
            )
        seen: set[str] = set()
        result: list[str] = []
        for token_id in reversed(range(self.n_vocab)):
            text = self.texts[token_id]
            if text is None or text in seen:
                if text is not None:
                    self.notes.append(f"token {token_id} has the text {quote(text)} of a later one, and is left out")
                    self.types[token_id] = int(TokenType.UNUSED)
                text = f"[PAD{token_id}]"
            seen.add(text)
            result.append(text)
        result.reverse()
        return result


def added_entries(tokenizer: JsonObject | None) -> list[JsonObject]:
    """Return the ``added_tokens`` of tokenizer.json."""
    if tokenizer is None:
        return []
    entries = tokenizer.array("added_tokens", dict) or []
    return [JsonObject(f"{tokenizer.where}: 'added_tokens'[{i}]", entry) for i, entry in enumerate(entries)]


def _check_text(where: str, token_id: int, text: str) -> None:
    try:
        n_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise FormatError(f"{where}: token {token_id} is no valid text: {quote(text)}") from None
    if n_bytes > MAX_TOKEN_BYTES:
        raise FormatError(f"{where}: token {token_id} has {n_bytes} bytes, expected at most {MAX_TOKEN_BYTES}")


def _looks_special(text: str) -> bool:
    return text in _LOOKS_SPECIAL or any(text.startswith(a) and text.endswith(b) for a, b in _BRACKETS)


class TokenizerData(Record, kw_only=True, frozen=False):
    """A tokenizer as GGUF has it.

    Attributes:
        metadata: ``tokenizer.*`` keys.
        notes: what was left out.
        special: ids of ``bos``, ``eos``, ``unk`` and ``pad`` that hold where no JSON file names one; -1: none.
    """

    metadata: dict[str, MetaValue]
    notes: list[str]
    special: dict[str, int] = field(default_factory=dict)

    @classmethod
    def make(
        cls, where: str, table: TokenTable, model: str, pre: str, merges: list[str] | None, **flags: bool | None
    ) -> TokenizerData:
        """Return the keys of a vocabulary.

        Args:
            where: for messages.
            table: the tokens.
            model: ``gpt2`` or ``llama``.
            pre: name of the pre-tokenizer.
            merges: of byte-level tokenizers; others have scores.
            flags: further keys, left out where None.

        Raises:
            FormatError: most rows of the embedding have no token.
        """
        texts = table.finish(where)
        metadata: dict[str, MetaValue] = {
            "tokenizer.ggml.model": MetaValue.text(model),
            "tokenizer.ggml.pre": MetaValue.text(pre),
            "tokenizer.ggml.tokens": MetaValue.texts(texts),
        }
        if merges is None:
            metadata["tokenizer.ggml.scores"] = MetaValue.numbers(ValueType.F32, table.scores)
        metadata["tokenizer.ggml.token_type"] = MetaValue.numbers(ValueType.I32, table.types)
        if merges is not None:
            metadata["tokenizer.ggml.merges"] = MetaValue.texts(merges)
        for key, value in flags.items():
            if value is not None:
                metadata[f"tokenizer.ggml.{key}"] = MetaValue.boolean(value)
        return cls(metadata=metadata, notes=table.notes)
