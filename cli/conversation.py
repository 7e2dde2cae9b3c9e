"""The messages of one chat: turns, undo, and the file that ``/save`` writes. No drawing, no engine."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..formats.errors import ConfigError
from ..formats.record import Record, field

FORMAT = "llmrun-chat"
VERSION = 1
MAX_FILE_BYTES = 64 << 20


class Conversation(Record, frozen=False):
    """A system prompt and turns; ``turns`` alternate user, assistant."""

    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """Return what the chat template gets."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*head, *self.turns]

    def raw_text(self) -> str:
        """Return the text so far, for a model without a chat template: turns follow each other, a line each."""
        text = ""
        for turn in self.turns:
            joint = "\n" if text and turn["role"] == "user" and not text.endswith("\n") else ""
            text += joint + turn["content"]
        return text

    def undo(self) -> bool:
        """Drop the last question and its answer; return whether there was one."""
        if not self.turns:
            return False
        while self.turns and self.turns.pop()["role"] != "user":
            pass
        return True

    def drop_answer(self) -> bool:
        """Drop the last answer and keep its question; return whether there was one."""
        if len(self.turns) < 2 or self.turns[-1]["role"] != "assistant":
            return False
        self.turns.pop()
        return True

    def save(self, path: Path, *, model: str, settings: dict[str, Any]) -> None:
        """Write the chat as JSON; the file appears complete or not at all, and replaces only a saved chat.

        Raises:
            ConfigError: it cannot be written, or something else has that name.
        """
        record = {
            "format": FORMAT,
            "version": VERSION,
            "model": model,
            "settings": settings,
            "system": self.system,
            "messages": self.turns,
        }
        data = json.dumps(record, ensure_ascii=False, indent=2).encode("utf-8") + b"\n"
        part = None
        try:
            if path.is_file() and path.stat().st_size and not _is_saved_chat(path):
                raise ConfigError(f"{path}: is there already and is no saved chat. Choose another name")
            descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(part).replace(path)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        finally:
            if part is not None:
                with contextlib.suppress(OSError):
                    Path(part).unlink()

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read a chat that ``save`` wrote; everything in it is checked.

        Raises:
            ConfigError: it cannot be read or is not such a file.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
        try:
            record = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            raise ConfigError(f"{path}: is not JSON") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ConfigError(f"{path}: is not a saved chat")
        if record.get("version") != VERSION:
            raise ConfigError(f"{path}: has version {record.get('version')!r}, expected {VERSION}")
        system, turns = record.get("system"), record.get("messages")
        if not (system is None or _is_text(system)) or not isinstance(turns, list):
            raise ConfigError(f"{path}: 'system' or 'messages' has the wrong type")
        for i, turn in enumerate(turns):
            expected = "assistant" if i % 2 else "user"
            if not isinstance(turn, dict) or turn.get("role") != expected or not _is_text(turn.get("content")):
                raise ConfigError(f"{path}: message {i} is not text of role '{expected}'")
        if len(turns) % 2:
            raise ConfigError(f"{path}: the last question has no answer")
        return cls(system, [{"role": turn["role"], "content": turn["content"]} for turn in turns])


def _is_saved_chat(path: Path) -> bool:
    """Return whether a file begins as ``save`` writes it."""
    with path.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(64)


def _is_text(value: object) -> bool:
    """Return whether a JSON value is a string that UTF-8 can hold (JSON allows lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
