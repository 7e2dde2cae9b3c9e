"""Operations on a tile: 16 weight rows against ``n_tok`` tokens at once.

A weight group (16 rows x 32 columns) is unpacked once and used for every token of the tile; the
accumulators of all tokens stay in registers, where there are enough. Activations come as 64-byte
records, one per token and 32 columns (written by ``kernels/quantize.py``):

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

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from ...formats.record import Record
from .lower import F32, F32X16, I8, I32, Lowering, constant
from .vector import Vec, device, f32x16, int64, operation, prefetch, void
from .weight_bytes import WeightBytes

RECORD_BYTES = 64
SCALE, SUM, SUM_0, SUM_1, SCALED_SUM, SCALED_SUM_0, SCALED_SUM_1 = 32, 36, 40, 44, 48, 52, 56

# An integer sum that starts at the bits of this f32 is, read as f32, the number plus the sum (|sum| < 2**22): the
# multiply-add ``(SHIFT + sum) * scale - SHIFT * scale`` converts and scales it at once. ``SHIFT * scale`` is exact for
# scales of at most 22 bits, which are all but MXFP4's. Only signs of zeros differ from a conversion's, and leave no
# trace: a chain of sums never is -0 when its products are no finer than 2**-148 (``quantize.SMALLEST``).
SHIFT = 1.5 * 2.0**23


class Ahead(Record):
    """Which later weights a group asks for: so many bytes ahead, into which cache, one line in ``step`` bytes."""

    n_bytes: int
    cache: int
    step: int = 64


# The second cache takes most: the first has few buffers for lines under way. Tiles of three tokens and more leave it
# time to fetch what comes next from there.
AHEAD, N_TOK_FOR_NEXT, NEXT = Ahead(8192, 2), 3, Ahead(1024, 1)


class _Group(Record):
    """One group of weights: how its bytes are found, and where; ``offset`` is to be subtracted from each."""

    quants: WeightBytes
    offset: int
    address: Any
    ahead: tuple[Ahead, ...]  # where it comes from memory
    kept: dict[tuple[int, int], Any] | None  # by vector and part, what was unpacked; None: nothing is kept

    @classmethod
    def at(
        cls, low: Lowering, n_tok: int, quants: WeightBytes, offset: int, address: Any, ahead: tuple[Ahead, ...] = ()
    ) -> _Group:
        """Return the group whose quants lie at an address, for a tile of so many tokens."""
        if low.has_few_registers and not low.takes_halves(n_tok):
            return cls(quants, offset, address, ahead, None)
        group = cls(quants, offset, address, ahead, {})
        group.unpack(low, range(4 if low.takes_halves(n_tok) else 8))
        return group

    def unpack(self, low: Lowering, vectors: range, before: Sequence[Any] = ()) -> None:
        """Unpack vectors and keep them, once some values are known."""
        assert self.kept is not None
        address = low.after(self.address, before) if before else self.address
        for k in vectors:
            for p in range(low.n_part):
                self.kept[k, p] = self.quants.vector(low, address, k, p)
            self.prefetch(low, k)

    def prefetch(self, low: Lowering, k: int) -> None:
        """Ask for later weights, a fourth of them after each odd vector: between the loads, not all at once."""
        if k % 2 == 0:
            return
        for ahead in self.ahead:
            lines = range(0, self.quants.n_bytes, ahead.step)
            for line in lines[len(lines) * (k - 1) // 8 : len(lines) * (k + 1) // 8]:
                low.prefetch(low.at(self.address, ahead.n_bytes + line), ahead.cache)


class _Piece:
    """The tokens and parts (``Lowering.tile_pieces``) of a tile that are worked through together."""

    def __init__(self, low: Lowering, tokens: range, parts: range, x: Any) -> None:
        self.low, self.tokens, self.parts = low, tokens, parts
        self.lanes = 16 // low.n_part
        self.floats = ir.VectorType(F32, self.lanes)
        # Activations are loaded again for another part: kept, they would push weights out of the registers.
        self.x = low.opaque(x) if parts.start else x

    def field(self, t: int, offset: int) -> Any:
        """Return the address of a field of a token's record."""
        return self.low.at(self.x, t * RECORD_BYTES + offset)

    def dots(self, group: _Group, half: int | None) -> list[list[Any]]:
        """Return ``sum over columns of (weight - offset) * quant``, exactly, as f32 lanes by token and part."""
        return self.floats_of(self.sums(group, half))

    def floats_of(self, sums: list[list[Any]]) -> list[list[Any]]:
        """Return i32 lanes as f32."""
        return [[self.low.b.sitofp(total, self.floats) for total in parts] for parts in sums]

    def scaled_dots(self, group: _Group, half: int | None, scale: Any, *, is_short: bool) -> list[list[Any]]:
        """Return ``dots * scale``, rounded once; ``is_short`` says that ``SHIFT * scale`` is exact."""
        low = self.low
        if not (is_short and low.sums_start_anywhere):
            return self.scaled(self.dots(group, half), scale)
        shifted = [[low.b.bitcast(s, self.floats) for s in row] for row in self.sums(group, half, first=SHIFT)]
        back = low.b.fmul(scale, constant(scale.type, -SHIFT))
        return self.scaled(shifted, scale, [[low.part(back, p, self.lanes) for p in self.parts]] * len(shifted))

    def sums(self, group: _Group, half: int | None, *, first: float = 0.0, of_all: bool = False) -> list[list[Any]]:
        """Return the same as i32 lanes, or added to the bits of ``first`` as f32 (``Lowering.sums_start_anywhere``).

        ``of_all``: half the products, with the offset of all.
        """
        low, lanes, offset = self.low, self.lanes, group.offset
        ints = ir.VectorType(I32, lanes)
        begin = low.b.bitcast(constant(self.floats, first), ints) if first else None
        if group.quants.max_weight is None and low.is_biased:
            offset = 128
        starts = []
        for t in self.tokens:
            minus_sum = self.field(t, SUM if half is None or of_all else (SUM_0, SUM_1)[half])
            start = low.times_constant(minus_sum, offset, lanes, begin) if offset else begin
            starts.append([start] * len(self.parts))
        return self.add_dots(group, half, starts)

    def add_dots(self, group: _Group, half: int | None, starts: list[list[Any]]) -> list[list[Any]]:
        """Add ``sum over columns of weight * quant`` to i32 lanes by token and part."""
        low, lanes, quants = self.low, self.lanes, group.quants
        ints, bytes_ = ir.VectorType(I32, lanes), ir.VectorType(I8, 4 * lanes)
        vectors = range(8) if half is None else range(4 * half, 4 * half + 4)
        address = group.address

        def weight(k: int, before: Sequence[Any]) -> list[Any]:
            if group.kept is not None:
                return [group.kept[vectors[k], p] for p in self.parts]
            nonlocal address
            if before:
                address = low.after(address, before)
            values = [quants.vector(low, address, vectors[k], p) for p in self.parts]
            if self.tokens.start == self.parts.start == 0:
                group.prefetch(low, vectors[k])
            return values

        def load_x(t: int, k: int) -> Any:
            address = self.field(self.tokens[t], 4 * vectors[k])
            return low.b.bitcast(low.broadcast(address, ints), bytes_)

        return low.dot_tile(starts, len(vectors), weight, load_x, max_weight=quants.max_weight)

    def scaled(self, dots: list[list[Any]], scale: Any, addends: list[list[Any]] | None = None) -> list[list[Any]]:
        """Return ``dots * scale``, or ``dots * scale + addends`` rounded once; ``scale`` has 16 lanes."""
        factors = [self.low.part(scale, p, self.lanes) for p in self.parts]
        if addends is None:
            return [[self.low.b.fmul(dot, f) for dot, f in zip(row, factors, strict=True)] for row in dots]
        return [
            [self.low.fma(dot, f, addend) for dot, f, addend in zip(*row, strict=True)]
            for row in ((d, factors, a) for d, a in zip(dots, addends, strict=True))
        ]

    def add_to(self, acc: list[list[Any]], values: list[list[Any]]) -> None:
        """Add ``x_scale * values`` to the accumulators, by token and part of the whole tile."""
        for t, row in zip(self.tokens, values, strict=True):
            x_scale = self.low.broadcast(self.field(t, SCALE), self.floats)
            for p, value in zip(self.parts, row, strict=True):
                acc[t][p] = self.low.fma(value, x_scale, acc[t][p])

    def add_minimums_to(self, acc: list[list[Any]], minimum: Any) -> None:
        """Add ``minimum * (x_scale * sum(x))``; ``minimum`` has 16 lanes."""
        factors = [self.low.part(minimum, p, self.lanes) for p in self.parts]
        for t in self.tokens:
            scaled_sum = self.low.broadcast(self.field(t, SCALED_SUM), self.floats)
            for p, factor in zip(self.parts, factors, strict=True):
                acc[t][p] = self.low.fma(factor, scaled_sum, acc[t][p])


