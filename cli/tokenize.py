"""``llmrun tokenize`` and ``llmrun detokenize``: text to token ids and back, with a model's vocabulary."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..formats.errors import ConfigError
from .declare import Argument, Option, UsageError
from .imports import import_numpy
from .model_ref import resolve
from .options import Model
from .render.text import escaped, printable
from .text_input import choose_text, read_stdin

if TYPE_CHECKING:
    from ..runtime.tokenizer import Tokenizer

OverridePre = Annotated[
    str | None,
    Option(
        "--override-pre",
        metavar="NAME",
        help="Use this pre-tokenizer where the file names an unknown one.",
        show_default=False,
    ),
]


def tokenize(
    model: Model,
    text: Annotated[
        str | None,
        Argument(metavar="[TEXT|-]", help="The text; '-' or a pipe: standard input.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, Option("--file", "-f", metavar="FILE", help="Read the text from a file.", show_default=False)
    ] = None,
    no_bos: Annotated[bool, Option("--no-bos", help="Add no tokens at the start and the end.")] = False,
    parse_special: Annotated[
        bool, Option("--parse-special", help="Text such as <|im_end|> means the special token.")
    ] = False,
    ids_only: Annotated[bool, Option("--ids", help="Print only the token ids, as a list.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print a JSON object with token_ids and pieces.")] = False,
    override_pre: OverridePre = None,
) -> None:
    """Show the token ids of a text and the bytes that each stands for."""
    tokenizer = _load(model, override_pre)
    ids = tokenizer.encode(choose_text(text, file, where="TEXT"), add_special=not no_bos, parse_special=parse_special)
    if ids_only:
        print(json.dumps(ids))
        return
    pieces = [tokenizer.piece(token_id, special=True).decode("utf-8", "backslashreplace") for token_id in ids]
    if as_json:
        print(json.dumps({"token_ids": ids, "pieces": pieces}, ensure_ascii=False))
        return
    for token_id, piece in zip(ids, pieces, strict=True):
        print(f"{token_id:>7} -> '{escaped(piece)}'")


def detokenize(
    model: Model,
    token_ids: Annotated[
        list[str] | None,
        Argument(
            metavar="[ID...|-]",
            help="Token ids; '-' or a pipe: from standard input, JSON or plain.",
            show_default=False,
        ),
    ] = None,
    special: Annotated[bool, Option("--special", help="Show special tokens too.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print a JSON object with text.")] = False,
    override_pre: OverridePre = None,
) -> None:
    """Show the text that token ids stand for."""
    if not token_ids and sys.stdin.isatty():
        raise UsageError("nothing to read: give token ids or pipe them in", hint="ID")
    source = read_stdin() if not token_ids or token_ids == ["-"] else " ".join(token_ids)
    tokenizer = _load(model, override_pre)
    ids = _parse_ids(source, tokenizer.n_vocab)
    if as_json:
        print(json.dumps({"text": tokenizer.decode(ids, special=special)}, ensure_ascii=False))
    elif sys.stdout.isatty():
        print(printable(tokenizer.decode(ids, special=special)))
    else:  # the exact bytes, whether or not they are UTF-8
        sys.stdout.buffer.write(b"".join(tokenizer.piece(token_id, special=special) for token_id in ids) + b"\n")
        sys.stdout.buffer.flush()


def _load(model: str, override_pre: str | None) -> Tokenizer:
    import_numpy()  # here: --help must not pay for it
    from ..formats.gguf import GgufFile
    from ..runtime.tokenizer import load_tokenizer

    with GgufFile.open(resolve(model)) as file:
        return load_tokenizer(file.metadata, pre=override_pre)


def _parse_ids(text: str, n_vocab: int) -> list[int]:
    """Read ids with spaces or commas between them, in brackets or not.

    Raises:
        ConfigError: something else, or an id outside the vocabulary.
    """
    ids = []
    for word in re.split(r"[\s,]+", text.strip().removeprefix("[").removesuffix("]").strip()):
        if not word:
            continue
        if not re.fullmatch(r"[0-9]{1,9}", word):
            raise ConfigError(f"token ids: expected whole numbers, got {word[:40]!r}")
        if int(word) >= n_vocab:
            raise ConfigError(f"token id {word}: the vocabulary has {n_vocab} tokens")
        ids.append(int(word))
    return ids
