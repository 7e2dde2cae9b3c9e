"""Operations on a tile: 16 weight rows against ``n_tok`` tokens at once.

A weight group (16 rows x 32 columns) is unpacked once and used for every token of the tile; the
accumulators of all tokens stay in registers. Activations come as 64-byte records, one per token and
32 columns (written by ``kernels/quantize.py``):

======  ==================  =========================================================
offset  type                meaning
======  ==================  =========================================================
0       i8[32]              quants, -127..127
32      f32                 scale: ``activation = scale * quant``
36      i32                 minus the sum of all 32 quants
40      i32                 minus the sum of quants 0..15
44      i32                 minus the sum of quants 16..31
48      f32                 scale * sum of all 32 quants
52      f32                 scale * sum of quants 0..15
56      f32                 scale * sum of quants 16..31
60      4 bytes             zero
======  ==================  =========================================================
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from .lower import F32X16, I8X64, I32X16, Lowering, constant
from .vector import Vec, f32x16, int64, operation, quants_t, void

RECORD_BYTES = 64
SCALE, SUM, SUM_0, SUM_1, SCALED_SUM, SCALED_SUM_0, SCALED_SUM_1 = 32, 36, 40, 44, 48, 52, 56


def _dot(low: Lowering, quants: Any, record: Any, half: int | None, max_weight: int | None, offset: int) -> Any:
    """Return i32x16: sum over columns of ``(weight - offset) * quant`` of one token, exactly."""
    vectors = range(8) if half is None else range(4 * half, 4 * half + 4)
    weights = [low.b.extract_value(quants, k) for k in vectors]
    x = [low.b.bitcast(low.broadcast(low.at(record, 4 * k), I32X16), I8X64) for k in vectors]
    if max_weight is None and low.is_biased:
        offset = 128
    total = None
    if offset:
        total = low.times_constant(low.at(record, SUM if half is None else (SUM_0, SUM_1)[half]), offset)
    return low.dot_group(total, weights, x, max_weight=max_weight)


def tile_operations(n_tok: int) -> SimpleNamespace:
    """Return the operations of a tile of ``n_tok`` tokens (their accumulator type is ``acc_t``)."""
    acc_t = Vec("f32", 16, n_tok)

    def each(low: Lowering, acc: Any, function: Any) -> Any:
        if n_tok == 1:
            return function(0, acc)
        for t in range(n_tok):
            acc = low.b.insert_value(acc, function(t, low.b.extract_value(acc, t)), t)
        return acc

    @operation(acc_t())
    def zeros(low):
        """Return accumulators of zero."""
        return ir.Constant(acc_t.llvm, None) if n_tok > 1 else constant(F32X16, 0.0)

    def add_products(*, max_weight: int | None, offset: int = 0) -> Any:
        """Return ``acc + x_scale * (scale * dot(weights - offset, x))`` for every token.

        ``max_weight`` as in ``Lowering.dot_group``.
        """

        @operation(acc_t(acc_t, quants_t, f32x16, int64))
        def add_products_(low, acc, quants, scale, x):
            def one(t: int, total: Any) -> Any:
                record = low.at(x, t * RECORD_BYTES)
                dot = low.b.sitofp(_dot(low, quants, record, None, max_weight, offset), F32X16)
                return low.fma(low.b.fmul(dot, scale), low.broadcast(low.at(record, SCALE), F32X16), total)

            return each(low, acc, one)

        return add_products_

    def add_half_products(*, max_weight: int | None, offset: int = 0) -> Any:
        """Return ``acc + x_scale * (scale_0 * dot_0 + scale_1 * dot_1)``: columns 0..15 and 16..31 apart."""

        @operation(acc_t(acc_t, quants_t, f32x16, f32x16, int64))
        def add_half_products_(low, acc, quants, scale_0, scale_1, x):
            def one(t: int, total: Any) -> Any:
                record = low.at(x, t * RECORD_BYTES)
                dots = [low.b.sitofp(_dot(low, quants, record, h, max_weight, offset), F32X16) for h in (0, 1)]
                both = low.fma(dots[1], scale_1, low.b.fmul(dots[0], scale_0))
                return low.fma(both, low.broadcast(low.at(record, SCALE), F32X16), total)

            return each(low, acc, one)

        return add_half_products_

    def add_minimums(*, half: int | None = None) -> Any:
        """Return ``acc + minimum * (x_scale * sum(x))`` for every token."""
        field = SCALED_SUM if half is None else (SCALED_SUM_0, SCALED_SUM_1)[half]

        @operation(acc_t(acc_t, f32x16, int64))
        def add_minimums_(low, acc, minimum, x):
            def one(t: int, total: Any) -> Any:
                return low.fma(minimum, low.broadcast(low.at(x, t * RECORD_BYTES + field), F32X16), total)

            return each(low, acc, one)

        return add_minimums_

    @operation(acc_t(acc_t, f32x16, int64, int64))
    def add_column(low, acc, weight, x, x_step):
        """Return ``acc + weight * x`` for one column of f32 activations, ``x_step`` bytes between tokens."""

        def one(t: int, total: Any) -> Any:
            address = low.b.add(x, low.b.mul(x_step, ir.Constant(x_step.type, t))) if t else x
            return low.fma(weight, low.broadcast(address, F32X16), total)

        return each(low, acc, one)

    @operation(void(int64, acc_t))
    def store(low, address, acc):
        """Store the tile, 16 f32 per token."""

        def one(t: int, total: Any) -> Any:
            low.store(low.at(address, 64 * t), total, 64)
            return total

        each(low, acc, one)

    @operation(acc_t(int64))
    def load(low, address):
        """Load a tile that ``store`` wrote."""
        if n_tok == 1:
            return low.load(address, F32X16, 64)
        acc = ir.Constant(acc_t.llvm, ir.Undefined)
        for t in range(n_tok):
            acc = low.b.insert_value(acc, low.load(low.at(address, 64 * t), F32X16, 64), t)
        return acc

    @operation(acc_t(acc_t, int64))
    def scale_by(low, acc, factors):
        """Multiply each token's vector by its own vector at ``factors``."""
        return each(low, acc, lambda t, total: low.b.fmul(total, low.load(low.at(factors, 64 * t), F32X16, 64)))

    return SimpleNamespace(
        n_tok=n_tok, acc_t=acc_t, zeros=zeros, add_products=add_products,
        add_half_products=add_half_products, add_minimums=add_minimums,
        add_column=add_column, store=store, load=load, scale_by=scale_by,
    )  # fmt: skip


