"""Keys and values into KV pages. This is where their layout is described.

A page keeps ``PAGE_SLOTS`` slots of one layer. Keys lie so that 16 slots are the lanes of a vector, values so that
16 components are; what belongs to one key head lies together. In ``f16``:

    keys    [page][n_head_kv]  f16 [PAGE_SLOTS / 16][n_embd_head][16 slots]
    values  [page][n_head_kv]  f16 [PAGE_SLOTS][n_embd_head]

In ``q8_0`` 32 columns of a slot have one scale, quantised as activations are (``quantize.py``), the scale rounded to
f16. A few columns of keys that are far larger than the others (Qwen2's biases) would leave these no bits. So keys are
multiplied by a factor for each column of a key head first (``key_balance.py``; 1 without biases), then by the Hadamard
matrix of 32 rows. Queries are multiplied by the factors' inverse and the matrix; products of both are 32 times the
plain ones. Keys are laid out as packed Q8_0 weights, with 4 columns in one lane:

    keys    [page][n_head_kv]  i8 [PAGE_SLOTS / 16][n_embd_head / 4][16 slots][4 columns],
                               f16 [PAGE_SLOTS / 16][n_embd_head / 32][16 slots]
    values  [page][n_head_kv]  i8 [PAGE_SLOTS][n_embd_head], f16 [n_embd_head / 32][PAGE_SLOTS]

Record words after the two that all share: 2 key heads, 3 columns of a head, 4 k, 5 row bytes of k, 6 v, 7 row bytes of
v, 8 keys, 9 values (addresses of the layer's page 0), 10 page bytes, 11 pairs of k to rotate first (0: none), 12 table,
13 row bytes of the table, 14 pairing as for ``rope``, 15 factors of keys (f32 [n_head_kv][n_embd_head]; q8_0 only).
"""

from __future__ import annotations

from typing import Any

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import (
    load_f32, load_i32, load_i64, load_u16, stack_bytes, store_f16, store_i16, store_i32, store_i64,
)  # fmt: skip
from ..simd.tile import RECORD_BYTES, SCALE
from ..simd.vector import (
    add, device, hadamard, int64, load_f32x16, load_i8x16, mul, store_f16x16, store_halves_strided, store_i8x16, sub,
    void,
)  # fmt: skip
from .layout import KV_HEAD_BYTES, PAGE_SLOTS, ROW_BYTES, ROW_PAGES, ROW_SLOT, ROWS
from .quantize import quantize_block
from .rope import rotate_head
from .rows import first_unit

_OP = void(*[int64] * 4)
_STORE = void(*[int64] * 7)  # keys and values of the head in the page, lane, k, v, factors of k, columns
_COPY = void(*[int64] * 7)  # keys and values of the head in a page, lane, the same where it is copied to, columns
_block = stack_bytes(RECORD_BYTES)


