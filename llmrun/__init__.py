"""Run quantised language models on an ordinary CPU or an Apple-Silicon laptop."""

from __future__ import annotations

__version__ = "0.1.0"
