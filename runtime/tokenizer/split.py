r"""Split text into the words within which byte-pair merges happen, exactly as llama.cpp does.

llama.cpp replaces every code point outside ASCII by one character for its Unicode category and runs a
regular expression over that; the same is done here, because categories then come from one fixed table
and ``re`` needs no ``\p{...}``. A pre-tokenizer is a list of steps, each of which cuts the pieces that
the steps before it left; see `pre_tokenizers.py` for the list of each name.

Source: llama.cpp src/unicode.cpp (`unicode_regex_split` and its custom functions).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .unicode_table import N_CODE_POINT, WHITESPACE, categories

_NUMBER, _LETTER, _PUNCTUATION, _MARK, _SYMBOL = "\xd1", "\xd2", "\xd3", "\xd4", "\xd5"
_OTHER = "\xd0"
_HAN_LETTER, _HAN_OTHER = "\xd6", "\xd7"
_SPACE = "\x0b"  # stands for white space outside ASCII: \s of an ASCII expression matches it
_CLASS = {
    "N": _NUMBER + "0-9",
    "L": _LETTER + "A-Za-z",
    "P": _PUNCTUATION + r"!-#%-*,-/:-;?-@\[-\]_\{\}",
    "M": _MARK,
    "S": _SYMBOL + r"$+<->^`|~",
    "Han": _HAN_LETTER + _HAN_OTHER,
    "HanL": _HAN_LETTER,
    "Upper": _LETTER + "A-Z",  # a letter that is not a to z
    "Lower": _LETTER + "a-z",  # a letter that is not A to Z
}
_CLASS |= dict.fromkeys(("Lu", "Ll", "Lt", "Lm", "Lo"), _CLASS["L"])  # llama.cpp knows no finer category
_HAN = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBEF),
    (0x2F800, 0x2FA1F),
)
_SPACE_TABLE = dict.fromkeys((c for c in WHITESPACE if c > 0x7F), _SPACE)


@cache
def _stand_ins(with_han: bool) -> npt.NDArray[np.uint8]:
    """Return the character that stands for each code point, u8 ``[N_CODE_POINT]``."""
    table = np.full(N_CODE_POINT, ord(_OTHER), dtype=np.uint8)
    for letter in "NLPMS":
        table[categories() == ord(letter)] = ord(_CLASS[letter][0])
    if with_han:
        for first, last in _HAN:
            part = table[first : last + 1]
            part[:] = np.where(part == ord(_LETTER), ord(_HAN_LETTER), ord(_HAN_OTHER))
    table[[c for c in WHITESPACE if c > 0x7F]] = ord(_SPACE)
    table[:0x80] = np.arange(0x80)
    return table


class Views:
    """One text and its stand-ins; all have one character per code point, so positions agree."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _replaced(self, with_han: bool) -> str:
        if self.text.isascii():
            return self.text
        code_points = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), dtype="<u4")  # [n_char]
        stand_ins: bytes = _stand_ins(with_han)[code_points].tobytes()
        return stand_ins.decode("latin-1")

    @cached_property
    def by_category(self) -> str:
        """Every character outside ASCII replaced by its category."""
        return self._replaced(with_han=False)

    @cached_property
    def by_category_and_han(self) -> str:
        """The same with categories of their own for Chinese characters."""
        return self._replaced(with_han=True)

    @cached_property
    def ascii_spaces(self) -> str:
        """The text itself, white space outside ASCII replaced."""
        return self.text if self.text.isascii() else self.text.translate(_SPACE_TABLE)


class Step(Protocol):
    """One cut of the text."""

    def cuts(self, views: Views, start: int, stop: int) -> Iterator[int]:
        """Yield where to cut ``[start, stop)``, ascending, within ``start < cut <= stop``; ``stop`` may be missing."""


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    r"""Return the expression with every ``\p{...}`` written as characters and ranges."""
    parts, inside, i = [], False, 0
    while i < len(pattern):
        if pattern.startswith(r"\p{", i):
            close = pattern.index("}", i)
            members = _CLASS[pattern[i + 3 : close]]
            parts.append(members if inside else f"[{members}]")
            i = close + 1
            continue
        if pattern[i] == "\\":
            parts.append(pattern[i : i + 2])
            i += 2
            continue
        inside = (inside or pattern[i] == "[") and pattern[i] != "]"
        parts.append(pattern[i])
        i += 1
    return re.compile("".join(parts), re.ASCII)


class Regex:
    r"""Every match is a piece, and so is what lies between two matches.

    ``\s`` and ``\d`` are ASCII only; other white space has been replaced by a vertical tab. A
    lookahead ends at the end of the piece that is being cut, as it does in llama.cpp.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._view = "ascii_spaces"
        if r"\p{" in pattern:
            self._view = "by_category_and_han" if r"\p{Han" in pattern else "by_category"

    def cuts(self, views: Views, start: int, stop: int) -> Iterator[int]:
        """Yield the start and the end of every match."""
        done = start
        for match in _compile(self._pattern).finditer(getattr(views, self._view), start, stop):
            first, last = match.span()
            if first > done:
                yield first
            yield last
            done = last


class DigitGroups:
    """Cut a run of numbers into threes from its right, as llama.cpp's AFMoE function does.

    Text before a run stays with the first group of the run; the next step separates the two, but a
    lookahead of that step sees the digits.
    """

    def cuts(self, views: Views, start: int, stop: int) -> Iterator[int]:
        """Yield the end of every group."""
        for match in _compile(r"\p{N}+").finditer(views.by_category, start, stop):
            first, last = match.span()
            yield from range(first + ((last - first) % 3 or 3), last + 1, 3)


class DigitMarks:
    """Cut a run of ASCII digits wherever a multiple of three digits is left."""

    def cuts(self, views: Views, start: int, stop: int) -> Iterator[int]:
        """Yield the start of every group."""
        for match in _compile("[0-9]+").finditer(views.text, start, stop):
            first, last = match.span()
            yield from (cut for cut in range(first + (last - first) % 3, last, 3) if cut > start)


class TrailingSpace:
    r"""Cut off the white space at the end of a piece: ``\s+$`` in linear time."""

    def cuts(self, views: Views, start: int, stop: int) -> Iterator[int]:
        """Yield the start of the white space, if there is text before it."""
        text, first = views.ascii_spaces, stop
        while first > start and text[first - 1] in " \t\n\v\f\r":
            first -= 1
        if start < first < stop:
            yield first


def split(text: str, steps: Iterable[Step]) -> list[str]:
    """Return the pieces of ``text``; joined they are the text."""
    views, bounds = Views(text), [0, len(text)]  # pieces are [bounds[i], bounds[i + 1])
    for step in steps:
        new = [0]
        for start, stop in pairwise(bounds):
            new.extend(step.cuts(views, start, stop))
            if new[-1] != stop:
                new.append(stop)
        bounds = new
    return [text[start:stop] for start, stop in pairwise(bounds)]
