"""GGML's tensor types: their numbers in a file and the size of their blocks.

Only numbers: what the bytes of a block mean is the matter of ``quant/``.

Source: ``enum ggml_type`` in llama.cpp's ``ggml/include/ggml.h`` and the block structures in
``ggml/src/ggml-common.h``; equal to ``gguf.GGMLQuantizationType`` and ``gguf.GGML_QUANT_SIZES`` (tested).
"""

from __future__ import annotations

from enum import IntEnum


class GgmlType(IntEnum):
    """Type of a tensor's elements, numbered as in GGUF files.

    Numbers that are missing here belonged to types that GGML has removed. Negative ones are llmrun's own: no file can
    have them, they are what weights become in memory.
    """

    Q3_0 = -1
    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


BLOCK: dict[GgmlType, tuple[int, int]] = {
    GgmlType.Q3_0: (32, 13),
    GgmlType.F32: (1, 4),
    GgmlType.F16: (1, 2),
    GgmlType.Q4_0: (32, 18),
    GgmlType.Q4_1: (32, 20),
    GgmlType.Q5_0: (32, 22),
    GgmlType.Q5_1: (32, 24),
    GgmlType.Q8_0: (32, 34),
    GgmlType.Q8_1: (32, 40),
    GgmlType.Q2_K: (256, 84),
    GgmlType.Q3_K: (256, 110),
    GgmlType.Q4_K: (256, 144),
    GgmlType.Q5_K: (256, 176),
    GgmlType.Q6_K: (256, 210),
    GgmlType.Q8_K: (256, 292),
    GgmlType.IQ2_XXS: (256, 66),
    GgmlType.IQ2_XS: (256, 74),
    GgmlType.IQ3_XXS: (256, 98),
    GgmlType.IQ1_S: (256, 50),
    GgmlType.IQ4_NL: (32, 18),
    GgmlType.IQ3_S: (256, 110),
    GgmlType.IQ2_S: (256, 82),
    GgmlType.IQ4_XS: (256, 136),
    GgmlType.I8: (1, 1),
    GgmlType.I16: (1, 2),
    GgmlType.I32: (1, 4),
    GgmlType.I64: (1, 8),
    GgmlType.F64: (1, 8),
    GgmlType.IQ1_M: (256, 56),
    GgmlType.BF16: (1, 2),
    GgmlType.TQ1_0: (256, 54),
    GgmlType.TQ2_0: (256, 66),
    GgmlType.MXFP4: (32, 17),
    GgmlType.NVFP4: (64, 36),
    GgmlType.Q1_0: (128, 18),
}
"""Weights per block and bytes per block."""

FILE_TYPES = tuple(t for t in GgmlType if t >= 0)
"""The types that a file can have."""


def row_bytes(t: GgmlType, n_col: int) -> int:
    """Return the bytes of a row of ``n_col`` weights.

    Raises:
        ValueError: ``n_col`` is not a whole number of blocks.
    """
    n_weight, n_byte = BLOCK[t]
    if n_col % n_weight:
        raise ValueError(f"a row of {n_col} weights is not a whole number of {t.name} blocks of {n_weight}")
    return n_col // n_weight * n_byte
