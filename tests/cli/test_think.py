"""However the text is cut into pieces, the same parts are thinking."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmrun.cli.think import ThinkSplitter, opens_thinking

TEXTS = st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", "/", "a", "<thin", "\n"]), max_size=12).map(
    "".join
)


def split(pieces, *, is_thinking=False):
    splitter = ThinkSplitter(is_thinking=is_thinking)
    parts = [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush()
    return [(char, thinking) for text, thinking in parts for char in text]


@given(TEXTS, st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_cuts_do_not_matter(text, cuts, is_thinking):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    marks = split(pieces, is_thinking=is_thinking)
    assert marks == split([text], is_thinking=is_thinking)
    assert "".join(char for char, _ in marks) == text


def test_parts():
    splitter = ThinkSplitter()
    parts = [*splitter.feed("a<think>b</think>c<"), *splitter.flush()]
    assert parts == [("a", False), ("<think>", True), ("b", True), ("</think>", True), ("c", False), ("<", False)]


def test_text_that_cannot_be_a_tag_is_not_held_back():
    assert ThinkSplitter().feed("x < y") == [("x < y", False)]


def test_prompt_that_opens_thinking():
    assert opens_thinking("<|assistant|>\n<think>\n")
    assert not opens_thinking("<think></think>\n")
