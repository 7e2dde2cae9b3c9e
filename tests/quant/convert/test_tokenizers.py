"""Tokenizers of every kind: the ids of the GGUF file are those of transformers.

``tests/goldens/tokenizers/<kind>`` holds the files that transformers wrote and the ids that it gave
(``make_tokenizers.py`` beside them).
"""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from llmrun.formats.errors import FormatError
from llmrun.formats.gguf import GgufFile
from llmrun.formats.hf_config import HfFolder
from llmrun.quant.convert.pre_names import GPT4O, LLAMA3, QWEN2, QWEN35, TEKKEN
from llmrun.quant.convert.tokenizer import convert_tokenizer
from llmrun.runtime.tokenizer.bpe import CHAR_TO_BYTE
from llmrun.runtime.tokenizer.load import load_tokenizer

from ...hf_tiny import tokenizer_json, write_json
from ...tiny_gguf import write_gguf

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenizers"
KINDS = sorted(path.name for path in GOLDENS.iterdir())
SPM = ("gemma", "llama2")
CONFIG = {"architectures": ["LlamaForCausalLM"]}
TEXTS = list(json.loads((GOLDENS / "llama3" / "ids.json").read_text()))


def folder_of(tmp_path, kind, *, leave_out=()):
    """Copy the files of a kind, without the ids."""
    folder = tmp_path / kind
    shutil.copytree(GOLDENS / kind, folder, ignore=shutil.ignore_patterns("*ids.json", *leave_out))
    write_json(folder / "config.json", CONFIG)
    return folder


def n_vocab_of(folder):
    """Return one more than the highest id of a tokenizer.json."""
    values = json.loads((folder / "tokenizer.json").read_text())
    return 1 + max([*values["model"]["vocab"].values(), *(entry["id"] for entry in values["added_tokens"])])


def convert(folder, n_vocab, arch="llama", pre=None):
    return convert_tokenizer(HfFolder(folder), n_vocab, arch, pre)


def engine_tokenizer(data, tmp_path):
    """Return the engine's tokenizer of converted metadata, read from a file."""
    metadata = {key: meta.value for key, meta in data.metadata.items()}
    path = write_gguf(tmp_path / "t.gguf", metadata, {"x.weight": np.zeros((1, 32), np.float32)})
    with GgufFile.open(path) as file:
        return load_tokenizer(file.metadata)


def ids_of(kind, name="ids.json"):
    return json.loads((GOLDENS / kind / name).read_text())


def values(data):
    return {key: meta.value for key, meta in data.metadata.items() if not isinstance(meta.value, (list, np.ndarray))}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind, tmp_path):
    """With bos where transformers puts it; from tokenizer.json alone for SentencePiece kinds, too.

    Left out is what GGUF's engines do otherwise for every file: they put Llama 2's space after special tokens, too,
    and in front of nothing, and do not compose letters with accents (Qwen's NFC).
    """
    n_vocab = n_vocab_of(GOLDENS / kind)
    for leave_out in ((), ("tokenizer.model",)) if kind in SPM else ((),):
        folder = folder_of(tmp_path / str(len(leave_out)), kind, leave_out=leave_out)
        tokenizer = engine_tokenizer(convert(folder, n_vocab), tmp_path)
        for text, ids in ids_of(kind).items():
            if (kind == "llama2" and text in ("", TEXTS[-1])) or (kind == "qwen2" and "\u0301" in text):
                continue
            assert tokenizer.encode(text, parse_special=True) == ids, (leave_out, text)


@pytest.mark.parametrize("kind", SPM)
def test_a_tokenizer_model_alone_gives_the_ids_of_sentencepiece(kind, tmp_path):
    """With user-defined pieces found in the text; also where the text begins with spaces."""
    folder = folder_of(tmp_path, kind, leave_out=("*.json",))
    data = convert(folder, 400)
    tokenizer = engine_tokenizer(data, tmp_path)
    for text, ids in ids_of(kind, "sentencepiece_ids.json").items():
        assert tokenizer.encode(text, add_special=False) == ids, text
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in values(data).items()}
    assert found["model"] == "llama"
    assert found["add_space_prefix"] is (kind == "llama2")
    assert (found["bos_token_id"], found["eos_token_id"]) == ((1, 2) if kind == "llama2" else (2, 1))
    assert found["unknown_token_id"] == (0 if kind == "llama2" else 3)
    assert found["add_bos_token"] is True


