"""Damaged vocabularies are refused in one line that names the file; the right tokens end a generation."""

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.runtime.tokenizer.vocabulary import MAX_TOKEN_BYTES, Attr

from .tiny_vocabularies import byte_level, open_tokenizer, spm

K = "tokenizer.ggml."


def _without(key):
    return {name: value for name, value in spm().items() if name != K + key}


def _changed(key, change):
    metadata = spm()
    metadata[K + key] = change(metadata[K + key])
    return metadata


DAMAGED = {
    "no model": (_without("model"), "tokenizer.ggml.model"),
    "unknown model": (spm() | {K + "model": "rwkv"}, "'rwkv' is not supported. Supported are: llama"),
    "model is a number": (spm() | {K + "model": 7}, "tokenizer.ggml.model"),
    "no tokens": (_without("tokens"), "tokenizer.ggml.tokens"),
    "tokens are numbers": (spm() | {K + "tokens": [1, 2]}, "tokenizer.ggml.tokens"),
    "no scores": (_without("scores"), "scores is missing"),
    "too few scores": (_changed("scores", lambda v: v[:-1]), r"scores has \d+ elements, expected \d+"),
    "too many types": (_changed("token_type", lambda v: [*v, 1]), r"token_type has \d+ elements, expected \d+"),
    "scores are bytes": (_changed("scores", lambda v: np.zeros(len(v), np.uint8)), "scores has elements of type uint8"),
    "scores are doubles": (_changed("scores", lambda v: np.zeros(len(v))), "scores has elements of type float64"),
    "scores are a number": (spm() | {K + "scores": 1.0}, "tokenizer.ggml.scores"),
    "a score is not a number": (_changed("scores", lambda v: [*v[:-1], float("nan")]), "not a number"),
    "types are floats": (_changed("token_type", lambda v: [float(x) for x in v]), "token_type has elements"),
    "the same token twice": (_changed("tokens", lambda v: [*v[:-1], v[-2]]), "have the same text"),
    "a long token": (_changed("tokens", lambda v: [*v[:-1], "x" * (MAX_TOKEN_BYTES + 1)]), "65537 bytes, expected"),
    "bos outside": (spm() | {K + "bos_token_id": 10**6}, "bos_token_id is 1000000, expected a token id below"),
    "eos outside": (spm() | {K + "eos_token_id": 2**32 - 1}, "eos_token_id is 4294967295"),
    "eot negative": (spm() | {K + "eot_token_id": -1}, "eot_token_id is -1"),
    "eos is a text": (spm() | {K + "eos_token_id": "</s>"}, "eos_token_id"),
    "add_bos is a number": (spm() | {K + "add_bos_token": 1}, "add_bos_token"),
    "merges are numbers": (byte_level() | {K + "merges": [1, 2]}, "tokenizer.ggml.merges"),
    "unknown pre": (byte_level("gpt-9"), r"pre-tokenizer 'gpt-9' is not known.*--override-pre NAME.*qwen2"),
    "bos wanted, none there": (
        {k: v for k, v in byte_level("glm4", **{K + "add_bos_token": True}).items() if "bos_token_id" not in k},
        "should have a bos token",
    ),
    **{
        f"byte token {text}": (_changed("tokens", lambda v, text=text: [*v[:10], text, *v[11:]]), "byte token 10 is")
        for text in ("<0xfe>", "<0x5>", "<0x005>", "0x05", "<0x05>\n", "<0xGG>")
    },
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line_with_the_file(name, tmp_path):
    metadata, message = DAMAGED[name]
    with pytest.raises(FormatError, match=message) as caught:
        open_tokenizer(tmp_path, metadata)
    assert str(caught.value).startswith(str(tmp_path / "vocabulary.gguf") + ": ")
    assert "\n" not in str(caught.value)


def test_a_token_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not UTF-8"):
        open_tokenizer(tmp_path, _changed("tokens", lambda v: [*(t.encode() for t in v[:-1]), b"\xff"]))


def test_ids_that_nothing_uses_may_be_wrong(tmp_path):
    metadata = spm() | {K + "padding_token_id": 10**6, K + "fim_pre_token_id": 10**6}
    assert "pad" not in open_tokenizer(tmp_path, metadata).vocabulary.special


def test_an_empty_token_gets_a_name(tmp_path):
    tokenizer = open_tokenizer(tmp_path, _changed("tokens", lambda v: [*v[:-1], ""]))
    assert tokenizer.vocabulary.texts[-1] == f"[EMPTY_{tokenizer.n_vocab - 1}]"


def test_the_name_of_the_pre_tokenizer_can_be_overridden(tmp_path):
    assert open_tokenizer(tmp_path, byte_level("gpt-9"), pre="gpt-2").encode("the")
    with pytest.raises(FormatError, match="'gpt-10' is not known"):
        open_tokenizer(tmp_path, byte_level(), pre="gpt-10")


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (["<end_of_turn>"], ["<end_of_turn>"]),
        (["<|eot_id|>", "<|eom_id|>"], ["<|eot_id|>", "<|eom_id|>"]),
        (["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"], ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]),
        (["<|return|>", "<|call|>", "<|end|>"], ["<|return|>", "<|call|>"]),
        (["<|flush|>", "<|calls|>", "<|end|>"], ["<|flush|>", "<|calls|>"]),
        (["<|end|>", "<|call|>"], ["<|end|>", "<|call|>"]),
        (["<|tool_response>", "</s >"], ["<|tool_response>"]),
        (["<eos>", "<turn|>"], ["<eos>", "<turn|>"]),
        (["<|endofprompt|>"], []),
    ],
)
def test_tokens_that_end_a_generation_are_known_by_text(tmp_path, texts, ends):
    metadata = byte_level()
    metadata[K + "tokens"][-len(texts) :] = texts
    metadata[K + "token_type"][-len(texts) :] = [1] * len(texts)
    tokenizer = open_tokenizer(tmp_path, metadata)
    ids = tokenizer.vocabulary.ids
    eog = {ids[text] for text in ends}
    assert tokenizer.eog_ids == eog | {tokenizer.eos_id, ids["<|endoftext|>"], ids["<|im_end|>"]}
    for text in ends:  # they are control tokens from now on
        assert tokenizer.vocabulary.has(ids[text], Attr.CONTROL)
        assert ids[text] not in tokenizer.encode(text)


