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
        """Return ``(byte >> shift & (1 << n_bit) - 1) << to`` of each of 64 bytes."""
        b, mask = self.b, ((1 << n_bit) - 1) << to
        words = b.bitcast(value, I16X32)
        if shift > to:
            words = b.lshr(words, constant(I16X32, shift - to))
        elif shift < to:
            words = b.shl(words, constant(I16X32, to - shift))
        return b.and_(b.bitcast(words, I8X64), constant(I8X64, mask))

    @property
    def is_biased(self) -> bool:
        """Whether signed weight bytes are stored with 128 added, for a dot product that wants unsigned ones."""
        return self.target.dot in ("vnni512", "vnni256")

    def signed_operand(self, value: ir.Value) -> ir.Value:
        """Return 64 signed bytes in the form that ``dot4(..., is_signed=True)`` takes."""
        return self.b.xor(value, constant(I8X64, -128)) if self.is_biased else value

    def lookup16(self, index: ir.Value, table: Sequence[int]) -> ir.Value:
        """Return 64 signed bytes ``table[index]`` (index 0..15) in the form of ``signed_operand``."""
        entries = [v + 128 if self.is_biased else v for v in table]
        signed = [(v + 128) % 256 - 128 for v in entries]
        dot = self.target.dot
        if dot == "vnni512":
            return self.call("llvm.x86.avx512.pshuf.b.512", I8X64, constant(I8X64, signed * 4), index)
        if dot in ("vnni256", "avx2"):
            half = ir.VectorType(I8, 32)
            return self.by_parts(
                2, lambda i: self.call("llvm.x86.avx2.pshuf.b", half, constant(half, signed * 2), i), index
            )
        quarter = ir.VectorType(I8, 16)
        name = "llvm.aarch64.neon.tbl1.v16i8" if self.target.is_arm else "llvm.x86.ssse3.pshuf.b.128"
        return self.by_parts(4, lambda i: self.call(name, quarter, constant(quarter, signed), i), index)

    def times_constant(self, address: ir.Value, factor: int) -> ir.Value:
        """Return i32x16 ``factor * v`` in every lane, v being the i32 at ``address``, ``|v| < 2**15``."""
        if self.target.dot == "vnni512":  # one instruction, the broadcast folded into it
            pairs = self.b.bitcast(self.broadcast(address, I32X16), I16X32)
            factors = constant(I16X32, [factor, 0] * 16)
            return self.call("llvm.x86.avx512.vpdpwssd.512", I32X16, constant(I32X16, 0), pairs, factors)
        return self.b.mul(self.broadcast(address, I32X16), constant(I32X16, factor))

    def dot_group(
        self, total: ir.Value | None, weights: Sequence[ir.Value], x: Sequence[ir.Value], *, max_weight: int | None
    ) -> ir.Value:
        """Return i32x16 ``total + sum over vectors of (sum of 4 byte products per lane)``, exactly.

        ``max_weight`` bounds unsigned weights (at most 127); ``None`` says signed weights in the form
        of ``signed_operand``. On a biased target the caller starts ``total`` at ``-128 * sum(x)``.
        ``x`` holds signed bytes, -127..127 (-128 would break the sign trick below).
        """
        if self.target.dot in ("avx2", "ssse3"):
            return self._dot_maddubs(total, weights, x, max_weight)
        if self.target.dot == "smull":
            return self._dot_smull(total, weights, x, max_weight)
        if total is None:
            total = constant(I32X16, 0)
        for w, v in zip(weights, x, strict=True):
            total = self._dot4(total, w, v)
        return total

    def _dot4(self, total: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        dot = self.target.dot
        if dot == "vnni512":
            return self.call("llvm.x86.avx512.vpdpbusd.512", I32X16, total, w, x)
        if dot == "vnni256":
            kind = ir.VectorType(I32, 8)
            return self.by_parts(
                2, lambda t, a, v: self.call("llvm.x86.avx512.vpdpbusd.256", kind, t, a, v), total, w, x
            )
        kind = ir.VectorType(I32, 4)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return self.by_parts(4, lambda t, a, v: self.call(name, kind, t, a, v), total, w, x)

    def _dot_maddubs(
        self, total: ir.Value | None, weights: Sequence[ir.Value], x: Sequence[ir.Value], max_weight: int | None
    ) -> ir.Value:
        """Byte products in pairs of i16, added there as long as they cannot overflow, then widened once."""
        n_part, lanes = (2, 8) if self.target.dot == "avx2" else (4, 4)
        bytes_, words, ints = (ir.VectorType(k, lanes * 4 // (k.width // 8)) for k in (I8, I16, I32))
        if self.target.dot == "avx2":
            maddubs, maddwd, sign = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.psign.b"
        else:
            maddubs, maddwd = "llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"
            sign = "llvm.x86.ssse3.psign.b.128"
        # Signed weights: |w| times x with w's sign; a pair is at most 2 * 128 * 127 < 32768.
        n_safe = 1 if max_weight is None else max(1, 32767 // (2 * 127 * max_weight))
        b, parts = self.b, []
        for i in range(n_part):
            result = self.part(total, i, lanes) if total is not None else None
            for start in range(0, len(weights), n_safe):
                pairs = None
                for w, v in zip(weights[start : start + n_safe], x[start : start + n_safe], strict=True):
                    w_part, x_part = self.part(w, i, lanes * 4), self.part(v, i, lanes * 4)
                    if max_weight is None:
                        x_part = self.call(sign, bytes_, x_part, w_part)
                        w_part = self.call(sign, bytes_, w_part, w_part)
                    product = self.call(maddubs, words, w_part, x_part)
                    pairs = product if pairs is None else b.add(pairs, product)
                wide = self.call(maddwd, ints, pairs, constant(words, 1))
                result = wide if result is None else b.add(result, wide)
            parts.append(result)
        return self.concat(parts)

    def _dot_smull(
        self, total: ir.Value | None, weights: Sequence[ir.Value], x: Sequence[ir.Value], max_weight: int | None
    ) -> ir.Value:
        """Byte products as i16, added there as long as they cannot overflow, then added in pairs, twice."""
        words, ints = ir.VectorType(I16, 8), ir.VectorType(I32, 4)
        n_safe = max(1, 32767 // (127 * (128 if max_weight is None else max_weight)))
        b, parts = self.b, []
        for i in range(4):  # 16 bytes at a time, the two halves apart
            sums: list[Any] = [None, None]
            for start in range(0, len(weights), n_safe):
                products: list[Any] = [None, None]
                for w, v in zip(weights[start : start + n_safe], x[start : start + n_safe], strict=True):
                    for h in range(2):
                        w_half, x_half = self.part(w, 2 * i + h, 8), self.part(v, 2 * i + h, 8)
                        product = self.call("llvm.aarch64.neon.smull.v8i16", words, w_half, x_half)
                        products[h] = product if products[h] is None else b.add(products[h], product)
                for h in range(2):
                    wide = self.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", ints, products[h])
                    sums[h] = wide if sums[h] is None else b.add(sums[h], wide)
            result = self.call("llvm.aarch64.neon.addp.v4i32", ints, *sums)
            parts.append(result if total is None else b.add(self.part(total, i, 4), result))
        return self.concat(parts)
