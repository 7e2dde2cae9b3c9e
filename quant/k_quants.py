"""GGML's K types: super-blocks of 256 weights, with small integer scales for sub-blocks of 16 or 32.

====  =====  =====================================================================  ===========================
type  bytes  fields                                                                 weight
====  =====  =====================================================================  ===========================
Q2_K  84     scales u8[16], qs u8[64], d f16, dmin f16                              ``d*sc*q - dmin*m``, sub 16
Q3_K  110    hmask u8[32], qs u8[64], scales u8[12], d f16                          ``d*(sc-32)*q``, sub 16
Q4_K  144    d f16, dmin f16, scales u8[12], qs u8[128]                             ``d*sc*q - dmin*m``, sub 32
Q5_K  176    d f16, dmin f16, scales u8[12], qh u8[32], qs u8[128]                  ``d*sc*q - dmin*m``, sub 32
Q6_K  210    ql u8[128], qh u8[64], scales i8[16], d f16                            ``d*sc*(q-32)``, sub 16
Q8_K  292    d f32, qs i8[256], sums i16[16] (of 16 quants, unused here)            ``d*q``
====  =====  =====================================================================  ===========================

* Q2_K scales: low nibble sc, high nibble m.
* 2-bit quants (``qs`` of Q2_K and Q3_K, ``qh`` of Q6_K): bits 2j of byte ``32h + l`` belong to weight
  ``128h + 32j + l``. Single bits (``hmask``, ``qh`` of Q5_K): bit j of byte l belongs to weight ``32j + l``.
* Nibbles of Q4_K, Q5_K: byte ``32i + l`` holds weights ``64i + l`` (low) and ``64i + 32 + l``; of Q6_K: byte
  ``64h + l`` holds ``128h + l`` (low) and ``128h + 64 + l``.
* Q3_K: a hmask bit of 0 means 4 less. Scale s < 8: low nibble of byte s; s >= 8: high nibble of byte s - 8; its
  upper two bits: bits ``2 * (s / 4)`` of byte ``8 + s % 4``.
* Q4_K and Q5_K: sub-block s < 4 has sc in the low six bits of byte s, m in those of byte 4 + s; s >= 4 has sc in the
  low nibble, m in the high nibble of byte 4 + s, and their upper bits on top of bytes s - 4 and s.

Source: llama.cpp ``ggml/src/ggml-common.h`` and ``ggml-quants.c``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .floats import F32, U8, half_at

_CRUMBS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_BITS = np.arange(8, dtype=np.uint8)[:, None]
_NIBBLES = np.array([0, 4], np.uint8)[:, None]


def _crumbs(qs: U8) -> NDArray[Any]:
    """Return the 2-bit quants of ``[n, 64]`` bytes, in the order of weights: ``[n, 256]``."""
    return ((qs.reshape(-1, 2, 1, 32) >> _CRUMBS) & 3).reshape(-1, 256)


def _bits(qh: U8) -> NDArray[Any]:
    """Return the bits of ``[n, 32]`` bytes, in the order of weights: ``[n, 256]``."""
    return ((qh.reshape(-1, 1, 32) >> _BITS) & 1).reshape(-1, 256)


def _nibbles(qs: U8, run: int) -> NDArray[Any]:
    """Return the nibbles of ``[n, 128]`` bytes, low ones of each ``run`` bytes first: ``[n, 256]``."""
    return ((qs.reshape(-1, 128 // run, 1, run) >> _NIBBLES) & 0x0F).reshape(-1, 256)


def _sub_blocks(q: NDArray[Any], n: int) -> F32:
    return q.reshape(len(q), n, -1).astype(np.float32)


def scales_and_mins(scales: U8) -> tuple[U8, U8]:
    """Return the 6-bit scales and minima of Q4_K and Q5_K from ``[n, 12]`` bytes: two of ``[n, 8]``."""
    a, b, c = scales[:, 0:4], scales[:, 4:8], scales[:, 8:12]
    sc = np.concatenate([a & 0x3F, (c & 0x0F) | ((a >> 2) & 0x30)], axis=1)
    m = np.concatenate([b & 0x3F, (c >> 4) | ((b >> 2) & 0x30)], axis=1)
    return sc, m


def q2_k(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    scales = blocks[:, 0:16]
    scale = half_at(blocks, 80) * (scales & 0x0F).astype(np.float32)
    low = half_at(blocks, 82) * (scales >> 4).astype(np.float32)
    q = _sub_blocks(_crumbs(blocks[:, 16:80]), 16)
    return (scale[..., None] * q - low[..., None]).reshape(-1, 256)


def q3_k(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    sc = np.concatenate([low & 0x0F, low >> 4], axis=1)
    sc |= ((high[:, None, :] >> _CRUMBS) & 3).reshape(-1, 16) << 4
    scale = half_at(blocks, 108) * (sc.astype(np.int8) - np.int8(32)).astype(np.float32)
    q = (_crumbs(blocks[:, 32:96]) | (_bits(blocks[:, 0:32]) << 2)).astype(np.int8) - np.int8(4)
    return (scale[..., None] * _sub_blocks(q, 16)).reshape(-1, 256)


def _with_mins(blocks: U8, q: NDArray[Any]) -> F32:
    sc, m = scales_and_mins(blocks[:, 4:16])
    scale = half_at(blocks, 0) * sc.astype(np.float32)
    low = half_at(blocks, 2) * m.astype(np.float32)
    return (scale[..., None] * _sub_blocks(q, 8) - low[..., None]).reshape(-1, 256)


def q4_k(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    return _with_mins(blocks, _nibbles(blocks[:, 16:144], 32))


def q5_k(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    return _with_mins(blocks, _nibbles(blocks[:, 48:176], 32) | (_bits(blocks[:, 16:48]) << 4))


def q6_k(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    scale = half_at(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    q = (_nibbles(blocks[:, 0:128], 64) | (_crumbs(blocks[:, 128:192]) << 4)).astype(np.int8) - np.int8(32)
    return (scale[..., None] * _sub_blocks(q, 16)).reshape(-1, 256)


def q8_k(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    d = np.ascontiguousarray(blocks[:, :4]).view(np.float32)
    return d * blocks[:, 4:260].view(np.int8).astype(np.float32)
