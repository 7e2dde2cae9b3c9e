"""WordPiece, with Hugging Face's BERT tokenizer on the same pieces as oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers

from llmrun.formats.errors import FormatError

from .tiny_vocabularies import TEXT, open_tokenizer, wordpiece


@pytest.fixture(scope="module")
def metadata():
    return wordpiece()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, metadata):
    return open_tokenizer(tmp_path_factory.mktemp("wordpiece"), metadata)


@pytest.fixture(scope="module")
def oracle(metadata):
    texts = metadata["tokenizer.ggml.tokens"]
    pieces = {text[1:] if text[0] in "▁" else text if i < 5 else "##" + text: i for i, text in enumerate(texts)}
    library = Library(models.WordPiece(pieces, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return library


PIECES = st.sampled_from(
    [*TEXT.split(), "UNHAPPY", "e\u0301", "\t", "\n", ".", "ß", "世界", "x-1", "\u200b", "İ", "zzz"]
)


@given(text=st.lists(PIECES, max_size=10).map(" ".join))
def test_ids_equal_those_of_hugging_face(tokenizer, oracle, text):
    assert tokenizer.encode(text, add_special=False) == oracle.encode(text, add_special_tokens=False).ids


def test_a_prompt_is_enclosed(tokenizer):
    assert tokenizer.encode("")[0] == tokenizer.vocabulary.ids["[CLS]"]
    assert tokenizer.encode("the")[-1] == tokenizer.vocabulary.ids["[SEP]"]
    assert tokenizer.encode("the [SEP]", parse_special=True, add_special=False)[-1] == 3


def test_case_is_kept_where_the_file_says_so(tmp_path):
    tokenizer = open_tokenizer(tmp_path, wordpiece(**{"tokenizer.ggml.normalizer.lowercase": False}))
    assert tokenizer.encode("THE", add_special=False) == [tokenizer.vocabulary.ids["[UNK]"]]
    assert tokenizer.encode("the", add_special=False) == [tokenizer.vocabulary.ids["▁the"]]


def test_a_vocabulary_without_sep_is_refused(tmp_path):
    metadata = wordpiece()
    del metadata["tokenizer.ggml.seperator_token_id"]  # then it is 102, if there are so many tokens
    metadata = {key: value[:100] if isinstance(value, list) else value for key, value in metadata.items()}
    with pytest.raises(FormatError, match="sep"):
        open_tokenizer(tmp_path, metadata)


def test_words_come_apart_again(tokenizer):
    assert tokenizer.decode(tokenizer.encode("The happiness, unhappily")) == " the happiness , unhappily"
