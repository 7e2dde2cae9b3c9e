"""LLVM IR of vector operations: the few that differ between instruction sets, and small helpers.

``Lowering`` wraps an ``llvmlite.ir.IRBuilder`` and the ``Target`` that is being built. Everything is
in logical widths (16 lanes of 32 bits, 64 bytes); LLVM splits what the machine has no register for.
Every operation gives the same bits on every target: fused multiply-adds and half-precision
conversions are emulated exactly, without library calls, where the hardware lacks them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .isa import Target

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
ELEMENTS = {"i8": I8, "i16": I16, "i32": I32, "i64": I64, "f16": F16, "f32": F32, "f64": F64}

I8X64, I16X32, I32X16 = ir.VectorType(I8, 64), ir.VectorType(I16, 32), ir.VectorType(I32, 16)
F32X16, F16X16 = ir.VectorType(F32, 16), ir.VectorType(F16, 16)


def constant(vector: ir.VectorType, value: float | Sequence[float]) -> ir.Constant:
    """Return a vector constant: one value in all lanes, or one value per lane."""
    values = list(value) if isinstance(value, Sequence) else [value] * vector.count
    return ir.Constant(vector, values)


class Lowering:
    """Emit vector operations for one target into one builder."""

    def __init__(self, builder: ir.IRBuilder, target: Target) -> None:
        self.b = builder
        self.target = target

    # ---- memory ------------------------------------------------------------------------------

    def at(self, address: ir.Value, offset: int) -> ir.Value:
        """Return ``address + offset`` in bytes."""
        return self.b.add(address, ir.Constant(I64, offset)) if offset else address

    def load(self, address: ir.Value, kind: ir.Type, align: int = 1) -> ir.Value:
        """Load from an integer address."""
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, address: ir.Value, value: ir.Value, align: int = 1) -> None:
        """Store to an integer address."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=align)

    def prefetch(self, address: ir.Value, cache: int = 1) -> None:
        """Ask for the cache line at any address, into the first or second cache."""
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        pointer = self.b.inttoptr(address, I8.as_pointer())
        self.b.call(function, [pointer, *(ir.Constant(I32, n) for n in (0, 4 - cache, 1))])

    # ---- shapes ------------------------------------------------------------------------------

    def splat(self, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
        """Return a vector with the scalar in every lane."""
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, undefined, constant(ir.VectorType(I32, vector.count), 0))

    def broadcast(self, address: ir.Value, vector: ir.VectorType) -> ir.Value:
        """Load one element and return it in every lane."""
        return self.splat(self.load(address, vector.element), vector)

    def part(self, value: ir.Value, index: int, lanes: int) -> ir.Value:
        """Return ``lanes`` lanes of a vector, starting at ``index * lanes``."""
        if lanes == value.type.count:
            return value
        lane_numbers = list(range(index * lanes, index * lanes + lanes))
        return self.b.shuffle_vector(value, value, constant(ir.VectorType(I32, lanes), lane_numbers))

    def concat(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Join equal vectors, their number a power of two."""
        while len(parts) > 1:
            lanes = 2 * parts[0].type.count
            order = constant(ir.VectorType(I32, lanes), list(range(lanes)))
            parts = [self.b.shuffle_vector(a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def by_parts(self, n_part: int, function: Callable[..., ir.Value], *values: ir.Value) -> ir.Value:
        """Apply a function to ``n_part`` equal pieces of the vectors and join the results."""
        return self.concat(
            [function(*(self.part(v, i, v.type.count // n_part) for v in values)) for i in range(n_part)]
        )

    def call(self, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        """Call an LLVM intrinsic."""
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    # ---- floating point ----------------------------------------------------------------------

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """Return ``x * y + z`` of f32 vectors, rounded once."""
        n = x.type.count
        if self.target.has_fma:
            return self.call(f"llvm.fma.v{n}f32", x.type, x, y, z)
        # Exact product in f64, the sum rounded to odd, then one rounding to f32 (Boldo and Melquiond 2008).
        b, wide, bits = self.b, ir.VectorType(F64, n), ir.VectorType(I64, n)
        product = b.fmul(b.fpext(x, wide), b.fpext(y, wide))
        addend = b.fpext(z, wide)
        total = b.fadd(product, addend)
        virtual = b.fsub(total, product)
        error = b.fadd(b.fsub(product, b.fsub(total, virtual)), b.fsub(addend, virtual))
        total_bits, zero = b.bitcast(total, bits), constant(wide, 0.0)
        is_inexact = b.fcmp_ordered("one", error, zero)
        is_even = b.icmp_unsigned("==", b.and_(total_bits, constant(bits, 1)), constant(bits, 0))
        is_outward = b.icmp_unsigned("==", b.fcmp_ordered(">", error, zero), b.fcmp_ordered(">", total, zero))
        odd = b.add(total_bits, b.select(is_outward, constant(bits, 1), constant(bits, -1)))
        return b.fptrunc(b.bitcast(b.select(b.and_(is_inexact, is_even), odd, total_bits), wide), x.type)

    def half_to_float(self, half: ir.Value) -> ir.Value:
        """Return f16 lanes as f32, exactly."""
        b, n = self.b, half.type.count
        floats, ints = ir.VectorType(F32, n), ir.VectorType(I32, n)
        if self.target.has_f16:
            return b.fpext(half, floats)
        bits = b.zext(b.bitcast(half, ir.VectorType(I16, n)), ints)
        magnitude = b.shl(b.and_(bits, constant(ints, 0x7FFF)), constant(ints, 13))
        scaled = b.bitcast(b.fmul(b.bitcast(magnitude, floats), constant(floats, 2.0**112)), ints)
        is_special = b.icmp_unsigned(">=", magnitude, constant(ints, 0x0F800000))  # infinity or NaN
        result = b.select(is_special, b.or_(magnitude, constant(ints, 0x7F800000)), scaled)
        sign = b.shl(b.and_(bits, constant(ints, 0x8000)), constant(ints, 16))
        return b.bitcast(b.or_(result, sign), floats)

    def float_to_half(self, value: ir.Value) -> ir.Value:
        """Return f32 lanes as f16, rounded to nearest even (NaN becomes some NaN)."""
        b, n = self.b, value.type.count
        floats, ints = ir.VectorType(F32, n), ir.VectorType(I32, n)
        if self.target.has_f16:
            return b.fptrunc(value, ir.VectorType(F16, n))
        # F. Giesen, "float_to_half_fast3_rtne": adding a magic number rounds subnormals in hardware.
        bits = b.bitcast(value, ints)
        sign = b.and_(bits, constant(ints, -0x80000000))
        magnitude = b.xor(bits, sign)
        is_nan = b.icmp_unsigned(">", magnitude, constant(ints, 0x7F800000))
        large = b.select(is_nan, constant(ints, 0x7E00), constant(ints, 0x7C00))
        magic = constant(ints, ((127 - 15) + (23 - 10) + 1) << 23)
        small = b.sub(b.bitcast(b.fadd(b.bitcast(magnitude, floats), b.bitcast(magic, floats)), ints), magic)
        is_odd = b.and_(b.lshr(magnitude, constant(ints, 13)), constant(ints, 1))
        rounded = b.add(b.add(magnitude, constant(ints, ((15 - 127) << 23) + 0xFFF)), is_odd)
        normal = b.lshr(rounded, constant(ints, 13))
        result = b.select(b.icmp_unsigned("<", magnitude, constant(ints, 113 << 23)), small, normal)
        result = b.select(b.icmp_unsigned(">=", magnitude, constant(ints, (127 + 16) << 23)), large, result)
        result = b.or_(result, b.lshr(sign, constant(ints, 16)))
        return b.bitcast(b.trunc(result, ir.VectorType(I16, n)), ir.VectorType(F16, n))

    # ---- bytes -------------------------------------------------------------------------------

    def bits(self, value: ir.Value, shift: int, n_bit: int, to: int = 0) -> ir.Value:
        """Return ``(byte >> shift & (1 << n_bit) - 1) << to`` of each byte."""
        b, mask, words = self.b, ((1 << n_bit) - 1) << to, ir.VectorType(I16, value.type.count // 2)
        shifted = b.bitcast(value, words)
        if shift > to:
            shifted = b.lshr(shifted, constant(words, shift - to))
        elif shift < to:
            shifted = b.shl(shifted, constant(words, to - shift))
        return b.and_(b.bitcast(shifted, value.type), constant(value.type, mask))

    @property
    def is_biased(self) -> bool:
        """Whether signed weight bytes are stored with 128 added, for a dot product that wants unsigned ones."""
        return self.target.dot in ("vnni512", "vnni256")

    def signed_operand(self, value: ir.Value) -> ir.Value:
        """Return signed bytes in the form in which ``dot_tile`` takes them."""
        return self.b.xor(value, constant(value.type, -128)) if self.is_biased else value

    def lookup16(self, index: ir.Value, table: Sequence[int]) -> ir.Value:
        """Return a part's signed bytes ``table[index]`` (index 0..15) in the form of ``signed_operand``."""
        entries = [v + 128 if self.is_biased else v for v in table]
        signed = [(v + 128) % 256 - 128 for v in entries]
        kind = index.type
        values = constant(kind, signed * (kind.count // 16))
        if self.target.is_arm:
            return self.call("llvm.aarch64.neon.tbl1.v16i8", kind, values, index)
        name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}[kind.count]
        return self.call(f"llvm.x86.{name}", kind, values, index)

    @property
    def n_part(self) -> int:
        """Registers that hold 16 lanes of 32 bits: what a tile is worked through by."""
        return {"vnni512": 1, "vnni256": 2, "avx2": 2}.get(self.target.dot, 4)

    def load_part(self, address: ir.Value, part: int) -> ir.Value:
        """Load the bytes of one part of a 64-byte vector."""
        n_byte = 64 // self.n_part
        return self.load(self.at(address, part * n_byte), ir.VectorType(I8, n_byte), n_byte)

    def opaque(self, address: ir.Value) -> ir.Value:
        """Return the address as a number that LLVM knows nothing of: what is loaded through it is loaded again."""
        kind = ir.FunctionType(I64, [I64])
        return self.b.asm(kind, "", "=r,0", [address], side_effect=False)

    def after(self, address: ir.Value, values: Sequence[ir.Value]) -> ir.Value:
        """Return the address, known only once all ``values`` are: what is loaded through it is not loaded earlier.

        LLVM's scheduler otherwise unpacks all weights first, and runs out of registers. The machine sees nothing of it.
        """
        kind = ir.FunctionType(I64, [I64, *(v.type for v in values)])
        register = "v" if self.target.dot == "vnni512" else "x"  # v: any of 32
        constraints = ",".join(["=r", "0", *[register] * len(values)])
        return self.b.asm(kind, "", constraints, [address, *values], side_effect=False)

    def times_constant(
        self, address: ir.Value, factor: int, lanes: int = 16, addend: ir.Value | None = None
    ) -> ir.Value:
        """Return ``addend + factor * v`` in every lane, v being the i32 at ``address``, ``|v| < 2**15``."""
        if self.target.dot == "vnni512":  # one instruction, the broadcast folded into it
            pairs = self.b.bitcast(self.broadcast(address, I32X16), I16X32)
            factors = constant(I16X32, [factor, 0] * 16)
            addend = constant(I32X16, 0) if addend is None else addend
            return self.call("llvm.x86.avx512.vpdpwssd.512", I32X16, addend, pairs, factors)
        ints = ir.VectorType(I32, lanes)
        product = self.b.mul(self.broadcast(address, ints), constant(ints, factor))
        return product if addend is None else self.b.add(product, addend)

    @property
    def sums_start_anywhere(self) -> bool:
        """Whether a dot product is added to any start at no cost."""
        return self.target.dot == "vnni512"

    @property
    def has_few_registers(self) -> bool:
        """Whether there are sixteen vector registers; with thirty-two a whole group is unpacked first and kept."""
        return self.target.dot in ("vnni256", "avx2", "ssse3")

    def takes_halves(self, n_tok: int) -> bool:
        """Whether half a group of weights stays in few registers while the tokens of a tile pass by, then the other."""
        return self.has_few_registers and n_tok > 4

    def is_in_turn(self, n_tok: int) -> bool:
        """Whether the tokens of a tile must be worked through one after the other.

        LLVM's scheduler otherwise begins all of sixteen at once, and keeps their sums in memory.
        """
        return (self.target.dot == "vnni512" and n_tok > 8) or self.takes_halves(n_tok)

    def tile_pieces(self, n_tok: int) -> list[tuple[range, range]]:
        """Return (tokens, parts) that are worked through one after the other: as much as registers hold sums of.

        A part is what one register holds of 16 lanes. Few registers and tokens: a vector of weights passes by at a
        time, for all tokens. Otherwise weights stay where they are, and tokens pass by.
        """
        tokens, parts = range(n_tok), range(self.n_part)
        if self.target.is_arm:
            return [(tokens, range(p, p + 1)) for p in parts]
        if self.has_few_registers and not self.takes_halves(n_tok):
            return [(tokens, parts)]
        return [(range(t, t + 1), parts) for t in tokens]

    def dot_tile(
        self,
        starts: Sequence[Sequence[Any]],
        n_vector: int,
        weight: Callable[[int, Sequence[ir.Value]], list[ir.Value]],
        load_x: Callable[[int, int], ir.Value],
        *,
        max_weight: int | None,
    ) -> list[list[Any]]:
        """Return ``total + sum over vectors of (sum of 4 byte products per lane)``, exactly, of a piece of a tile.

        Args:
            starts: the totals of each token, i32 lanes by part, or None for zero. On a biased target they start at
                ``-128 * sum(x)`` for signed weights.
            n_vector: number of vectors.
            weight: gives all parts of a vector of weights, to be unpacked after some values are known.
            load_x: gives four bytes of a token in every lane, by token and vector. Signed, -127..127: -128 would break
                the sign trick below.
            max_weight: bounds unsigned weights (at most 127); ``None`` says signed weights in the form of
                ``signed_operand``.
        """
        dot, vectors = self.target.dot, range(n_vector)
        totals = [list(row) for row in starts]
        if dot in ("avx2", "ssse3"):
            return self._tile_maddubs(totals, n_vector, weight, load_x, max_weight)
        if dot == "vnni256":  # a vector of weights at a time, for all tokens
            for k in vectors:
                w = weight(k, [total for row in totals for total in row] if k else [])
                for t, sums in enumerate(totals):
                    self._dot4(sums, w, load_x(t, k))
            return totals
        weights = [weight(k, []) for k in vectors]
        for t, sums in enumerate(totals):
            x = [load_x(t, k) for k in vectors]
            if dot == "smull":
                for p, total in enumerate(sums):
                    sums[p] = self._dot_smull(total, [w[p] for w in weights], x, max_weight)
            else:
                for w, v in zip(weights, x, strict=True):
                    self._dot4(sums, w, v)
        return totals

    def _dot4(self, totals: list[Any], weights: Sequence[ir.Value], x: ir.Value) -> None:
        """Add the products of four bytes per lane to the totals of one token."""
        name, lanes = {
            "vnni512": ("llvm.x86.avx512.vpdpbusd.512", 16),
            "vnni256": ("llvm.x86.avx512.vpdpbusd.256", 8),
            "sdot": ("llvm.aarch64.neon.sdot.v4i32.v16i8", 4),
        }[self.target.dot]
        kind = ir.VectorType(I32, lanes)
        for p, w in enumerate(weights):
            totals[p] = self.call(name, kind, constant(kind, 0) if totals[p] is None else totals[p], w, x)

    def _tile_maddubs(
        self,
        totals: list[list[Any]],
        n_vector: int,
        weight: Callable[[int, Sequence[ir.Value]], list[ir.Value]],
        load_x: Callable[[int, int], ir.Value],
        max_weight: int | None,
    ) -> list[list[Any]]:
        """Byte products in pairs of i16, added there as long as they cannot overflow, then widened once.

        A vector of weights at a time, for all tokens: sums fill the registers, weights and activations pass by.
        """
        lanes = 16 // self.n_part
        bytes_, words, ints = (ir.VectorType(k, lanes * 4 // (k.width // 8)) for k in (I8, I16, I32))
        if self.target.dot == "avx2":
            maddubs, maddwd, sign = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.psign.b"
        else:
            maddubs, maddwd = "llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"
            sign = "llvm.x86.ssse3.psign.b.128"
        # Signed weights: |w| times x with w's sign; a pair is at most 2 * 128 * 127 < 32768.
        n_safe = 1 if max_weight is None else max(1, 32767 // (2 * 127 * max_weight))
        tokens, parts = range(len(totals)), range(len(totals[0]))
        before: list[Any] = []  # what must be known before the next weights are unpacked
        for start in range(0, n_vector, n_safe):
            pairs: list[list[Any]] = [[None] * len(parts) for _ in tokens]
            step = 2 if n_safe > 1 else 1  # vectors whose weights wait in registers
            stop = min(start + n_safe, n_vector)
            for first in range(start, stop, step):
                chunk = range(first, min(first + step, stop))
                weights = {k: weight(k, before if k == first else []) for k in chunk}
                for t in tokens:
                    for k in chunk:
                        x = load_x(t, k)
                        for p in parts:
                            v, w = x, weights[k][p]
                            if max_weight is None:
                                v, w = self.call(sign, bytes_, x, w), self.call(sign, bytes_, w, w)
                            product = self.call(maddubs, words, w, v)
                            pairs[t][p] = product if pairs[t][p] is None else self.b.add(pairs[t][p], product)
                before = [pair for row in pairs for pair in row]
            for t in tokens:
                for p in parts:
                    wide = self.call(maddwd, ints, pairs[t][p], constant(words, 1))
                    totals[t][p] = wide if totals[t][p] is None else self.b.add(totals[t][p], wide)
            before = [total for row in totals for total in row]
        return totals

    def _dot_smull(
        self, total: ir.Value | None, weights: Sequence[ir.Value], x: Sequence[ir.Value], max_weight: int | None
    ) -> ir.Value:
        """Byte products as i16, added there as long as they cannot overflow, then added in pairs, twice."""
        words, ints = ir.VectorType(I16, 8), ir.VectorType(I32, 4)
        n_safe = max(1, 32767 // (127 * (128 if max_weight is None else max_weight)))
        sums: list[Any] = [None, None]
        for start in range(0, len(weights), n_safe):
            products: list[Any] = [None, None]
            for w, v in zip(weights[start : start + n_safe], x[start : start + n_safe], strict=True):
                for h in range(2):
                    product = self.call("llvm.aarch64.neon.smull.v8i16", words, self.part(w, h, 8), self.part(v, h, 8))
                    products[h] = product if products[h] is None else self.b.add(products[h], product)
            for h in range(2):
                wide = self.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", ints, products[h])
                sums[h] = wide if sums[h] is None else self.b.add(sums[h], wide)
        result = self.call("llvm.aarch64.neon.addp.v4i32", ints, *sums)
        return result if total is None else self.b.add(total, result)
