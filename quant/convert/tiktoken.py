"""Tokenizers that list only byte sequences by rank: tiktoken's text files and Mistral's tekken.json.

Neither has merges; they follow from the ranks. A token's merge joins the two parts into which the tokens of lower
rank merge its bytes.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from ...formats.errors import FormatError, quote
from ...formats.hf_config import HfFolder, JsonObject
from .pre_names import pre_name_of_pattern
from .tokens import TokenizerData, TokenTable, TokenType

MAX_TOKENS = 1 << 20
_MAX_BYTES = 1 << 10  # of a token: its merge takes the square of that

_SHOWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # bytes that GPT-2 writes as they are
_HIDDEN = tuple(byte for byte in range(0x100) if byte not in _SHOWN)
_CHARS = {byte: chr(byte) for byte in _SHOWN} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
# A tiktoken file does not say how texts are cut; these architectures have only ever had one way.
_PRE_OF_ARCH = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}

Ranks = dict[bytes, int]


def shown(piece: bytes) -> str:
    """Return bytes in GPT-2's alphabet."""
    return "".join(map(_CHARS.__getitem__, piece))


def is_tiktoken(raw: bytes) -> bool:
    """Return whether a file looks like tiktoken's: a base64 text, a space and a number in the first line."""
    first = raw[:512].split(b"\n", 1)[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit() and _decoded(first[0]) is not None


def _decoded(text: bytes | str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def convert_tiktoken(
    folder: HfFolder, path: Path, raw: bytes, n_vocab: int, arch: str, pre: str | None
) -> TokenizerData:
    """Return the tokenizer of a tiktoken file.

    Raises:
        FormatError: it is damaged, does not fit the embedding, or nobody knows how it cuts texts.
    """
    ranks: Ranks = {}
    for number, line in enumerate(raw.splitlines()):
        piece, _, rank = line.partition(b" ")
        decoded = _decoded(piece)
        if not line.strip():
            continue
        if not decoded or not rank.strip().isdigit() or len(rank) > 9 or len(ranks) >= MAX_TOKENS:
            raise FormatError(f"{path}: line {number + 1} is no token of a tiktoken file")
        if len(decoded) > _MAX_BYTES or decoded in ranks:
            raise FormatError(f"{path}: line {number + 1} repeats a token, or has one of {len(decoded)} bytes")
        ranks[decoded] = int(rank)
    pre = pre or _PRE_OF_ARCH.get(arch)
    if pre is None:
        raise FormatError(f"{path}: does not say how texts are cut. Give the name with --tokenizer-pre")
    table = TokenTable(n_vocab)
    for known, token_id in ranks.items():
        table.put(str(path), token_id, shown(known), TokenType.NORMAL)
    table.add_all(folder)
    return TokenizerData.make(str(path), table, "gpt2", pre, merges_of(ranks, str(path)))


def convert_tekken(tekken: JsonObject, n_vocab: int, pre: str | None) -> TokenizerData:
    """Return the tokenizer of a tekken.json: special tokens first, then the ranked ones.

    Raises:
        FormatError: it is damaged or does not fit the embedding.
    """
    config = tekken.object("config")
    vocab = tekken.array("vocab", dict)
    if config is None or vocab is None:
        raise FormatError(f"{tekken.where}: has no 'config' or no 'vocab'")
    n_special = config.required("default_num_special_tokens", int)
    n_ranked = min(config.required("default_vocab_size", int), n_vocab) - n_special
    if not 0 <= n_special < n_vocab or not 0 < n_ranked <= len(vocab):
        raise FormatError(
            f"{tekken.where}: {n_special} special tokens and {len(vocab)} others do not fit {n_vocab} rows"
        )
    table = TokenTable(n_vocab)
    for i in range(n_special):
        table.put(tekken.where, i, f"<SPECIAL_{i}>", TokenType.CONTROL)
    for entry in tekken.array("special_tokens", dict) or []:
        one = JsonObject(tekken.where, entry)
        if 0 <= one.required("rank", int) < n_special:
            table.put(tekken.where, one.required("rank", int), one.required("token_str", str), TokenType.CONTROL)
    ranks: Ranks = {}
    for i, entry in enumerate(vocab[:n_ranked]):
        one = JsonObject(f"{tekken.where}: 'vocab'[{i}]", entry)
        piece = _decoded(one.required("token_bytes", str).encode("ascii", "replace"))
        if not piece or len(piece) > _MAX_BYTES or one.required("rank", int) != i or piece in ranks:
            raise FormatError(f"{one.where}: is no new token of rank {i}")
        ranks[piece] = i
        table.put(one.where, n_special + i, shown(piece), TokenType.NORMAL)
    pre = pre or pre_name_of_pattern(config.required("pattern", str), tekken.where)
    return TokenizerData.make(tekken.where, table, "gpt2", pre, merges_of(ranks, tekken.where))


def merges_of(ranks: Ranks, where: str) -> list[str]:
    """Return the merges in the order of their tokens.

    Raises:
        FormatError: a token cannot be made of tokens of lower rank.
    """
    merges = []
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(piece) == 1:
            continue
        parts = _merge_below(piece, ranks, rank)
        if len(parts) != 2:
            raise FormatError(f"{where}: token {quote(shown(piece))} of rank {rank} does not follow from lower ones")
        merges.append(f"{shown(parts[0])} {shown(parts[1])}")
    return merges


def _merge_below(piece: bytes, ranks: Ranks, limit: int) -> list[bytes]:
    """Return the parts into which tokens of rank below ``limit`` merge a byte sequence."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        joined = [ranks.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
        best = min(joined)
        if best >= limit:
            break
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
