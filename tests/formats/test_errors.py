"""Messages are one printable line, whatever names they quote."""

import pytest

from llmrun.formats.errors import CapacityError, ConfigError, FormatError, LlmrunError, quote


@pytest.mark.parametrize("kind", [ConfigError, FormatError, CapacityError])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.gguf: größer als 5 €", "model.gguf: größer als 5 €"),
        ("two\nlines", "two lines"),
        ("a\rb\x1b[2J\x07", r"a\rb\x1b[2J\x07"),
        ("right\u202eleft\u2028", r"right\u202eleft\u2028"),
        ("\udcff.gguf", r"\udcff.gguf"),
    ],
)
def test_message_is_one_printable_line(kind, text, shown):
    error = kind(text)
    assert isinstance(error, LlmrunError)
    assert str(error) == shown
    assert str(error).isprintable()
    str(error).encode()


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("blk.0.attn_q.weight", "'blk.0.attn_q.weight'"),
        ("ü\n\x1b", r"'ü\n\x1b'"),
        (b"ab\xff", r"'ab\xff'"),
        ("x" * 100, "'" + "x" * 100 + "'"),
        ("x" * 101, "'" + "x" * 100 + "'…"),
        (b"x" * 10_000, "'" + "x" * 100 + "'…"),
    ],
)
def test_quoted_name(name, quoted):
    assert quote(name) == quoted
