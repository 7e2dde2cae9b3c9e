"""Memory that is taken in large pieces: aligned, separate, and never more than was asked for by much."""

from itertools import pairwise

import numpy as np
import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.pack_format import SLAB_BYTES, Slabs, allocate

U8 = np.dtype(np.uint8)


def test_arrays_are_aligned_and_do_not_overlap():
    slabs = Slabs()
    arrays = [slabs.take((n,), U8) for n in (1, 63, 64, 65, 1000, 0, 3)]
    starts = [array.ctypes.data for array in arrays]
    assert all(start % 64 == 0 for start in starts)
    for i, array in enumerate(arrays):
        array[:] = i
    assert [array.tolist() for array in arrays] == [[i] * len(array) for i, array in enumerate(arrays)]
    assert starts[-1] - starts[0] < 2048


@pytest.mark.parametrize("n_byte", [SLAB_BYTES - 1, SLAB_BYTES, SLAB_BYTES + 1])
def test_large_arrays_leave_the_slab_alone(n_byte):
    slabs = Slabs()
    first = slabs.take((64,), U8)
    large = slabs.take((n_byte,), U8)
    second = slabs.take((64,), U8)
    assert large.nbytes == n_byte
    assert large.ctypes.data % 64 == 0
    if n_byte > SLAB_BYTES - 64:
        assert second.ctypes.data == first.ctypes.data + 64


def test_a_full_slab_is_followed_by_another():
    slabs = Slabs()
    arrays = [slabs.take((SLAB_BYTES // 4, 1), np.dtype(np.float16)) for _ in range(5)]
    starts = sorted(array.ctypes.data for array in arrays)
    assert all(b - a >= SLAB_BYTES // 2 for a, b in pairwise(starts))


def test_packed_tensors_take_their_parts_from_it():
    slabs = Slabs()
    one, other = (allocate(name, GgmlType.Q4_1, 48, 64, memory=slabs) for name in "ab")
    parts = [*one.parts.values(), *other.parts.values()]
    assert [part.shape for part in parts[:2]] == [(3, 2, 4, 64), (3, 2, 2, 16)]
    assert max(p.ctypes.data for p in parts) - min(p.ctypes.data for p in parts) < 8192
