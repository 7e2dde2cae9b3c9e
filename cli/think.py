"""Tell a model's thinking (``<think> … </think>``) from its answer while the text streams in."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """Cuts streamed text into (text, is_thinking) parts; the tags belong to the thinking.

    Text that may turn out to be the beginning of a tag is held back until that is decided.

    Args:
        is_thinking: whether the prompt has opened the thinking already (some templates do).
    """

    def __init__(self, *, is_thinking: bool = False) -> None:
        self._is_thinking = is_thinking
        self._held = ""

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Take the next piece of text and return what is decided now."""
        text = self._held + text
        parts: list[tuple[str, bool]] = []
        while True:
            tag = CLOSE if self._is_thinking else OPEN
            before, found, after = text.partition(tag)
            if not found:
                break
            parts += [(before, self._is_thinking), (tag, True)]
            self._is_thinking = not self._is_thinking
            text = after
        n_held = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
        self._held = text[len(text) - n_held :]
        parts.append((text[: len(text) - n_held], self._is_thinking))
        return [part for part in parts if part[0]]

    def flush(self) -> list[tuple[str, bool]]:
        """Return what is still held back; call it at the end."""
        held, self._held = self._held, ""
        return [(held, self._is_thinking)] if held else []


def opens_thinking(prompt: str) -> bool:
    """Return whether a rendered prompt ends with an open ``<think>``."""
    return prompt.rstrip().endswith(OPEN)
