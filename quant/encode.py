"""Write GGML blocks from their integers: the way back from ``dequantize``, without choosing any value.

Used to widen one type into another, and by quantisers. Field orders are in ``legacy.py`` and ``k_quants.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .floats import U8

Array = NDArray[Any]


def half_bytes(values: NDArray[np.float32]) -> U8:
    """Return ``[n, 1]`` numbers as little-endian half precision, ``u8 [n, 2]``."""
    return np.ascontiguousarray(values).astype("<f2").view(np.uint8)


def _nibbles(q: Array, run: int) -> Array:
    """Pack ``[n, m]`` values below 16, low nibbles from the first ``run`` of every ``2 * run``: ``[n, m // 2]``."""
    pairs = q.reshape(len(q), -1, 2, run)
    packed: Array = pairs[:, :, 0] | (pairs[:, :, 1] << 4)
    return packed.reshape(len(q), -1)


def _crumbs(q: Array) -> Array:
    """Pack ``[n, 256]`` values below 4 as K types do: ``[n, 64]``."""
    c = q.reshape(-1, 2, 4, 32)
    packed: Array = c[:, :, 0] | (c[:, :, 1] << 2) | (c[:, :, 2] << 4) | (c[:, :, 3] << 6)
    return packed.reshape(-1, 64)


def encode_q4_0(d: U8, q: U8) -> U8:
    """Return Q4_0 blocks from ``d u8 [n, 2]`` and ``q [n, 32]``, 0 to 15."""
    return np.concatenate([d, _nibbles(q, 16)], axis=1)


def _fifth_bits(q: U8) -> U8:
    """Return bit 4 of ``[n, 32]`` values as ``[n, 4]``."""
    return np.packbits(q >> 4, axis=1, bitorder="little")


def encode_q4_1(d: U8, m: U8, q: U8) -> U8:
    """Return Q4_1 blocks from ``d, m u8 [n, 2]`` and ``q [n, 32]``, 0 to 15."""
    return np.concatenate([d, m, _nibbles(q, 16)], axis=1)


def encode_q3_0(d: U8, q: U8) -> U8:
    """Return Q3_0 blocks from ``d u8 [n, 1]`` and ``q [n, 32]``, 0 to 7."""
    by_four = q.reshape(-1, 8, 4)
    rest = by_four[:, 6] | by_four[:, 7] << 3
    qs = [by_four[:, 2 * j] | by_four[:, 2 * j + 1] << 3 | (rest >> 2 * j & 3) << 6 for j in range(3)]
    return np.concatenate([d, *qs], axis=1)


def encode_q5_0(d: U8, q: U8) -> U8:
    """Return Q5_0 blocks from ``d u8 [n, 2]`` and ``q [n, 32]``, 0 to 31."""
    return np.concatenate([d, _fifth_bits(q), _nibbles(q & 0x0F, 16)], axis=1)


def encode_q5_1(d: U8, m: U8, q: U8) -> U8:
    """Return Q5_1 blocks from ``d, m u8 [n, 2]`` and ``q [n, 32]``, 0 to 31."""
    return np.concatenate([d, m, _fifth_bits(q), _nibbles(q & 0x0F, 16)], axis=1)


def encode_mxfp4(e: U8, q: U8) -> U8:
    """Return MXFP4 blocks from exponents ``e [n, 1]`` and indices ``q [n, 32]``."""
    return np.concatenate([e, _nibbles(q, 16)], axis=1)


def encode_q8_0(d: U8, q: NDArray[np.int8]) -> U8:
    """Return Q8_0 blocks from ``d u8 [n, 2]`` and ``q [n, 32]``."""
    return np.concatenate([d, q.view(np.uint8)], axis=1)


def encode_q2_k(d: U8, dmin: U8, scales: U8, q: U8) -> U8:
    """Return Q2_K blocks from ``d, dmin u8 [n, 2]``, ``scales [n, 16]`` (with minima) and ``q [n, 256]``, 0 to 3."""
    return np.concatenate([scales, _crumbs(q), d, dmin], axis=1)


def _six_bits(sc: U8, m: U8) -> U8:
    """Pack scales and minima ``[n, 8]``, 0 to 63, as Q4_K and Q5_K do: ``[n, 12]``."""
    a = (sc[:, :4] & 0x3F) | ((sc[:, 4:] >> 4) << 6)
    b = (m[:, :4] & 0x3F) | ((m[:, 4:] >> 4) << 6)
    c = (sc[:, 4:] & 0x0F) | ((m[:, 4:] & 0x0F) << 4)
    return np.concatenate([a, b, c], axis=1)


def _bits(q: Array) -> U8:
    """Pack ``[n, 256]`` values below 2 as K types do: ``[n, 32]``."""
    return np.packbits(q.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)


def encode_q4_k(d: U8, dmin: U8, scales_and_mins: tuple[U8, U8], q: U8) -> U8:
    """Return Q4_K blocks from ``d, dmin u8 [n, 2]``, two of ``[n, 8]``, 0 to 63, and ``q [n, 256]``, 0 to 15."""
    return np.concatenate([d, dmin, _six_bits(*scales_and_mins), _nibbles(q, 32)], axis=1)


def encode_q5_k(d: U8, dmin: U8, scales_and_mins: tuple[U8, U8], q: U8) -> U8:
    """Return Q5_K blocks from ``d, dmin u8 [n, 2]``, two of ``[n, 8]``, 0 to 63, and ``q [n, 256]``, 0 to 31."""
    return np.concatenate([d, dmin, _six_bits(*scales_and_mins), _bits(q >> 4), _nibbles(q & 0x0F, 32)], axis=1)


def encode_q3_k(d: U8, scales: U8, q: U8) -> U8:
    """Return Q3_K blocks from ``d u8 [n, 2]``, ``scales [n, 16]``, 0 to 63, and ``q [n, 256]``, 0 to 7."""
    low = (scales[:, :8] & 0x0F) | ((scales[:, 8:] & 0x0F) << 4)
    parts = (scales >> 4).reshape(-1, 4, 4)
    high = parts[:, 0] | (parts[:, 1] << 2) | (parts[:, 2] << 4) | (parts[:, 3] << 6)
    return np.concatenate([_bits(q >> 2), _crumbs(q & 3), low, high, d], axis=1)


def encode_iq4_xs(d: U8, scales: U8, q: U8) -> U8:
    """Return IQ4_XS blocks from ``d u8 [n, 2]``, ``scales [n, 8]``, 0 to 63, and indices ``q [n, 256]``."""
    low = (scales[:, 0::2] & 0x0F) | ((scales[:, 1::2] & 0x0F) << 4)
    parts = (scales >> 4).reshape(-1, 2, 4)
    high = parts[:, :, 0] | (parts[:, :, 1] << 2) | (parts[:, :, 2] << 4) | (parts[:, :, 3] << 6)
    return np.concatenate([d, high, low, _nibbles(q, 16)], axis=1)


def encode_q6_k(d: U8, scales: NDArray[np.int8], q: U8) -> U8:
    """Return Q6_K blocks from ``d u8 [n, 2]``, ``scales [n, 16]`` and ``q [n, 256]``, 0 to 63."""
    return np.concatenate([_nibbles(q & 0x0F, 64), _crumbs(q >> 4), scales.view(np.uint8), d], axis=1)
