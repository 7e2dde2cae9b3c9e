"""Merging of neighbouring symbols, best pair first: what byte-pair and SentencePiece tokenizers have in common.

For byte-pair vocabularies it is also the reference for the `tokenizers` library, and what runs where that
cannot: the library keys merges by token id, so every part and every result must be a token, while
llama.cpp keys them by text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise


def merge(symbols: Sequence[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """Merge neighbours, lowest rank first and leftmost among equals, until no pair has a rank.

    Args:
        symbols: the characters of a word.
        rank: returns the rank of a pair of texts, or None when they do not merge.

    Source: llama.cpp src/llama-vocab.cpp (`llm_tokenizer_bpe_session`, `llm_tokenizer_spm_session`).
    """
    parts: list[str | None] = list(symbols)
    before = list(range(-1, len(parts) - 1))
    after = [*range(1, len(parts)), -1]
    queue: list[tuple[float, int, int, str, str]] = []
    for i, (left_text, right_text) in enumerate(pairwise(symbols)):
        found = rank(left_text, right_text)
        if found is not None:
            queue.append((found, i, i + 1, left_text, right_text))
    heapify(queue)
    while queue:
        _, left, right, left_text, right_text = heappop(queue)
        if parts[left] != left_text or parts[right] != right_text:
            continue  # one of them has been merged since
        parts[left], parts[right] = left_text + right_text, None
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        for i, j in ((before[left], left), (left, after[left])):
            first, second = (parts[i], parts[j]) if i >= 0 and j >= 0 else (None, None)
            if first is not None and second is not None:
                found = rank(first, second)
                if found is not None:
                    heappush(queue, (found, i, j, first, second))
    return [part for part in parts if part is not None]
