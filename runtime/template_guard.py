"""Keeps what users write from becoming control tokens, whatever a chat template does with it.

`chat_template.py` hides characters here before it renders, and shows them again when the control tokens that
the template wrote have been cut out.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_STAND_INS = 0x100000  # plane 16, private use: no vocabulary and no font has it
_MAX_LITERAL = 64  # characters of a text that a template looks for in a message
_MAX_LITERALS = 256


class Marks:
    """The characters in messages that could make control tokens, for one vocabulary and template.

    Control tokens begin and end with characters such as ``<`` and ``]``. In what a user writes these are
    replaced by private characters, one for one, before the template sees it, and put back when the control
    tokens that the template wrote have been found. Texts that the template itself may look for, such as
    ``</think>``, stay as they are, unless they could be a part of a control token.
    """

    def __init__(self, control_texts: Iterable[str], literals: Iterable[str]) -> None:
        controls = sorted(text for text in control_texts if text.strip())
        edges = {char for text in controls for char in (text[0], text[-1]) if not char.isalnum() and not char.isspace()}
        self._controls = controls
        self._backwards = sorted(text[::-1] for text in controls)
        self._longest = max(map(len, controls), default=0)
        self._edges = sorted(edges)
        self._words = [text for text in controls if not edges & {text[0], text[-1]}]
        candidates = [text for text in dict.fromkeys(literals) if 1 < len(text) <= _MAX_LITERAL and edges & set(text)]
        kept = [text for text in candidates[:_MAX_LITERALS] if not self._could_join(text)]
        kept.sort(key=len, reverse=True)
        self._kept = re.compile("(" + "|".join(map(re.escape, kept)) + ")") if kept else None

    def guard(self, values: Any) -> Guard:
        """Return what hides and shows these characters in texts that contain none of its private characters."""
        used = set().union(*map(set, texts_within(values)))
        free = (chr(code) for code in range(_STAND_INS, 0x10FFFE) if chr(code) not in used)
        return Guard({char: next(free) for char in self._edges}, {text: next(free) for text in self._words}, self._kept)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where a text spells control tokens, or could begin or end one together with what is beside it."""
        found = [
            match.span(1) for control in self._controls if control in text for match in _overlapping(control, text)
        ]
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())
        for n_char in range(1, min(self._longest, last - first) + 1):
            if _begins_one(self._controls, text[last - n_char : last]):
                found.append((last - n_char, last))
            if _begins_one(self._backwards, text[first : first + n_char][::-1]):
                found.append((first, first + n_char))
        return found

    def _could_join(self, text: str) -> bool:
        """Return whether a control token could begin or end within a text, or lies in it."""
        return any(
            _begins_one(self._controls, text[i:]) or _begins_one(self._backwards, text[i::-1]) for i in range(len(text))
        ) or any(control in text for control in self._controls)


def _begins_one(ordered: list[str], text: str) -> bool:
    """Return whether one of the sorted texts begins with ``text``."""
    i = bisect_left(ordered, text)
    return i < len(ordered) and ordered[i].startswith(text)


def _overlapping(part: str, text: str) -> Iterator[re.Match[str]]:
    return re.finditer(f"(?=({re.escape(part)}))", text)


class Guard:
    """Hides the characters that `Marks` found, and shows them again."""

    def __init__(self, edges: dict[str, str], words: dict[str, str], kept: re.Pattern[str] | None) -> None:
        self._hidden = str.maketrans(edges)
        self._words = {text: stand_in + text[1:] for text, stand_in in words.items()}
        shown = {stand_in: char for char, stand_in in edges.items()} | {s: text[0] for text, s in words.items()}
        self._shown = str.maketrans(shown)
        self._escaped = {json.dumps(stand_in)[1:-1]: char for stand_in, char in shown.items()}
        self._kept = kept

    def hide(self, value: Any, spans: Callable[[str], list[tuple[int, int]]] | None = None) -> Any:
        """Return a value of the messages with its texts made harmless.

        Args:
            value: a text, or JSON of texts.
            spans: finds where to hide characters; everywhere, if it is None.
        """
        if isinstance(value, str):
            return self._hide_text(value) if spans is None else self._hide_spans(value, spans(value))
        if isinstance(value, Mapping):
            return {self.hide(key, spans): self.hide(item, spans) for key, item in value.items()}
        return [self.hide(item, spans) for item in value] if isinstance(value, list | tuple) else value

    def show(self, text: str) -> str:
        r"""Return the text with the characters put back, even those that JSON wrote as ``\udbc0\udc00``."""
        if "\\udb" in text:
            for escape, char in self._escaped.items():
                text = text.replace(escape, char)
        return text if text.isascii() else text.translate(self._shown)

    def _hide_text(self, text: str) -> str:
        for word, hidden in self._words.items():
            text = text.replace(word, hidden)
        if self._kept is None:
            return text.translate(self._hidden)
        parts = self._kept.split(text)  # every second one is a literal
        return "".join(part if i % 2 else part.translate(self._hidden) for i, part in enumerate(parts))

    def _hide_spans(self, text: str, spans: list[tuple[int, int]]) -> str:
        for word, hidden in self._words.items():
            text = text.replace(word, hidden)
        chars = list(text)
        for first, last in spans:
            chars[first:last] = text[first:last].translate(self._hidden)
        return "".join(chars)


def texts_within(value: Any) -> list[str]:
    """Return every text within a value of messages."""
    found, pending = [], [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
    return found
