"""The compiled search for scales: the bits of the NumPy specification, on every target and with any split of rows."""

import numpy as np
import pytest

from llmrun.quant.quantize import SHAPES, quantize
from llmrun.quant.scale_search import NumpySearch, OffsetShape
from llmrun.runtime.kernels.registry import SEARCHES
from llmrun.runtime.scale_search import CompiledSearch

from ...quant.hard_rows import hard_rows
from ..machine import WHOLE_TARGETS

PARTS = ("d", "m", "scales", "lows", "q")


def inputs():
    rng = np.random.default_rng(11)
    return hard_rows(rng, 512), np.exp(2 * rng.standard_normal(512)).astype(np.float32)


def find(search, ggml_type, x, w):
    shape = SHAPES[ggml_type]
    return (search.offset if isinstance(shape, OffsetShape) else search.symmetric)(x, w, shape)


@pytest.mark.parametrize("ggml_type", SHAPES, ids=lambda t: t.name)
@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
def test_bits_are_those_of_the_specification(machine, target_name, ggml_type):
    x, w = inputs()
    want = find(NumpySearch(), ggml_type, x, w)
    got = find(CompiledSearch(machine.kernels(target_name, SEARCHES)), ggml_type, x, w)
    for part in PARTS:
        assert getattr(got, part).tobytes() == getattr(want, part).tobytes(), part


def test_rows_that_are_not_contiguous_are_read_as_they_are(machine):
    x, w = inputs()
    search = CompiledSearch(machine.kernels(WHOLE_TARGETS[0], SEARCHES))
    for ggml_type in SHAPES:
        whole = quantize(x, ggml_type, w, search=search)
        wide = np.concatenate([x, x], axis=1)[:, :512]
        assert np.array_equal(quantize(wide, ggml_type, w, search=search), whole)
        assert np.array_equal(quantize(x[5:6], ggml_type, w, search=search), whole[5:6])
