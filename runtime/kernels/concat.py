"""Two f32 rows side by side: what the attention of a draft head reads.

Record words after the two that all share: 2 columns of the first (a multiple of 16), 3 first, 4 its row bytes,
5 columns of the second, 6 second, 7 its row bytes, 8 y, 9 row bytes of y.
"""

from __future__ import annotations

from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import load_i64
from ..simd.vector import device, int64, load_f32x16, store_f32x16, void
from .rows import first_unit

_OP = void(*[int64] * 4)


@device(void(int64, int64, int64))
def _copy(x, y, n_col):
    for i in range((n_col + 15) // 16):
        store_f32x16(y + 64 * i, load_f32x16(x + 64 * i))


def _concat(record, batch, worker, n_worker):
    n_tok = load_i64(batch + load_i64(record + 8))
    n_first, n_second = load_i64(record + 16), load_i64(record + 40)
    for tok in range(first_unit(n_tok, worker, n_worker), first_unit(n_tok, worker + 1, n_worker)):
        y = load_i64(record + 64) + tok * load_i64(record + 72)
        _copy(load_i64(record + 24) + tok * load_i64(record + 32), y, n_first)
        _copy(load_i64(record + 48) + tok * load_i64(record + 56), y + 4 * n_first, n_second)


def concat_kernel(_target: Target) -> Kernel:
    """Return the kernel."""
    return Kernel("concat", _OP, _concat)
