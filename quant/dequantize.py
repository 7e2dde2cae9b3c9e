"""Dequantise blocks of any GGML type to float32 with NumPy: the specification of each format.

One module per family holds the layout tables and the code: ``floats.py``, ``legacy.py``, ``k_quants.py``,
``iq_quants.py``, ``iq4.py``, ``ternary.py``, ``fp4.py``. Fast scalar twins for kernels are in ``twin_*.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import BLOCK, GgmlType
from . import floats, fp4, iq4, iq_quants, k_quants, legacy, ternary

Dequantizer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# Each takes u8 [n_block, block_bytes] and returns f32 [n_block, n_weight].
DEQUANTIZERS: dict[GgmlType, Dequantizer] = {
    GgmlType.F32: floats.f32,
    GgmlType.F16: floats.f16,
    GgmlType.BF16: floats.bf16,
    GgmlType.Q1_0: legacy.q1_0,
    GgmlType.Q3_0: legacy.q3_0,
    GgmlType.Q4_0: legacy.q4_0,
    GgmlType.Q4_1: legacy.q4_1,
    GgmlType.Q5_0: legacy.q5_0,
    GgmlType.Q5_1: legacy.q5_1,
    GgmlType.Q8_0: legacy.q8_0,
    GgmlType.Q8_1: legacy.q8_1,
    GgmlType.Q2_K: k_quants.q2_k,
    GgmlType.Q3_K: k_quants.q3_k,
    GgmlType.Q4_K: k_quants.q4_k,
    GgmlType.Q5_K: k_quants.q5_k,
    GgmlType.Q6_K: k_quants.q6_k,
    GgmlType.Q8_K: k_quants.q8_k,
    GgmlType.IQ1_S: iq_quants.iq1_s,
    GgmlType.IQ1_M: iq_quants.iq1_m,
    GgmlType.IQ2_XXS: iq_quants.iq2_xxs,
    GgmlType.IQ2_XS: iq_quants.iq2_xs,
    GgmlType.IQ2_S: iq_quants.iq2_s,
    GgmlType.IQ3_XXS: iq_quants.iq3_xxs,
    GgmlType.IQ3_S: iq_quants.iq3_s,
    GgmlType.IQ4_NL: iq4.iq4_nl,
    GgmlType.IQ4_XS: iq4.iq4_xs,
    GgmlType.TQ1_0: ternary.tq1_0,
    GgmlType.TQ2_0: ternary.tq2_0,
    GgmlType.MXFP4: fp4.mxfp4,
    GgmlType.NVFP4: fp4.nvfp4,
}

CHUNK_WEIGHTS = 1 << 18  # 1 MB of results at a time keeps the temporaries small


def dequantize(ggml_type: GgmlType, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the weights that the blocks stand for.

    Args:
        ggml_type: any type of quantised or floating-point weights.
        blocks: ``u8 [..., n_bytes]``, whole blocks along the last dimension.

    Returns:
        ``f32 [..., n_weight]``, a new array. Scales that are infinite or NaN give what IEEE 754 says.

    Raises:
        FormatError: the type is not one of weights, or the bytes are not whole blocks.
    """
    to_f32 = DEQUANTIZERS.get(ggml_type)
    if to_f32 is None:
        raise FormatError(f"tensors of type {ggml_type.name} hold data, not weights")
    n_weight, n_byte = BLOCK[ggml_type]
    *leading, n_last = blocks.shape
    if n_last % n_byte:
        raise FormatError(f"{n_last} bytes of {ggml_type.name} data, expected a multiple of {n_byte}")
    flat = np.ascontiguousarray(blocks).reshape(-1, n_byte)
    out = np.empty((prod(leading) * (n_last // n_byte), n_weight), np.float32)
    step = max(1, CHUNK_WEIGHTS // n_weight)
    with np.errstate(all="ignore"):
        for start in range(0, len(flat), step):
            out[start : start + step] = to_f32(flat[start : start + step])
    return out.reshape(*leading, n_last // n_byte * n_weight)