def test_s_is_ordinary_text_beside_gemma_4s_tokens(tmp_path):
    metadata = byte_level()
    metadata[K + "tokens"][-2:] = ["<|tool_response>", "</s>"]
    tokenizer = open_tokenizer(tmp_path, metadata)
    s_id = tokenizer.vocabulary.ids["</s>"]
    assert s_id not in tokenizer.eog_ids
    assert tokenizer.vocabulary.has(s_id, Attr.NORMAL)


def test_harmony_tokens_are_always_shown(tmp_path):
    metadata = byte_level()
    metadata[K + "tokens"][-1] = "<|channel|>"
    metadata[K + "token_type"][-1] = 3
    tokenizer = open_tokenizer(tmp_path, metadata)
    channel = tokenizer.vocabulary.ids["<|channel|>"]
    assert tokenizer.piece(channel) == b"<|channel|>"
    assert channel in tokenizer.encode("<|channel|>")


def test_a_mask_takes_the_space_before_it(tmp_path):
    metadata = spm(**{"general.architecture": "nomic-bert-moe"})
    metadata[K + "tokens"][3] = "<mask>"
    tokenizer = open_tokenizer(tmp_path, metadata)
    assert tokenizer.encode("the \n <mask>", parse_special=True) == [*tokenizer.encode("the"), 3]


def test_control_tokens_are_found_longest_first(tmp_path):
    metadata = byte_level()
    metadata[K + "tokens"][1:3] = ["<|a|>", "<|a|><|b|>"]
    tokenizer = open_tokenizer(tmp_path, metadata)
    ids = tokenizer.encode("<|a|><|a|><|b|>x", parse_special=True, add_special=False)
    assert ids[:2] == [1, 2]
