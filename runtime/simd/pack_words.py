"""Packing: fields of 16 rows' blocks, as they lie in a file, turned into vectors whose lanes are rows.

The counterpart of ``weight_bytes.py``, which unpacks. A *word* is 32 bits of a row, four neighbouring bytes of a
field; putting 16 rows side by side is a transposition of words. ``quant/pack_blocks.py`` says the same with NumPy,
``quant/pack_format.py`` has the layouts. ``step`` is always the bytes from a row to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from .lower import I8, I16, I32, I32X16, I64, Lowering, constant
from .vector import i32x16, int64, operation, void

_I32X4 = ir.VectorType(I32, 4)
_LOW, _HIGH = 0x0F0F0F0F, 0xF0F0F0F0 - (1 << 32)  # nibbles of four bytes, as i32


def _order(lane: Sequence[int]) -> Any:
    """Return a shuffle of two i32x16 that does the same in each quarter; 4 … 7 name the second vector's words."""
    return constant(
        ir.VectorType(I32, 16), [4 * k + i if i < 4 else 16 + 4 * k + i - 4 for k in range(4) for i in lane]
    )


def _row(low: Lowering, source: Any, step: Any, row: int) -> Any:
    return low.b.add(source, low.b.mul(step, ir.Constant(I64, row))) if row else source


def _words(low: Lowering, source: Any, step: Any, n_word: int) -> list[Any]:
    """Return ``n_word`` (a multiple of 4) neighbouring words of 16 rows, each as i32x16 with rows as lanes."""
    b, result = low.b, []
    for at in range(0, n_word, 4):
        quads = [low.load(low.at(_row(low, source, step, r), 4 * at), _I32X4) for r in range(16)]
        # Quarter k of vector i holds four words of row 4 k + i: what remains are transpositions inside quarters.
        v = [low.concat(quads[i::4]) for i in range(4)]
        pairs = [b.shuffle_vector(v[i], v[i + 1], _order(o)) for i in (0, 2) for o in ((0, 4, 1, 5), (2, 6, 3, 7))]
        for left, right in ((pairs[0], pairs[2]), (pairs[1], pairs[3])):
            result += [b.shuffle_vector(left, right, _order(o)) for o in ((0, 1, 4, 5), (2, 3, 6, 7))]
    return result


def _and(low: Lowering, x: Any, mask: int) -> Any:
    return low.b.and_(x, constant(I32X16, mask))


def _up(low: Lowering, x: Any, n: int) -> Any:
    return low.b.shl(x, constant(I32X16, n)) if n else x


def _down(low: Lowering, x: Any, n: int) -> Any:
    return low.b.lshr(x, constant(I32X16, n)) if n else x


def _store_bytes(low: Lowering, out: Any, x: Any, n: int) -> None:
    """Store byte ``n`` of every lane (16 bytes)."""
    low.store(out, low.b.trunc(_down(low, x, 8 * n), ir.VectorType(I8, 16)), 16)


def _store_halves(low: Lowering, out: Any, x: Any, n: int) -> None:
    """Store 16-bit half ``n`` of every lane (32 bytes)."""
    low.store(out, low.b.trunc(_down(low, x, 16 * n), ir.VectorType(I16, 16)), 32)


def _swap(low: Lowering, words: list[Any], i: int, j: int, shift: int, mask: int) -> None:
    """Exchange the bits ``mask << shift`` of word i with the bits ``mask`` of word j."""
    b = low.b
    t = _and(low, b.xor(_down(low, words[i], shift), words[j]), mask)
    words[j] = b.xor(words[j], t)
    words[i] = b.xor(words[i], _up(low, t, shift))


def _store_nibbles(low: Lowering, words: list[Any], low_out: Any, high_out: Any) -> None:
    """Store the low nibbles of pairs of words at ``low_out``, the high ones at ``high_out``: vectors of 64 bytes."""
    b = low.b
    for v, (even, odd) in enumerate(zip(words[0::2], words[1::2], strict=True)):
        lows = b.or_(_and(low, even, _LOW), _up(low, _and(low, odd, _LOW), 4))
        highs = b.or_(_and(low, _down(low, even, 4), _LOW), _and(low, odd, _HIGH))
        low.store(low.at(low_out, 64 * v), lows, 64)
        low.store(low.at(high_out, 64 * v), highs, 64)


@operation(void(int64, int64, int64))
def pack_nibbles_16(low, source, step, out):
    """Pack 16 bytes that hold 32 columns, low nibbles 0..15, high nibbles 16..31, to 256 bytes."""
    _store_nibbles(low, _words(low, source, step, 4), out, low.at(out, 128))


@operation(void(int64, int64, int64, int64))
def pack_nibbles_32(low, source, step, low_out, high_out):
    """Pack 32 bytes of two groups of 32 columns, one in the low nibbles and one in the high ones, to 256 bytes each."""
    _store_nibbles(low, _words(low, source, step, 8), low_out, high_out)


@operation(void(int64, int64, int64))
def pack_crumbs(low, source, step, out):
    """Pack 32 bytes whose bits 2j, 2j+1 hold columns ``32j .. 32j+31``, to the first 128 bytes of four groups of q6."""
    words = _words(low, source, step, 8)
    for v in range(2):
        four = words[4 * v : 4 * v + 4]
        for i, j, shift, mask in ((0, 1, 2, 0x33333333), (2, 3, 2, 0x33333333), (0, 2, 4, _LOW), (1, 3, 4, _LOW)):
            _swap(low, four, i, j, shift, mask)
        for group, word in enumerate(four):
            low.store(low.at(out, 384 * group + 64 * v), word, 64)


