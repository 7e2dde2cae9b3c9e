"""JSON files of a checkpoint folder: checked values, and texts beside them."""

import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.hf_config import HfFolder, JsonObject
from llmrun.formats.strict_json import parse_json, read_json

from ..hf_tiny import write_json

OBJECT = JsonObject("config.json", {"i": 3, "f": 2.5, "b": True, "s": "x", "n": None, "l": [1, 2], "o": {"a": 1}})


def test_values_have_the_type_that_was_asked_for():
    assert OBJECT.required("i", int) == 3
    assert isinstance(OBJECT.required("i", float), float)
    assert OBJECT.required("b", bool) is True
    assert OBJECT.optional("n", str) is None
    assert OBJECT.optional("missing", str) is None
    assert OBJECT.array("l", float, 2) == [1, 2]
    assert OBJECT.either(("missing", "s"), str) == "x"
    inner = OBJECT.object("o")
    assert inner is not None
    assert inner.required("a", int) == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda o: o.required("n", int), "config.json: 'n' is missing"),
        (lambda o: o.required("b", int), "config.json: 'b' is a bool, expected int"),
        (lambda o: o.required("b", float), "config.json: 'b' is a bool, expected float"),
        (lambda o: o.required("i", bool), "config.json: 'i' is an integer, expected bool"),
        (lambda o: o.required("f", int), "config.json: 'f' is a number, expected int"),
        (lambda o: o.required("s", int), "config.json: 's' is the text 'x', expected int"),
        (lambda o: o.object("l"), "'l': is a list of 2, expected an object"),
        (lambda o: o.array("l", int, 3), "'l' is a list of 2, expected a list of 3"),
        (lambda o: o.array("l", str), r"'l'\[0\] is an integer, expected str"),
    ],
)
def test_other_types_are_refused(ask, message):
    with pytest.raises(FormatError, match=message):
        ask(OBJECT)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1e999", "'x' is not finite"), ("NaN", "'x' is not finite"), ("1" * 30, "'x' is 1111.*, expected less than")],
)
def test_numbers_beyond_reason_are_refused(text, message):
    with pytest.raises(FormatError, match=message):
        JsonObject("c", parse_json(f'{{"x": {text}}}'.encode(), "c")).required("x", float)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "config.json").write_bytes(b" " * 2000)
    with pytest.raises(FormatError, match="has 2000 bytes, expected at most 1000"):
        read_json(tmp_path / "config.json", max_bytes=1000)


def test_chat_templates_of_all_files(tmp_path):
    write_json(
        tmp_path / "tokenizer_config.json",
        {"chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]},
    )
    assert HfFolder(tmp_path).chat_templates() == {"default": "A", "tool_use": "B"}
    (tmp_path / "chat_template.jinja").write_text("C")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("D")
    assert HfFolder(tmp_path).chat_templates() == {"default": "C", "tool_use": "B", "rag": "D"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "'chat_template' is an integer, expected a list"),
        (["A"], r"'chat_template'\[0\] is the text 'A', expected dict"),
        ([{"name": "default"}], r"'chat_template'\[0\]: 'template' is missing"),
        ("x" * (2 << 20), "a chat template has 2097152 characters"),
    ],
)
def test_chat_templates_that_are_none(value, message, tmp_path):
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(FormatError, match=message):
        HfFolder(tmp_path).chat_templates()


def test_a_folder_without_config_is_no_checkpoint(tmp_path):
    with pytest.raises(FormatError, match=r"has no config\.json"):
        _ = HfFolder(tmp_path).config
