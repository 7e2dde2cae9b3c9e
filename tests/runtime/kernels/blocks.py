"""Blocks with every kind of content that a file can hold: ordinary, extreme, random in all bits."""

import numpy as np

from llmrun.formats.ggml_types import BLOCK, GgmlType

# Where the f16 scales (and minimums) of a block lie, in bytes.
SCALE_BYTES = {
    "Q3_0": (), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (),
}  # fmt: skip
EXTREME_SCALES = np.array([0, -0.0, 65504, -65504, 2**-24, -(2**-14)], np.float16)


def blocks(rng, name, n_row, n_col):
    """Return ``u8 [n_row, bytes of a row]``; what a row holds depends on its number.

    Rows 1, 2 and 3 of every eight have quants of all zeros, all ones and all 0x80 (the smallest signed byte),
    row 4 has extreme scales (where there are scales), row 5 is random in every bit; the others are ordinary.
    No scale is infinite or NaN: packing refuses those.
    """
    n_weight, n_byte = BLOCK[GgmlType[name]]
    result = rng.integers(0, 256, (n_row, n_col // n_weight, n_byte), dtype=np.uint8)
    kind = np.arange(n_row) % 8
    for number, byte in ((1, 0), (2, 255), (3, 128)):
        result[kind == number] = byte
    if name in ("F16", "BF16", "F32"):  # clear an exponent bit: no infinities or NaNs, small products
        result[kind != 5, :, -1] &= 0xBF
        return result.reshape(n_row, -1)
    for offset in SCALE_BYTES[name]:
        scales = rng.uniform(2**-8, 2**-5, result.shape[:2]) * rng.choice([-1, 1], result.shape[:2])
        scales = scales.astype(np.float16)
        scales[kind == 4] = rng.choice(EXTREME_SCALES, scales[kind == 4].shape)
        keep = kind != 5
        result[keep, :, offset : offset + 2] = scales[keep].view(np.uint8).reshape(*scales[keep].shape, 2)
        high = result[..., offset + 1]
        high[(high & 0x7C) == 0x7C] &= 0xBF
    if name == "Q3_0":  # one byte (``floats.f8``): 0.03 to 0.24, or the largest and smallest; never what is no number
        codes = rng.integers(0x50, 0x68, result.shape[:2], dtype=np.uint8) | rng.choice([0, 0x80], result.shape[:2])
        codes[kind == 4] = rng.choice([0, 1, 0x81, 0x7F, 0xFF], codes[kind == 4].shape)
        codes[kind == 5] = rng.integers(0, 256, codes[kind == 5].shape)
        result[..., 0] = np.where(codes == 0x80, 0x81, codes)
    if name == "MXFP4":  # exponents: ordinary, or (rows 4 and 5) any, subnormal results and NaN among them
        keep = (kind != 4) & (kind != 5)
        result[keep, :, 0] = rng.integers(118, 126, result.shape[:2], dtype=np.uint8)[keep]
    return result.reshape(n_row, -1)


def activations(rng, n_tok, n_col):
    """Return f32 [n_tok, n_col]: constants, zeros, very large and very small rows, outliers, ordinary rows."""
    x = rng.normal(size=(n_tok, n_col)).astype(np.float32)
    x[:, rng.integers(0, n_col, max(1, n_col // 50))] *= np.float32(300)
    special = (np.float32(1), np.float32(-1), np.float32(0), np.float32(1e30), np.float32(1e-30), np.float32(1e-39))
    for row, value in enumerate(special):
        if row < n_tok:
            x[row] = value if row < 3 else x[row] * value
    return x
