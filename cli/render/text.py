"""Text on its way to a terminal: control characters made harmless, numbers with units, colour.

Imports nothing heavy, so that an error line costs nothing. Everything that comes out of a file or
out of a model passes through ``printable`` or ``escaped`` before a terminal sees it.
"""

from __future__ import annotations

import os
import re
from typing import TextIO

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
# Control characters, and those that reorder or hide what stands beside them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SGR = {"dim": "2", "bold": "1", "red": "31"}


def printable(text: str) -> str:
    """Drop the control characters of generated text; tabs and newlines stay."""
    return _CONTROL.sub("", text)


def escaped(text: str) -> str:
    """Show text from a file on one line, with every character that a terminal would act on or hide as an escape."""
    return _HIDDEN.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def has_colour(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal that takes colour (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO) -> str:
    """Return ``text`` in ``style`` ("dim", "bold" or "red") if ``stream`` takes colour."""
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if has_colour(stream) else text


def size(n_bytes: float) -> str:
    """Return a number of bytes in decimal units: ``98.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.{0 if n_bytes >= 100 else 1}f} {unit}"


def count(n: int) -> str:
    """Return a number of parameters as people say it: ``135M``, ``1.5B``."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= limit:
            value = n / limit
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(n)