@device(_STORE)
def _store_f16(keys, values, lane, k, v, _factors, n_embd_head):
    keys += 32 * n_embd_head * (lane // 16) + 2 * (lane % 16)
    values += 2 * n_embd_head * lane
    for i in range(0, n_embd_head, 16):
        store_halves_strided(keys + 32 * i, 32, load_f32x16(k + 4 * i))
        store_f16x16(values + 2 * i, load_f32x16(v + 4 * i))


@device(void(int64, int64, int64))
def quantize_rotated(x, factors, record):
    """Write the record of 32 columns of a key, or of a query, times their factors and the Hadamard matrix."""
    left = hadamard(mul(load_f32x16(x), load_f32x16(factors)))
    right = hadamard(mul(load_f32x16(x + 64), load_f32x16(factors + 64)))
    quantize_block(add(left, right), sub(left, right), record)


@device(_STORE)
def _store_q8_0(keys, values, lane, k, v, factors, n_embd_head):
    block = _block()
    key_scales = keys + PAGE_SLOTS * n_embd_head + n_embd_head * (lane // 16) + 2 * (lane % 16)
    value_scales = values + PAGE_SLOTS * n_embd_head + 2 * lane
    keys += 16 * n_embd_head * (lane // 16) + 4 * (lane % 16)
    values += n_embd_head * lane
    for i in range(0, n_embd_head, 32):
        quantize_rotated(k + 4 * i, factors + 4 * i, block)
        for j in range(0, 32, 4):
            store_i32(keys + 16 * (i + j), load_i32(block + j))
        store_f16(key_scales + i, load_f32(block + SCALE))
        quantize_block(load_f32x16(v + 4 * i), load_f32x16(v + 4 * i + 64), block)
        store_i8x16(values + i, load_i8x16(block))
        store_i8x16(values + i + 16, load_i8x16(block + 16))
        store_f16(value_scales + 2 * PAGE_SLOTS * (i // 32), load_f32(block + SCALE))


@device(_COPY)
def _copy_f16(keys, values, lane, to_keys, to_values, to_lane, n_embd_head):
    keys += 32 * n_embd_head * (lane // 16) + 2 * (lane % 16)
    to_keys += 32 * n_embd_head * (to_lane // 16) + 2 * (to_lane % 16)
    for i in range(n_embd_head):
        store_i16(to_keys + 32 * i, load_u16(keys + 32 * i))
    for i in range(0, 2 * n_embd_head, 8):
        store_i64(to_values + 2 * n_embd_head * to_lane + i, load_i64(values + 2 * n_embd_head * lane + i))


@device(_COPY)
def _copy_q8_0(keys, values, lane, to_keys, to_values, to_lane, n_embd_head):
    quants, to_quants = keys + 4 * (lane % 16), to_keys + 4 * (to_lane % 16)
    quants, to_quants = quants + 16 * n_embd_head * (lane // 16), to_quants + 16 * n_embd_head * (to_lane // 16)
    for i in range(0, n_embd_head, 4):
        store_i32(to_quants + 16 * i, load_i32(quants + 16 * i))
    for i in range(0, n_embd_head, 8):
        store_i64(to_values + n_embd_head * to_lane + i, load_i64(values + n_embd_head * lane + i))
    for block in range(n_embd_head // 32):
        key_scales, value_scales = PAGE_SLOTS * n_embd_head + 32 * block, PAGE_SLOTS * (n_embd_head + 2 * block)
        scale = load_u16(keys + key_scales + n_embd_head * (lane // 16) + 2 * (lane % 16))
        store_i16(to_keys + key_scales + n_embd_head * (to_lane // 16) + 2 * (to_lane % 16), scale)
        store_i16(to_values + value_scales + 2 * to_lane, load_u16(values + value_scales + 2 * lane))


STORES: dict[str, Any] = {"f16": _store_f16, "q8_0": _store_q8_0}
COPIES: dict[str, Any] = {"f16": _copy_f16, "q8_0": _copy_q8_0}


def kv_store_kernel(kv_type: str, _target: Target) -> Kernel:
    """Return the kernel that writes keys and values of every row into its page."""
    store, head_bytes = STORES[kv_type], KV_HEAD_BYTES[kv_type]

    def kv_store(record, batch, worker, n_worker):
        n_tok = load_i64(batch + load_i64(record + 8))
        n_head_kv, n_embd_head, page_bytes = load_i64(record + 16), load_i64(record + 24), load_i64(record + 80)
        n_pair, table_step = load_i64(record + 88), load_i64(record + 104)
        stop = first_unit(n_tok * n_head_kv, worker + 1, n_worker)
        for unit in range(first_unit(n_tok * n_head_kv, worker, n_worker), stop):
            tok, head = unit // n_head_kv, unit % n_head_kv
            row = load_i64(batch + ROWS) + ROW_BYTES * tok
            slot = load_i64(row + ROW_SLOT)
            page = page_bytes * load_i64(load_i64(row + ROW_PAGES) + 8 * (slot // PAGE_SLOTS))
            page += head_bytes * n_embd_head * head
            k = load_i64(record + 32) + tok * load_i64(record + 40) + 4 * n_embd_head * head
            v = load_i64(record + 48) + tok * load_i64(record + 56) + 4 * n_embd_head * head
            if n_pair > 0:
                table = load_i64(record + 96) + tok * table_step
                rotate_head(k, table, table + table_step // 2, n_pair, load_i64(record + 112))
            keys, values = load_i64(record + 64) + page, load_i64(record + 72) + page
            factors = load_i64(record + 120) + 4 * n_embd_head * head
            store(keys, values, slot % PAGE_SLOTS, k, v, factors, n_embd_head)

    return Kernel(f"kv_store_{kv_type}", _OP, kv_store)
