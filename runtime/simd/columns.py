"""Operations on several columns against several vectors at once: what attention multiplies.

A *block* has ``n_vector`` vectors of 16 lanes from memory (16 slots of a key column, 16 components of a value) and
``n_column`` numbers (queries, weights of the softmax) that each of them is multiplied by; its accumulators,
f32 [vector][column][16], stay in registers. Narrow tiles take several vectors, so that enough chains of multiply-adds
are under way. ``reductions`` turns a vector for each column into one number for each.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from .isa import Target
from .lower import ELEMENTS, F32X16, I8, I32, Lowering, constant
from .tile import tile_operations
from .vector import Vec, f32x16, int64, operation

Load = Callable[[Lowering, Any], Any]
MAX_VECTOR = 4


def halves(low: Lowering, address: Any) -> Any:
    """Return 16 f16 as f32."""
    return low.half_to_float(low.load(address, ir.VectorType(ELEMENTS["f16"], 16)))


def signed_bytes(low: Lowering, address: Any) -> Any:
    """Return 16 signed bytes as f32."""
    return low.b.sitofp(low.load(address, ir.VectorType(I8, 16)), F32X16)


def vectors_for(n_column: int, target: Target) -> int:
    """Return how many vectors a block of ``n_column`` columns takes at a time, 1, 2 or 4: as registers allow."""
    n = max(1, (4 if target.is_arm else max(target.column_widths)) // n_column)
    return min(MAX_VECTOR, 1 << n.bit_length() - 1)


def block_operations(n_column: int, n_vector: int, load_vector: Load) -> SimpleNamespace:
    """Return the operations of a block whose vectors ``load_vector`` reads."""
    tile = tile_operations(n_column * n_vector)
    acc_t: Vec = tile.acc_t
    n_acc = n_column * n_vector

    def get(low: Lowering, acc: Any, i: int) -> Any:
        return acc if n_acc == 1 else low.b.extract_value(acc, i)

    def put(low: Lowering, acc: Any, value: Any, i: int) -> Any:
        return value if n_acc == 1 else low.b.insert_value(acc, value, i)

    def add_outer(x_step: int) -> Any:
        """Return ``acc + vector * x``, for numbers that lie ``x_step`` bytes apart."""

        @operation(acc_t(acc_t, int64, int64, int64))
        def add_outer_(low, acc, vectors, step, x):
            for v in range(n_vector):
                vector = load_vector(low, low.b.add(vectors, low.b.mul(step, ir.Constant(step.type, v))))
                for c in range(n_column):
                    i = v * n_column + c
                    number = low.broadcast(low.at(x, x_step * c), F32X16)
                    acc = put(low, acc, low.fma(vector, number, get(low, acc, i)), i)
            return acc

        return add_outer_

    @operation(acc_t(acc_t, int64))
    def scale_by(low, acc, factors):
        """Multiply each column's vectors by its own number at ``factors``."""
        for c in range(n_column):
            factor = low.broadcast(low.at(factors, 4 * c), F32X16)
            for i in range(c, n_acc, n_column):
                acc = put(low, acc, low.b.fmul(get(low, acc, i), factor), i)
        return acc

    return SimpleNamespace(zeros=tile.zeros, store=tile.store, load=tile.load, scale_by=scale_by, add_outer=add_outer)


# Where the columns are taken from, so that ``reduce`` can put halves together with the cheapest shuffles: the first two
# times whole registers' halves and quarters, then neighbours within a quarter.
_ORDER = [4 * j + i for i in range(4) for j in range(4)]


def reductions(n_column: int) -> SimpleNamespace:
    """Return ``sums(address)`` and ``maxima(address)``: lane c is that of vector c of the ``n_column`` there.

    Halves are added until one lane is left, as ``sum_lanes`` does. Lanes behind the columns hold some of theirs.
    """

    def reduce(low: Lowering, address: Any, join: Callable[[Any, Any], Any]) -> Any:
        vectors = [low.load(low.at(address, 64 * (c % n_column)), F32X16, 64) for c in _ORDER]
        for step in (8, 4, 2, 1):
            vectors = [join(*_halves(low, a, b, step)) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    @operation(f32x16(int64))
    def sums(low, address):
        """Return the sums of the columns' lanes."""
        return reduce(low, address, low.b.fadd)

    @operation(f32x16(int64))
    def maxima(low, address):
        """Return the columns' largest lanes (no NaN)."""
        return reduce(low, address, lambda x, y: low.b.select(low.b.fcmp_ordered(">", x, y), x, y))

    return SimpleNamespace(sums=sums, maxima=maxima)


def _halves(low: Lowering, a: Any, b: Any, step: int) -> list[Any]:
    """Return first and second halves of all columns of two vectors, in which a column has ``2 * step`` lanes."""
    if step >= 4:  # the columns of ``b`` behind those of ``a``
        first = [v + lane for v in (0, 16) for start in range(0, 16, 2 * step) for lane in range(start, start + step)]
    else:  # in each quarter the columns of ``a``, then those of ``b``
        first = [
            v + lane
            for quarter in range(0, 16, 4)
            for v in (0, 16)
            for start in range(quarter, quarter + 4, 2 * step)
            for lane in range(start, start + step)
        ]
    orders = (constant(ir.VectorType(I32, 16), [lane + shift for lane in first]) for shift in (0, step))
    return [low.b.shuffle_vector(a, b, order) for order in orders]
