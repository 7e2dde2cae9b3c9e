"""The Numba twins against the NumPy specification, compiled once per type."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from llmrun.formats.ggml_types import BLOCK, FILE_TYPES, GgmlType
from llmrun.quant.dequantize import DEQUANTIZERS, dequantize
from llmrun.quant.twins import TWINS, twin


def by_name(ggml_type):
    return ggml_type.name


@cache
def compiled(ggml_type):
    import numba  # here: collecting tests must not take its time

    return numba.njit(error_model="numpy")(twin(ggml_type))


def test_every_type_has_a_twin():
    assert set(TWINS) == set(DEQUANTIZERS) & set(FILE_TYPES)


@pytest.mark.parametrize("ggml_type", sorted(TWINS), ids=by_name)
def test_compiled_twin_gives_the_bits_of_the_specification(ggml_type, random_blocks, assert_same_bits):
    blocks = random_blocks(ggml_type, 3000)
    out = np.full((len(blocks), BLOCK[ggml_type][0]), 7, np.float32)
    compiled(ggml_type)(blocks, out)
    assert_same_bits(out, dequantize(ggml_type, blocks))


@pytest.mark.parametrize("ggml_type", [GgmlType.F16, GgmlType.BF16], ids=by_name)
def test_all_16_bit_floats(ggml_type, assert_same_bits):
    blocks = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    out = np.empty((len(blocks), 1), np.float32)
    compiled(ggml_type)(blocks, out)
    assert_same_bits(out, dequantize(ggml_type, blocks))


@pytest.mark.parametrize("ggml_type", [GgmlType.MXFP4, GgmlType.NVFP4], ids=by_name)
def test_all_8_bit_scales(ggml_type, random_blocks, assert_same_bits):
    blocks = random_blocks(ggml_type, 256)
    blocks[:, 0] = np.arange(256)
    out = np.empty((256, BLOCK[ggml_type][0]), np.float32)
    compiled(ggml_type)(blocks, out)
    assert_same_bits(out, dequantize(ggml_type, blocks))


@pytest.mark.parametrize("module", ["dequantize", "pack", "unpack", "twins", "widen"])
def test_numba_is_not_imported_with(module):
    code = f"import sys, llmrun.quant.{module}; sys.exit('numba' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
