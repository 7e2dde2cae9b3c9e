"""Attention of up to sixteen query columns of one sequence to one key head, a segment of slots at a time.

Each column is worked out by itself, page by page in ascending order: scores, running maximum, sum and weighted values
(online softmax), in segments of ``SEGMENT_PAGES`` pages that are merged in order. A page that a column does not see
leaves its numbers as they are.

What a segment has come to is its *state*: maxima [16 columns], sums [16 columns], weighted values
[n_embd_head / 16][column][16], all f32. The state of all segments together looks the same. Where there are fewer
columns than 16, the others of maxima and sums hold numbers that nobody looks at.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ..simd.columns import Load, block_operations, halves, reductions, signed_bytes, vectors_for
from ..simd.isa import Target
from ..simd.scalar import larger, load_f32, load_i64, smaller, stack_bytes
from ..simd.tile import RECORD_BYTES, fetch, tile_operations
from ..simd.vector import (
    add, broadcast_f32, device, div, fma, int64, load_f16x16, load_f32x16, maximum, mul, splat,
    store_f32x16, store_strided, sub, void, where_between,
)  # fmt: skip
from ..simd.weight_bytes import SIGNED_BYTE
from .kv_store import COPIES, quantize_rotated
from .layout import (
    KV_HEAD_BYTES, MAX_COLUMN, MAX_EMBD_HEAD, PAGE_SLOTS, ROW_ANCESTORS, ROW_N_ANCESTOR, ROW_PAGES, ROW_VISIBLE_STOP,
    state_bytes,
)  # fmt: skip
from .quantize import quantize_block
from .vector_math import exp_below, tanh


# The maximum before anything is seen: finite, so that a page without visible slots gives exp(0) and exp(-inf).
NOTHING_SEEN = np.float32(np.finfo(np.float32).min)
_ZERO, _MINUS_INFINITY = np.float32(0), np.float32(-np.inf)
_TILES = PAGE_SLOTS // 16

STATE_SUM, STATE_VALUES = 4 * MAX_COLUMN, 8 * MAX_COLUMN

# Scratch of one tile, bytes: queries (f32 [n_embd_head][column], or activation records [n_embd_head / 32][column]),
# scores [tile][column][16], the same times the scales of values, visible start and stop [column] (int64), lanes to be
# reduced [column][16], factors for what came before [16 columns], a segment's state, that of all, and a page put
# together from scattered slots.
QUERIES = 0
_SCORES = QUERIES + 4 * MAX_EMBD_HEAD * MAX_COLUMN
_SCALED = _SCORES + 4 * PAGE_SLOTS * MAX_COLUMN
RANGES = _SCALED + 4 * PAGE_SLOTS * MAX_COLUMN
_LANES = RANGES + 16 * MAX_COLUMN
_FACTORS = _LANES + 64 * MAX_COLUMN
SEGMENT = _FACTORS + 4 * MAX_COLUMN
TOTAL = SEGMENT + state_bytes(MAX_EMBD_HEAD)
_KEYS = TOTAL + state_bytes(MAX_EMBD_HEAD)
_PAGE_BYTES = max(KV_HEAD_BYTES.values()) * MAX_EMBD_HEAD
tile_scratch = stack_bytes(_KEYS + 2 * _PAGE_BYTES)


@device(void(int64, int64, int64), is_inlined=False)
def clear_state(state, n_embd_head, n_column):
    """Make a state that has seen nothing."""
    store_f32x16(state, splat(NOTHING_SEEN))
    store_f32x16(state + STATE_SUM, splat(_ZERO))
    for i in range(0, 4 * n_embd_head * n_column, 64):
        store_f32x16(state + STATE_VALUES + i, splat(_ZERO))


@device(void(int64, int64, int64, int64), is_inlined=False)
def merge_state(total, state, n_embd_head, n_column):
    """Add a finished segment to the total. Its maxima and sums are lost."""
    before, segment = load_f32x16(total), load_f32x16(state)
    now = maximum(segment, before)
    old, new = exp_below(sub(before, now)), exp_below(sub(segment, now))
    store_f32x16(total, now)
    sums = fma(load_f32x16(total + STATE_SUM), old, mul(load_f32x16(state + STATE_SUM), new))
    store_f32x16(total + STATE_SUM, sums)
    store_f32x16(state, old)
    store_f32x16(state + STATE_SUM, new)
    for c in range(n_column):
        old, new = broadcast_f32(state + 4 * c), broadcast_f32(state + STATE_SUM + 4 * c)
        for i in range(0, n_embd_head, 16):
            offset = STATE_VALUES + 64 * (i // 16 * n_column + c)
            values = mul(load_f32x16(state + offset), new)
            store_f32x16(total + offset, fma(load_f32x16(total + offset), old, values))


def _softmax_page(n_column: int) -> Any:
    """Return what turns a page's raw scores into weights, and updates maxima, sums and factors for what came before.

    Step by step for all columns: one column's steps wait for each other.
    """
    lanes, score_step = reductions(n_column), 64 * n_column
    sums, maxima = lanes.sums, lanes.maxima

    @device(void(int64, int64, int64, int64), is_inlined=False)
    def softmax_page(scratch, state, record, page_start):
        scale, cap = broadcast_f32(record + 96), broadcast_f32(record + 104)
        has_cap = load_f32(record + 104) != _ZERO
        for c in range(n_column):
            scores = scratch + _SCORES + 64 * c
            start, stop = load_i64(scratch + RANGES + 16 * c), load_i64(scratch + RANGES + 16 * c + 8)
            largest = splat(_MINUS_INFINITY)
            if start <= page_start and page_start + PAGE_SLOTS <= stop and not has_cap:
                for tile in range(_TILES):
                    score = mul(load_f32x16(scores + score_step * tile), scale)
                    store_f32x16(scores + score_step * tile, score)
                    largest = maximum(score, largest)
            else:
                for tile in range(_TILES):
                    score = mul(load_f32x16(scores + score_step * tile), scale)
                    if has_cap:
                        score = mul(cap, tanh(div(score, cap)))
                    score = where_between(page_start + 16 * tile, start, stop, score, splat(_MINUS_INFINITY))
                    store_f32x16(scores + score_step * tile, score)
                    largest = maximum(score, largest)
            store_f32x16(scratch + _LANES + 64 * c, largest)
        before = load_f32x16(state)
        now = maximum(maxima(scratch + _LANES), before)
        factors = exp_below(sub(before, now))
        store_f32x16(state, now)
        store_f32x16(scratch + _FACTORS, factors)
        for c in range(n_column):
            scores, largest = scratch + _SCORES + 64 * c, broadcast_f32(state + 4 * c)
            total = splat(_ZERO)
            for tile in range(_TILES):
                weight = exp_below(sub(load_f32x16(scores + score_step * tile), largest))
                store_f32x16(scores + score_step * tile, weight)
                total = add(total, weight)
            store_f32x16(scratch + _LANES + 64 * c, total)
        sum_ = fma(load_f32x16(state + STATE_SUM), factors, sums(scratch + _LANES))
        store_f32x16(state + STATE_SUM, sum_)

    return softmax_page


_SCORE, _WEIGH_PAGE = void(*[int64] * 6), void(*[int64] * 7)


def _f16_scores(n_column: int, n_tile: int) -> Any:
    """Return what multiplies ``n_tile`` times 16 keys with all queries."""
    ops = block_operations(n_column, n_tile, halves)
    zeros, store, add_outer, fetch_keys = ops.zeros, ops.store, ops.add_outer(4), fetch(32 * n_tile)

    @device(_SCORE)
    def score(keys, tile, n_embd_head, queries, out, ahead):
        keys += 32 * n_embd_head * tile
        ahead += 32 * n_embd_head * tile
        acc = zeros()
        for i in range(n_embd_head):
            acc = add_outer(acc, keys + 32 * i, 32 * n_embd_head, queries + 4 * n_column * i)
            fetch_keys(ahead + 32 * n_tile * i)
        store(out, acc)

    return score


def _q8_0_scores(n_column: int, n_tile: int) -> Any:
    """Return the same for quantised keys: the tile of a Q8_0 matmul."""
    ops = tile_operations(n_column)
    zeros, store, add_products, fetch_keys = ops.zeros, ops.store, ops.add_products(SIGNED_BYTE), fetch(512)

    @device(_SCORE)
    def score(keys, tile, n_embd_head, queries, out, ahead):
        scales = keys + PAGE_SLOTS * n_embd_head
        for t in range(tile, tile + n_tile):
            acc = zeros()
            for block in range(n_embd_head // 32):
                quants = keys + 16 * n_embd_head * t + 512 * block
                scale = load_f16x16(scales + n_embd_head * t + 32 * block)
                acc = add_products(acc, quants, scale, queries + RECORD_BYTES * n_column * block)
                fetch_keys(ahead + 16 * n_embd_head * t + 512 * block)
            store(out + 64 * n_column * (t - tile), acc)

    return score


def _put_f16_query(n_column: int) -> Any:
    @device(void(int64, int64, int64, int64, int64))
    def put_query(q, _factors, n_embd_head, c, queries):
        for i in range(0, n_embd_head, 16):
            query = load_f32x16(q + 4 * i) if q != 0 else splat(_ZERO)
            store_strided(queries + 4 * (n_column * i + c), 4 * n_column, query)

    return put_query


def _put_q8_0_query(n_column: int) -> Any:
    @device(void(int64, int64, int64, int64, int64))
    def put_query(q, factors, n_embd_head, c, queries):
        for i in range(0, n_embd_head, 32):
            record = queries + RECORD_BYTES * (n_column * (i // 32) + c)
            if q != 0:
                quantize_rotated(q + 4 * i, factors + 4 * i, record)
            else:
                quantize_block(splat(_ZERO), splat(_ZERO), record)

    return put_query


def _weigh(n_column: int, n_vector: int, load_vector: Load, item_bytes: int) -> Any:
    """Return what adds the weighted values of a page's slots to ``n_vector`` times 16 components of all columns."""
    ops = block_operations(n_column, n_vector, load_vector)
    load, store, scale_by, add_outer = ops.load, ops.store, ops.scale_by, ops.add_outer(64)
    fetch_values, step = fetch(16 * n_vector * item_bytes), 16 * n_vector * item_bytes

    @device(void(*[int64] * 8))
    def weigh(values, slot_bytes, first, last, weights, factors, out, ahead):
        acc = scale_by(load(out), factors)
        for tile in range(first // 16, (last + 15) // 16):
            start, stop = larger(first, 16 * tile), smaller(last, 16 * tile + 16)
            value, weight = values + slot_bytes * start, weights + 64 * n_column * tile + 4 * (start - 16 * tile)
            for _ in range(start, stop):
                acc = add_outer(acc, value, 16 * item_bytes, weight)
                value += slot_bytes
                weight += 4
                fetch_values(ahead)
                ahead += step
        store(out, acc)

    return weigh


def _f16_weigh_page(n_column: int, n_vector: int) -> Any:
    """Return what adds the weighted values of lanes ``first`` to ``last`` of a page to a state."""
    weigh, weigh_one = _weigh(n_column, n_vector, halves, 2), _weigh(n_column, 1, halves, 2)

    @device(_WEIGH_PAGE)
    def weigh_page(values, n_embd_head, first, last, scratch, state, ahead):
        weights, factors, out = scratch + _SCORES, scratch + _FACTORS, state + STATE_VALUES
        whole = n_embd_head // (16 * n_vector) * (16 * n_vector)
        for i in range(0, whole, 16 * n_vector):
            place = out + 4 * n_column * i
            weigh(values + 2 * i, 2 * n_embd_head, first, last, weights, factors, place, ahead + 2 * PAGE_SLOTS * i)
        for i in range(whole, n_embd_head, 16):
            place = out + 4 * n_column * i
            weigh_one(values + 2 * i, 2 * n_embd_head, first, last, weights, factors, place, ahead + 2 * PAGE_SLOTS * i)

    return weigh_page


def _q8_0_weigh_page(n_column: int, n_vector: int) -> Any:
    """Return the same for quantised values: a block's weights are multiplied by the scales of its slots first."""
    step = 16 * min(n_vector, 2)
    weigh = _weigh(n_column, step // 16, signed_bytes, 1)

    @device(_WEIGH_PAGE)
    def weigh_page(values, n_embd_head, first, last, scratch, state, ahead):
        factors, out = scratch + _FACTORS, state + STATE_VALUES
        for block in range(n_embd_head // 32):
            scales = values + PAGE_SLOTS * (n_embd_head + 2 * block)
            for tile in range(_TILES):
                scale = load_f16x16(scales + 32 * tile)
                for i in range(64 * n_column * tile, 64 * n_column * (tile + 1), 64):
                    store_f32x16(scratch + _SCALED + i, mul(load_f32x16(scratch + _SCORES + i), scale))
            for i in range(32 * block, 32 * block + 32, step):
                place = out + 4 * n_column * i
                weigh(values + i, n_embd_head, first, last, scratch + _SCALED, factors, place, ahead + PAGE_SLOTS * i)

    return weigh_page


# Of each type of cache: what puts a query among those of a tile, scores, and adds weighted values.
_PARTS = {
    "f16": (_put_f16_query, _f16_scores, _f16_weigh_page),
    "q8_0": (_put_q8_0_query, _q8_0_scores, _q8_0_weigh_page),
}


def segment_operations(kv_type: str, n_column: int, target: Target) -> SimpleNamespace:
    """Return the operations of tiles of ``n_column`` columns.

    ``put_query(q or 0, factors, n_embd_head, column, queries)`` comes first, then for each segment, starting from a
    clear state, ``attend(record, row, head_kv, start, stop, scratch, state)``: over slots ``start`` to ``stop`` of
    those that the row sees (ancestors counted on after its contiguous ones).
    """
    n_vector, score_step = vectors_for(n_column, target), 64 * n_column
    put_query, scores, weigh_page = _PARTS[kv_type]
    score, weigh = scores(n_column, n_vector), weigh_page(n_column, n_vector)
    softmax_page = _softmax_page(n_column)
    copy_slot, head_bytes = COPIES[kv_type], KV_HEAD_BYTES[kv_type]

    @device(void(*[int64] * 7))
    def gather(row, keys, values, page_bytes, page_start, n_embd_head, out):
        """Put a page together from the last of the row's contiguous slots and from what follows them."""
        table, ancestors = load_i64(row + ROW_PAGES), load_i64(row + ROW_ANCESTORS)
        visible = load_i64(row + ROW_VISIBLE_STOP)
        for lane in range(smaller(PAGE_SLOTS, visible + load_i64(row + ROW_N_ANCESTOR) - page_start)):
            slot = page_start + lane
            if slot >= visible:
                slot = load_i64(ancestors + 8 * (slot - visible))
            page = page_bytes * load_i64(table + 8 * (slot // PAGE_SLOTS))
            copy_slot(keys + page, values + page, slot % PAGE_SLOTS, out, out + _PAGE_BYTES, lane, n_embd_head)

    @device(void(*[int64] * 7))
    def attend(record, row, head_kv, start, stop, scratch, state):
        n_embd_head, page_bytes = load_i64(record + 32), load_i64(record + 88)
        head = head_bytes * n_embd_head * head_kv
        first_keys, first_values = load_i64(record + 72) + head, load_i64(record + 80) + head
        last_page = larger(0, (load_i64(row + ROW_VISIBLE_STOP) - 1) // PAGE_SLOTS)
        for page in range(start // PAGE_SLOTS, (stop + PAGE_SLOTS - 1) // PAGE_SLOTS):
            page_start = page * PAGE_SLOTS
            first, last = larger(start - page_start, 0), smaller(stop - page_start, PAGE_SLOTS)
            if load_i64(row + ROW_N_ANCESTOR) == 0 or page_start + last <= load_i64(row + ROW_VISIBLE_STOP):
                offset = page_bytes * load_i64(load_i64(row + ROW_PAGES) + 8 * page)
                keys, values = first_keys + offset, first_values + offset
            else:
                keys, values = scratch + _KEYS, scratch + _KEYS + _PAGE_BYTES
                gather(row, first_keys, first_values, page_bytes, page_start, n_embd_head, keys)
            for tile in range(first // 16 // n_vector * n_vector, (last + 15) // 16, n_vector):
                score(keys, tile, n_embd_head, scratch + QUERIES, scratch + _SCORES + score_step * tile, values)
            softmax_page(scratch, state, record, page_start)
            next_page = page_bytes * load_i64(load_i64(row + ROW_PAGES) + 8 * smaller(page + 1, last_page))
            weigh(values, n_embd_head, first, last, scratch, state, first_keys + next_page)

    return SimpleNamespace(put_query=put_query(n_column), attend=attend)
