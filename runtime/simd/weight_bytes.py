"""Unpacking a group of weights, 16 rows x 32 columns, into bytes (``quant/pack_format.py`` has the layouts)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .lower import I8X64, Lowering
from .vector import int64, operation, quants_t


def _pack(low: Lowering, vectors: list[Any]) -> Any:
    array: Any = ir.Constant(ir.ArrayType(I8X64, len(vectors)), ir.Undefined)
    for i, vector in enumerate(vectors):
        array = low.b.insert_value(array, vector, i)
    return array


def _nibbles(low: Lowering, q4: Any) -> list[Any]:
    vectors = []
    for v in range(4):
        packed = low.load(low.at(q4, 64 * v), I8X64, 64)
        vectors += [low.bits(packed, 0, 4), low.bits(packed, 4, 4)]
    return vectors


@operation(quants_t(int64))
def load_4bit(low, q4):
    """Unpack 16 x 32 weights of 4 bits (256 bytes)."""
    return _pack(low, _nibbles(low, q4))


@operation(quants_t(int64, int64))
def load_5bit(low, q4, q1):
    """Unpack 16 x 32 weights of 5 bits: nibbles (256 bytes) and high bits (64 bytes)."""
    high = low.load(q1, I8X64, 64)
    low_bits = _nibbles(low, q4)
    return _pack(low, [low.b.or_(w, low.bits(high, k, 1, 4)) for k, w in enumerate(low_bits)])


@operation(quants_t(int64, int64))
def load_6bit(low, q4, q2):
    """Unpack 16 x 32 weights of 6 bits: nibbles (256 bytes) and the two high bits (128 bytes)."""
    high = [low.load(low.at(q2, 64 * v), I8X64, 64) for v in range(2)]
    low_bits = _nibbles(low, q4)
    return _pack(low, [low.b.or_(w, low.bits(high[k // 4], 2 * (k % 4), 2, 4)) for k, w in enumerate(low_bits)])


@operation(quants_t(int64))
def load_2bit(low, q2):
    """Unpack 16 x 32 weights of 2 bits (128 bytes)."""
    packed = [low.load(low.at(q2, 64 * v), I8X64, 64) for v in range(2)]
    return _pack(low, [low.bits(packed[k // 4], 2 * (k % 4), 2) for k in range(8)])


@operation(quants_t(int64, int64))
def load_3bit(low, q2, q1):
    """Unpack 16 x 32 weights of 3 bits: low bits (128 bytes) and high bits (64 bytes)."""
    packed = [low.load(low.at(q2, 64 * v), I8X64, 64) for v in range(2)]
    high = low.load(q1, I8X64, 64)
    vectors = []
    for k in range(8):
        low_bits = low.bits(packed[k // 4], 2 * (k % 4), 2)
        vectors.append(low.b.or_(low_bits, low.bits(high, k, 1, 2)))
    return _pack(low, vectors)


@operation(quants_t(int64))
def load_signed_8bit(low, q8):
    """Load 16 x 32 signed weights of 8 bits (512 bytes)."""
    return _pack(low, [low.signed_operand(low.load(low.at(q8, 64 * v), I8X64, 64)) for v in range(8)])


def load_table(table: tuple[int, ...]) -> Any:
    """Return an operation that unpacks 16 x 32 indices of 4 bits and looks them up in ``table`` (signed bytes)."""

    @operation(quants_t(int64))
    def load_4bit_table(low, q4):
        return _pack(low, [low.lookup16(index, table) for index in _nibbles(low, q4)])

    return load_4bit_table
