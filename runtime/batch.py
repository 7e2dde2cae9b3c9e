"""What one forward pass works on: flat rows, each in some sequence.

Prefill chunks, single decode steps, the verification of drafts and many users at once are the same
code with different batches. Slot and position are different things: two draft candidates share a
position, and what a row sees is said in slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.record import Record
from .kernels.layout import BATCH_WORDS, N_OUT, N_TOK, OUT_ROWS, ROW_BYTES, ROWS


class Row(Record, kw_only=True):
    """One row: a token (or a given vector) in one slot of a sequence, and what it sees.

    It attends to slots ``visible_start <= slot < visible_stop``, then to ``ancestors``, in order. A
    plain token in slot n sees slots 0 to n: ``visible_stop = n + 1``.
    """

    token_id: int
    page_table: NDArray[np.int64]
    slot: int
    position: int
    visible_stop: int
    visible_start: int = 0
    ancestors: NDArray[np.int64] | None = None
    has_output: bool = False


class Batch:
    """Rows as the kernels read them. Keeps every array that an address points to."""

    def __init__(self, rows: Sequence[Row], vectors: NDArray[np.float32] | None = None) -> None:
        self.n_tok = len(rows)
        self.token_ids = np.array([r.token_id for r in rows], np.int64)  # [n_tok]
        self.vectors = vectors  # [n_tok, n_embd] for rows whose token id is -1
        self.rows = np.zeros((len(rows), ROW_BYTES // 8), np.int64)
        self._keep: list[Any] = []
        for record, row in zip(self.rows, rows, strict=True):
            ancestors = row.ancestors
            record[:] = (
                row.token_id, row.page_table.ctypes.data, row.slot, row.position, row.visible_start, row.visible_stop,
                0 if ancestors is None else ancestors.ctypes.data, 0 if ancestors is None else len(ancestors),
            )  # fmt: skip
            self._keep.append((row.page_table, ancestors))
        self._finish(np.array([i for i, r in enumerate(rows) if r.has_output], np.int64))

    def ancestors(self, index: int) -> NDArray[np.int64]:
        """Return the slots that a row sees after its contiguous ones."""
        found = self._keep[index][1] if index < len(self._keep) and isinstance(self._keep[index], tuple) else None
        return np.zeros(0, np.int64) if found is None else found

    def _finish(self, out_rows: NDArray[np.int64]) -> None:
        self.out_rows = out_rows
        self.wanted = self.rows[out_rows]  # the records of rows whose outputs are wanted, once more
        self.n_out = len(out_rows)
        self.record = np.zeros(BATCH_WORDS, np.int64)
        self.record[N_TOK // 8] = self.n_tok
        self.record[ROWS // 8] = self.rows.ctypes.data
        self.record[N_OUT // 8] = self.n_out
        self.record[(N_OUT + ROWS) // 8] = self.wanted.ctypes.data
        self.record[OUT_ROWS // 8] = self.out_rows.ctypes.data

    @classmethod
    def of_tokens(
        cls,
        page_table: NDArray[np.int64],
        first_slot: int,
        token_ids: Sequence[int],
        out_rows: Sequence[int],
        *,
        shift: int = 0,
        visible_start: int = 0,
    ) -> Batch:
        """Return the batch of consecutive plain tokens of one sequence: prefill chunks and decode steps.

        Args:
            page_table: of the sequence.
            first_slot: of the first token.
            token_ids: the tokens.
            out_rows: rows whose output is wanted.
            shift: how much larger positions are than slots, where a sequence holds a text from its middle on.
            visible_start: the first slot that the tokens see.
        """
        chain = page_table, first_slot, token_ids
        return cls.of_chains([chain], out_rows, shift=shift, visible_start=visible_start)

    @classmethod
    def of_chains(
        cls,
        chains: Sequence[tuple[NDArray[np.int64], int, Sequence[int]]],
        out_rows: Sequence[int] | None = None,
        *,
        shift: int = 0,
        visible_start: int = 0,
    ) -> Batch:
        """Return the batch of consecutive plain tokens of each of several sequences.

        Args:
            chains: (page table, first slot, token ids) of each sequence.
            out_rows: rows whose output is wanted, counted over all chains; None: all.
            shift: how much larger positions are than slots.
            visible_start: the first slot that the tokens see.
        """
        batch = cls.__new__(cls)
        n = sum(len(ids) for _, _, ids in chains)
        batch.n_tok, batch.vectors, batch._keep = n, None, [page_table for page_table, _, _ in chains]
        batch.rows = np.zeros((n, ROW_BYTES // 8), np.int64)
        start = 0
        for page_table, first_slot, token_ids in chains:
            rows = batch.rows[start : start + len(token_ids)]
            slots = np.arange(first_slot, first_slot + len(token_ids))
            rows[:, 0] = token_ids
            rows[:, 1] = page_table.ctypes.data
            rows[:, 2], rows[:, 3] = slots, slots + shift
            rows[:, 4], rows[:, 5] = visible_start, slots + 1
            start += len(token_ids)
        batch.token_ids = batch.rows[:, 0].copy()
        batch._finish(np.arange(n) if out_rows is None else np.asarray(out_rows, np.int64))
        return batch
