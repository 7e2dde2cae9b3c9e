"""Scalar helpers of the Numba twins: numbers out of bytes, without library calls.

Everything is inlined where it is used, so a twin compiles to one function that allocates nothing, raises
nothing and calls nothing; it can be compiled for another machine. Bytes become ``int64`` first.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic


def _float_from_bits(_typing_context: Any, bits: Any) -> Any:
    """Return the float32 whose bits are the low 32 of an integer.

    An intrinsic, because Numba's own ``scalar.view`` is a call of a function compiled for this machine.
    """

    def codegen(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        if signature.args[0].bitwidth > 32:
            value = builder.trunc(value, ir.IntType(32))
        return builder.bitcast(value, ir.FloatType())

    return types.float32(bits), codegen


float_from_bits: Any = intrinsic(_float_from_bits)


def _byte(blocks: Any, i: int, at: int) -> Any:
    """Return a byte of block i as int64."""
    return np.int64(blocks[i, at])


byte = numba.njit(inline="always")(_byte)


def _word(blocks: Any, i: int, at: int) -> Any:
    """Return two bytes of block i, little-endian, as int64."""
    return np.int64(blocks[i, at]) | (np.int64(blocks[i, at + 1]) << 8)


word = numba.njit(inline="always")(_word)


def _half_from(bits: Any) -> Any:
    """Return the half-precision number of 16 bits as float32; exact, NaNs stay NaNs."""
    exponent = (bits >> 10) & 31
    fraction = bits & 1023
    if exponent == 0:  # zero or subnormal: a multiple of 2**-24
        value = np.float32(fraction) * np.float32(2.0**-24)
        if bits & 0x8000:
            value = -value
    else:
        if exponent == 31:  # infinity or NaN: float32 has the exponent 255
            exponent += 112
        value = float_from_bits(((bits & 0x8000) << 16) | ((exponent + 112) << 23) | (fraction << 13))
    return value


half_from = numba.njit(inline="always")(_half_from)


def _half(blocks: Any, i: int, at: int) -> Any:
    """Return the half-precision number at a byte of block i as float32."""
    return half_from(word(blocks, i, at))


half = numba.njit(inline="always")(_half)


def _single(blocks: Any, i: int, at: int) -> Any:
    """Return the float32 at a byte of block i."""
    return float_from_bits(word(blocks, i, at) | (word(blocks, i, at + 2) << 16))


single = numba.njit(inline="always")(_single)


def _signed(blocks: Any, i: int, at: int) -> Any:
    """Return a byte of block i, read as a signed one, as float32."""
    value = np.int64(blocks[i, at])
    return np.float32(value - ((value & 0x80) << 1))


signed = numba.njit(inline="always")(_signed)
