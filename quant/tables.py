"""Small tables of values that several GGML types share.

Source: ``kvalues_iq4nl``, ``kvalues_mxfp4`` and the half-scaled exponents of ``ggml_e8m0_to_fp32_half`` in
llama.cpp's ``ggml/src``; the same values as in ``gguf.quants`` (tested).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Weights of IQ4_NL and IQ4_XS before scaling, by 4-bit index."""

IQ4_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(IQ4_VALUES))
"""Half-way between neighbours; a number above one belongs to the value after it."""

IQ4_STEPS = tuple(b - a for a, b in pairwise(IQ4_VALUES))
"""From each value to the next."""

E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the 4-bit floats of MXFP4 and NVFP4, by 4-bit index; the scale has the missing half."""


def e8m0_half(e: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return ``2 ** (e - 128)``, half of what the exponent byte says, for every byte (255 included)."""
    # Below 2 the power is a subnormal number: one bit of the fraction.
    bits = np.where(e < 2, np.uint32(0x00200000) << e.astype(np.uint32), (e.astype(np.uint32) - 1) << 23)
    return bits.astype(np.uint32).view(np.float32)


def ue4m3_half(x: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return half the unsigned E4M3 number (bias 7) of every byte; 0 and 127 (NaN) give 0, bit 7 is ignored."""
    exponent = ((x >> 3) & 15).astype(np.int32)
    fraction = (x & 7).astype(np.int32)
    # Fraction and hidden bit as an integer; the exponent of a subnormal number is that of 1.
    mantissa = fraction + np.where(exponent > 0, 8, 0)
    power = (np.maximum(exponent, 1) - 7 - 3 - 1 + 127).astype(np.uint32) << 23
    value = mantissa.astype(np.float32) * power.view(np.float32)
    return np.where(x == 0x7F, np.float32(0), value)
