"""The vocabulary of a GGUF file: texts, types, scores and special ids, checked before anything uses them.

This module reads and checks; `special_tokens.py` applies the corrections that llama.cpp makes at load
time, and the tokenizers themselves are in `bpe.py`, `spm.py`, `unigram.py` and `wordpiece.py`.

Source: llama.cpp src/llama-vocab.cpp (`llama_vocab::impl::load`) for names, defaults and types.
"""

from __future__ import annotations

import re
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from ...formats.errors import FormatError, quote
from ...formats.metadata import Metadata
from ...formats.record import Record, field

MAX_TOKEN_BYTES = 1 << 16
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>\Z")


class Attr(IntFlag):
    """What a token is; a token can be several, such as a control token that is unused."""

    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32
    LSTRIP = 64  # white space on its left belongs to it when it is parsed
    RSTRIP = 128  # white space on its right belongs to it when it is parsed


# tokenizer.ggml.token_type 0 to 6: undefined, normal, unknown, control, user-defined, unused, byte
_ATTR_OF_TYPE = np.array(
    [0, Attr.NORMAL, Attr.UNKNOWN, Attr.CONTROL, Attr.USER_DEFINED, Attr.UNUSED, Attr.BYTE], dtype=np.uint8
)

# name -> (keys, the last one wins; id that llama.cpp assumes without a key, by tokenizer model)
_SPECIAL_KEYS: dict[str, tuple[str, ...]] = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),  # spelled so in GGUF
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}
_DEFAULT_SPECIAL: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "whitespace": {"bos": 11, "eos": 11},
    "gemma4": {},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}
# A wrong id of these would end up in a prompt or end a generation; a wrong one of the others is never used.
_STRICT = frozenset({"bos", "eos", "eot", "eom", "unk", "sep"})


class Vocabulary(Record, frozen=False):
    """A checked vocabulary.

    Attributes:
        where: the file, for messages.
        model: ``tokenizer.ggml.model``: ``gpt2``, ``whitespace``, ``gemma4``, ``llama``, ``t5`` or ``bert``.
        texts: text of every token, as it is in the file.
        ids: token id of every text.
        attrs: `Attr` bits, u8 ``[n_vocab]``.
        scores: f32 ``[n_vocab]``; zeros when the file has none.
        special: id of ``bos``, ``eos``, ``eot``, ... where the model has one.
        stated: names of ``special`` whose id the file states (the others are llama.cpp's defaults).
        eog_ids: tokens that end a generation; `special_tokens.py` fills it.
    """

    where: str
    model: str
    texts: list[str]
    ids: dict[str, int]
    attrs: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    special: dict[str, int]
    stated: frozenset[str]
    eog_ids: frozenset[int] = field(default_factory=frozenset)

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self.texts)

    def has(self, token_id: int, attr: Attr) -> bool:
        """Return whether the token has one of the attributes."""
        return bool(self.attrs[token_id] & attr)

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Vocabulary:
        """Read and check the vocabulary.

        Raises:
            FormatError: a part is missing, has another type or count than it should, or contradicts another.
        """
        where = str(metadata.path)
        model = metadata.required("tokenizer.ggml.model", str)
        if model not in _DEFAULT_SPECIAL:
            supported = ", ".join(_DEFAULT_SPECIAL)
            raise FormatError(f"{where}: tokenizer model {quote(model)} is not supported. Supported are: {supported}")
        texts, ids = _read_texts(metadata, where)
        attrs = _read_attrs(metadata, where, texts)
        special, stated = _read_special(metadata, where, model, len(texts))
        scores = _read_scores(metadata, where, model, len(texts))
        return cls(where, model, texts, ids, attrs, scores, special, stated)


def _read_texts(metadata: Metadata, where: str) -> tuple[list[str], dict[str, int]]:
    array = metadata.strings("tokenizer.ggml.tokens")
    if len(array) == 0:
        raise FormatError(f"{where}: the vocabulary is empty")
    longest = int(array.lengths.argmax())
    if array.lengths[longest] > MAX_TOKEN_BYTES:
        n_bytes = int(array.lengths[longest])
        raise FormatError(f"{where}: token {longest} has {n_bytes} bytes, expected at most {MAX_TOKEN_BYTES}")
    texts = array.to_list()
    if not array.lengths.all():  # llama.cpp's name for an empty token
        texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
    ids = dict(zip(texts, range(len(texts)), strict=True))
    if len(ids) < len(texts):
        twice = next(i for i, text in enumerate(texts) if ids[text] != i)
        other = ids[texts[twice]]
        raise FormatError(f"{where}: tokens {twice} and {other} have the same text {quote(texts[twice])}")
    return texts, ids


def _checked_numbers(metadata: Metadata, where: str, key: str, dtype: str, n_vocab: int) -> npt.NDArray[Any]:
    values = metadata.numbers(key)
    if values.dtype != np.dtype(dtype):
        raise FormatError(
            f"{where}: metadata key {key} has elements of type {values.dtype}, expected {np.dtype(dtype)}"
        )
    if len(values) != n_vocab:
        raise FormatError(f"{where}: metadata key {key} has {len(values)} elements, expected {n_vocab}, one per token")
    return values


def _read_attrs(metadata: Metadata, where: str, texts: list[str]) -> npt.NDArray[np.uint8]:
    key = "tokenizer.ggml.token_type"
    if key not in metadata:
        return np.full(len(texts), int(Attr.NORMAL), dtype=np.uint8)
    types = _checked_numbers(metadata, where, key, "<i4", len(texts))
    attrs = _ATTR_OF_TYPE[np.where((types >= 0) & (types < len(_ATTR_OF_TYPE)), types, 0)]  # [n_vocab]
    for token_id in np.flatnonzero(attrs == Attr.BYTE).tolist():
        if not BYTE_TOKEN.match(texts[token_id]):
            text = quote(texts[token_id])
            raise FormatError(f"{where}: byte token {token_id} is {text}, expected <0x00> to <0xFF>")
    return attrs


def _read_scores(metadata: Metadata, where: str, model: str, n_vocab: int) -> npt.NDArray[np.float32]:
    key = "tokenizer.ggml.scores"
    if key not in metadata:
        if model in {"llama", "t5"}:
            raise FormatError(f"{where}: metadata key {key} is missing, tokenizer model {model} needs it")
        return np.zeros(n_vocab, dtype=np.float32)
    scores = _checked_numbers(metadata, where, key, "<f4", n_vocab)
    if np.isnan(scores).any():
        token_id = int(np.isnan(scores).argmax())
        raise FormatError(f"{where}: the score of token {token_id} is not a number")
    return scores


def _read_special(metadata: Metadata, where: str, model: str, n_vocab: int) -> tuple[dict[str, int], frozenset[str]]:
    special = {name: i for name, i in _DEFAULT_SPECIAL[model].items() if i < n_vocab}
    stated = set()
    for name, suffixes in _SPECIAL_KEYS.items():
        for suffix in suffixes:
            key = f"tokenizer.ggml.{suffix}"
            if key not in metadata:
                continue
            token_id = metadata.required(key, int)
            if 0 <= token_id < n_vocab:
                special[name] = token_id
                stated.add(name)
            elif name in _STRICT:
                raise FormatError(f"{where}: metadata key {key} is {token_id}, expected a token id below {n_vocab}")
    return special, frozenset(stated)
