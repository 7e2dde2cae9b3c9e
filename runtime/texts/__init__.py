"""The text that llmrun calibrates and measures with where the user gives none. README.md says where it is from."""

from __future__ import annotations

from pathlib import Path

CALIBRATION = "llmrun calibration text 1"


def calibration_text() -> str:
    """Return the text: English, code, 27 languages in 16 scripts."""
    text = (Path(__file__).parent / "calibration.txt").read_text(encoding="utf-8")
    return text.removesuffix("\n")
