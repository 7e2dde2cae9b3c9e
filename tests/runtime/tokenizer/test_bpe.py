"""Byte-pair tokenizers: the library against the merges written out, and vocabularies that the library refuses."""

from copy import copy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrun.formats.errors import FormatError
from llmrun.runtime.tokenizer.bpe import BYTE_TO_CHAR, SHORT_TEXT, _pairs
from llmrun.runtime.tokenizer.bpe_merge import merge

from .tiny_vocabularies import byte_level, open_tokenizer, text_level


def naive_merge(symbols, ranks):
    """Merge as the definition says: look for the best pair, merge its leftmost occurrence, begin again."""
    parts = list(symbols)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = ["".join(parts[i : i + 2])]


@given(st.text("abc", max_size=12), st.lists(st.tuples(*[st.text("abc", min_size=1, max_size=3)] * 2), unique=True))
def test_merge_equals_the_definition(word, pairs):
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    assert merge(word, lambda left, right: ranks.get((left, right))) == naive_merge(word, ranks)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return open_tokenizer(tmp_path_factory.mktemp("bpe"), byte_level("llama-bpe"))


@given(text=st.text())
def test_library_merges_as_the_reference(tokenizer, text):
    assert tokenizer._library is not None
    words = tokenizer._encode_words([text] if text else [])
    assert words == (tokenizer._encode_word(text) if text else [])


@given(text=st.text())
def test_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_are_text_unless_asked(tokenizer):
    text = "<|im_start|>a<tool>"
    plain, special = tokenizer.encode(text, add_special=False), tokenizer.encode(text, parse_special=True)
    control = tokenizer.vocabulary.ids["<|im_start|>"]
    assert control not in plain
    assert special[:2] == [tokenizer.bos_id, control]
    assert plain[-1] == special[-1] == tokenizer.vocabulary.ids["<tool>"]  # user-defined: found either way
    assert tokenizer.decode(special) == "a<tool>"
    assert tokenizer.decode(special, special=True) == "<|endoftext|><|im_start|>a<tool>"


def test_a_whole_word_cannot_be_a_control_token(tmp_path):
    metadata = byte_level("llama-bpe")  # takes whole words without looking at merges
    metadata["tokenizer.ggml.tokens"][1] = "Secret"
    metadata["tokenizer.ggml.tokens"][5] = "Xyzzy"
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert 1 not in tokenizer.encode("Secret")
    assert tokenizer.encode("Secret", add_special=False, parse_special=True) == [1]
    assert tokenizer.encode("Xyzzy", add_special=False) == [5]


def test_a_missing_byte_is_dropped_and_keeps_its_neighbours_apart(tmp_path):
    metadata = byte_level()
    full = open_tokenizer(tmp_path, metadata)
    metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.tokens"].index("q")] = "[no q]"
    metadata["tokenizer.ggml.merges"] = [m for m in metadata["tokenizer.ggml.merges"] if "q" not in m]
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert tokenizer._library is not None
    for text in ("thqe", "q", "aqb the"):
        expected = [i for part in text.split("q") for i in full.encode(part, add_special=False)]
        assert tokenizer.encode(text, add_special=False) == expected == tokenizer._encode_word(text)


@pytest.mark.parametrize(
    "merges",
    [["t h", "h e", "t h"], ["t h", "th qq"], ["t h", "h e", "the xxx"]],
    ids=["twice", "no part", "no result"],
)
def test_merges_that_the_library_cannot_have_run_without_it(tmp_path, merges):
    metadata = byte_level() | {"tokenizer.ggml.merges": merges}
    metadata["tokenizer.ggml.tokens"][-1] = "th"
    metadata["tokenizer.ggml.token_type"][-1] = 1
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert tokenizer._library is None
    assert [tokenizer.piece(i) for i in tokenizer.encode("the")] == [b"th", b"e"]


def test_short_texts_do_without_the_library(tmp_path):
    tokenizer = open_tokenizer(tmp_path, byte_level())
    short, long = "the then " * 10, "the then " * (SHORT_TEXT // 5)
    ids = tokenizer.encode(short)
    assert "_library" not in tokenizer.__dict__
    assert tokenizer.encode(long)[: len(ids) - 5] == ids[:-5]
    assert tokenizer._library is not None
    assert tokenizer.encode(short) == ids


@given(merges=st.lists(st.text("ab ", min_size=1, max_size=5), max_size=8), left=st.text("ab ", min_size=1))
def test_ranks_of_texts_are_those_of_their_sides(tokenizer, merges, left):
    tokenizer = copy(tokenizer)
    tokenizer.__dict__.pop("_ranks", None)
    tokenizer._merges = merges
    pairs = _pairs(merges)
    for right in ("a", "b", " ", "ab", "b a", "a "):
        expected = pairs.index((left, right)) if (left, right) in pairs else None
        assert tokenizer._rank(left, right) == expected


def test_a_space_can_be_a_part_of_a_merge():
    assert _pairs(["a b", "  c", "d e f", "g"]) == [("a", "b"), (" ", "c"), ("d", "e f"), ("", "")]
    assert _pairs(["a b", "c d"]) == [("a", "b"), ("c", "d")]
    assert _pairs([]) == []


def test_bytes_that_are_not_utf8_are_replaced(tokenizer):
    assert tokenizer.encode(b"a\xffb\xe2\x82") == tokenizer.encode("a\ufffdb\ufffd\ufffd")
    assert tokenizer.encode(b"\xc3\xa9") == tokenizer.encode("é")
    assert tokenizer.encode("a\udcffb") == tokenizer.encode("a\ufffdb")


def test_text_level_spells_unknown_characters_with_bytes(tmp_path):
    tokenizer = open_tokenizer(tmp_path, text_level())
    ids = tokenizer.encode("ж the fox\n\n", add_special=False)
    assert [tokenizer.vocabulary.texts[i] for i in ids[:2]] == ["<0xD0>", "<0xB6>"]
    assert ids[-1] == tokenizer.vocabulary.ids["\n\n"]
    assert tokenizer.decode(ids) == "ж the fox\n\n"
    assert tokenizer.add_bos  # whatever the file says


def test_every_byte_has_its_own_character():
    assert len(set(BYTE_TO_CHAR.values())) == len(BYTE_TO_CHAR) == 256
    assert BYTE_TO_CHAR[ord(" ")] == "Ġ"


def test_merges_are_needed(tmp_path):
    metadata = byte_level()
    del metadata["tokenizer.ggml.merges"]
    with pytest.raises(FormatError, match="merges"):
        open_tokenizer(tmp_path, metadata)


def test_token_ids_outside_the_vocabulary_are_refused(tokenizer):
    for token_id in (-1, tokenizer.n_vocab):
        with pytest.raises(FormatError, match="token id"):
            tokenizer.piece(token_id)


def test_long_words_take_linear_time(tokenizer):
    text = "the" * 40_000
    assert tokenizer.decode(tokenizer._encode_word(text)) == text


def test_whitespace_model_drops_spaces(tmp_path):
    pieces = ["你", "好", "你好", "A", "b", "▁"]
    metadata = {
        "tokenizer.ggml.model": "whitespace",
        "tokenizer.ggml.pre": "whitespace",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.merges": ["你 好"],
    }
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert [pieces[i] for i in tokenizer.encode("你好 \u3000A\nb 好你")] == ["你好", "A", "b", "好", "你"]
    lower = open_tokenizer(tmp_path, metadata | {"tokenizer.ggml.normalizer.lowercase": True})
    assert lower.encode("B") == [4]
