"""llama.cpp's own test vectors: ``models/ggml-vocab-*.gguf`` with ``.inp`` and ``.out`` from its source.

They are 75 MB and lie inside the source package of llama-cpp-python (vendor/llama.cpp/models). Unpack them
and name the folder in ``LLMRUN_TEST_VOCABS``.
"""

import os
from pathlib import Path

import pytest

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.tokenizer import load_tokenizer

FOLDER = os.environ.get("LLMRUN_TEST_VOCABS", "")
NAMES = (
    "bert-bge command-r deepseek-coder deepseek-llm falcon gemma-4 gpt-2 llama-bpe llama-spm mpt phi-3 qwen2 qwen35 "
    "refact starcoder"
)
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.mark.models
@pytest.mark.skipif(not FOLDER, reason="LLMRUN_TEST_VOCABS names no folder")
@pytest.mark.parametrize("name", NAMES.split())
def test_ids_equal_the_vectors(name):
    path = Path(FOLDER) / f"ggml-vocab-{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text().split("\n")
    with GgufFile.open(path) as file:
        tokenizer = load_tokenizer(file.metadata)
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special=False) == [int(token_id) for token_id in line.split()], repr(text)
