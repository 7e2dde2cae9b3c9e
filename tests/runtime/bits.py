"""Equality in every bit."""

import numpy as np


def assert_same_bits(got, want, what=""):
    """Compare float arrays bit for bit; of NaNs only that they are NaNs."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype
    assert got.shape == want.shape, (got.shape, want.shape)
    bits = np.dtype(f"u{got.dtype.itemsize}")
    is_same = (np.ascontiguousarray(got).view(bits) == np.ascontiguousarray(want).view(bits)).reshape(got.shape)
    wrong = ~(is_same | (np.isnan(got) & np.isnan(want)))
    if wrong.any():
        where = tuple(int(i[0]) for i in np.nonzero(wrong))
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} differ, first at {where}: {got[where]!r}, expected {want[where]!r}"
        )