def test_names_and_flags_of_byte_level_kinds(tmp_path):
    got = {kind: values(convert(folder_of(tmp_path, kind), 383)) for kind in ("llama3", "qwen2", "smollm")}
    assert [got[kind]["tokenizer.ggml.pre"] for kind in got] == ["llama-bpe", "qwen2", "smollm"]
    assert [got[kind]["tokenizer.ggml.add_bos_token"] for kind in got] == [True, False, False]
    assert [got[kind]["tokenizer.ggml.eos_token_id"] for kind in got] == [382, 382, 382]
    assert "tokenizer.ggml.bos_token_id" not in got["qwen2"]
    assert got["qwen2"]["tokenizer.ggml.padding_token_id"] == 380


def bpe_with(pre, *, ignore_merges=False, **changes):
    value = tokenizer_json()
    value["pre_tokenizer"] = pre
    value["model"]["ignore_merges"] = ignore_merges
    return value | changes


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(*patterns):
    parts = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    return {"type": "Sequence", "pretokenizers": [*parts, {**BYTES, "use_regex": False}]}


DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")

PRE_NAMES = {
    "gpt-2": (BYTES, False),
    "llama-bpe": (split(LLAMA3), True),
    "dbrx": (split(LLAMA3), False),
    "qwen2": (split(QWEN2), False),
    "qwen35": (split(QWEN35), False),
    "tekken": (split(TEKKEN), True),
    "gpt-4o": (split(GPT4O), False),
    "deepseek-coder": (split(*DEEPSEEK_CODER), False),
}


@pytest.mark.parametrize("name", PRE_NAMES)
def test_pre_tokenizers_are_recognised_and_cut_as_the_library_does(name, tmp_path):
    pre, ignore_merges = PRE_NAMES[name]
    value = bpe_with(pre, ignore_merges=ignore_merges)
    write_json(tmp_path / "tokenizer.json", value)
    write_json(tmp_path / "config.json", CONFIG)
    data = convert(tmp_path, 301)
    assert data.metadata["tokenizer.ggml.pre"].value == name
    library, tokenizer = Tokenizer.from_str(json.dumps(value)), engine_tokenizer(data, tmp_path)
    for text in TEXTS:
        ids = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special=False, parse_special=True) == ids, text


def test_a_pattern_with_escaped_line_ends_is_the_same(tmp_path):
    write_json(tmp_path / "tokenizer.json", bpe_with(split(*(p.replace("\r\n", r"\r\n") for p in DEEPSEEK_CODER))))
    write_json(tmp_path / "config.json", CONFIG)
    assert convert(tmp_path, 301).metadata["tokenizer.ggml.pre"].value == "deepseek-coder"


def test_an_unknown_pre_tokenizer_is_refused_unless_its_name_is_given(tmp_path):
    write_json(tmp_path / "tokenizer.json", bpe_with(split(r"\w+")))
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(FormatError, match=r"no name for this pre-tokenizer \('\\\\w\+'\).*--tokenizer-pre"):
        convert(tmp_path, 301)
    assert convert(tmp_path, 301, pre="qwen2").metadata["tokenizer.ggml.pre"].value == "qwen2"


def write_tiktoken(path, tokenizer):
    """Write the ordinary tokens of a tokenizer.json as tiktoken does, and return how many they are."""
    vocab = tokenizer["model"]["vocab"]
    lines = [(rank, bytes(CHAR_TO_BYTE[char] for char in text)) for text, rank in vocab.items()]
    path.write_text("".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in sorted(lines)))
    return len(lines)


@pytest.mark.parametrize("file_name", ["tokenizer.model", "qwen.tiktoken"])
def test_a_tiktoken_file_gives_the_merges_back(file_name, tmp_path):
    value = json.loads((GOLDENS / "llama3" / "tokenizer.json").read_text())
    n_ordinary = write_tiktoken(tmp_path / file_name, value)
    write_json(tmp_path / "config.json", CONFIG)
    decoder = {str(entry["id"]): entry for entry in value["added_tokens"]}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "bos_token": "<|begin_of_text|>"})
    data = convert(tmp_path, n_ordinary + 3)
    merges = [" ".join(merge) for merge in value["model"]["merges"]]
    assert data.metadata["tokenizer.ggml.merges"].value == merges
    assert data.metadata["tokenizer.ggml.pre"].value == "llama-bpe"
    tokenizer = engine_tokenizer(data, tmp_path)
    for text, ids in ids_of("llama3").items():
        assert tokenizer.encode(text, add_special=False, parse_special=True) == ids[1:], text
    with pytest.raises(FormatError, match="does not say how texts are cut"):
        convert(tmp_path, n_ordinary + 3, arch="phi3")


