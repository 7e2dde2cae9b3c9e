"""GGML's simple block types: 32 weights (128 for Q1_0) with one scale.

=====  =====  ==================================================================  =================
type   bytes  fields                                                              weight
=====  =====  ==================================================================  =================
Q1_0   18     d f16, 128 bits (bit j % 8 of byte j / 8)                           ``bit ? d : -d``
Q3_0   13     d f8 (``floats.py``), qs u8[12]                                     ``d * (q - 4)``
Q4_0   18     d f16, qs u8[16]                                                    ``d * (q - 8)``
Q4_1   20     d f16, m f16, qs u8[16]                                             ``d * q + m``
Q5_0   22     d f16, qh u32, qs u8[16]                                            ``d * (q - 16)``
Q5_1   24     d f16, m f16, qh u32, qs u8[16]                                     ``d * q + m``
Q8_0   34     d f16, qs i8[32]                                                    ``d * q``
Q8_1   40     d f32, s f32 (sum of the weights, unused here), qs i8[32]           ``d * q``
=====  =====  ==================================================================  =================

``qs`` of 16 bytes: low nibbles are weights 0..15, high nibbles 16..31. Bit j of ``qh`` is bit 4 of weight j.
Q3_0 is llmrun's own: byte ``4j + c`` of ``qs`` has weight ``8j + c`` in bits 0..2 and ``8j + 4 + c`` in bits 3..5, j
being 0 to 2. Bits 6 and 7 of bytes c, 4 + c and 8 + c, one after the other, are weights ``24 + c`` and ``28 + c``.

Source: llama.cpp ``ggml/src/ggml-common.h`` and ``ggml-quants.c``. Q8_1 is a type for activations that no file
holds; its 40-byte form is the one in ``gguf.GGML_QUANT_SIZES`` (llama.cpp itself now keeps d and s as f16).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .floats import F32, U8, f8, half_at


def nibbles16(qs: U8) -> U8:
    """Return the 32 nibbles of ``qs [n, 16]``, the low ones first."""
    return np.concatenate([qs & 0x0F, qs >> 4], axis=1)


def _fifth_bits(qh: U8) -> NDArray[Any]:
    """Return the bits of ``qh [n, 4]``, each in place 4 of its weight: ``[n, 32]``."""
    return np.unpackbits(qh, axis=1, bitorder="little") << 4


def _signed(q: NDArray[Any], offset: int) -> NDArray[np.float32]:
    return (q.astype(np.int8) - np.int8(offset)).astype(np.float32)


def q1_0(blocks: U8) -> F32:
    """Return the weights ``[n_block, 128]``."""
    d = half_at(blocks, 0)
    return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little") == 1, d, -d)


def q3_0(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    qs = blocks[:, 1:].reshape(-1, 3, 4)
    rest = (qs[:, 0] >> 6) | (qs[:, 1] >> 6) << 2 | (qs[:, 2] >> 6) << 4
    by_four = [part >> shift & 7 for part in qs.transpose(1, 0, 2) for shift in (0, 3)]
    return f8(blocks[:, :1]) * _signed(np.concatenate([*by_four, rest & 7, rest >> 3], axis=1), 4)


def q4_0(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    return half_at(blocks, 0) * _signed(nibbles16(blocks[:, 2:]), 8)


def q4_1(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    return half_at(blocks, 0) * nibbles16(blocks[:, 4:]).astype(np.float32) + half_at(blocks, 2)


def q5_0(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    q: NDArray[Any] = nibbles16(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return half_at(blocks, 0) * _signed(q, 16)


def q5_1(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    q: NDArray[Any] = nibbles16(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return half_at(blocks, 0) * q.astype(np.float32) + half_at(blocks, 2)


def q8_0(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * half_at(blocks, 0)


def q8_1(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    d = np.ascontiguousarray(blocks[:, :4]).view(np.float32)
    return blocks[:, 8:].view(np.int8).astype(np.float32) * d
