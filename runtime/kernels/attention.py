"""KV pages and attention over them.

A page keeps ``PAGE_SLOTS`` slots of one layer. Keys lie so that 16 slots are the lanes of a vector,
values so that 16 components are:

    keys    f16 [page][n_head_kv][PAGE_SLOTS / 16][n_embd_head][16 slots]
    values  f16 [page][n_head_kv][PAGE_SLOTS][n_embd_head]

Each query row is worked out by itself, page by page in ascending order: scores, running maximum,
sum and weighted values (online softmax), in segments of ``SEGMENT_PAGES`` pages that are merged in
order. So neither the other rows of a batch nor the number of threads can change a bit, and a later
split of the segments over threads would not either. Query heads that share a key head are columns
of one tile.

Slots that a row sees: ``start <= slot < stop``, then its list of ancestors, counted on as if they lay
in the slots that follow; a branch of a tree of drafts therefore gives the bits of a plain sequence.

Record words after the two that all share:

=========  ===================================================================================
kv_store   2 key heads, 3 columns of a head, 4 k, 5 row bytes of k, 6 v, 7 row bytes of v,
           8 keys, 9 values (addresses of the layer's page 0), 10 page bytes
attention  2 heads, 3 key heads, 4 columns of a head, 5 q, 6 row bytes of q, 7 y, 8 row bytes of y,
           9 keys, 10 values, 11 page bytes, 12 scale (f32 bits), 13 soft cap (f32 bits, 0: none),
           14 window in slots (0: none)
=========  ===================================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.tile import tile_operations
from ..simd.vector import (
    add, broadcast_f32, device, div, fma, int64, larger, load_f16x16, load_f32, load_f32x16, load_i64, max_lanes,
    maximum, mul, smaller, splat, stack_bytes, store_f16x16, store_f32, store_f32x16, store_halves_strided, sub,
    sum_lanes, void, where_between,
)  # fmt: skip
from .layout import (
    PAGE_SLOTS, ROW_ANCESTORS, ROW_BYTES, ROW_N_ANCESTOR, ROW_PAGES, ROW_SLOT, ROW_VISIBLE_START, ROW_VISIBLE_STOP,
    ROWS,
)  # fmt: skip
from .rows import first_unit
from .vector_math import exp, tanh

SEGMENT_PAGES = 8
MAX_EMBD_HEAD = 512  # sizes the scratch below
WIDTHS = (4, 2, 1)  # query heads of one tile

_OP = void(*[int64] * 4)
_TILES = PAGE_SLOTS // 16
_ZERO, _ONE, _MINUS_INFINITY = np.float32(0), np.float32(1), np.float32(-np.inf)

# Scratch of one tile of query heads: scores [tile][head][16], one ancestor's tile [head][16], then
# maximum, sum, factor [head][16] of the segment and of the total, then weighted values of both.
_SCORES = 0
_ANCESTOR = _SCORES + 4 * PAGE_SLOTS * WIDTHS[0]
_STATS = _ANCESTOR + 64 * WIDTHS[0]
_MAXIMUM, _SUM, _FACTOR = _STATS, _STATS + 64 * WIDTHS[0], _STATS + 128 * WIDTHS[0]
_TOTAL_MAXIMUM, _TOTAL_SUM = _STATS + 192 * WIDTHS[0], _STATS + 256 * WIDTHS[0]
_VALUES = _STATS + 320 * WIDTHS[0]
_TOTAL_VALUES = _VALUES + 4 * MAX_EMBD_HEAD * WIDTHS[0]
_scratch = stack_bytes(_TOTAL_VALUES + 4 * MAX_EMBD_HEAD * WIDTHS[0])


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
        for i in range(0, n_embd_head, 16):
            store_halves_strided(keys + 32 * i, 32, load_f32x16(k + 4 * i))
            store_f16x16(values + 2 * i, load_f32x16(v + 4 * i))


def _make_attend(n_head: int) -> Any:
    """Return the attention of ``n_head`` query heads (columns) of one row to one key head."""
    ops = tile_operations(n_head)
    zeros, add_column, store, load, scale_by = ops.zeros, ops.add_column, ops.store, ops.load, ops.scale_by
    score_step = 64 * n_head  # bytes between the scores of 16 slots

    @device(void(int64, int64, int64, int64, int64))
    def score_tile(keys, n_embd_head, q, q_step, out):
        acc = zeros()
        for i in range(n_embd_head):
            acc = add_column(acc, load_f16x16(keys + 32 * i), q + 4 * i, q_step)
        store(out, acc)

    @device(void(int64, int64, int64, int64, int64))
    def softmax_page(scratch, record, page_start, start, stop):
        """Turn a page's raw scores into weights; update maximum, sum and the factor for what came before."""
        scale, cap = broadcast_f32(record + 96), broadcast_f32(record + 104)
        has_cap = load_f32(record + 104) != _ZERO
        for c in range(n_head):
            scores = scratch + _SCORES + 64 * c
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

    @device(void(int64, int64))
    def merge_segment(scratch, n_embd_head):
        """Add the finished segment to the total, and start the next one empty."""
        for c in range(n_head):
            total_maximum, maximum_ = scratch + _TOTAL_MAXIMUM + 64 * c, scratch + _MAXIMUM + 64 * c
            total_sum, sum_ = scratch + _TOTAL_SUM + 64 * c, scratch + _SUM + 64 * c
            before, segment = load_f32x16(total_maximum), load_f32x16(maximum_)
            now = maximum(segment, before)
            old, new = exp(sub(before, now)), exp(sub(segment, now))
            store_f32x16(total_maximum, now)
            store_f32x16(total_sum, fma(load_f32x16(total_sum), old, mul(load_f32x16(sum_), new)))
            store_f32x16(maximum_, splat(_MINUS_INFINITY))
            store_f32x16(sum_, splat(_ZERO))
            for i in range(0, n_embd_head, 16):
                values = scratch + _VALUES + 64 * (i // 16 * n_head + c)
                totals = values + (_TOTAL_VALUES - _VALUES)
                store_f32x16(totals, fma(load_f32x16(totals), old, mul(load_f32x16(values), new)))
                store_f32x16(values, splat(_ZERO))

    @device(void(int64, int64, int64, int64, int64, int64))
    def attend(record, row, q, y, head_kv, scratch):
        n_embd_head, page_bytes = load_i64(record + 32), load_i64(record + 88)
        keys = load_i64(record + 72) + 2 * PAGE_SLOTS * n_embd_head * head_kv
        values = load_i64(record + 80) + 2 * PAGE_SLOTS * n_embd_head * head_kv
        table, stop, n_ancestor = (
            load_i64(row + ROW_PAGES),
            load_i64(row + ROW_VISIBLE_STOP),
            load_i64(row + ROW_N_ANCESTOR),
        )
        ancestors, total = load_i64(row + ROW_ANCESTORS), stop + n_ancestor
        start, window = load_i64(row + ROW_VISIBLE_START), load_i64(record + 112)
        if window > 0:
            start = larger(start, total - window)
        for i in range(_STATS, _VALUES, 64):
            store_f32x16(scratch + i, splat(_ZERO))
        for c in range(n_head):
            store_f32x16(scratch + _MAXIMUM + 64 * c, splat(_MINUS_INFINITY))
            store_f32x16(scratch + _TOTAL_MAXIMUM + 64 * c, splat(_MINUS_INFINITY))
        for i in range(0, 4 * n_embd_head * n_head, 64):
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
                    score_tile(tile_keys, n_embd_head, q, 4 * n_embd_head, scratch + _SCORES + score_step * tile)
            for a in range(first_ancestor, last_ancestor):
                slot, lane = load_i64(ancestors + 8 * a), stop + a - page_start
                tile_keys = keys + page_bytes * load_i64(table + 8 * (slot // PAGE_SLOTS))
                tile_keys += 32 * n_embd_head * (slot % PAGE_SLOTS // 16)
                score_tile(tile_keys, n_embd_head, q, 4 * n_embd_head, scratch + _ANCESTOR)
                for c in range(n_head):
                    score = load_f32(scratch + _ANCESTOR + 64 * c + 4 * (slot % 16))
                    store_f32(scratch + _SCORES + score_step * (lane // 16) + 64 * c + 4 * (lane % 16), score)
            softmax_page(scratch, record, page_start, start, total)
            for i in range(0, n_embd_head, 16):
                out = scratch + _VALUES + 4 * i * n_head
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
                merge_segment(scratch, n_embd_head)

        for c in range(n_head):
            inverse = div(splat(_ONE), load_f32x16(scratch + _TOTAL_SUM + 64 * c))
            for i in range(0, n_embd_head, 16):
                value = load_f32x16(scratch + _TOTAL_VALUES + 64 * (i // 16 * n_head + c))
                store_f32x16(y + 4 * (n_embd_head * c + i), mul(value, inverse))

    return attend


def attention_kernel(_target: Target) -> Kernel:
    """Return the attention kernel; a unit of work is one row and one key head."""
    attend_4, attend_2, attend_1 = (_make_attend(n) for n in WIDTHS)

    def attention(record, batch, worker, n_worker):
        n_tok = load_i64(batch + load_i64(record + 8))
        n_head_kv, n_embd_head = load_i64(record + 24), load_i64(record + 32)
        n_column = load_i64(record + 16) // n_head_kv
        scratch = _scratch()
        for unit in range(
            first_unit(n_tok * n_head_kv, worker, n_worker), first_unit(n_tok * n_head_kv, worker + 1, n_worker)
        ):
            tok, head_kv = unit // n_head_kv, unit % n_head_kv
            row = load_i64(batch + ROWS) + ROW_BYTES * tok
            column = 0
            while column < n_column:
                offset = 4 * n_embd_head * (head_kv * n_column + column)
                q = load_i64(record + 40) + tok * load_i64(record + 48) + offset
                y = load_i64(record + 56) + tok * load_i64(record + 64) + offset
                if n_column - column >= 4:
                    attend_4(record, row, q, y, head_kv, scratch)
                    column += 4
                elif n_column - column >= 2:
                    attend_2(record, row, q, y, head_kv, scratch)
                    column += 2
                else:
                    attend_1(record, row, q, y, head_kv, scratch)
                    column += 1

    return Kernel("attention", _OP, attention)


def kv_store_kernel(_target: Target) -> Kernel:
    """Return the kernel that writes keys and values of every row into its page."""
    return Kernel("kv_store", _OP, _kv_store)
