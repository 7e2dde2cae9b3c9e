"""The normaliser of a unigram vocabulary: a table of texts and what they become.

Its form is an XOR-compressed double array: an entry's bits 10 to 30 are its base (bit 9 shifts it left by 8),
bits 0 to 7 and 31 the label that leads to it, and bit 8 says that a text ends there. Every index comes
from the file, so every access is checked.

Source: sentencepiece src/normalizer.cc; S. Kanda, Space- and Time-Efficient String Dictionaries (2018).
"""

from __future__ import annotations

import numpy as np

from ...formats.errors import FormatError


class Charsmap:
    """Replaces the longest text at a position that has a replacement."""

    def __init__(self, data: bytes, where: str) -> None:
        """Split the parts.

        Args:
            data: ``tokenizer.ggml.precompiled_charsmap``; empty for no replacements.
            where: the file, for messages.

        Raises:
            FormatError: the sizes contradict each other.
        """
        self._where = where
        n_bytes = int.from_bytes(data[:4], "little")
        if data and (len(data) < 4 or n_bytes + 4 >= len(data) or n_bytes % 4):
            raise FormatError(f"{where}: the precompiled charsmap has {len(data)} bytes, its table {n_bytes}")
        self._units: list[int] = np.frombuffer(data[4 : 4 + n_bytes], dtype="<u4").tolist()
        self._texts = data[4 + n_bytes :]

    def replace(self, data: bytes, start: int) -> tuple[bytes, int] | None:
        """Return the replacement for the longest text at ``start`` and that text's bytes, None if there is none.

        Raises:
            FormatError: the table points outside itself.
        """
        if not self._units:
            return None
        index, n_matched, found = _base(self._units[0]), 0, 0
        for i in range(start, len(data)):
            if data[i] == 0:
                break
            index ^= data[i]
            unit = self._unit(index)
            if unit & (1 << 31 | 0xFF) != data[i]:
                break
            index ^= _base(unit)
            if unit >> 8 & 1:
                n_matched, found = i - start + 1, self._unit(index) & ((1 << 31) - 1)
        if not n_matched:
            return None
        stop = self._texts.find(b"\0", found) if found < len(self._texts) else -1
        if stop < 0:
            raise FormatError(f"{self._where}: the precompiled charsmap has no text at {found}")
        return self._texts[found:stop], n_matched

    def _unit(self, index: int) -> int:
        if index >= len(self._units):
            raise FormatError(f"{self._where}: the precompiled charsmap has no entry {index}")
        return self._units[index]


def _base(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)
