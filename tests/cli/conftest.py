"""Fixtures for the commands: a fake engine behind the real command line, streams that can pretend to be terminals."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import llmrun.runtime.engine
from llmrun.cli.app import main

from .fake_engine import FakeEngine


class Stream(io.TextIOWrapper):
    """A standard stream over bytes in memory that says whether it is a terminal."""

    def __init__(self, data: bytes = b"", *, is_tty: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", newline="\n", write_through=True)
        self.is_tty = is_tty

    def isatty(self) -> bool:
        return self.is_tty

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]


@dataclass
class Result:
    code: int
    out: str
    err: str
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = self.err.splitlines()


@pytest.fixture(autouse=True)
def private_folders(tmp_path, monkeypatch):
    """Nothing of the user's is read or written."""
    monkeypatch.setenv("LLMRUN_MODELS", str(tmp_path / "models"))
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("NO_COLOR", "TERM", "LLMRUN_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(monkeypatch):
    """Run a command line as the console script does and return its exit code and what it printed."""

    def run(*args: object, stdin: str | bytes = b"", tty: bool = False) -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        streams = Stream(data, is_tty=tty), Stream(is_tty=tty), Stream(is_tty=tty)
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, stream)
        code = main([str(arg) for arg in args])
        return Result(code, streams[1].text(), streams[2].text())

    return run


@pytest.fixture
def engine(monkeypatch) -> FakeEngine:
    """The engine that every command of the test opens."""
    fake = FakeEngine()
    monkeypatch.setattr(llmrun.runtime.engine, "Engine", fake)
    return fake


@pytest.fixture
def model(tmp_path) -> Path:
    """A file that stands for a model; the fake engine does not look into it."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path
