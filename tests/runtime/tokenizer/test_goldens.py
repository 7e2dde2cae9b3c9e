"""Token ids of small vocabularies equal llama.cpp's, which `goldens.py` has asked."""

import json

import pytest

from .goldens import PATH, TEXTS
from .tiny_vocabularies import VOCABULARIES, open_tokenizer

GOLDENS = json.loads(PATH.read_text())


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_equal_those_of_llama_cpp(name, tmp_path):
    tokenizer = open_tokenizer(tmp_path, VOCABULARIES[name]())
    for text, plain, special in zip(TEXTS, GOLDENS[name]["plain"], GOLDENS[name]["special"], strict=True):
        # llama-tokenize adds bos and eos together, and only where there is a bos
        assert tokenizer.encode(text, add_special=tokenizer.add_bos) == plain, repr(text)
        assert tokenizer.encode(text, add_special=False, parse_special=True) == special, repr(text)


def test_goldens_cover_every_vocabulary():
    assert GOLDENS.keys() == VOCABULARIES.keys()