def test_a_tekken_json_has_its_special_tokens_first(tmp_path):
    vocab = json.loads((GOLDENS / "llama3" / "tokenizer.json").read_text())["model"]["vocab"]
    ranked = [base64.b64encode(bytes(CHAR_TO_BYTE[c] for c in text)).decode() for text in sorted(vocab, key=vocab.get)]
    tekken = {
        "config": {"pattern": TEKKEN, "default_num_special_tokens": 5, "default_vocab_size": len(ranked) + 5},
        "vocab": [{"rank": i, "token_bytes": token, "token_str": None} for i, token in enumerate(ranked)],
        "special_tokens": [{"rank": 1, "token_str": "<s>", "is_control": True}],
    }
    write_json(tmp_path / "tekken.json", tekken)
    write_json(tmp_path / "config.json", CONFIG | {"bos_token_id": 1})
    data = convert(tmp_path, len(ranked) + 5)
    assert data.metadata["tokenizer.ggml.pre"].value == "tekken"
    assert data.metadata["tokenizer.ggml.tokens"].value[:3] == ["<SPECIAL_0>", "<s>", "<SPECIAL_2>"]
    value = bpe_with(split(TEKKEN), ignore_merges=True, added_tokens=[])
    golden = json.loads((GOLDENS / "llama3" / "tokenizer.json").read_text())["model"]
    value["model"] |= {"vocab": golden["vocab"], "merges": golden["merges"]}
    library, tokenizer = Tokenizer.from_str(json.dumps(value)), engine_tokenizer(data, tmp_path)
    for text in TEXTS[:-1]:
        ids = [i + 5 for i in library.encode(text, add_special_tokens=False).ids]
        assert tokenizer.encode(text, add_special=False) == ids, text


def test_rows_without_tokens_are_padding_and_tokens_without_rows_are_left_out(tmp_path):
    value = tokenizer_json()
    value["added_tokens"].append({"id": 400, "content": "<image>", "special": True})
    write_json(tmp_path / "tokenizer.json", value)
    write_json(tmp_path / "config.json", CONFIG)
    data = convert(tmp_path, 320)
    tokens, types = data.metadata["tokenizer.ggml.tokens"].value, data.metadata["tokenizer.ggml.token_type"].value
    assert tokens[301:] == [f"[PAD{i}]" for i in range(301, 320)]
    assert set(types[301:].tolist()) == {5}
    assert data.notes == ["token '<image>' is left out: its id 400 has no row in the embedding"]


def test_types_of_added_tokens(tmp_path):
    value = tokenizer_json()
    value["added_tokens"] += [
        {"id": 301, "content": "plain▁word", "special": False},
        {"id": 302, "content": "<|looks_special|>", "special": False},
    ]
    write_json(tmp_path / "tokenizer.json", value)
    write_json(tmp_path / "config.json", CONFIG)
    data = convert(tmp_path, 303)
    assert data.metadata["tokenizer.ggml.tokens"].value[301:] == ["plain word", "<|looks_special|>"]
    assert data.metadata["tokenizer.ggml.token_type"].value[298:].tolist() == [3, 3, 3, 4, 3]


def test_ends_of_generation_that_engines_do_not_know_by_their_text(tmp_path):
    write_json(tmp_path / "tokenizer.json", tokenizer_json())
    write_json(tmp_path / "config.json", CONFIG | {"eos_token_id": 298})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [298, 300, 297, 5]})  # 300 is <|im_end|>
    found = values(convert(tmp_path, 301))
    assert found["tokenizer.ggml.eos_token_id"] == 298
    assert found["tokenizer.ggml.eot_token_id"] == 297
    assert found["tokenizer.ggml.eom_token_id"] == 5


