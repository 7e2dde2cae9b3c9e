"""Byte-level tokenizer.json files (GPT-2's alphabet): Llama 3, Qwen, SmolLM, Mistral Nemo, Phi-4."""

from __future__ import annotations

from ...formats.errors import FormatError, quote
from ...formats.hf_config import HfFolder, JsonObject
from .pre_names import pre_name
from .tokens import TokenizerData, TokenTable, TokenType

# How a text is normalised before it is tokenized: engines do not, and composed text is what people type.
_HARMLESS_NORMALIZERS = frozenset({"NFC"})
MAX_MERGES = 1 << 22


def convert_byte_level(folder: HfFolder, tokenizer: JsonObject, n_vocab: int, pre: str | None) -> TokenizerData:
    """Return a byte-level tokenizer.

    Args:
        folder: the checkpoint.
        tokenizer: its tokenizer.json.
        n_vocab: rows of the embedding.
        pre: name of the pre-tokenizer, None: the one that is recognised.

    Raises:
        FormatError: the file is damaged, does not fit the embedding, or does something that GGUF has no name for.
    """
    model = bpe_model(tokenizer)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.optional(key, str):
            raise FormatError(f"{model.where}: {quote(key)} is set, which GGUF does not have")
    _check_normalizer(tokenizer)
    pre = pre or pre_name(tokenizer, ignores_merges=model.optional("ignore_merges", bool) or False)
    table = TokenTable(n_vocab)
    for text, token_id in vocabulary(model).items():
        table.put(tokenizer.where, token_id, text, TokenType.NORMAL)
    table.add_all(folder)
    merges = [f"{left} {right}" for left, right in read_merges(model)]
    return TokenizerData.make(tokenizer.where, table, "gpt2", pre, merges)


def bpe_model(tokenizer: JsonObject) -> JsonObject:
    """Return the model of a tokenizer.json.

    Raises:
        FormatError: it is none of byte pairs.
    """
    model = tokenizer.object("model")
    if model is None:
        raise FormatError(f"{tokenizer.where}: 'model' is missing")
    kind = model.optional("type", str) or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise FormatError(f"{model.where}: tokenizer of type {quote(kind)} is not supported, expected BPE")
    return model


def vocabulary(model: JsonObject) -> dict[str, int]:
    """Return text -> id.

    Raises:
        FormatError: it is missing, an id is no count or there twice.
    """
    vocab = model.object("vocab")
    if vocab is None:
        raise FormatError(f"{model.where}: 'vocab' is missing")
    values: dict[str, int] = vocab.values
    if any(type(token_id) is not int for token_id in values.values()):
        text = next(text for text, token_id in values.items() if type(token_id) is not int)
        raise FormatError(f"{vocab.where}: the id of {quote(text)} is no integer")
    if len(set(values.values())) < len(values):
        seen: dict[int, str] = {}
        for text, token_id in values.items():
            if token_id in seen:
                raise FormatError(f"{vocab.where}: {quote(text)} and {quote(seen[token_id])} both have id {token_id}")
            seen[token_id] = text
    return values


def read_merges(model: JsonObject, space: str = "Ġ") -> list[tuple[str, str]]:
    """Return the pairs, most important first; spaces in them are written as GPT-2's alphabet does, or otherwise.

    Raises:
        FormatError: they are missing or no pairs of texts.
    """
    merges = model.values.get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise FormatError(f"{model.where}: 'merges' is no list of at most {MAX_MERGES} pairs")
    pairs = []
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(side, str) and side for side in pair):
            raise FormatError(f"{model.where}: 'merges'[{i}] is no pair of texts")
        pairs.append((pair[0].replace(" ", space), pair[1].replace(" ", space)))
    return pairs


def _check_normalizer(tokenizer: JsonObject) -> None:
    """Refuse what changes an ordinary text before it is tokenized."""
    entry = tokenizer.object("normalizer")
    if entry is None:
        return
    members = [JsonObject(entry.where, one) for one in entry.array("normalizers", dict) or []]
    for one in members if entry.optional("type", str) == "Sequence" else [entry]:
        kind = one.optional("type", str) or ""
        if kind not in _HARMLESS_NORMALIZERS:
            raise FormatError(f"{tokenizer.where}: normalizer {quote(kind)} is not in GGUF's byte-level tokenizers")
