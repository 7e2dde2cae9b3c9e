"""Unpacking a group of weights, 16 rows x 32 columns, into bytes (``quant/pack_format.py`` has the layouts).

A group has eight vectors of 64 bytes, vector k with columns ``4k .. 4k+3``; a *part* of one is what a register holds.
Tiles ask for parts one by one, so that each is unpacked where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...formats.record import Record
from .lower import Lowering

Field = Callable[[Lowering, Any, int, int], Any]  # f(low, address of the group's bytes, k, part): a part of vector k


class WeightBytes(Record):
    """How the bytes of one format's groups are found.

    Attributes:
        low: the bytes, or their low bits.
        high: their high bits in place, or None; they lie before the low ones.
        high_bytes: the bytes of a group's high bits.
        n_bytes: all bytes of a group.
        max_weight: the largest byte, all being unsigned; None for signed ones in the form of ``signed_operand``.
    """

    low: Field
    high: Field | None
    high_bytes: int
    n_bytes: int
    max_weight: int | None

    def vector(self, low: Lowering, group: Any, k: int, part: int) -> Any:
        """Return a part of vector k of the group at an address."""
        if self.high is None:
            return self.low(low, group, k, part)
        high = self.high(low, group, k, part)
        return low.b.or_(self.low(low, low.at(group, self.high_bytes), k, part), high)


def _nibble(low: Lowering, q4: Any, k: int, part: int) -> Any:
    return low.bits(low.load_part(low.at(q4, 64 * (k // 2)), part), 4 * (k % 2), 4)


def _crumb(to: int) -> Field:
    def field(low: Lowering, q2: Any, k: int, part: int) -> Any:
        return low.bits(low.load_part(low.at(q2, 64 * (k // 4)), part), 2 * (k % 4), 2, to)

    return field


def _bit(to: int) -> Field:
    def field(low: Lowering, q1: Any, k: int, part: int) -> Any:
        return low.bits(low.load_part(q1, part), k, 1, to)

    return field


def _three(low: Lowering, q33: Any, k: int, part: int) -> Any:
    def field(vector: int, shift: int, n_bit: int, to: int = 0) -> Any:
        return low.bits(low.load_part(low.at(q33, 64 * vector), part), shift, n_bit, to)

    if k == 6:
        return low.b.or_(field(0, 6, 2), field(1, 6, 1, 2))
    return low.b.or_(field(1, 7, 1), field(2, 6, 2, 1)) if k == 7 else field(k // 2, 3 * (k % 2), 3)


def _signed(low: Lowering, q8: Any, k: int, part: int) -> Any:
    return low.signed_operand(low.load_part(low.at(q8, 64 * k), part))


def table_of_16(table: tuple[int, ...]) -> WeightBytes:
    """Return indices of 4 bits that are looked up in a table of signed bytes."""

    def value(low: Lowering, q4: Any, k: int, part: int) -> Any:
        return low.lookup16(_nibble(low, q4, k, part), table)

    return WeightBytes(value, None, 0, 256, None)


FOUR_BIT = WeightBytes(_nibble, None, 0, 256, 15)
FIVE_BIT = WeightBytes(_nibble, _bit(4), 64, 320, 31)
SIX_BIT = WeightBytes(_nibble, _crumb(4), 128, 384, 63)
TWO_BIT = WeightBytes(_crumb(0), None, 0, 128, 3)
THREE_BIT = WeightBytes(_crumb(0), _bit(2), 64, 192, 7)  # of Q3_K
THREES = WeightBytes(_three, None, 0, 192, 7)  # of Q3_0
SIGNED_BYTE = WeightBytes(_signed, None, 0, 512, None)
