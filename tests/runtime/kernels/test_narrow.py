"""Compiled narrowing gives the bytes of ``quant/narrow.py``, for any shape, type and share."""

import numpy as np
import pytest

from llmrun.formats.errors import FormatError
from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.narrow import can_narrow, narrow
from llmrun.quant.pack import pack_rows
from llmrun.quant.pack_format import allocate
from llmrun.quant.quantize import quantize
from llmrun.runtime.kernels.registry import NARROW_FORMATS
from llmrun.runtime.packing import Piece
from llmrun.runtime.program import Weight
from llmrun.runtime.speculation.narrowing import is_narrowed, narrow_by_kernels, narrow_kernels_of

from ...quant.hard_rows import hard_rows
from ..machine import WHOLE_TARGETS

T = GgmlType
KINDS = (T.F32, T.F16, T.Q8_0)  # whose look-up every target has; others are plain scalar code
FORMATS = pytest.mark.parametrize("name", NARROW_FORMATS)


def weight(name, kind, n_row, n_col):
    return Weight("w", n_row, n_col, name, source=kind.name)


def narrowed(machine, target_name, name, kind, data, n_row, n_thread=1):
    """Return a matrix packed by kernels, in two pieces."""
    n_col = data.size // n_row // BLOCK[kind][1] * BLOCK[kind][0]
    packed = allocate("w", T[name], n_row, n_col, kind)
    kernels, team = machine.kernels(target_name), machine.team(target_name, n_thread)
    middle = (packed.n_rowgroup + 1) // 2
    for start, stop in ((0, middle), (middle, packed.n_rowgroup)):
        if start < stop:
            piece = Piece(weight(name, kind, n_row, n_col), packed, data, start, stop, slice(0))
            narrow_by_kernels(piece, kernels, team)
    return packed


def specified(name, kind, data, n_row):
    blocks = narrow(kind, data, T[name])
    packed = allocate("w", T[name], n_row, blocks.size // n_row // BLOCK[T[name]][1] * 32)
    pack_rows(packed, blocks, 0, packed.n_rowgroup)
    return packed


def assert_same(got, want):
    for part, values in want.parts.items():
        assert np.array_equal(got.parts[part].view(np.uint8), values.view(np.uint8)), part


@FORMATS
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
def test_equals_the_specification(machine, target_name, kind, name):
    rng = np.random.default_rng(5)
    for n_row, n_col in ((1, 32), (16, 96), (37, 224), (64, 896)):
        x = (rng.standard_normal((n_row, n_col)) * rng.uniform(1e-4, 2, (n_row, 1))).astype(np.float32)
        data = np.ascontiguousarray(quantize(x, kind)).view(np.uint8).reshape(-1)
        got = narrowed(machine, target_name, name, kind, data, n_row, n_thread=1 + n_row % 3)
        assert_same(got, specified(name, kind, data, n_row))


@FORMATS
@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
def test_extreme_rows(machine, target_name, name):
    """Zeros, one weight among zeros, equal weights, tiny and huge ones."""
    x = hard_rows(np.random.default_rng(3), 128)
    x = x[np.abs(x).max(axis=1) < 6e4]  # scales must be half precision
    data = np.ascontiguousarray(x, np.float32).view(np.uint8).reshape(-1)
    assert_same(narrowed(machine, target_name, name, T.F32, data, len(x)), specified(name, T.F32, data, len(x)))


@FORMATS
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])
def test_refuses_what_is_no_number(machine, bad, name):
    for place in (0, 100, 37 * 64 - 1):
        x = np.ones(37 * 64, np.float32)
        x[place] = bad
        with pytest.raises(FormatError, match="tensor 'w' holds infinite or NaN weights"):
            narrowed(machine, WHOLE_TARGETS[0], name, T.F32, x.view(np.uint8), 37)


def test_which_matrices_and_kernels():
    narrowed, as_it_is = weight("Q3_0", T.Q6_K, 16, 256), weight("Q4_K", T.Q4_K, 16, 256)
    assert is_narrowed(narrowed)
    assert not is_narrowed(as_it_is)
    assert not is_narrowed(weight("Q4_0", T.Q4_0, 16, 256))
    assert narrow_kernels_of([narrowed, as_it_is]) == {"embed_q6_k", "narrow_q3_0"}
    assert can_narrow(T.Q4_0, 256, T.Q3_0)
