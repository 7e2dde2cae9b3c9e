"""SentencePiece byte-pair vocabularies, with the sentencepiece library on the same pieces as oracle."""

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from .tiny_vocabularies import TEXT, open_tokenizer, spm


def rebuild(metadata):
    """Return sentencepiece's processor for the pieces, scores and types of a vocabulary."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto()
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = 0
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.add_dummy_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    keys = ("tokens", "scores", "token_type")
    for text, score, kind in zip(*(metadata[f"tokenizer.ggml.{key}"] for key in keys), strict=True):
        model.pieces.add(piece=text, score=score, type=kind)
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@pytest.fixture(scope="module")
def metadata():
    return spm()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, metadata):
    return open_tokenizer(tmp_path_factory.mktemp("spm"), metadata)


@pytest.fixture(scope="module")
def oracle(metadata):
    return rebuild(metadata)


PIECES = st.lists(st.sampled_from([*TEXT.split(), " ", "  ", "    ", "the", "é", "🙂", "x", "1", "_"]), max_size=12)


@settings(max_examples=300)
@given(text=PIECES.map("".join) | PIECES.map(" ".join))
def test_ids_equal_those_of_sentencepiece(tokenizer, oracle, text):
    assert tokenizer.encode(text, add_special=False) == oracle.encode(text)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return open_tokenizer(tmp_path_factory.mktemp("bare"), spm(**{"tokenizer.ggml.add_space_prefix": False}))


@given(text=st.text())
def test_text_survives(bare, text):
    text = text.replace("▁", "")
    assert bare.decode(bare.encode(text)) == text


@given(data=st.binary(max_size=40))
def test_bytes_survive(bare, data):
    data = data.replace(b"\xe2\x96\x81", b"")
    pieces = b"".join(map(bare.piece, bare.encode(data)))
    # a first byte that announces more takes the space after it along, already written as ▁: so does llama.cpp
    assert pieces.replace(b"\xe2\x96\x81", b" ") == data


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\n▁")))
def test_the_added_space_is_taken_off_again(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_are_cut_where_no_token_spans(tmp_path):
    metadata = spm()
    texts, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    joined = texts.index("<0x4")
    texts[joined], scores[joined] = "▁the▁", 1.0  # now nothing may be cut between "e" and a space
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert joined in tokenizer.encode("mind the ")
    for text in ("mind the ", "the the  the", "the quick"):
        assert tokenizer.encode(text, add_special=False) == rebuild(metadata).encode(text)


@pytest.mark.parametrize("text", ["<s>", "x<s>", "</s>", "<unk><s>"])
def test_no_text_merges_into_a_control_token(tmp_path, text):
    metadata = spm()
    texts = metadata["tokenizer.ggml.tokens"]
    texts[texts.index("<0x")], texts[texts.index("<0x4")] = "<s", "</s"  # so "<s" + ">" would be the bos token
    tokenizer = open_tokenizer(tmp_path, metadata)
    ids = tokenizer.encode(text, add_special=False)
    assert not {1, 2} & set(ids)
    assert tokenizer.decode(ids) == text


def test_space_prefix_comes_after_special_tokens_only(tokenizer, bare):
    texts = tokenizer.vocabulary.texts
    ids = tokenizer.encode("the<start_of_turn>the\nthe", parse_special=True)
    assert [texts[i] for i in ids] == ["<s>", "▁the", "<start_of_turn>", "▁the", "\n", "▁the"]
    ids = bare.encode("the<start_of_turn>the", parse_special=True)
    assert b"".join(map(bare.piece, ids)) == b"thethe"


def test_a_byte_without_a_token_is_unknown(tmp_path):
    metadata = spm()
    metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.tokens"].index("<0xD0>")] = "[none]"
    metadata["tokenizer.ggml.token_type"] = [t if t != 6 else 1 for t in metadata["tokenizer.ggml.token_type"]]
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert tokenizer.encode("xЖ", add_special=False)[-2:] == [0, tokenizer.vocabulary.ids["<0x96>"]]


def test_phi_3_takes_the_space_after_a_special_token(tmp_path):
    tokenizer = open_tokenizer(tmp_path, spm(**{"general.name": "Phi-3 mini"}))
    turn = tokenizer.vocabulary.ids["<end_of_turn>"]
    ids = tokenizer.encode("a<end_of_turn> \n b", parse_special=True)
    assert ids == [*tokenizer.encode("a"), turn, *tokenizer.encode("b", add_special=False)]
