"""Text out of a stream of tokens, never half a character."""

from __future__ import annotations

import codecs

from .base import Tokenizer


class StreamDecoder:
    """Turns tokens into text as they come; holds back the bytes of an unfinished UTF-8 character.

    A piece's leading space is kept: generated text continues the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        """Start with nothing held back.

        Args:
            tokenizer: of the model that generates.
            special: whether control tokens show their text.
        """
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Return the text that this token completes, perhaps none; bytes that are not UTF-8 become U+FFFD."""
        return self._decoder.decode(self._tokenizer.piece(token_id, special=self._special))

    def flush(self) -> str:
        """Return what was held back (U+FFFD for an unfinished character) and start afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
