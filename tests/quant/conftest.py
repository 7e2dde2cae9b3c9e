"""Blocks of every type with all bit patterns, and equality in every bit."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import BLOCK


def _random_blocks(ggml_type, n_block, seed=0):
    """Return ``u8 [n_block, block_bytes]``: random bits (so NaN and infinite scales too), all zeros, all ones."""
    rng = np.random.default_rng([int(ggml_type) % 256, n_block, seed])
    blocks = rng.integers(0, 256, (n_block, BLOCK[ggml_type][1]), dtype=np.uint8)
    if n_block > 2:
        blocks[1] = 0
        blocks[2] = 255
    return blocks


def _assert_same_bits(got, want):
    """Compare float32 arrays bit for bit; of NaNs only that they are NaNs."""
    assert got.dtype == np.float32
    assert got.shape == want.shape
    nan = np.isnan(want)
    wrong = (got.view(np.uint32) != want.view(np.uint32)) & ~(nan & np.isnan(got))
    where = tuple(int(i[0]) for i in np.nonzero(wrong)) if wrong.any() else None
    assert where is None, f"{int(wrong.sum())} differ, first at {where}: {got[where]!r}, expected {want[where]!r}"


@pytest.fixture(scope="session")
def random_blocks():
    return _random_blocks


@pytest.fixture(scope="session")
def assert_same_bits():
    return _assert_same_bits
