"""What stands before a draft model's window, in blocks of a page, and which of them are worth reading now.

An answer that says things of its text again says them of some place. So the blocks that have most in common with the
last tokens are read first, with their neighbours: pieces tell less the smaller they are, since none sees the others.
Where nothing has much in common nothing is read but what stands right before the window: a prompt ends with what is
asked (bench/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..kernels.layout import PAGE_SLOTS

N_RECENT = 24  # last tokens of the text that are looked for
# What a block must hold of them to be read, each counted as one by as many blocks as hold it; and the share of it that
# speaks for the block behind, which goes on where this one ends. A text of few blocks (N_WHOLE, those near the window
# not counted) of which some holds SPOKEN_OF is what the answer is about, and all of it is worth reading.
ALIKE, NEXT_BLOCK = 3.0, 0.5
N_WHOLE, SPOKEN_OF = 8, 2.0
N_NEAR = 2  # blocks before the window that are read whatever they hold
LEAD = 16  # tokens before a piece that are read with it and left aside: its first ones would tell little without
LEAST_PIECE = 16  # tokens, of what is left of a page at the text's begin, that are worth a pass of their own


class EarlierText:
    """Blocks of ``PAGE_SLOTS`` tokens, counted back from the window's begin.

    Args:
        ids: the text; what stands from ``stop`` on may become another one.
        start, stop: what of it may be read.
    """

    def __init__(self, ids: Sequence[int], start: int, stop: int) -> None:
        self._start, self._first = start, start + (stop - start) % PAGE_SLOTS
        self._text = ids[start:stop]
        self._unread = list(range(self._first, stop, PAGE_SLOTS))
        self._has_rest = self._first - start >= LEAST_PIECE  # which is read at last
        self._near = stop - N_NEAR * PAGE_SLOTS
        self._holders: dict[int, list[int]] | None = None  # blocks that a token stands in

    def choose(self, recent: Sequence[int], n_token: int) -> list[tuple[int, int]]:
        """Return places of at most so many tokens that are to be read now, each in one piece: [(start, stop)].

        The last one is the first in the text; of all that are ever returned it alone may be no whole pages.

        Args:
            recent: the text so far; its last tokens are looked for.
            n_token: those that are read before a piece included (``lead``); may be negative.
        """
        if n_token >= PAGE_SLOTS and self._unread:
            chosen, n_left = self._choose_blocks(recent, n_token)
        else:
            chosen, n_left = [], n_token
        parts = [(block, block + PAGE_SLOTS) for block in chosen]
        if self._has_rest and not self._unread:
            n_left += self.lead(self._first) if self._first in chosen else 0
            if self._first - self._start <= n_left:
                self._has_rest = False
                parts.append((self._start, self._first))
        places: list[tuple[int, int]] = []
        for start, stop in sorted(parts, reverse=True):  # neighbours are one piece and see each other
            end = places.pop()[1] if places and places[-1][0] == stop else stop
            places.append((start, end))
        return places

    def lead(self, start: int) -> int:
        """Return how many tokens before a piece are read with it and then left aside."""
        return min(LEAD, start - self._start)

    def _choose_blocks(self, recent: Sequence[int], n_token: int) -> tuple[list[int], int]:
        """Return the blocks to be read now, neighbours rather than others, and how many tokens remain."""
        alike = self._alike(recent)
        far = [block for block in self._unread if block < self._near]
        is_spoken_of = len(far) <= N_WHOLE and any(alike.get(block, 0.0) >= SPOKEN_OF for block in far)
        wanted = [b for b in self._unread if is_spoken_of or b >= self._near or alike.get(b, 0.0) >= ALIKE]
        chosen = list[int]()
        while wanted:
            beside = [b for b in wanted if b - PAGE_SLOTS in chosen or b + PAGE_SLOTS in chosen]
            block = max(beside or wanted, key=lambda b: (alike.get(b, 0.0), b))
            n = PAGE_SLOTS + (0 if block - PAGE_SLOTS in chosen else self.lead(block))
            n -= self.lead(block + PAGE_SLOTS) if block + PAGE_SLOTS in chosen else 0
            if n > n_token:
                break
            n_token -= n
            chosen.append(block)
            wanted.remove(block)
            self._unread.remove(block)
        return chosen, n_token

    def _alike(self, recent: Sequence[int]) -> dict[int, float]:
        """Return how much blocks have in common with the last tokens."""
        if self._holders is None:
            self._holders = {}
            for block in self._unread:
                first = block - self._start
                for token_id in set(self._text[first : first + PAGE_SLOTS]):
                    self._holders.setdefault(token_id, []).append(block)
        alike: dict[int, float] = {}
        for token_id in set(recent[-N_RECENT:]):
            holders = self._holders.get(token_id, ())
            for block in holders:
                alike[block] = alike.get(block, 0.0) + 1 / len(holders)
                behind = block + PAGE_SLOTS
                alike[behind] = alike.get(behind, 0.0) + NEXT_BLOCK / len(holders)
        return alike
