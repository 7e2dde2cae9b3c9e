"""KV pages and attention over them.

A page keeps ``PAGE_SLOTS`` slots of one layer. Keys lie so that 16 slots are the lanes of a vector,
values so that 16 components are:

    keys    f16 [page][n_head_kv][PAGE_SLOTS / 16][n_embd_head][16 slots]
    values  f16 [page][n_head_kv][PAGE_SLOTS][n_embd_head]

Query heads that share a key head are columns of one tile, and so are neighbouring rows of one sequence, up
to sixteen columns; a page is read once for all of them. Each column is worked out by itself, page by page
in ascending order: scores, running maximum, sum and weighted values (online softmax), in segments of
``SEGMENT_PAGES`` pages that are merged in order. A page that a column does not see leaves its numbers as
they are. So neither the other columns, nor the batch, nor the number of threads can change a bit.

Slots that a row sees: ``start <= slot < stop``, then its list of ancestors, counted on as if they lay
in the slots that follow; a branch of a tree of drafts therefore gives the bits of a plain sequence.

Record words after the two that all share:

=========  ===================================================================================
kv_store   2 key heads, 3 columns of a head, 4 k, 5 row bytes of k, 6 v, 7 row bytes of v,
           8 keys, 9 values (addresses of the layer's page 0), 10 page bytes, 11 pairs of k to rotate first (0:
           none), 12 table, 13 row bytes of the table, 14 pairing as for ``rope``
attention  2 heads, 3 key heads, 4 columns of a head, 5 q, 6 row bytes of q, 7 y, 8 row bytes of y,
           9 keys, 10 values, 11 page bytes, 12 scale (f32 bits), 13 soft cap (f32 bits, 0: none),
           14 window in slots (0: none), 15 activation records of y to write as well, or 0 (heads of a
           multiple of 32 columns)
=========  ===================================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.tile import tile_operations
from ..simd.scalar import larger, load_f32, load_i64, smaller, stack_bytes, store_f32, store_i64
from ..simd.vector import (
    add, broadcast_f32, device, div, fma, int64, load_f16x16, load_f32x16, max_lanes, maximum, mul, splat,
    store_f16x16, store_f32x16, store_halves_strided, sub, sum_lanes, void, where_between,
)  # fmt: skip
from .layout import (
    PAGE_SLOTS, ROW_ANCESTORS, ROW_BYTES, ROW_N_ANCESTOR, ROW_PAGES, ROW_SLOT, ROW_VISIBLE_START, ROW_VISIBLE_STOP,
    ROWS,
)  # fmt: skip
from .quantize import is_given_up, quantize_block, record_address
from .rope import rotate_head
from .rows import first_unit
from .vector_math import exp, tanh

SEGMENT_PAGES = 8
MAX_EMBD_HEAD = 512  # sizes the scratch below
MAX_COLUMN = 16

_OP = void(*[int64] * 4)
_TILES = PAGE_SLOTS // 16
# The maximum before anything is seen: finite, so that a page without visible slots gives exp(0) and exp(-inf).
NOTHING_SEEN = np.float32(np.finfo(np.float32).min)
_ZERO, _ONE, _MINUS_INFINITY = np.float32(0), np.float32(1), np.float32(-np.inf)

# Scratch of one tile, bytes: queries [column][n_embd_head], scores [tile][column][16], one ancestor's tile
# [column][16], visible start and stop [column] (int64), maximum, sum and factor of the segment and maximum
# and sum of the total [column][16], weighted values of both [n_embd_head / 16][column][16].
_QUERIES = 0
_SCORES = _QUERIES + 4 * MAX_EMBD_HEAD * MAX_COLUMN
_ANCESTOR = _SCORES + 4 * PAGE_SLOTS * MAX_COLUMN
_RANGES = _ANCESTOR + 64 * MAX_COLUMN
_MAXIMUM = _RANGES + 16 * MAX_COLUMN
_SUM, _FACTOR = _MAXIMUM + 64 * MAX_COLUMN, _MAXIMUM + 128 * MAX_COLUMN
_TOTAL_MAXIMUM, _TOTAL_SUM = _MAXIMUM + 192 * MAX_COLUMN, _MAXIMUM + 256 * MAX_COLUMN
_VALUES = _MAXIMUM + 320 * MAX_COLUMN
_TOTAL_VALUES = _VALUES + 4 * MAX_EMBD_HEAD * MAX_COLUMN
_scratch = stack_bytes(_TOTAL_VALUES + 4 * MAX_EMBD_HEAD * MAX_COLUMN)


def _kv_store(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_head_kv, n_embd_head, page_bytes = load_i64(record + 16), load_i64(record + 24), load_i64(record + 80)
    for unit in range(
        first_unit(n_tok * n_head_kv, worker, n_worker), first_unit(n_tok * n_head_kv, worker + 1, n_worker)
    ):
        tok, head = unit // n_head_kv, unit % n_head_kv
        row = load_i64(batch + ROWS) + ROW_BYTES * tok
        slot = load_i64(row + ROW_SLOT)
        page = page_bytes * load_i64(load_i64(row + ROW_PAGES) + 8 * (slot // PAGE_SLOTS))
        lane = slot % PAGE_SLOTS
        keys = load_i64(record + 64) + page + 2 * PAGE_SLOTS * n_embd_head * head
        keys += 32 * n_embd_head * (lane // 16) + 2 * (lane % 16)
        values = load_i64(record + 72) + page + 2 * n_embd_head * (PAGE_SLOTS * head + lane)
        k = load_i64(record + 32) + tok * load_i64(record + 40) + 4 * n_embd_head * head
        v = load_i64(record + 48) + tok * load_i64(record + 56) + 4 * n_embd_head * head
        n_pair, table_step = load_i64(record + 88), load_i64(record + 104)
        if n_pair > 0:
            table = load_i64(record + 96) + tok * table_step
            rotate_head(k, table, table + table_step // 2, n_pair, load_i64(record + 112))
        for i in range(0, n_embd_head, 16):
            store_halves_strided(keys + 32 * i, 32, load_f32x16(k + 4 * i))
            store_f16x16(values + 2 * i, load_f32x16(v + 4 * i))


@device(void(int64, int64, int64, int64), is_inlined=False)
def _softmax_page(scratch, record, page_start, n_column):
    """Turn a page's raw scores into weights; update maximum, sum and the factor for what came before."""
    score_step = 64 * n_column
    scale, cap = broadcast_f32(record + 96), broadcast_f32(record + 104)
    has_cap = load_f32(record + 104) != _ZERO
    for c in range(n_column):
        scores = scratch + _SCORES + 64 * c
        start, stop = load_i64(scratch + _RANGES + 16 * c), load_i64(scratch + _RANGES + 16 * c + 8)
        largest = splat(_MINUS_INFINITY)
        for tile in range(_TILES):
            score = mul(load_f32x16(scores + score_step * tile), scale)
            if has_cap:
                score = mul(cap, tanh(div(score, cap)))
            score = where_between(page_start + 16 * tile, start, stop, score, splat(_MINUS_INFINITY))
            store_f32x16(scores + score_step * tile, score)
            largest = maximum(score, largest)
        before = load_f32x16(scratch + _MAXIMUM + 64 * c)
        now = maximum(splat(max_lanes(largest)), before)
        factor = exp(sub(before, now))
        total = splat(_ZERO)
        for tile in range(_TILES):
            weight = exp(sub(load_f32x16(scores + score_step * tile), now))
            store_f32x16(scores + score_step * tile, weight)
            total = add(total, weight)
        sums = scratch + _SUM + 64 * c
        store_f32x16(sums, fma(load_f32x16(sums), factor, splat(sum_lanes(total))))
        store_f32x16(scratch + _MAXIMUM + 64 * c, now)
        store_f32x16(scratch + _FACTOR + 64 * c, factor)


