"""JSON files from strangers: size, number of values, depth and doubled keys are checked.

``safetensors.py`` reads headers with it, ``hf_config.py`` the files beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .byte_file import ByteFile
from .errors import FormatError, quote

MAX_JSON_BYTES = 1 << 27  # tokenizer.json of a vocabulary of 262k takes 33 MB
MAX_JSON_VALUES = 1 << 23


class _DoubledKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DoubledKeyError(f"the key {quote(key)} is there twice")
            seen.add(key)
    return result


def parse_json(raw: bytes, where: str, *, max_values: int = MAX_JSON_VALUES) -> Any:
    """Return what a JSON text says.

    Args:
        raw: the text, UTF-8, with or without a byte order mark.
        where: for messages.
        max_values: most values, estimated from the text before anything is built (they take up to 100 bytes each).

    Raises:
        FormatError: it is not JSON, too large, nested too deeply, or an object has a key twice.
    """
    n_values = raw.count(b",") + raw.count(b":") + raw.count(b"[") + raw.count(b"{")
    if n_values > max_values:
        raise FormatError(f"{where}: holds about {n_values} JSON values, expected at most {max_values}")
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}: is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except _DoubledKeyError as error:
        raise FormatError(f"{where}: {error}") from None
    except RecursionError:
        raise FormatError(f"{where}: JSON is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise FormatError(f"{where}: is not JSON that can be read: {str(error).partition(';')[0]}") from None


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return what a JSON file says.

    Raises:
        FormatError: it cannot be read, or see ``parse_json``.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes), str(path))


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Return the bytes of a regular file that is not larger than it should be.

    Raises:
        FormatError: it is not readable, empty or too large.
    """
    file = ByteFile.open(path, use_mmap=False)
    try:
        if file.size > max_bytes:
            raise FormatError(f"{path}: has {file.size} bytes, expected at most {max_bytes}")
        return file.read(0, file.size)
    finally:
        file.close()
