"""Tiles of the matmul: 16 weight rows of one packed format against ``n_tok`` tokens.

A tile gets the addresses of its format's parts (in the order of ``quant/pack_format.py``), the number of
column groups (or columns of float weights), the activations with their steps, and where to put 16 f32 per
token. ``matmul.py`` walks over rows and tokens with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..simd.f8 import load_f8x16
from ..simd.tile import Ahead, fetch, tile_operations
from ..simd.vector import (
    and_i32, as_f32, device, f32x16, int64, load_bf16x16, load_f16x16, load_f32x16, load_i8x16, load_u8x16, mul,
    or_i32, shift_left, shift_right, splat, splat_i32, sub, sub_i32, to_f32, void, where_less,
)  # fmt: skip
from ..simd.weight_bytes import (
    FIVE_BIT, FOUR_BIT, SIGNED_BYTE, SIX_BIT, THREE_BIT, THREES, TWO_BIT, WeightBytes, table_of_16,
)  # fmt: skip

_TILE = void(*[int64] * 8)  # p0 p1 p2 n x x_block x_tok out

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml: kvalues_iq4nl
MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, doubled
NEAR_GROUPS, NEAR_SUPERS = 16, 2  # how far ahead near tiles ask for scales: column groups of 32 and of 256
IQ4, MXFP4 = table_of_16(IQ4_VALUES), table_of_16(MXFP4_VALUES)


def _tile_of_blocks(
    quants: WeightBytes,
    load_scale: Any,
    load_minimum: Any = None,
    *,
    scale_bytes: int = 32,
    offset: int = 0,
    is_short: bool = True,
) -> Callable[..., Any]:
    """Blocks of 32 columns with one scale, and perhaps one minimum, per row; p0 quants, p1 scales."""
    n_bytes = quants.n_bytes

    def make_tile(n_tok: int, near: Ahead | None = None) -> Any:
        ops = tile_operations(n_tok, near)
        zeros, store = ops.zeros, ops.store
        add_products = ops.add_products(quants, offset, is_short=is_short, has_minimum=load_minimum is not None)
        ask = fetch(scale_bytes if near else 0)
        if load_minimum is None:

            @device(_TILE)
            def tile(p0, p1, p2, n, x, x_block, x_tok, out):
                acc = zeros()
                for block in range(n):
                    ask(p1 + scale_bytes * (block + NEAR_GROUPS))
                    scale = load_scale(p1, block)
                    acc = add_products(acc, p0 + n_bytes * block, scale, x)
                    x += x_block
                store(out, acc)
        else:

            @device(_TILE)
            def tile(p0, p1, p2, n, x, x_block, x_tok, out):
                acc = zeros()
                for block in range(n):
                    ask(p1 + scale_bytes * (block + NEAR_GROUPS))
                    scale = load_scale(p1, block)
                    acc = add_products(acc, p0 + n_bytes * block, scale, x, load_minimum(p1, block))
                    x += x_block
                store(out, acc)

        return tile

    return make_tile


_SCALE = f32x16(int64, int64)


@device(_SCALE)
def _d(p1, block):
    return load_f16x16(p1 + 32 * block)


@device(_SCALE)
def _d8(p1, block):
    return load_f8x16(p1 + 16 * block)


@device(_SCALE)
def _dm_scale(p1, block):
    return load_f16x16(p1 + 64 * block)


@device(_SCALE)
def _dm_minimum(p1, block):
    return load_f16x16(p1 + 64 * block + 32)


@device(_SCALE)
def _e8m0_half(p1, block):
    """Return 2**(e - 128): half of the block's scale, because MXFP4_VALUES are doubled."""
    e = load_u8x16(p1 + 16 * block)
    # e >= 2 is a normal exponent e - 1; e of 0 and 1 are the subnormals 2**-128 and 2**-127.
    normal = as_f32(shift_left(sub_i32(e, splat_i32(1)), 23))
    subnormal = as_f32(shift_left(splat_i32(0x00200000), 0))
    subnormal = where_less(to_f32(e), splat(0.5), subnormal, as_f32(splat_i32(0x00400000)))
    return where_less(to_f32(e), splat(1.5), subnormal, normal)


