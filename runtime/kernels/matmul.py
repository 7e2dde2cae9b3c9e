"""``y = W @ x`` for every packed weight format, one to sixteen tokens at a time.

Lanes are output rows: 16 rows share a vector, activations are broadcast, nothing is summed across
lanes. Each output is one chain of fused multiply-adds over ascending blocks (integer sums inside a
block are exact), so neither the number of tokens, the thread split nor the instruction set can
change a bit of it. ``quant/pack.py`` describes the packed parts, ``simd/tile.py`` the activations.

Record words (after the two that all share; addresses are of the first row group):

=====  ===============================================================================
2      row groups (16 rows each)
3      column groups of 32 (quantised weights) or columns (float weights)
4..6   parts of the matrix, in the order of ``quant/pack_format.py``
8..10  parts of a second matrix, multiplied onto the activated first (gate and up); y holds the first meanwhile
12     x: activation records, or f32 rows for float weights
13     bytes between f32 rows of x (float weights)
14     y: f32 rows
15     bytes between rows of y and of the residual
16     bias (f32, padded to 16 rows) or 0
17     residual: f32 rows added to the result, or 0
18     activation: 0 none (one matrix), 1 silu, 2 gelu
19     activation records of y to write as well, or 0 (an even number of row groups)
20     records per token and block of x: 1, or 2, whose products are added (one matrix, quantised weights)
21     whether ``near`` tiles (``NEAR_TILES``) are used where few tokens read a matrix from memory
=====  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from ...formats.ggml_types import GgmlType
from ...quant.pack_format import PACKED_FORMATS
from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.tile import RECORD_BYTES as X_BYTES
from ..simd.scalar import larger, load_i64, smaller, stack_bytes
from ..simd.vector import add, device, int64, load_f32x16, mul, store_f32x16, void
from .layout import TOKEN_GROUP
from .matmul_tiles import FLOAT_FORMATS, NEAR_TILES, TILES
from .quantize import is_given_up, quantize_block, record_address
from .vector_math import gelu, silu

# Row groups that stay in the second-level cache while all tokens pass over them. Where one group of tokens is all, a
# worker's rows are one chunk: memory delivers a long run of one matrix faster than two matrices by turns.
ROW_CHUNK = 8

_OP = void(*[int64] * 4)


def _make_tiles(make_tile: Callable[[int], Any], widths: tuple[int, ...]) -> Any:
    """Return a function that covers ``n_tok`` tokens with tiles of these widths, widest first."""
    rest = None
    for width in sorted(widths):
        rest = _one_width(make_tile(width), width, rest)
    return rest


def _one_width(tile: Any, width: int, narrower: Any) -> Any:
    signature = void(*[int64] * 9)
    if narrower is None:

        @device(signature)
        def tiles(p0, p1, p2, n, x, x_block, x_tok, out, n_tok):
            for _ in range(n_tok):
                tile(p0, p1, p2, n, x, x_block, x_tok, out)
                x += x_tok
                out += 64
    else:

        @device(signature)
        def tiles(p0, p1, p2, n, x, x_block, x_tok, out, n_tok):
            while n_tok >= width:
                tile(p0, p1, p2, n, x, x_block, x_tok, out)
                x += width * x_tok
                out += 64 * width
                n_tok -= width
            if n_tok > 0:
                narrower(p0, p1, p2, n, x, x_block, x_tok, out, n_tok)

    return tiles


def _choose_tiles(name: str, widths: tuple[int, ...]) -> Any:
    """Return a function that covers tokens as ``_make_tiles`` says; its last argument is word 21."""
    far = _make_tiles(TILES[name], widths)
    signature = void(*[int64] * 10)
    ahead = NEAR_TILES.get(name)
    if ahead is None:

        @device(signature)
        def tiles(p0, p1, p2, n, x, x_block, x_tok, out, n_tok, is_near):
            far(p0, p1, p2, n, x, x_block, x_tok, out, n_tok)

        return tiles
    near, n_near = _make_tiles(lambda n_tok: TILES[name](n_tok, ahead[n_tok]), tuple(ahead)), max(ahead)

    @device(signature)
    def near_or_far(p0, p1, p2, n, x, x_block, x_tok, out, n_tok, is_near):
        if is_near != 0 and n_tok <= n_near:
            near(p0, p1, p2, n, x, x_block, x_tok, out, n_tok)
        else:
            far(p0, p1, p2, n, x, x_block, x_tok, out, n_tok)

    return near_or_far


_scratch = stack_bytes(TOKEN_GROUP * 64)


@device(void(int64, int64, int64, int64, int64))
def _store_first(record, scratch, tok, n_tok, row_group):
    """Keep a tile of the first of two matrices in y, as it is."""
    y, y_step = load_i64(record + 112), load_i64(record + 120)
    for t in range(n_tok):
        store_f32x16(y + (tok + t) * y_step + 64 * row_group, load_f32x16(scratch + 64 * t))


@device(void(int64, int64, int64, int64, int64))
def _finish(record, scratch, tok, n_tok, row_group):
    """Apply activation, bias and residual to a finished tile and store it."""
    y, y_step = load_i64(record + 112), load_i64(record + 120)
    bias, residual, activation = load_i64(record + 128), load_i64(record + 136), load_i64(record + 144)
    n_record = load_i64(record + 160)
    for t in range(n_tok // n_record):
        value = load_f32x16(scratch + 64 * n_record * t)
        offset = (tok // n_record + t) * y_step + 64 * row_group
        if n_record == 2:
            value = add(value, load_f32x16(scratch + 64 * (2 * t + 1)))
        if activation == 1:
            value = mul(silu(load_f32x16(y + offset)), value)
        elif activation == 2:
            value = mul(gelu(load_f32x16(y + offset)), value)
        if bias != 0:
            value = add(value, load_f32x16(bias + 64 * row_group))
        if residual != 0:
            value = add(load_f32x16(residual + offset), value)
        store_f32x16(y + offset, value)


@device(void(int64, int64, int64, int64, int64, int64), is_inlined=False)
def _quantize_pair(record, records, n_tok, tok, n, block):
    """Write the activation records of 32 finished columns of ``n`` tokens."""
    y, y_step, n_block = load_i64(record + 112), load_i64(record + 120), load_i64(record + 16) // 2
    for t in range(tok, tok + n):
        address = y + t * y_step + 128 * block
        out = record_address(records, n_tok, n_block, t, block)
        quantize_block(load_f32x16(address), load_f32x16(address + 64), out)


def matmul_kernel(name: str, target: Target) -> Kernel:
    """Return the matmul kernel of a packed format for a target."""
    packed = PACKED_FORMATS[GgmlType[name]]
    tiles = _choose_tiles(name, target.widths)
    is_float = name in FLOAT_FORMATS
    unit = max(part.n_unit for part in packed.parts)  # columns: 1, 32 or 256
    part_bytes = [part.dtype.itemsize * prod(part.tail) * (unit // part.n_unit) for part in packed.parts]
    bytes_0, bytes_1, bytes_2 = [*part_bytes, 0, 0][:3]  # of a row group and ``unit`` columns
    groups_per_unit = max(1, unit // 32)

    def matmul(record, batch, worker, n_worker):
        n_tok = load_i64(batch + load_i64(record + 8)) * load_i64(record + 160)
        n_row_group, n = load_i64(record + 16), load_i64(record + 24)
        x = load_i64(record + 96)
        records, is_near = load_i64(record + 152), load_i64(record + 168)
        # A record covers two row groups: both must be the same worker's.
        step = 2 if records != 0 else 1
        row_start = n_row_group // step * worker // n_worker * step
        row_stop = n_row_group // step * (worker + 1) // n_worker * step
        n_matrix = 1 if load_i64(record + 144) == 0 else 2
        n_unit = n // groups_per_unit
        n_chunk = ROW_CHUNK if n_tok > TOKEN_GROUP else larger(1, row_stop - row_start)
        scratch = _scratch()
        for chunk in range(row_start, row_stop, n_chunk):
            chunk_stop = smaller(chunk + n_chunk, row_stop)
            for tok in range(0, n_tok, TOKEN_GROUP):
                if is_given_up(batch) != 0:
                    return
                width = smaller(TOKEN_GROUP, n_tok - tok)
                if is_float:
                    x_tok, x_block = load_i64(record + 104), 0
                    x_group = x + tok * x_tok
                else:
                    x_tok, x_block = X_BYTES, X_BYTES * width
                    x_group = x + tok * n * X_BYTES
                for matrix in range(n_matrix):
                    parts = record + 32 + 32 * matrix
                    for row_group in range(chunk, chunk_stop):
                        tiles(
                            load_i64(parts) + row_group * n_unit * bytes_0,
                            load_i64(parts + 8) + row_group * n_unit * bytes_1,
                            load_i64(parts + 16) + row_group * n_unit * bytes_2,
                            n, x_group, x_block, x_tok, scratch, width, is_near,
                        )  # fmt: skip
                        if matrix + 1 < n_matrix:
                            _store_first(record, scratch, tok, width, row_group)
                            continue
                        _finish(record, scratch, tok, width, row_group)
                        if records != 0 and row_group % 2 == 1:
                            _quantize_pair(record, records, n_tok, tok, width, row_group // 2)

    return Kernel(f"matmul_{name.lower()}", _OP, matmul)
