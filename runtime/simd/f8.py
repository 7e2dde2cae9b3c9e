"""Numbers of eight bits (``quant/floats.py``): scales of a type that only weights of draft models have."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .lower import F16, I8, I16, constant
from .vector import f32x16, int64, operation, void

I16X16 = ir.VectorType(I16, 16)


@operation(f32x16(int64))
def load_f8x16(low, address):
    """Load 16 of them as f32; what is no number becomes -0."""
    words = low.b.sext(low.load(address, ir.VectorType(I8, 16)), I16X16)
    halves = low.b.and_(low.b.shl(words, constant(I16X16, 7)), constant(I16X16, 0xBF80 - 0x10000))
    return low.half_to_float(low.b.bitcast(halves, ir.VectorType(F16, 16)))


@operation(void(int64, f32x16))
def store_f8x16(low, address, value):
    """Store 16 f32, rounded to half precision and then to eight bits, both to nearest even."""
    b = low.b

    def all_of(number: int) -> Any:
        return constant(I16X16, number)

    bits = b.bitcast(low.float_to_half(value), I16X16)
    magnitude = b.and_(bits, all_of(0x7FFF))
    is_odd = b.and_(b.lshr(magnitude, all_of(7)), all_of(1))
    code = b.lshr(b.add(b.add(magnitude, all_of(0x3F)), is_odd), all_of(7))
    code = b.select(b.icmp_unsigned("<", code, all_of(0x7F)), code, all_of(0x7F))
    signed = b.or_(code, b.and_(b.lshr(bits, all_of(8)), all_of(0x80)))
    signed = b.select(b.icmp_unsigned("==", code, all_of(0)), code, signed)
    signed = b.select(b.icmp_unsigned("<", magnitude, all_of(0x7C00)), signed, all_of(0x80))
    low.store(address, b.trunc(signed, ir.VectorType(I8, 16)))
