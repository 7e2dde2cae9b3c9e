"""Texts that llmrun calibrates and measures with where the user gives none. README.md says where they are from."""

from __future__ import annotations

from pathlib import Path

from ...formats.record import Record

FOLDER = Path(__file__).parent
CALIBRATION = "llmrun calibration text 1"


def calibration_text() -> str:
    """Return the text: English, code, 27 languages in 16 scripts."""
    text = (FOLDER / "calibration.txt").read_text(encoding="utf-8")
    return text.removesuffix("\n")


class DraftPrompt(Record, kw_only=True):
    """A message that a model answers while drafts are measured; ``kind`` says what it asks for ("code", "edit", …)."""

    kind: str
    name: str
    text: str


def draft_prompts() -> list[DraftPrompt]:
    """Return the fixed set of prompts for drafts, in order of their files' names."""
    found = []
    for path in sorted((FOLDER / "drafts").glob("*.txt")):
        kind, name = path.stem.split("-", 1)
        found.append(DraftPrompt(kind=kind, name=name, text=path.read_text(encoding="utf-8").strip()))
    return found
