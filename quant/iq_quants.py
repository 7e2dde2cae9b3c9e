"""IQ1, IQ2 and IQ3 types: super-blocks of 256 weights, taken from codebooks (``iq_grids.py``) by index.

=======  =====  ======================================================  =========================================
type     bytes  fields                                                  weight
=======  =====  ======================================================  =========================================
IQ2_XXS  66     d f16, 8 x (index u8[4], aux u32)                       ``d * (0.5 + s) / 4 * grid * sign``
IQ2_XS   74     d f16, qs u16[32], scales u8[8]                         ``d * (0.5 + s) / 4 * grid * sign``
IQ2_S    82     d f16, qs u8[32], signs u8[32], qh u8[8], scales u8[8]  ``d * (0.5 + s) / 4 * grid * sign``
IQ3_XXS  98     d f16, qs u8[64], aux u32[8]                            ``d * (0.5 + s) / 2 * grid * sign``
IQ3_S    110    d f16, qs u8[64], qh u8[8], signs u8[32], scales u8[4]  ``d * (1 + 2s) * grid * sign``
IQ1_S    50     d f16, qs u8[32], qh u16[8]                             ``d * (2s + 1) * (grid + delta)``
IQ1_M    56     qs u8[32], qh u8[16], scales u16[4]                     ``d * (2s + 1) * (grid + delta)``
=======  =====  ======================================================  =========================================

A codebook row has 8 weights (4 for IQ3). ``sign`` is -1 where the bit is set.

* aux of 32 weights: s in bits 28..31; four 7-bit numbers of sign masks (``iq_grids.sign_masks``) below.
* IQ2_XS: 9 bits of index, 7 bits of sign mask. Nibble i of ``scales``: s of weights ``16i .. 16i+15``.
* IQ2_S: bits ``2 * (i % 4)`` of byte i / 4 of ``qh``: the index's bits 8, 9. Scales as IQ2_XS.
* IQ3_S: bit ``i % 8`` of byte i / 8 of ``qh``: the index's bit 8. Nibble i of ``scales``: s of 32 weights.
* IQ1_S: of each u16 of ``qh``: 3 bits above each of four indices, s in bits 12..14, bit 15: delta is -1/8 (else +1/8).
* IQ1_M: nibble i of ``qh``: 3 bits above index i, then the sign of delta. Each u16 of ``scales`` holds four 3-bit s
  of 16 weights each, and in bits 12..15 a nibble of d (the first one lowest).

Source: llama.cpp ``ggml/src/ggml-common.h`` and ``ggml-quants.c``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.ggml_types import GgmlType
from .floats import F32, U8, half_at
from .iq_grids import grid, sign_masks

_DELTA = np.float32(0.125)

Fields = tuple[F32, NDArray[Any], F32]  # scale [n_block, 1], small scales [n_block, 8 or 16], values [n_block, 256]


def _field(blocks: U8, start: int, stop: int, dtype: str) -> NDArray[Any]:
    return np.ascontiguousarray(blocks[:, start:stop]).view(dtype)


def _nibbles(packed: U8) -> U8:
    """Return the nibbles of ``[n, m]`` bytes, low one first: ``[n, 2m]``."""
    return np.stack([packed & 0x0F, packed >> 4], axis=2).reshape(len(packed), -1)


def _signs(masks: U8) -> F32:
    """Return +1 or -1 for the eight bits of each mask, ``[n, m]`` to ``[n, 8m]``."""
    return np.where(np.unpackbits(masks, axis=1, bitorder="little") == 1, np.float32(-1), np.float32(1))


def _aux_signs(aux: NDArray[np.uint32]) -> F32:
    """Return the 32 signs of each aux word, ``[n, 8]`` to ``[n, 256]``."""
    numbers = (aux[:, :, None] >> np.array([0, 7, 14, 21], np.uint32)) & 127
    return _signs(sign_masks()[numbers].reshape(len(aux), -1))


def _entries(ggml_type: GgmlType, index: NDArray[np.integer]) -> F32:
    """Return the codebook rows of ``index [n, m]``, side by side: ``[n, 256]``."""
    entries: NDArray[np.int8] = grid(ggml_type)[index]  # [n, m, 4 or 8]
    return entries.astype(np.float32).reshape(len(index), 256)


def _spread(scale: F32) -> F32:
    """Repeat each scale of ``[n, m]`` over its weights: ``[n, 256]``."""
    return np.repeat(scale, 256 // scale.shape[1], axis=1)


def iq2_xxs(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    words = _field(blocks, 2, 66, "<u4").reshape(-1, 8, 2)
    aux = words[:, :, 1]
    index = np.ascontiguousarray(words[:, :, 0]).view(np.uint8)
    scale = half_at(blocks, 0) * (np.float32(0.5) + (aux >> 28).astype(np.float32)) * np.float32(0.25)
    return _spread(scale) * _entries(GgmlType.IQ2_XXS, index) * _aux_signs(aux)


def iq2_xs(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    qs = _field(blocks, 2, 66, "<u2")
    scale = half_at(blocks, 0) * (np.float32(0.5) + _nibbles(blocks[:, 66:74])) * np.float32(0.25)
    return _spread(scale) * _entries(GgmlType.IQ2_XS, qs & 511) * _signs(sign_masks()[qs >> 9])


def iq2_s(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    high = ((blocks[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3).reshape(-1, 32)
    index = blocks[:, 2:34] | (high.astype(np.uint16) << 8)
    scale = half_at(blocks, 0) * (np.float32(0.5) + _nibbles(blocks[:, 74:82])) * np.float32(0.25)
    return _spread(scale) * _entries(GgmlType.IQ2_S, index) * _signs(blocks[:, 34:66])


def iq3_xxs_fields(blocks: U8) -> Fields:
    """Return d, ``s [n_block, 8]`` and the signed codebook values ``[n_block, 256]``."""
    aux = _field(blocks, 66, 98, "<u4")
    return half_at(blocks, 0), aux >> 28, _entries(GgmlType.IQ3_XXS, blocks[:, 2:66]) * _aux_signs(aux)


def iq3_xxs(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    d, s, values = iq3_xxs_fields(blocks)
    return _spread(d * (np.float32(0.5) + s.astype(np.float32)) * np.float32(0.5)) * values


def iq3_s_fields(blocks: U8) -> Fields:
    """Return d, ``s [n_block, 8]`` and the signed codebook values ``[n_block, 256]``."""
    high = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little")
    index = blocks[:, 2:66] | (high.astype(np.uint16) << 8)
    values = _entries(GgmlType.IQ3_S, index) * _signs(blocks[:, 74:106])
    return half_at(blocks, 0), _nibbles(blocks[:, 106:110]), values


def iq3_s(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    d, s, values = iq3_s_fields(blocks)
    return _spread(d * (1 + 2 * s).astype(np.float32)) * values


def iq1_s_fields(blocks: U8) -> Fields:
    """Return d, ``s [n_block, 8]`` and ``grid + delta [n_block, 256]``."""
    qh = _field(blocks, 34, 50, "<u2")
    delta = np.where(qh & 0x8000, -_DELTA, _DELTA)
    high = ((qh[:, :, None] >> np.array([0, 3, 6, 9], np.uint16)) & 7).reshape(-1, 32)
    index = blocks[:, 2:34] | (high << 8)
    return half_at(blocks, 0), (qh >> 12) & 7, _entries(GgmlType.IQ1_S, index) + _spread(delta)


def iq1_m_scale(blocks: U8) -> F32:
    """Return d, ``[n_block, 1]``: its nibbles lie on top of four words."""
    words = _field(blocks, 48, 56, "<u2")
    d = np.zeros((len(words), 1), np.uint16)
    for i in range(4):
        d |= (words[:, i : i + 1] >> 12) << (4 * i)
    return d.view(np.float16).astype(np.float32)


def iq1_m_fields(blocks: U8) -> Fields:
    """Return d, ``s [n_block, 16]`` and ``grid + delta [n_block, 256]``."""
    words = _field(blocks, 48, 56, "<u2")
    s = ((words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16)) & 7).reshape(-1, 16)
    qh = _nibbles(blocks[:, 32:48])
    delta = np.where(qh & 8, -_DELTA, _DELTA)
    index = blocks[:, 0:32] | ((qh & 7).astype(np.uint16) << 8)
    return iq1_m_scale(blocks), s, _entries(GgmlType.IQ1_M, index) + _spread(delta)


def iq1_s(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    d, s, values = iq1_s_fields(blocks)
    return _spread(d * (2 * s + 1).astype(np.float32)) * values


def iq1_m(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    d, s, values = iq1_m_fields(blocks)
    return _spread(d * (2 * s + 1).astype(np.float32)) * values
