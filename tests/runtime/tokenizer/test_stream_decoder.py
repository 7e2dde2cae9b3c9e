"""Streamed text is the whole text, and never holds half a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrun.runtime.tokenizer import StreamDecoder

from .tiny_vocabularies import open_tokenizer, spm


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return open_tokenizer(tmp_path_factory.mktemp("stream"), spm(**{"tokenizer.ggml.add_space_prefix": False}))


@given(text=st.text())
def test_parts_are_whole_characters_and_make_the_text(tokenizer, text):
    text = text.replace("▁", "")
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.feed(token_id) for token_id in tokenizer.encode(text)]
    assert "".join(parts) == text
    assert decoder.flush() == ""
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


def test_an_unfinished_character_waits_and_is_flushed(tokenizer):
    ids = [tokenizer.vocabulary.ids[f"<0x{byte:02X}>"] for byte in "🙂".encode()]
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(token_id) for token_id in ids] == ["", "", "", "🙂"]
    assert [decoder.feed(token_id) for token_id in ids[:2]] == ["", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.feed(tokenizer.vocabulary.ids["x"]) == "x"


def test_a_broken_character_gives_way_to_the_next(tokenizer):
    decoder = StreamDecoder(tokenizer)
    assert decoder.feed(tokenizer.vocabulary.ids["<0xE2>"]) == ""
    assert decoder.feed(tokenizer.vocabulary.ids["x"]) == "\ufffdx"


def test_control_tokens_show_only_if_asked(tokenizer):
    control = tokenizer.vocabulary.ids["<end_of_turn>"]
    assert StreamDecoder(tokenizer).feed(control) == ""
    assert StreamDecoder(tokenizer, special=True).feed(control) == "<end_of_turn>"
