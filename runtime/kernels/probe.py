"""Probes of the machine's limits, written as the real kernels are: what a roofline compares with.

Record words:

==========  ==========================================================================================
probe_read  2 data (64-byte aligned), 3 runs of 256 bytes, 4 results (64 bytes per worker), 5 passes,
            6 bytes ahead at which lines are asked for: the workers share the data out and read it;
            the result is the largest f32 of each lane
probe_dot   2 a group of 4-bit weights (256 bytes, ``weight_bytes.FOUR_BIT``), 3 activation records,
            4 results (``64 * width`` bytes per worker), 5 tiles of ``width`` records, 6 passes: every worker
            multiplies the group with all records; the result is the i32 sum of each token and row
==========  ==========================================================================================

``width`` is the target's widest tile. The data of ``probe_dot`` stay in the first cache, its accumulators (and where
there are enough, its weights) in registers: what it reaches is the int8 peak as these instruction sets offer it.
"""

from __future__ import annotations

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import load_i64
from ..simd.tile import RECORD_BYTES, integer_tile
from ..simd.vector import int64, load_f32x16, maximum, prefetch, splat, store_f32x16, void
from ..simd.weight_bytes import FOUR_BIT
from .probe_records import RUN_BYTES
from .rows import first_unit

_OP = void(*[int64] * 4)


def _probe_read(record, batch, worker, n_worker):
    data, n, out, n_pass = (
        load_i64(record + 16), load_i64(record + 24), load_i64(record + 32), load_i64(record + 40),
    )  # fmt: skip
    ahead = load_i64(record + 48)
    start, stop = first_unit(n, worker, n_worker), first_unit(n, worker + 1, n_worker)
    m0 = m1 = m2 = m3 = splat(-3.0e38)
    for _ in range(n_pass):
        for i in range(start, stop):
            x = data + RUN_BYTES * i
            prefetch(x + ahead)
            prefetch(x + ahead + 64)
            prefetch(x + ahead + 128)
            prefetch(x + ahead + 192)
            m0 = maximum(m0, load_f32x16(x))
            m1 = maximum(m1, load_f32x16(x + 64))
            m2 = maximum(m2, load_f32x16(x + 128))
            m3 = maximum(m3, load_f32x16(x + 192))
    store_f32x16(out + 64 * worker, maximum(maximum(m0, m1), maximum(m2, m3)))


def probe_read_kernel(_target: Target) -> Kernel:
    """Return the probe of the read bandwidth."""
    return Kernel("probe_read", _OP, _probe_read)


def probe_dot_kernel(target: Target) -> Kernel:
    """Return the probe of the int8 peak."""
    width = target.column_widths[0]
    ops = integer_tile(width, FOUR_BIT)
    zeros, add_dots, store = ops.zeros, ops.add_dots, ops.store
    step = RECORD_BYTES * width

    def probe_dot(record, batch, worker, n_worker):
        n, n_pass = load_i64(record + 40), load_i64(record + 48)
        weights = load_i64(record + 16)
        acc = zeros()
        for _ in range(n_pass):
            x = load_i64(record + 24)
            for _ in range(n):
                acc = add_dots(acc, weights, x)
                x += step
        store(load_i64(record + 32) + 64 * width * worker, acc)

    return Kernel("probe_dot", _OP, probe_dot)
