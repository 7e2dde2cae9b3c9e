"""Saved chats are checked when they are read, and never half written."""

import json

import pytest

from llmrun.cli.conversation import Conversation
from llmrun.formats.errors import ConfigError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "A"}]
GOOD = {"format": "llmrun-chat", "version": 1, "model": "m", "settings": {}, "system": None, "messages": TURNS}


def test_what_was_saved_is_loaded(tmp_path):
    path = tmp_path / "c.json"
    Conversation("Grüße\u2028", list(TURNS)).save(path, model="m", settings={})
    assert Conversation.load(path) == Conversation("Grüße\u2028", TURNS)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a saved chat"),
        ({"version": 2}, "has version 2, expected 1"),
        ({"system": 5}, "wrong type"),
        ({"messages": {}}, "wrong type"),
        ({"messages": [{"role": "system", "content": "x"}]}, "message 0 is not text of role 'user'"),
        ({"messages": [TURNS[0], TURNS[0]]}, "message 1 is not text of role 'assistant'"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "message 0"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "message 0"),
        ({"messages": TURNS[:1]}, "the last question has no answer"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ConfigError, match=r"c\.json: ") as error:
        Conversation.load(path)
    assert message in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 200_000, b"{", b"[]", b"null"])
def test_what_is_no_such_file_is_refused(tmp_path, data):
    path = tmp_path / "c.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        Conversation.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.json"
    Conversation().save(path, model="m", settings={})
    old = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConfigError, match="No space left"):
        Conversation(None, list(TURNS)).save(path, model="m", settings={})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_undo_and_drop_answer():
    chat = Conversation(None, [*TURNS, *TURNS])
    assert chat.drop_answer()
    assert not chat.drop_answer()
    assert chat.undo()
    assert chat.turns == TURNS
    assert chat.undo()
    assert not chat.undo()


def test_save_replaces_a_saved_chat_and_nothing_else(tmp_path):
    path = tmp_path / "chat.json"
    for text in ("a", "b"):
        Conversation(text).save(path, model="m", settings={})
        assert Conversation.load(path).system == text
    path.write_text("my notes")
    with pytest.raises(ConfigError, match="is there already and is no saved chat"):
        Conversation("c").save(path, model="m", settings={})
    assert path.read_text() == "my notes"
