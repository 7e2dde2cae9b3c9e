"""Unigram vocabularies, with the sentencepiece library as oracle, and the table that normalises their text."""

import contextlib
import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from llmrun.formats.errors import FormatError
from llmrun.runtime.tokenizer.charsmap import Charsmap

from .tiny_vocabularies import TEXT, open_tokenizer, unigram


@pytest.fixture(scope="module")
def trained():
    """Return a model that sentencepiece has trained, with its usual normaliser."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 4),
        model_writer=model,
        vocab_size=160,
        model_type="unigram",
        hard_vocab_limit=False,
        user_defined_symbols=["<tool>", "TOOLS"],
        minloglevel=2,
        num_threads=1,
    )
    proto = pb.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto


@pytest.fixture(scope="module")
def metadata(trained):
    charsmap = np.frombuffer(trained.normalizer_spec.precompiled_charsmap, dtype=np.uint8)
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [piece.piece for piece in trained.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in trained.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in trained.pieces],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.precompiled_charsmap": charsmap,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, metadata):
    return open_tokenizer(tmp_path_factory.mktemp("unigram"), metadata)


@pytest.fixture(scope="module")
def oracle(trained):
    return sentencepiece.SentencePieceProcessor(model_proto=trained.SerializeToString())


# "TOOLS" and "<tool>" are user-defined: llama.cpp leaves even a part of one as it is
PIECES = st.sampled_from([*TEXT.split(), "ﬁ", "①", "Å", "ｱ", "\u3000", "…", "é", "\t", "  ", "x", "½"])


@given(text=st.lists(PIECES, max_size=10).map(" ".join))
def test_ids_equal_those_of_sentencepiece(tokenizer, oracle, text):
    assert tokenizer.encode(text, add_special=False) == oracle.encode(text)


def test_the_best_sum_wins_over_the_longest_token(tmp_path):
    metadata = unigram()
    texts, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    for text, score in (("ab", -1.0), ("cd", -1.0), ("abc", -0.5), ("d", -9.0), ("▁", -1.0)):
        i = texts.index(text) if text in texts else next(i for i, t in enumerate(texts) if len(t) > 3 and i > 3)
        texts[i], scores[i] = text, score
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert [texts[i] for i in tokenizer.encode("abcd", add_special=False)] == ["▁", "ab", "cd"]


def test_runs_of_unknown_characters_are_one_token(tmp_path):
    tokenizer = open_tokenizer(tmp_path, unigram())
    unknown = tokenizer.vocabulary.special["unk"]
    assert tokenizer.encode("你你你", add_special=False).count(unknown) == 1
    assert tokenizer.encode("")[-1] == tokenizer.eos_id


@pytest.mark.parametrize(
    "data",
    [b"\1", b"\0\0\0\0", b"\xff\xff\xff\xff" + b"\0" * 64, b"\x08\0\0\0" + b"\0" * 8, b"\x03\0\0\0" + b"\0" * 8],
    ids=["no size", "no texts", "too large", "nothing after it", "no multiple"],
)
def test_sizes_of_a_charsmap_are_checked(data):
    with pytest.raises(FormatError, match="charsmap"):
        Charsmap(data, "model.gguf")


@given(st.binary(max_size=64), st.binary(min_size=1, max_size=8))
def test_a_charsmap_points_only_into_itself(table, text):
    table = table[: len(table) // 4 * 4]
    charsmap = Charsmap(len(table).to_bytes(4, "little") + table + b"x\0", "model.gguf")
    with contextlib.suppress(FormatError):
        replaced = charsmap.replace(text, 0)
        assert replaced is None or (1 <= replaced[1] <= len(text) and replaced[0] in b"x")


def test_a_charsmap_of_numbers_is_refused(tmp_path, metadata):
    broken = metadata | {"tokenizer.ggml.precompiled_charsmap": np.zeros(8, np.int32)}
    with pytest.raises(FormatError, match="precompiled_charsmap"):
        open_tokenizer(tmp_path, broken)