def integer_tile(n_tok: int, *, max_weight: int) -> SimpleNamespace:
    """Return operations on a tile of bare integer sums, i32 [n_tok, 16], for unsigned weights up to ``max_weight``."""
    acc_t = Vec("i32", 16, n_tok)

    @operation(acc_t())
    def zeros(low):
        """Return sums of zero."""
        return ir.Constant(acc_t.llvm, None)

    @operation(acc_t(acc_t, quants_t, int64))
    def add_dots(low, acc, quants, x):
        """Add the exact sum over 32 columns of ``weight * quant`` for every token (records at ``x``)."""
        weights = [low.b.extract_value(quants, k) for k in range(8)]
        for t in range(n_tok):
            record = low.at(x, t * RECORD_BYTES)
            values = [low.b.bitcast(low.broadcast(low.at(record, 4 * k), I32X16), I8X64) for k in range(8)]
            total = low.dot_group(low.b.extract_value(acc, t), weights, values, max_weight=max_weight)
            acc = low.b.insert_value(acc, total, t)
        return acc

    @operation(void(int64, acc_t))
    def store(low, address, acc):
        """Store the tile, 16 i32 per token."""
        for t in range(n_tok):
            low.store(low.at(address, 64 * t), low.b.extract_value(acc, t), 64)

    return SimpleNamespace(zeros=zeros, add_dots=add_dots, store=store)