def test_chat_templates_have_gguf_names(tmp_path):
    write_json(tmp_path / "tokenizer.json", tokenizer_json())
    write_json(tmp_path / "config.json", CONFIG)
    templates = [{"name": "default", "template": "A"}, {"name": "tool-use", "template": "B"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": templates})
    metadata = convert(tmp_path, 301).metadata
    assert metadata["tokenizer.chat_template"].value == "A"
    assert metadata["tokenizer.chat_template.tool_use"].value == "B"
    assert metadata["tokenizer.chat_templates"].value == ["tool_use"]


def model(**changes):
    value = tokenizer_json()
    value["model"] |= changes
    return value


VOCAB = tokenizer_json()["model"]["vocab"]
TURN = {"SpecialToken": {"id": "<|im_start|>"}}
WRONG = {
    "too small an embedding": (
        tokenizer_json(),
        200,
        "has id 200, but the embedding has 200 rows. The tokenizer is not",
    ),
    "too large an embedding": (tokenizer_json(), 900, "301 tokens for an embedding of 900 rows. The tokenizer is not"),
    "ids twice": (model(vocab=VOCAB | {"zz": 5}), 301, "'zz' and '.*' both have id 5"),
    "id negative": (model(vocab=VOCAB | {"zz": -5}), 301, "token 'zz' has id -5"),
    "id a text": (model(vocab=VOCAB | {"zz": "5"}), 301, "the id of 'zz' is no integer"),
    "id a bool": (model(vocab=VOCAB | {"zz": True}), 301, "the id of 'zz' is no integer"),
    "no vocab": (model(vocab=None), 301, "'vocab' is missing"),
    "vocab a list": (model(vocab=["a"]), 301, "'vocab': is a list of 1, expected an object"),
    "no merges": (model(merges=None), 301, "'merges' is no list of at most"),
    "merges of three": (model(merges=["a b c"]), 301, r"'merges'\[0\] is no pair of texts"),
    "merges of numbers": (model(merges=[[1, 2]]), 301, r"'merges'\[0\] is no pair of texts"),
    "surrogate": (model(vocab={**VOCAB, "\ud800": 297}), 301, "token 297 is no valid text"),
    "unigram": (model(type="Unigram"), 301, "tokenizer of type 'Unigram' is not supported, expected BPE"),
    "suffix": (model(end_of_word_suffix="</w>"), 301, "'end_of_word_suffix' is set"),
    "model missing": (tokenizer_json() | {"model": None}, 301, "'model' is missing"),
    "lower case": (
        tokenizer_json() | {"normalizer": {"type": "Lowercase"}},
        301,
        "normalizer 'Lowercase' is not in GGUF",
    ),
    "added no list": (
        tokenizer_json() | {"added_tokens": {"a": 1}},
        301,
        "'added_tokens' is an object, expected a list",
    ),
    "added without id": (
        tokenizer_json() | {"added_tokens": [{"content": "x"}]},
        301,
        r"'added_tokens'\[0\]: 'id' is mis",
    ),
    "prefix space": (
        bpe_with({"type": "ByteLevel", "add_prefix_space": True}),
        301,
        "a space in front of every text .* is not in GGUF",
    ),
    "deep": (bpe_with({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 2}), 301, "no name for this pre"),
    "template": (
        tokenizer_json()
        | {"post_processor": {"type": "TemplateProcessing", "single": [TURN, {"Sequence": {"id": "A"}}]}},
        301,
        r"puts '<\|im_start\|>' where GGUF can only put bos",
    ),
    "post-processor": (tokenizer_json() | {"post_processor": {"type": "Bert"}}, 301, "post-processor 'Bert' is not in"),
    "neither kind": (bpe_with(None), 301, "is neither a byte-level nor a SentencePiece tokenizer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tokenizers_that_are_damaged_or_not_this_models_are_refused_in_one_line(case, tmp_path):
    value, n_vocab, message = WRONG[case]
    write_json(tmp_path / "tokenizer.json", value)
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(FormatError, match=message) as caught:
        convert(tmp_path, n_vocab)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x0a\xff\xff\xff\xff\x0f", "is no SentencePiece model"),
        (b"\xff" * 100, "is no SentencePiece model"),
        (b"hello world", "is no SentencePiece model|line 1 is no token"),
        (b"aGVsbG8= 0\nnot base64 1\n", "line 2 is no token of a tiktoken file"),
        (b"YQ== 0\nYQ== 1\n", "line 2 repeats a token"),
        (b"YQ== 0\nYg== 1\nYWJj 2\n", "'abc' of rank 2 does not follow from lower ones"),
    ],
)
def test_damaged_tokenizer_models_are_refused(raw, message, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(raw)
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(FormatError, match=message):
        convert(tmp_path, 4)


def test_damaged_bytes_of_a_sentencepiece_model_never_crash(tmp_path):
    raw = bytearray((GOLDENS / "llama2" / "tokenizer.model").read_bytes())
    write_json(tmp_path / "config.json", CONFIG)
    for at in range(0, len(raw), 61):
        damaged = bytes(raw[:at]) + bytes([raw[at] ^ 0x5A]) + bytes(raw[at + 1 :])
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            convert(tmp_path, 400)
        except FormatError:
            continue


def test_a_folder_without_a_tokenizer(tmp_path):
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(FormatError, match=r"has no tokenizer, expected tokenizer\.json"):
        convert(tmp_path, 10)