def _tile_k_minimums(quants: WeightBytes) -> Callable[..., Any]:
    """Q4_K, Q5_K: blocks of 256 columns, eight 6-bit scales and minimums per row (p0 q4 or q5, p1 dm, p2 s6)."""
    n_bytes = quants.n_bytes

    def make_tile(n_tok: int, near: Ahead | None = None) -> Any:
        ops = tile_operations(n_tok, near)
        zeros, store = ops.zeros, ops.store
        add_products = ops.add_products(quants, has_minimum=True)
        ask_dm, ask_s6 = (fetch(n if near else 0) for n in (64, 192))

        @device(_TILE)
        def tile(p0, p1, p2, n, x, x_block, x_tok, out):
            acc = zeros()
            for s in range(n // 8):
                d = load_f16x16(p1 + 64 * s)
                minus_dmin = sub(splat(0.0), load_f16x16(p1 + 64 * s + 32))
                ask_dm(p1 + 64 * (s + NEAR_SUPERS))
                ask_s6(p2 + 192 * (s + NEAR_SUPERS))
                for half in range(2):
                    for j in range(4):
                        low = load_u8x16(p2 + 192 * s + 64 * half + 16 * j)
                        high = shift_right(load_u8x16(p2 + 192 * s + 128 + 16 * j), 4 * half)
                        scale = or_i32(and_i32(low, 15), shift_left(and_i32(high, 3), 4))
                        minimum = or_i32(shift_right(low, 4), shift_left(and_i32(high, 12), 2))
                        group = 8 * s + 4 * half + j
                        minimum = mul(minus_dmin, to_f32(minimum))
                        acc = add_products(acc, p0 + n_bytes * group, mul(d, to_f32(scale)), x, minimum)
                        x += x_block
            store(out, acc)

        return tile

    return make_tile


def _tile_q6_k(n_tok: int, near: Ahead | None = None) -> Any:
    """Blocks of 256 columns, sixteen signed 8-bit scales per row (p0 q6, p1 s8, p2 d)."""
    ops = tile_operations(n_tok, near)
    zeros, store = ops.zeros, ops.store
    add_half_products = ops.add_half_products(SIX_BIT, 32)
    ask = fetch(32 if near else 0)

    @device(_TILE)
    def tile(p0, p1, p2, n, x, x_block, x_tok, out):
        acc = zeros()
        for s in range(n // 8):
            d = load_f16x16(p2 + 32 * s)
            ask(p2 + 32 * (s + NEAR_SUPERS))
            for j in range(8 * s, 8 * s + 8):
                ask(p1 + 32 * (j + NEAR_GROUPS))
                scale_0, scale_1 = load_i8x16(p1 + 32 * j), load_i8x16(p1 + 32 * j + 16)
                scale_0, scale_1 = mul(d, to_f32(scale_0)), mul(d, to_f32(scale_1))
                acc = add_half_products(acc, p0 + 384 * j, scale_0, scale_1, x)
                x += x_block
        store(out, acc)

    return tile


def _tile_q3_k(n_tok: int) -> Any:
    """Blocks of 256 columns, sixteen 6-bit scales per row (p0 q3, p1 s6, p2 d)."""
    ops = tile_operations(n_tok)
    zeros, store = ops.zeros, ops.store
    add_half_products = ops.add_half_products(THREE_BIT, 4)

    @device(f32x16(int64, int64))
    def scale_of(s6, i):
        low = shift_right(load_u8x16(s6 + 16 * (i % 8)), 4 * (i // 8))
        high = shift_right(load_u8x16(s6 + 128 + 16 * (i % 4)), 2 * (i // 4))
        scale = or_i32(and_i32(low, 15), shift_left(and_i32(high, 3), 4))
        return to_f32(sub_i32(scale, splat_i32(32)))

    @device(_TILE)
    def tile(p0, p1, p2, n, x, x_block, x_tok, out):
        acc = zeros()
        for s in range(n // 8):
            d = load_f16x16(p2 + 32 * s)
            for j in range(8):
                scale_0, scale_1 = scale_of(p1 + 192 * s, 2 * j), scale_of(p1 + 192 * s, 2 * j + 1)
                acc = add_half_products(acc, p0 + 192 * (8 * s + j), mul(d, scale_0), mul(d, scale_1), x)
                x += x_block
        store(out, acc)

    return tile


def _tile_q2_k(n_tok: int) -> Any:
    """Blocks of 256 columns, sixteen 4-bit scales and minimums per row (p0 q2, p1 s4, p2 dm)."""
    ops = tile_operations(n_tok)
    zeros, store = ops.zeros, ops.store
    add_half_products = ops.add_half_products(TWO_BIT)
    first_minimum, second_minimum = (ops.add_minimums(h) for h in (0, 1))

    @device(_TILE)
    def tile(p0, p1, p2, n, x, x_block, x_tok, out):
        acc = zeros()
        for s in range(n // 8):
            d = load_f16x16(p2 + 64 * s)
            minus_dmin = sub(splat(0.0), load_f16x16(p2 + 64 * s + 32))
            for j in range(8 * s, 8 * s + 8):
                s0, s1 = load_u8x16(p1 + 32 * j), load_u8x16(p1 + 32 * j + 16)
                scale_0, scale_1 = mul(d, to_f32(and_i32(s0, 15))), mul(d, to_f32(and_i32(s1, 15)))
                acc = add_half_products(acc, p0 + 128 * j, scale_0, scale_1, x)
                acc = first_minimum(acc, mul(minus_dmin, to_f32(shift_right(s0, 4))), x)
                acc = second_minimum(acc, mul(minus_dmin, to_f32(shift_right(s1, 4))), x)
                x += x_block
        store(out, acc)

    return tile


def _tile_iq4_xs(n_tok: int, near: Ahead | None = None) -> Any:
    """Blocks of 256 columns, eight 6-bit scales per row, table of values (p0 q4, p1 d, p2 s6)."""
    ops = tile_operations(n_tok, near)
    zeros, store = ops.zeros, ops.store
    add_products = ops.add_products(IQ4)
    ask_d, ask_s6 = (fetch(n if near else 0) for n in (32, 96))

    @device(_TILE)
    def tile(p0, p1, p2, n, x, x_block, x_tok, out):
        acc = zeros()
        for s in range(n // 8):
            d = load_f16x16(p1 + 32 * s)
            ask_d(p1 + 32 * (s + NEAR_SUPERS))
            ask_s6(p2 + 96 * (s + NEAR_SUPERS))
            for j in range(8):
                low = shift_right(load_u8x16(p2 + 96 * s + 16 * (j % 4)), 4 * (j // 4))
                high = shift_right(load_u8x16(p2 + 96 * s + 64 + 16 * (j % 2)), 2 * (j // 2))
                scale = or_i32(and_i32(low, 15), shift_left(and_i32(high, 3), 4))
                scale = mul(d, to_f32(sub_i32(scale, splat_i32(32))))
                acc = add_products(acc, p0 + 256 * (8 * s + j), scale, x)
                x += x_block
        store(out, acc)

    return tile


def _tile_float(load_weight: Any, n_bytes: int) -> Callable[[int], Any]:
    """Float weights, one column at a time, f32 activations."""

    def make_tile(n_tok: int) -> Any:
        ops = tile_operations(n_tok)
        zeros, store, add_column = ops.zeros, ops.store, ops.add_column

        @device(_TILE)
        def tile(p0, p1, p2, n, x, x_block, x_tok, out):
            acc = zeros()
            for column in range(n):
                acc = add_column(acc, load_weight(p0 + n_bytes * column), x + 4 * column, x_tok)
            store(out, acc)

        return tile

    return make_tile


# How to make a tile of each format. A tile gets the addresses of the format's parts in the order of
# ``quant/pack_format.py``.
TILES: dict[str, Callable[..., Any]] = {
    "Q3_0": _tile_of_blocks(THREES, _d8, scale_bytes=16, offset=4),
    "Q4_0": _tile_of_blocks(FOUR_BIT, _d, offset=8),
    "Q4_1": _tile_of_blocks(FOUR_BIT, _dm_scale, _dm_minimum, scale_bytes=64),
    "Q5_0": _tile_of_blocks(FIVE_BIT, _d, offset=16),
    "Q5_1": _tile_of_blocks(FIVE_BIT, _dm_scale, _dm_minimum, scale_bytes=64),
    "Q8_0": _tile_of_blocks(SIGNED_BYTE, _d),
    "IQ4_NL": _tile_of_blocks(IQ4, _d),
    "MXFP4": _tile_of_blocks(MXFP4, _e8m0_half, scale_bytes=16, is_short=False),
    "Q4_K": _tile_k_minimums(FOUR_BIT),
    "Q5_K": _tile_k_minimums(FIVE_BIT),
    "Q6_K": _tile_q6_k,
    "Q3_K": _tile_q3_k,
    "Q2_K": _tile_q2_k,
    "IQ4_XS": _tile_iq4_xs,
    "F16": _tile_float(load_f16x16, 32),
    "BF16": _tile_float(load_bf16x16, 32),
    "F32": _tile_float(load_f32x16, 64),
}
# Tiles for Zen cores: what they ask for of quants, by number of tokens (scales: 16 groups ahead). Such a core streams
# one token's weights best by itself; one line in four keeps it going where its streams end, at pages of 4 kB. That
# holds from generation ``NEAR_ZEN`` on: a Zen 3 takes up to 1.4 times as long with them (bench/LOG.md).
_EACH_LINE, _ONE_IN_FOUR = Ahead(4096, 1), Ahead(4096, 2, 256)
_BOTH, _TWO, _ONE = {2: _EACH_LINE, 1: _EACH_LINE}, {2: _EACH_LINE, 1: _ONE_IN_FOUR}, {1: _ONE_IN_FOUR}
_STREAM = {2: _ONE_IN_FOUR, 1: _ONE_IN_FOUR}
NEAR_TILES: dict[str, dict[int, Ahead]] = {
    "Q4_0": _ONE, "Q4_1": _ONE, "Q5_0": _BOTH, "Q5_1": _TWO, "Q8_0": _STREAM, "IQ4_NL": _ONE, "MXFP4": _ONE,
    "Q4_K": _TWO, "Q5_K": _TWO, "Q6_K": _BOTH, "IQ4_XS": _ONE,
}  # fmt: skip
FLOAT_FORMATS = ("F16", "BF16", "F32")