@operation(void(int64, int64, int64))
def pack_bits(low, source, step, out):
    """Pack 32 bytes whose bit j holds columns ``32j .. 32j+31``, to the first 64 bytes of eight groups of q5."""
    words = _words(low, source, step, 8)
    for distance, mask in ((1, 0x55555555), (2, 0x33333333), (4, _LOW)):
        for i in range(8):
            if not i & distance:
                _swap(low, words, i, i + distance, distance, mask)
    for group, word in enumerate(words):
        low.store(low.at(out, 320 * group), word, 64)


@operation(void(int64, int64, int64))
def pack_bits_of_word(low, source, step, out):
    """Pack 32 bits of 32 columns to 64 bytes: bit ``4k + c`` goes to bit k of byte c."""
    bits = [_gather(low, source, step, I32)]
    for shift, mask in ((3, 0x0A0A0A0A), (6, 0x00CC00CC), (8, 0x0000FF00), (4, 0x00F000F0)):
        _swap(low, bits, 0, 0, shift, mask)
    low.store(out, bits[0], 64)


@operation(void(int64, int64, int64))
def pack_words_8(low, source, step, out):
    """Pack 32 bytes as they are: eight vectors of 64 bytes (q8)."""
    for k, word in enumerate(_words(low, source, step, 8)):
        low.store(low.at(out, 64 * k), word, 64)


@operation(void(int64, int64, int64))
def pack_bytes_16(low, source, step, out):
    """Pack 16 bytes, such as scales of sub-blocks, to ``[16 bytes][16 rows]``."""
    for i, word in enumerate(_words(low, source, step, 4)):
        for n in range(4):
            _store_bytes(low, low.at(out, 64 * i + 16 * n), word, n)


def _gather(low: Lowering, source: Any, step: Any, kind: Any) -> Any:
    """Return one number of every row, zero-extended to i32x16."""
    lanes = ir.Constant(ir.VectorType(kind, 16), ir.Undefined)
    for r in range(16):
        lanes = low.b.insert_element(lanes, low.load(_row(low, source, step, r), kind), ir.Constant(I32, r))
    return lanes if kind is I32 else low.b.zext(lanes, I32X16)


@operation(i32x16(int64, int64, int64))
def pack_half(low, source, step, out):
    """Pack one 16-bit number of every row, such as a scale (32 bytes), and return them."""
    x = _gather(low, source, step, I16)
    _store_halves(low, out, x, 0)
    return x


@operation(i32x16(int64, int64, int64))
def pack_half_pair(low, source, step, out):
    """Pack two 16-bit numbers of every row, scale and minimum, to ``[2][16 rows]`` (64 bytes), and return both."""
    x = _gather(low, source, step, I32)
    for n in range(2):
        _store_halves(low, low.at(out, 32 * n), x, n)
    return x


@operation(i32x16(int64, int64, int64, int64))
def pack_k_scales(low, source, step, dm, s6):
    """Pack the first 16 bytes of a Q4_K or Q5_K block: scale and minimum to ``dm``, 6-bit scales to ``s6``.

    Returns scale and minimum of every row, as ``pack_half_pair`` does.
    """
    b = low.b
    both, sc, m, mixed = _words(low, source, step, 4)
    for n in range(2):
        _store_halves(low, low.at(dm, 32 * n), both, n)
    high = [
        _and(low, _down(low, sc, 4), 0x03030303), _and(low, _down(low, m, 2), 0x0C0C0C0C),
        _and(low, _down(low, sc, 2), 0x30303030), _and(low, m, 0xC0C0C0C0 - (1 << 32)),
    ]  # fmt: skip
    first = b.or_(_and(low, sc, _LOW), _up(low, _and(low, m, _LOW), 4))
    for i, word in enumerate((first, mixed, b.or_(b.or_(high[0], high[1]), b.or_(high[2], high[3])))):
        for n in range(4):
            _store_bytes(low, low.at(s6, 64 * i + 16 * n), word, n)
    return both


def pack_halves_8(exponent: int) -> Any:
    """Return an operation that packs 8 columns of 16-bit floats and says where all of ``exponent``'s bits are set."""

    @operation(i32x16(int64, int64, int64))
    def pack_halves_8_(low, source, step, out):
        special: Any = constant(I32X16, 0)
        for i, word in enumerate(_words(low, source, step, 4)):
            for n in range(2):
                _store_halves(low, low.at(out, 64 * i + 32 * n), word, n)
            special = low.b.or_(special, _special(low, word, exponent))
        return special

    return pack_halves_8_


def _special(low: Lowering, halves: Any, exponent: int) -> Any:
    """Set the top bit of each 16-bit half whose exponent bits are all ones: infinity or NaN."""
    lowest = exponent & -exponent  # added to all ones of the exponent, it carries into the sign bit, which is clear
    masked = _and(low, halves, exponent | exponent << 16)
    return low.b.add(masked, constant(I32X16, lowest | lowest << 16))


@operation(i32x16(i32x16))
def special_halves(low, halves):
    """Set bit 15 or 31 of each lane whose low or high half is an infinite or NaN f16; other bits mean nothing."""
    return _special(low, halves, 0x7C00)
