"""Stop strings: the text ends in the same place however it is cut, and nothing is shown too early or too late."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrun.formats.errors import ConfigError
from llmrun.runtime.stop_strings import StopStrings


def plain_cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return the text before the stop string that is complete first; of several, the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def n_held_back(text: str, stops: list[str]) -> int:
    """Return the length of the longest end of the text that begins a stop string."""
    return max((n for stop in stops for n in range(len(stop)) if n and text.endswith(stop[:n])), default=0)


few_letters = st.text("ab", max_size=25)


@given(st.lists(few_letters), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_equals_the_plain_definition_for_every_chunking(pieces, stops):
    watcher = StopStrings(stops)
    shown, seen = "", ""
    for piece in pieces:
        text, is_stopped = watcher.feed(piece)
        shown += text
        seen += piece
        cut, is_cut = plain_cut(seen, stops)
        assert is_stopped == watcher.is_stopped == is_cut
        assert shown == (cut if is_cut else seen[: len(seen) - n_held_back(seen, stops)])
    assert shown + watcher.flush() == plain_cut(seen, stops)[0]


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["\nUser:"], ["Hello", "\nUs", "er", ": x"], ["Hello", "", "", ""]),
        (["\nUser:"], ["Hello", "\nUs", "ing"], ["Hello", "", "\nUsing"]),
        (["aab"], ["aa", "a", "ab"], ["", "a", "a"]),  # a fallback inside of the stop string
        (["bc", "abcd"], ["xa", "b", "cd"], ["x", "", "a"]),  # complete first, though it began later
        (["b", "ab"], ["a", "b"], ["", ""]),  # complete together: the longest
        ([], ["a", "b"], ["a", "b"]),
        (["é"], ["caf", "é!"], ["caf", ""]),
    ],
)
def test_examples(stops, pieces, expected):
    watcher = StopStrings(stops)
    assert [watcher.feed(piece)[0] for piece in pieces] == expected


def test_nothing_comes_after_the_end():
    watcher = StopStrings(["."])
    assert watcher.feed("One. Two.") == ("One", True)
    assert watcher.feed("Three") == ("", True)
    assert watcher.flush() == ""


def test_flush_gives_what_was_held_back_once():
    watcher = StopStrings(["END"])
    assert watcher.feed("the EN") == ("the ", False)
    assert watcher.flush() == "EN"
    assert watcher.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ConfigError, match=r"^stop string: is empty"):
        StopStrings(["a", ""])


def test_time_is_linear_in_the_text_and_the_stop_string():
    watcher = StopStrings(["a" * 20_000 + "b"])
    started = time.perf_counter()
    for _ in range(100):
        watcher.feed("a" * 1000)
    assert time.perf_counter() - started < 5.0
    assert len(watcher.flush()) == 20_000
