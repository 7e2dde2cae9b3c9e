"""SentencePiece tokenizers of the byte-pair kind: tokenizer.model, or a tokenizer.json that was made from one.

Source: sentencepiece's ``sentencepiece_model.proto``; llama.cpp's ``_create_vocab_sentencepiece``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...formats.errors import FormatError, quote
from ...formats.hf_config import HfFolder, JsonObject
from .bpe import bpe_model, read_merges, vocabulary
from .tokens import TokenizerData, TokenTable, TokenType

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BPE = 2  # ModelProto.TrainerSpec.ModelType
# ModelProto.SentencePiece.Type -> tokenizer.ggml.token_type
_TYPES = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    4: TokenType.USER_DEFINED,
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}
_MAX_PIECES = 1 << 22


def convert_sentencepiece(folder: HfFolder, path: Path, raw: bytes, n_vocab: int) -> TokenizerData:
    """Return the tokenizer of a tokenizer.model, with the tokens that the JSON files add.

    Raises:
        FormatError: it is damaged, not of the byte-pair kind, or does not fit the embedding.
    """
    proto = parse_sentencepiece(path, raw)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != _BPE:
        raise FormatError(f"{path}: SentencePiece model of kind {trainer.model_type}, expected byte pairs ({_BPE})")
    table = TokenTable(n_vocab)
    _check_normalizer(table, path, normalizer)
    for token_id, piece in enumerate(proto.pieces):
        kind = _TYPES.get(piece.type)
        is_text = isinstance(piece.piece, str)  # protobuf gives bytes where they are no UTF-8
        is_byte = is_text and _BYTE.fullmatch(piece.piece) is not None
        if kind is None or not is_text or (kind is TokenType.BYTE and not is_byte) or piece.score != piece.score:
            raise FormatError(f"{path}: piece {token_id} ({quote(piece.piece)}) is damaged")
        table.put(str(path), token_id, piece.piece, kind, piece.score)
    table.add_all(folder)
    prefix = folder.tokenizer_config.optional("add_prefix_space", bool)
    prefix = bool(normalizer.add_dummy_prefix) if prefix is None else prefix
    data = TokenizerData.make(str(path), table, "llama", "default", None, add_space_prefix=prefix)
    data.special |= {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    return data


def parse_sentencepiece(path: Path, raw: bytes) -> Any:
    """Return the ``ModelProto`` of a file: parsed by protobuf alone, never by the sentencepiece library.

    Raises:
        FormatError: it is none.
    """
    from google.protobuf.message import DecodeError  # here: 60 ms, and only these models need it
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        raise FormatError(f"{path}: is no SentencePiece model") from None
    if not 1 <= len(proto.pieces) <= _MAX_PIECES:
        raise FormatError(f"{path}: is no SentencePiece model: it has {len(proto.pieces)} pieces")
    return proto


def _check_normalizer(table: TokenTable, path: Path, normalizer: Any) -> None:
    if normalizer.remove_extra_whitespaces:
        raise FormatError(f"{path}: removes extra spaces, which GGUF's SentencePiece tokenizers do not")
    if not normalizer.escape_whitespaces:
        raise FormatError(f"{path}: does not write spaces as ▁, which GGUF's SentencePiece tokenizers do")
    if normalizer.precompiled_charsmap:
        table.notes.append(f"the normalisation {quote(normalizer.name)} of texts is left out: engines do not apply it")


def is_sentencepiece_like(tokenizer: JsonObject) -> bool:
    """Return whether a tokenizer.json was made from a SentencePiece model: spaces as ▁, unknown bytes spelled."""
    model = tokenizer.object("model")
    return model is not None and model.optional("byte_fallback", bool) is True and "merges" in model


def convert_sentencepiece_like(folder: HfFolder, tokenizer: JsonObject, n_vocab: int) -> TokenizerData:
    """Return the tokenizer of a tokenizer.json that merges text with ▁ for spaces.

    Its merges are a list of pairs, GGUF's a score for each result: minus the number of the first pair that makes
    it. Both mean the same when all pairs that make a token follow each other, as they do in converted models.

    Raises:
        FormatError: the file is damaged, does not fit the embedding, or changes texts in another way.
    """
    model = bpe_model(tokenizer)
    table = TokenTable(n_vocab)
    prefix = _spaces(tokenizer, table.notes)
    unknown = model.optional("unk_token", str) or "<unk>"
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(read_merges(model, space="▁")):
        ranks.setdefault(left + right, rank)
    for text, token_id in vocabulary(model).items():
        kind = TokenType.NORMAL
        if text == unknown:
            kind = TokenType.UNKNOWN
        elif _BYTE.fullmatch(text):
            kind = TokenType.BYTE
        score = -float(ranks[text]) if text in ranks else -float(len(ranks))
        table.put(tokenizer.where, token_id, text, kind, 0.0 if kind is not TokenType.NORMAL else score)
    table.add_all(folder)
    return TokenizerData.make(tokenizer.where, table, "llama", "default", None, add_space_prefix=prefix)


def _spaces(tokenizer: JsonObject, notes: list[str]) -> bool:
    """Return whether a space goes in front of a text.

    Raises:
        FormatError: texts are changed in another way than by writing ▁ for spaces.
    """
    prefix, replaces = False, False
    for key, members in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        entry = tokenizer.object(key)
        if entry is None:
            continue
        listed = [JsonObject(entry.where, one) for one in entry.array(members, dict) or []]
        for one in listed if entry.optional("type", str) == "Sequence" else [entry]:
            kind = one.optional("type", str)
            if kind == "Prepend" and one.optional("prepend", str) == "▁":
                prefix = True
            elif kind == "Replace" and one.optional("content", str) == "▁" and _pattern(one) == " ":
                replaces = True
            elif kind == "Metaspace" and one.optional("replacement", str) in ("▁", None):
                replaces = True
                scheme = one.optional("prepend_scheme", str)
                prefix = scheme != "never" if scheme else one.optional("add_prefix_space", bool) is not False
                if prefix:
                    notes.append("GGUF's tokenizers put a space in front of texts that begin with one, too")
            elif not (kind == "Split" and _pattern(one) == " "):  # Gemma: spaces are gone by then
                raise FormatError(f"{one.where}: {quote(kind or '')} is not in GGUF's SentencePiece tokenizers")
    if not replaces:
        raise FormatError(
            f"{tokenizer.where}: does not write spaces as ▁, expected a tokenizer made from SentencePiece"
        )
    return prefix


def _pattern(entry: JsonObject) -> str | None:
    pattern = entry.object("pattern")
    return pattern.optional("String", str) if pattern is not None else None
