"""Where a command's input text comes from: the command line, a file, or standard input."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ..formats.errors import ConfigError
from .declare import UsageError

MAX_INPUT_BYTES = 256 * 1024 * 1024
_ESCAPE = re.compile(r"""\\(?:x([0-9A-Fa-f]{2})|([nrt'"\\]))""")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def read_text(path: Path, *, drop_last_newline: bool = True) -> str:
    """Return a file's text; one newline at its end is dropped, as llama.cpp does for ``-f``.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is larger than 256 MiB.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    text = decode(data, str(path))
    return text.removesuffix("\n") if drop_last_newline else text


def read_stdin(*, drop_last_newline: bool = True) -> str:
    """Return all of standard input as text; raises like ``read_text``."""
    text = decode(sys.stdin.buffer.read(MAX_INPUT_BYTES + 1), "standard input")
    return text.removesuffix("\n") if drop_last_newline else text


def decode(data: bytes, where: str) -> str:
    """Return UTF-8 bytes as text; a byte order mark at the start is dropped.

    Raises:
        ConfigError: the bytes are not UTF-8, or too many.
    """
    if len(data) > MAX_INPUT_BYTES:
        raise ConfigError(f"{where}: larger than {MAX_INPUT_BYTES >> 20} MiB")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text (byte {data[error.start]:#04x} at offset {error.start})") from None


def argument_text(text: str, where: str) -> str:
    """Return text from the command line.

    Bytes that the locale does not know arrive as lone surrogates; they may be UTF-8 all the same.

    Raises:
        ConfigError: they are not.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ConfigError(f"{where}: not UTF-8 text") from None


def unescape(text: str) -> str:
    r"""Replace ``\n \r \t \' \" \\`` and ``\xHH`` as llama.cpp's ``--escape`` does; anything else stays."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else _ESCAPED[match[2]], text)


def choose_text(text: str | None, file: Path | None, *, where: str) -> str:
    """Return the one text that was given: ``text``, the contents of ``file``, or standard input.

    ``text`` "-" means standard input, and so does neither ``text`` nor ``file`` when standard input
    is a pipe or a file.

    Raises:
        UsageError: both were given, or nothing was.
    """
    if text is not None and file is not None:
        raise UsageError("text and -f/--file exclude each other", hint=where)
    if file is not None and str(file) != "-":
        return read_text(file)
    if text is not None and text != "-":
        return argument_text(text, where)
    if text is None and file is None and sys.stdin.isatty():
        raise UsageError("nothing to read: give text, -f/--file FILE, or pipe it in", hint=where)
    return read_stdin()
