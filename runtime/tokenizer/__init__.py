"""Text to token ids and back."""

from __future__ import annotations

from .base import Tokenizer
from .load import load_tokenizer
from .stream_decoder import StreamDecoder

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
