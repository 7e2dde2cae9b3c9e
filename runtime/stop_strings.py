"""Stop strings: cut a streamed text before the first of them, and never show a part of one."""

from __future__ import annotations

from collections.abc import Iterable

from ..formats.errors import ConfigError


class StopStrings:
    """Watches a text that arrives in pieces.

    The text ends where, reading character by character, the first stop string is complete; if several are complete
    at the same character, the longest counts. How the text is cut into pieces changes nothing.

    Raises:
        ConfigError: a stop string is empty.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(dict.fromkeys(strings))
        if "" in self._strings:
            raise ConfigError("stop string: is empty, expected at least one character")
        self._fallbacks = [_fallbacks(string) for string in self._strings]
        self._n_matched = [0] * len(self._strings)
        self._held = ""  # the end of the text that may be the beginning of a stop string
        self.is_stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next piece of the text.

        Returns:
            What can be shown now, and whether the text has ended. After that nothing more comes out.
        """
        if self.is_stopped:
            return "", True
        held = self._held + text
        for at, character in enumerate(text, len(self._held) + 1):
            longest = self._advance(character)
            if longest:
                self.is_stopped = True
                self._held = ""
                return held[: at - longest], True
        n_shown = len(held) - max(self._n_matched, default=0)
        self._held = held[n_shown:]
        return held[:n_shown], False

    def flush(self) -> str:
        """Return the text that is still held back, at the end of the text."""
        held, self._held = self._held, ""
        self._n_matched = [0] * len(self._strings)
        return held

    def _advance(self, character: str) -> int:
        """Follow one character in every stop string; return the length of the longest that is complete, or 0.

        Source: Knuth, Morris, Pratt, "Fast pattern matching in strings", 1977.
        """
        longest = 0
        for i, string in enumerate(self._strings):
            n = self._n_matched[i]
            while n and string[n] != character:
                n = self._fallbacks[i][n]
            n += string[n] == character
            self._n_matched[i] = n
            if n == len(string):
                longest = max(longest, n)
        return longest


def _fallbacks(string: str) -> list[int]:
    """Return for every n the length of the longest proper suffix of string[:n] that begins the string."""
    lengths = [0] * (len(string) + 1)  # [n + 1]
    n = 0
    for at in range(1, len(string)):
        while n and string[at] != string[n]:
            n = lengths[n]
        n += string[at] == string[n]
        lengths[at + 1] = n
    return lengths