@device(void(int64, int64, int64), is_inlined=False)
def _merge_segment(scratch, n_embd_head, n_column):
    """Add the finished segment to the total, and start the next one empty."""
    for c in range(n_column):
        total_maximum, maximum_ = scratch + _TOTAL_MAXIMUM + 64 * c, scratch + _MAXIMUM + 64 * c
        total_sum, sum_ = scratch + _TOTAL_SUM + 64 * c, scratch + _SUM + 64 * c
        before, segment = load_f32x16(total_maximum), load_f32x16(maximum_)
        now = maximum(segment, before)
        old, new = exp(sub(before, now)), exp(sub(segment, now))
        store_f32x16(total_maximum, now)
        store_f32x16(total_sum, fma(load_f32x16(total_sum), old, mul(load_f32x16(sum_), new)))
        store_f32x16(maximum_, splat(NOTHING_SEEN))
        store_f32x16(sum_, splat(_ZERO))
        for i in range(0, n_embd_head, 16):
            values = scratch + _VALUES + 64 * (i // 16 * n_column + c)
            totals = values + (_TOTAL_VALUES - _VALUES)
            store_f32x16(totals, fma(load_f32x16(totals), old, mul(load_f32x16(values), new)))
            store_f32x16(values, splat(_ZERO))


def _make_attend(n_column: int) -> Any:
    """Return the attention of ``n_column`` columns of one sequence to one key head."""
    ops = tile_operations(n_column)
    zeros, add_column, store, load, scale_by = ops.zeros, ops.add_column, ops.store, ops.load, ops.scale_by
    score_step = 64 * n_column  # bytes between the scores of 16 slots

    @device(void(int64, int64, int64, int64))
    def score_tile(keys, n_embd_head, queries, out):
        acc = zeros()
        for i in range(n_embd_head):
            acc = add_column(acc, load_f16x16(keys + 32 * i), queries + 4 * i, 4 * n_embd_head)
        store(out, acc)

    @device(void(int64, int64, int64, int64, int64, int64))
    def attend(record, row, head_kv, start, stop, scratch):
        """Run over slots ``start`` to ``stop`` of the row's sequence, and over the row's ancestors."""
        n_embd_head, page_bytes = load_i64(record + 32), load_i64(record + 88)
        keys = load_i64(record + 72) + 2 * PAGE_SLOTS * n_embd_head * head_kv
        values = load_i64(record + 80) + 2 * PAGE_SLOTS * n_embd_head * head_kv
        table, queries = load_i64(row + ROW_PAGES), scratch + _QUERIES
        ancestors, n_ancestor = load_i64(row + ROW_ANCESTORS), load_i64(row + ROW_N_ANCESTOR)
        total = stop + n_ancestor
        for c in range(n_column):
            store_f32x16(scratch + _MAXIMUM + 64 * c, splat(NOTHING_SEEN))
            store_f32x16(scratch + _TOTAL_MAXIMUM + 64 * c, splat(NOTHING_SEEN))
            store_f32x16(scratch + _SUM + 64 * c, splat(_ZERO))
            store_f32x16(scratch + _TOTAL_SUM + 64 * c, splat(_ZERO))
        for i in range(0, 4 * n_embd_head * n_column, 64):
            store_f32x16(scratch + _VALUES + i, splat(_ZERO))
            store_f32x16(scratch + _TOTAL_VALUES + i, splat(_ZERO))

        for page in range(start // PAGE_SLOTS, (total + PAGE_SLOTS - 1) // PAGE_SLOTS):
            page_start = page * PAGE_SLOTS
            seen_start, seen_stop = larger(start, page_start), smaller(stop, page_start + PAGE_SLOTS)
            first_ancestor = larger(0, larger(start, page_start) - stop)
            last_ancestor = smaller(n_ancestor, page_start + PAGE_SLOTS - stop)
            page_offset = 0
            if seen_stop > seen_start:
                page_offset = page_bytes * load_i64(table + 8 * page)
            for tile in range(_TILES):
                if seen_start < page_start + 16 * tile + 16 and page_start + 16 * tile < seen_stop:
                    tile_keys = keys + page_offset + 32 * n_embd_head * tile
                    score_tile(tile_keys, n_embd_head, queries, scratch + _SCORES + score_step * tile)
            for a in range(first_ancestor, last_ancestor):
                slot, lane = load_i64(ancestors + 8 * a), stop + a - page_start
                tile_keys = keys + page_bytes * load_i64(table + 8 * (slot // PAGE_SLOTS))
                tile_keys += 32 * n_embd_head * (slot % PAGE_SLOTS // 16)
                score_tile(tile_keys, n_embd_head, queries, scratch + _ANCESTOR)
                for c in range(n_column):
                    score = load_f32(scratch + _ANCESTOR + 64 * c + 4 * (slot % 16))
                    store_f32(scratch + _SCORES + score_step * (lane // 16) + 64 * c + 4 * (lane % 16), score)
            _softmax_page(scratch, record, page_start, n_column)
            for i in range(0, n_embd_head, 16):
                out = scratch + _VALUES + 4 * i * n_column
                acc = scale_by(load(out), scratch + _FACTOR)
                for slot in range(seen_start, seen_stop):
                    lane = slot - page_start
                    value = load_f16x16(values + page_offset + 2 * (n_embd_head * lane + i))
                    acc = add_column(acc, value, scratch + _SCORES + score_step * (lane // 16) + 4 * (lane % 16), 64)
                for a in range(first_ancestor, last_ancestor):
                    slot, lane = load_i64(ancestors + 8 * a), stop + a - page_start
                    value_page = values + page_bytes * load_i64(table + 8 * (slot // PAGE_SLOTS))
                    value = load_f16x16(value_page + 2 * (n_embd_head * (slot % PAGE_SLOTS) + i))
                    acc = add_column(acc, value, scratch + _SCORES + score_step * (lane // 16) + 4 * (lane % 16), 64)
                store(out, acc)
            if (page + 1) % SEGMENT_PAGES == 0 or page_start + PAGE_SLOTS >= total:
                _merge_segment(scratch, n_embd_head, n_column)

    @device(void(*[int64] * 8))
    def attend_rows(record, batch, tok, n_row, head_kv, head_start, n_head, scratch):
        """Attend with heads ``head_start`` … of ``n_row`` rows; columns that are left over see nothing."""
        n_embd_head, window = load_i64(record + 32), load_i64(record + 112)
        rows = load_i64(batch + ROWS) + ROW_BYTES * tok
        first, last = load_i64(rows + ROW_VISIBLE_STOP), 0
        for c in range(n_column):
            t = c // n_head
            start, stop = 0, 0
            if t < n_row:
                row = rows + ROW_BYTES * t
                stop = load_i64(row + ROW_VISIBLE_STOP) + load_i64(row + ROW_N_ANCESTOR)
                start = load_i64(row + ROW_VISIBLE_START)
                if window > 0:
                    start = larger(start, stop - window)
                first, last = smaller(first, start), larger(last, load_i64(row + ROW_VISIBLE_STOP))
            store_i64(scratch + _RANGES + 16 * c, start)
            store_i64(scratch + _RANGES + 16 * c + 8, stop)
            q = load_i64(record + 40) + (tok + t) * load_i64(record + 48)
            q += 4 * n_embd_head * (head_start + c - t * n_head)
            for i in range(0, n_embd_head, 16):
                query = load_f32x16(q + 4 * i) if t < n_row else splat(_ZERO)
                store_f32x16(scratch + _QUERIES + 4 * (n_embd_head * c + i), query)
        attend(record, rows, head_kv, first, last, scratch)
        records, n_tok = load_i64(record + 120), load_i64(batch + load_i64(record + 8))
        n_block = load_i64(record + 16) * n_embd_head // 32
        for c in range(n_row * n_head):
            t = c // n_head
            y = load_i64(record + 56) + (tok + t) * load_i64(record + 64)
            y += 4 * n_embd_head * (head_start + c - t * n_head)
            inverse = div(splat(_ONE), load_f32x16(scratch + _TOTAL_SUM + 64 * c))
            for i in range(0, n_embd_head, 16):
                value = load_f32x16(scratch + _TOTAL_VALUES + 64 * (i // 16 * n_column + c))
                # Adding zero makes -0 into 0: a page that a column does not see may leave either.
                store_f32x16(y + 4 * i, add(mul(value, inverse), splat(_ZERO)))
            if records != 0:
                for i in range(0, n_embd_head, 32):
                    block = (n_embd_head * (head_start + c - t * n_head) + i) // 32
                    out = record_address(records, n_tok, n_block, tok + t, block)
                    quantize_block(load_f32x16(y + 4 * i), load_f32x16(y + 4 * i + 64), out)

    return attend_rows


def _with_widths(widths: tuple[int, ...]) -> Any:
    """Return a function that attends with the narrowest tile that holds all columns."""
    choose = None
    for width in sorted(widths, reverse=True):
        choose = _one_width(_make_attend(width), width, choose)
    return choose


def _one_width(attend_rows: Any, width: int, wider: Any) -> Any:
    signature = void(*[int64] * 8)
    if wider is None:

        @device(signature)
        def attend(record, batch, tok, n_row, head_kv, head_start, n_head, scratch):
            attend_rows(record, batch, tok, n_row, head_kv, head_start, n_head, scratch)
    else:

        @device(signature)
        def attend(record, batch, tok, n_row, head_kv, head_start, n_head, scratch):
            if n_row * n_head <= width:
                attend_rows(record, batch, tok, n_row, head_kv, head_start, n_head, scratch)
            else:
                wider(record, batch, tok, n_row, head_kv, head_start, n_head, scratch)

    return attend


def attention_kernel(target: Target) -> Kernel:
    """Return the attention kernel; a unit of work is some neighbouring rows and one key head."""
    attend, most = _with_widths(target.widths), max(target.widths)

    @device(int64(int64, int64, int64))
    def run_length(batch, tok, n_row):
        """Return how many of ``n_row`` rows from ``tok`` on can share tiles: one sequence, no ancestors."""
        first = load_i64(batch + ROWS) + ROW_BYTES * tok
        n = 1
        while (
            n < n_row
            and load_i64(first + ROW_N_ANCESTOR) == 0
            and load_i64(first + ROW_BYTES * n + ROW_N_ANCESTOR) == 0
            and load_i64(first + ROW_BYTES * n + ROW_PAGES) == load_i64(first + ROW_PAGES)
        ):
            n += 1
        return n

    def attention(record, batch, worker, n_worker):
        n_tok = load_i64(batch + load_i64(record + 8))
        n_head_kv = load_i64(record + 24)
        n_head = load_i64(record + 16) // n_head_kv  # that share a key head
        rows_per_tile = larger(1, most // n_head)
        n_tile = (n_tok + rows_per_tile - 1) // rows_per_tile
        scratch = _scratch()
        # Later rows see more: units are dealt out in turn.
        unit = worker
        while unit < n_tile * n_head_kv:
            tok, head_kv = unit // n_head_kv * rows_per_tile, unit % n_head_kv
            stop = smaller(tok + rows_per_tile, n_tok)
            if is_given_up(batch) != 0:
                return
            while tok < stop:
                n_row = run_length(batch, tok, stop - tok)
                for head in range(0, n_head, most):
                    n = smaller(most, n_head - head)
                    attend(record, batch, tok, n_row, head_kv, head_kv * n_head + head, n, scratch)
                tok += n_row
            unit += n_worker

    return Kernel("attention", _OP, attention)


def kv_store_kernel(_target: Target) -> Kernel:
    """Return the kernel that writes keys and values of every row into its page."""
    return Kernel("kv_store", _OP, _kv_store)