def tile_operations(n_tok: int, near: Ahead | None = None) -> SimpleNamespace:
    """Return the operations of a tile of ``n_tok`` tokens (their accumulator type is ``acc_t``).

    ``near``: which weights are asked for instead of those that suit most CPUs.
    """
    acc_t = Vec("f32", 16, n_tok)
    ahead = (AHEAD,) if n_tok < N_TOK_FOR_NEXT else (NEXT, AHEAD)
    if near is not None:
        ahead = (near,)

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

    def by_pieces(low: Lowering, acc: Any, x: Any, group: _Group, begin: Any, end: Any, minimum: Any = None) -> Any:
        """Return ``acc + x_scale * end(piece, begin(piece))``: what the first half of a group gives, then the rest."""
        tokens, parts = range(n_tok), range(low.n_part)
        of_tokens = [acc] if n_tok == 1 else [low.b.extract_value(acc, t) for t in tokens]
        split = [[low.part(total, p, 16 // low.n_part) for p in parts] for total in of_tokens]
        pieces, begun = low.tile_pieces(n_tok), {}
        if low.takes_halves(n_tok):
            for piece_tokens, piece_parts in pieces:
                begun[piece_tokens] = begin(_Piece(low, piece_tokens, piece_parts, x))
                x = low.after(x, [value for row in begun[piece_tokens] for value in row])
            group.unpack(low, range(4, 8), begun[pieces[-1][0]][0])
        for piece_tokens, piece_parts in pieces:
            piece = _Piece(low, piece_tokens, piece_parts, x)
            piece.add_to(split, end(piece, begun.get(piece_tokens)))
            if minimum is not None and low.has_few_registers:  # a sum that is in a register
                piece.add_minimums_to(split, minimum)
            if low.is_in_turn(n_tok):
                x = low.after(x, [split[t][p] for t in piece_tokens for p in piece_parts])
        if minimum is not None and not low.has_few_registers:
            _Piece(low, tokens, parts, x).add_minimums_to(split, minimum)
        joined = [low.concat(total) for total in split]
        return each(low, acc, lambda t, _: joined[t])

    def add_products(quants: WeightBytes, offset: int = 0, *, is_short: bool = True, has_minimum: bool = False) -> Any:
        """Return ``acc + x_scale * (scale * dot(weights - offset, x))`` by token; ``is_short``: ``scaled_dots``.

        ``has_minimum``: and then ``+ minimum * (x_scale * sum(x))``.
        """
        signature = acc_t(acc_t, int64, f32x16, int64, *[f32x16] * has_minimum)

        @operation(signature)
        def add_products_(low, acc, weights, scale, x, minimum=None):
            group = _Group.at(low, n_tok, quants, offset, weights, ahead)

            def begin(piece: _Piece) -> Any:
                return piece.sums(group, 0, of_all=True)

            def end(piece: _Piece, begun: Any) -> Any:
                if begun is None:
                    return piece.scaled_dots(group, None, scale, is_short=is_short)
                return piece.scaled(piece.floats_of(piece.add_dots(group, 1, begun)), scale)

            return by_pieces(low, acc, x, group, begin, end, minimum)

        return add_products_

    def add_half_products(quants: WeightBytes, offset: int = 0) -> Any:
        """Return ``acc + x_scale * (scale_0 * dot_0 + scale_1 * dot_1)``: columns 0..15 and 16..31 apart."""

        @operation(acc_t(acc_t, int64, f32x16, f32x16, int64))
        def add_half_products_(low, acc, weights, scale_0, scale_1, x):
            group = _Group.at(low, n_tok, quants, offset, weights, ahead)

            def begin(piece: _Piece) -> Any:
                return piece.scaled_dots(group, 0, scale_0, is_short=True)

            def end(piece: _Piece, begun: Any) -> Any:
                begun = begun or begin(piece)
                return piece.scaled(piece.dots(group, 1), scale_1, begun)

            return by_pieces(low, acc, x, group, begin, end)

        return add_half_products_

    def add_minimums(half: int) -> Any:
        """Return ``acc + minimum * (x_scale * sum(x))`` over columns 0..15 or 16..31, for every token."""
        field = (SCALED_SUM_0, SCALED_SUM_1)[half]

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


def fetch(n_byte: int) -> Any:
    """Return what asks for the cache lines of so many bytes at an address, into the first cache."""

    @device(void(int64))
    def fetch_lines(address):
        for line in range(0, n_byte, 64):
            prefetch(address + line)

    return fetch_lines


def integer_tile(n_tok: int, quants: WeightBytes) -> SimpleNamespace:
    """Return operations on a tile of bare integer sums, i32 [n_tok, 16], for unsigned weights."""
    acc_t = Vec("i32", 16, n_tok)

    @operation(acc_t())
    def zeros(low):
        """Return sums of zero."""
        return ir.Constant(acc_t.llvm, None)

    @operation(acc_t(acc_t, int64, int64))
    def add_dots(low, acc, weights, x):
        """Add the exact sum over 32 columns of ``weight * quant`` for every token (records at ``x``)."""
        group = _Group.at(low, n_tok, quants, 0, weights)
        parts = range(low.n_part)
        totals = [[low.part(low.b.extract_value(acc, t), p, 16 // low.n_part) for p in parts] for t in range(n_tok)]
        for tokens, piece_parts in low.tile_pieces(n_tok):
            starts = [[totals[t][p] for p in piece_parts] for t in tokens]
            sums = _Piece(low, tokens, piece_parts, x).add_dots(group, None, starts)
            for t, row in zip(tokens, sums, strict=True):
                for p, total in zip(piece_parts, row, strict=True):
                    totals[t][p] = total
        for t, row in enumerate(totals):
            acc = low.b.insert_value(acc, low.concat(row), t)
        return acc

    @operation(void(int64, acc_t))
    def store(low, address, acc):
        """Store the tile, 16 i32 per token."""
        for t in range(n_tok):
            low.store(low.at(address, 64 * t), low.b.extract_value(acc, t), 64)

    return SimpleNamespace(zeros=zeros, add_dots=add_dots, store=store)
