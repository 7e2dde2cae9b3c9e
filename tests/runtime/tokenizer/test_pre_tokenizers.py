"""How each pre-tokenizer splits text; the words were compared with llama.cpp's on 4,500 texts for every name."""

# ruff: noqa: RUF001 - text in many scripts

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.runtime.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from llmrun.runtime.tokenizer.split import split

TEXT = "Hello, World's 12345 ９九 नम\u0947\u3000\n\n  x'LL 你好abc <td>  "
WORDS = {
    "gpt-2": "Hello|,| World|'s| 12345| ９|九| नम|\u0947|\u3000\n\n | x|'|LL| 你好abc| <|td|>|  ",
    "smollm": "Hello|,| World|'s| |1|2|3|4|5| |９|九| नम|\u0947|\u3000\n\n | x|'|LL| 你好abc| <|td|>|  ",
    "qwen2": "Hello|,| World|'s| |1|2|3|4|5| |９|九| नम|\u0947|\u3000\n\n| | x|'LL| 你好abc| <|td|>|  ",
    "qwen35": "Hello|,| World|'s| |1|2|3|4|5| |９|九| नम\u0947|\u3000\n\n| | x|'LL| 你好abc| <|td|>|  ",
    "llama-bpe": "Hello|,| World|'s| |123|45| |９|九| नम|\u0947|\u3000\n\n| | x|'LL| 你好abc| <|td|>|  ",
    "deepseek-v3": "Hello|,| World|'s| |123|45| |９|九| नम\u0947|\u3000\n\n| | x|'LL| |你好|abc| <|td|>|  ",
    "deepseek-llm": "Hello|,| World|'|s| |12345| |９|九| |नम\u0947|\u3000|\n|\n| | x|'|LL| |你好|abc| <|td|>|  ",
    "deepseek-coder": "Hello|,| World|'|s| |1|2|3|4|5| |９|九| |नम|\u0947|\u3000|\n|\n| | x|'|LL| |你好|abc| <|td|>  ",
    "default": "Hello|,| World|'|s| |123|45| |９|九| नम|\u0947|\u3000\n\n | x|'|LL| 你好abc| |<|td|>|  ",
    "falcon": "Hello|,| World|'|s| |123|45| ９|九| नम|\u0947|\u3000\n\n | x|'|LL| 你好abc| |<|td|>|  ",
    "gpt-4o": "Hello|,| World's| |123|45| |９|九| नम|\u0947|\u3000\n\n| | x'LL| 你好abc| <|td|>|  ",
    "tekken": "Hello|,| World|'s| |1|2|3|4|5| |９|九| नम|\u0947|\u3000\n\n| | x|'LL| 你好abc| <|td|>|  ",
    "tiny_aya": "Hello|,| World's| |12|345| |９|九| नम\u0947|\u3000\n\n| | x'LL| 你好abc| <|td|>|  ",
    "bloom": "Hello|,| World's| 12345| ９九| नम\u0947|\u3000\n\n | x'LL| 你好abc| <td>|  ",
    "kimi-k2": "Hello|,| World's| |123|45| |９|九| नम|\u0947|\u3000\n\n| | x'LL| |你好|abc| <|td|>|  ",
    "superbpe": "Hello, World's |12|345| |９|九 नम\u0947\u3000\n\n  x'LL 你好abc <td>  ",
    "afmoe": "Hello|,| World|'s| |12|345| |９|九| नम\u0947|\u3000\n\n| | x|'LL| |你好|abc| <|td|>|  ",
    "exaone-moe": "Hello|,| World|'s| |1|2|3|4|5| |９|九 नम\u0947|\u3000\n\n| | x|'LL| 你好abc| <|td|>|  ",
    "gemma4": "Hello, World's 12345 ９九 नम\u0947\u3000|\n\n|  x'LL 你好abc <td>  ",
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_words(name):
    assert split(TEXT, PRE_TOKENIZERS[name].steps) == WORDS[name].split("|")


def test_every_kind_of_space_is_space():
    for space in "\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000":
        assert split(f"a{space}{space}b", PRE_TOKENIZERS["gpt-2"].steps) == ["a", space, space, "b"]
        assert split(f"a{space}{space}b", PRE_TOKENIZERS["qwen2"].steps) == ["a", space, space + "b"]
    assert split("a\u200b\u200bb", PRE_TOKENIZERS["gpt-2"].steps) == ["a", "\u200b\u200b", "b"]  # it is no space


DIFFERENT = list({id(value): name for name, value in PRE_TOKENIZERS.items()}.values())


@settings(max_examples=300)
@given(
    name=st.sampled_from(DIFFERENT),
    text=st.text(st.characters() | st.sampled_from("aB1 \n\t'.你\u0301٣\ud800"), max_size=30),
)
def test_pieces_make_the_text(name, text):
    pieces = split(text, PRE_TOKENIZERS[name].steps)
    assert "".join(pieces) == text
    assert "" not in pieces


@pytest.mark.parametrize("name", DIFFERENT)
def test_splitting_takes_linear_time(name):
    started = time.perf_counter()
    for text in ("a", " ", "\n", "1", "A", "'", "你", "a ", " 1", "\u0301"):
        split(text * 5_000 + "x", PRE_TOKENIZERS[name].steps)
    assert time.perf_counter() - started < 5  # 0.05 s where it is linear, minutes where it is not


def test_settings_that_come_with_names():
    assert PRE_TOKENIZERS["llama-bpe"].ignore_merges
    assert PRE_TOKENIZERS["llama-bpe"].add_bos
    assert not PRE_TOKENIZERS["qwen2"].add_bos
    assert not PRE_TOKENIZERS["glm4"].has_default_bos
    assert PRE_TOKENIZERS["gemma4"].escape_spaces
    assert not PRE_TOKENIZERS["gemma4"].byte_level
