"""Attention over pages of keys and values (``kv_store.py`` has their layout).

The columns of a pass, one for each row and query head that shares a key head, are worked on in tiles of up to sixteen
(``attention_tile.py``), which read a page once for all of their columns. Rows of several sequences, or with
ancestors, are kept apart. Each column's numbers depend on that column alone, so neither the other columns, nor the
batch, nor the number of threads can change a bit.

Where there are fewer tiles than would keep all threads busy, the segments of a tile are dealt out: each leaves its
state in memory, and who comes last merges them, in order.

Slots that a row sees: ``start <= slot < stop``, then its list of ancestors, counted on as if they lay in the slots that
follow; a branch of a tree of drafts therefore gives the bits of a plain sequence.

Record words after the two that all share: 2 heads, 3 key heads, 4 columns of a head, 5 q, 6 row bytes of q, 7 y, 8 row
bytes of y, 9 keys, 10 values (addresses of the layer's page 0), 11 page bytes, 12 scale (f32 bits), 13 soft cap (f32
bits, 0: none), 14 window in slots (0: none), 15 activation records of y to write as well, or 0 (heads of a multiple of
32 columns), 16 room for states, 17 states that fit there, 18 bytes of a state, 19 counters of finished parts
(``MAX_SHARED`` words, zero between passes), 20 factors of queries (f32 [n_head_kv][n_embd_head]; q8_0 only).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import atomic_add, atomic_store, larger, load_i64, smaller, store_i64
from ..simd.vector import add, broadcast_f32, device, div, int64, load_f32x16, mul, splat, store_f32x16, void
from .attention_tile import (
    QUERIES, RANGES, SEGMENT, STATE_SUM, STATE_VALUES, TOTAL, clear_state, merge_state,
    segment_operations, tile_scratch,
)  # fmt: skip
from .layout import (
    MAX_SHARED, PAGE_SLOTS, ROW_BYTES, ROW_N_ANCESTOR, ROW_PAGES, ROW_VISIBLE_START, ROW_VISIBLE_STOP,
    SEGMENT_PAGES,
)  # fmt: skip
from .quantize import is_given_up, quantize_block, record_address
from .rows import rows_of

_OP = void(*[int64] * 4)
_TILE = void(*[int64] * 10)
_SEGMENT_SLOTS = SEGMENT_PAGES * PAGE_SLOTS
_ZERO, _ONE = np.float32(0), np.float32(1)


@device(int64(int64))
def _seen(row):
    """Return how many slots a row sees, counted from slot 0."""
    return load_i64(row + ROW_VISIBLE_STOP) + load_i64(row + ROW_N_ANCESTOR)


@device(int64(int64, int64))
def _first_seen(row, window):
    """Return the first slot that a row sees."""
    start = load_i64(row + ROW_VISIBLE_START)
    return larger(start, _seen(row) - window) if window > 0 else start


@device(void(int64, int64, int64, int64, int64, int64, int64), is_inlined=False)
def _finish(record, batch, first, n, head_kv, n_column, total):
    """Write the results of columns ``first`` to ``first + n``, and their activation records."""
    n_embd_head = load_i64(record + 32)
    n_group = load_i64(record + 16) // load_i64(record + 24)
    records, n_tok = load_i64(record + 120), load_i64(batch + load_i64(record + 8))
    n_block = load_i64(record + 16) * n_embd_head // 32
    store_f32x16(total + STATE_SUM, div(splat(_ONE), load_f32x16(total + STATE_SUM)))
    for c in range(n):
        tok, head = (first + c) // n_group, head_kv * n_group + (first + c) % n_group
        y = load_i64(record + 56) + tok * load_i64(record + 64) + 4 * n_embd_head * head
        inverse = broadcast_f32(total + STATE_SUM + 4 * c)
        for i in range(0, n_embd_head, 16):
            value = load_f32x16(total + STATE_VALUES + 64 * (i // 16 * n_column + c))
            # Adding zero makes -0 into 0: a page that a column does not see may leave either.
            store_f32x16(y + 4 * i, add(mul(value, inverse), splat(_ZERO)))
        if records != 0:
            for i in range(0, n_embd_head, 32):
                out = record_address(records, n_tok, n_block, tok, (n_embd_head * head + i) // 32)
                quantize_block(load_f32x16(y + 4 * i), load_f32x16(y + 4 * i + 64), out)


def _make_tile(kv_type: str, n_column: int, target: Target) -> Any:
    """Return the attention of up to ``n_column`` columns of one sequence to one key head."""
    ops = segment_operations(kv_type, n_column, target)
    put_query, attend = ops.put_query, ops.attend

    @device(_TILE)
    def tile(record, batch, first, n, head_kv, part, n_part, states, counter, scratch):
        """Attend with columns ``first`` to ``first + n``: one of ``n_part`` parts of their segments.

        Parts leave the segments' states at ``states`` (0: there is one part) and count themselves.
        """
        n_embd_head, window = load_i64(record + 32), load_i64(record + 112)
        n_group = load_i64(record + 16) // load_i64(record + 24)
        rows, factors = rows_of(record, batch), load_i64(record + 160) + 4 * n_embd_head * head_kv
        start, stop = _first_seen(rows + ROW_BYTES * (first // n_group), window), 0
        for c in range(n_column):
            tok, q = (first + c) // n_group, 0
            if c < n:
                row = rows + ROW_BYTES * tok
                store_i64(scratch + RANGES + 16 * c, _first_seen(row, window))
                store_i64(scratch + RANGES + 16 * c + 8, _seen(row))
                start, stop = smaller(start, _first_seen(row, window)), larger(stop, _seen(row))
                q = load_i64(record + 40) + tok * load_i64(record + 48)
                q += 4 * n_embd_head * (head_kv * n_group + (first + c) % n_group)
            else:
                store_i64(scratch + RANGES + 16 * c, 0)
                store_i64(scratch + RANGES + 16 * c + 8, 0)
            put_query(q, factors, n_embd_head, c, scratch + QUERIES)
        row, total = rows + ROW_BYTES * (first // n_group), scratch + TOTAL
        first_segment, last_segment = start // _SEGMENT_SLOTS, (stop + _SEGMENT_SLOTS - 1) // _SEGMENT_SLOTS
        n_segment = last_segment - first_segment
        state, state_step = scratch + SEGMENT, 0
        if states != 0:
            state, state_step = states, load_i64(record + 144)
        clear_state(total, n_embd_head, n_column)
        for i in range(n_segment * part // n_part, n_segment * (part + 1) // n_part):
            slot = _SEGMENT_SLOTS * (first_segment + i)
            clear_state(state + state_step * i, n_embd_head, n_column)
            from_, to = larger(start, slot), smaller(stop, slot + _SEGMENT_SLOTS)
            attend(record, row, head_kv, from_, to, scratch, state + state_step * i)
            if states == 0:
                merge_state(total, state, n_embd_head, n_column)
        if states != 0:
            if atomic_add(counter, 1) != n_part - 1:
                return
            atomic_store(counter, 0)
            for i in range(n_segment):
                merge_state(total, states + state_step * i, n_embd_head, n_column)
        _finish(record, batch, first, n, head_kv, n_column, total)

    return tile


def _one_width(tile: Any, width: int, wider: Any) -> Any:
    """Return a function that attends with a tile of ``width`` columns if they suffice."""
    if wider is None:
        return tile

    @device(_TILE)
    def attend(record, batch, first, n, head_kv, part, n_part, states, counter, scratch):
        if n <= width:
            tile(record, batch, first, n, head_kv, part, n_part, states, counter, scratch)
        else:
            wider(record, batch, first, n, head_kv, part, n_part, states, counter, scratch)

    return attend


@device(int64(int64, int64, int64))
def _run_length(rows, tok, n_row):
    """Return how many of ``n_row`` rows from ``tok`` on can share tiles: one sequence, no ancestors."""
    first = rows + ROW_BYTES * tok
    n = 1
    while (
        n < n_row
        and load_i64(first + ROW_N_ANCESTOR) == 0
        and load_i64(first + ROW_BYTES * n + ROW_N_ANCESTOR) == 0
        and load_i64(first + ROW_BYTES * n + ROW_PAGES) == load_i64(first + ROW_PAGES)
    ):
        n += 1
    return n


@device(int64(int64, int64, int64))
def _n_segment(record, batch, n_tok):
    """Return how many segments all rows together see."""
    start, stop = 1 << 62, 0
    for tok in range(n_tok):
        row = rows_of(record, batch) + ROW_BYTES * tok
        start, stop = smaller(start, _first_seen(row, load_i64(record + 112))), larger(stop, _seen(row))
    return (stop + _SEGMENT_SLOTS - 1) // _SEGMENT_SLOTS - start // _SEGMENT_SLOTS


def attention_kernel(kv_type: str, target: Target) -> Kernel:
    """Return the attention kernel over pages of one type."""
    most, attend = max(target.column_widths), None
    for width in target.column_widths:
        attend = _one_width(_make_tile(kv_type, width, target), width, attend)

    def attention(record, batch, worker, n_worker):
        n_tok, n_head_kv = load_i64(batch + load_i64(record + 8)), load_i64(record + 24)
        n_group = load_i64(record + 16) // n_head_kv  # heads that share a key head
        n_column = n_tok * n_group
        columns, is_shareable = most, True
        rows = rows_of(record, batch)
        if _run_length(rows, 0, n_tok) < n_tok:
            is_shareable = n_tok * n_head_kv <= 2 * n_worker and n_group <= most
            columns = n_group if is_shareable else n_group * larger(1, most // n_group)
        n_unit = (n_column + columns - 1) // columns * n_head_kv
        n_part, n_segment = 1, 0
        if is_shareable and n_unit % n_worker != 0 and n_unit <= smaller(2 * n_worker, MAX_SHARED):
            n_segment = _n_segment(record, batch, n_tok)
            if n_unit * n_segment <= load_i64(record + 136):
                n_part = larger(1, smaller(n_segment, n_worker))
        scratch = tile_scratch()
        # Later rows see more: units are dealt out in turn.
        item = worker
        while item < n_unit * n_part:
            unit, part = item // n_part, item % n_part
            head_kv, first = unit % n_head_kv, unit // n_head_kv * columns
            stop = smaller(first + columns, n_column)
            states, counter = 0, load_i64(record + 152) + 8 * unit
            if n_part > 1:
                states = load_i64(record + 128) + load_i64(record + 144) * n_segment * unit
            if is_given_up(batch) != 0:
                return
            while first < stop:
                tok, n = first // n_group, smaller(most, stop - first)
                n_row = _run_length(rows, tok, (first + n - 1) // n_group - tok + 1)
                n = smaller(n, (tok + n_row) * n_group - first)
                attend(record, batch, first, n, head_kv, part, n_part, states, counter, scratch)
                first += n
            item += n_worker

    return Kernel(f"attention_{kv_type}", _OP, attention)
