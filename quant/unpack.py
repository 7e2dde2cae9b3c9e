"""The meaning of packed parts: the weights that a kernel must see, computed with NumPy alone.

This is the specification that tests hold kernels and packing against; nothing at run time needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.ggml_types import GgmlType
from ..formats.record import Record
from .floats import f8
from .pack_format import ROW_LANES, PackedTensor
from .tables import E2M1_VALUES, IQ4_VALUES, e8m0_half

F32 = NDArray[np.float32]
Parts = dict[str, NDArray[Any]]
Fields = tuple[F32, NDArray[Any], F32 | None]  # scale [n_rowgroup, 16, n_sub], quants, minimum


class SubBlocks(Record):
    """A quantised matrix as integers and the scales of its sub-blocks: ``w = scale * q + minimum``.

    Attributes:
        q: ``i8 [n_row, n_sub, n_weight]``, less any fixed offset of the type.
        scale: ``f32 [n_row, n_sub]``.
        minimum: ``f32 [n_row, n_sub]``, or None where the type has none.
    """

    q: NDArray[Any]
    scale: F32
    minimum: F32 | None


def unpack(packed: PackedTensor) -> F32:
    """Return the weights ``f32 [n_row, n_col]``, from the parts alone.

    Equal to ``dequantize`` of the original blocks in every bit (payloads of NaNs excepted).
    """
    if packed.format.ggml_type in _FLOATS:
        rows = _FLOATS[packed.format.ggml_type](packed.parts)
        return np.ascontiguousarray(rows.reshape(-1, packed.n_col)[: packed.n_row])
    blocks = sub_blocks(packed)
    with np.errstate(all="ignore"):  # damaged files hold infinite scales; the result is what IEEE 754 says
        weights = blocks.scale[..., None] * blocks.q.astype(np.float32)
        if blocks.minimum is not None:
            weights = weights + blocks.minimum[..., None]
    return weights.reshape(packed.n_row, packed.n_col)


def sub_blocks(packed: PackedTensor) -> SubBlocks:
    """Return a quantised matrix (not F16, BF16 or F32) as integers, scales and minima."""
    with np.errstate(all="ignore"):
        scale, q, minimum = _QUANTIZED[packed.format.ggml_type](packed.parts)
    n_row, n_sub = packed.n_row, scale.shape[2]
    return SubBlocks(
        q.reshape(-1, n_sub, packed.n_col // n_sub)[:n_row],
        scale.reshape(-1, n_sub)[:n_row],
        None if minimum is None else minimum.reshape(-1, n_sub)[:n_row],
    )


def _rows(vectors: NDArray[Any]) -> NDArray[Any]:
    """Turn ``[n_rowgroup, n_group, 8, 64]`` into ``[n_rowgroup, 16, n_col]``."""
    r, g = vectors.shape[:2]
    return vectors.reshape(r, g, 8, ROW_LANES, 4).transpose(0, 3, 1, 2, 4).reshape(r, ROW_LANES, g * 32)


def _nibbles(q4: NDArray[Any]) -> NDArray[np.uint8]:
    return _rows(np.stack([q4 & 0x0F, q4 >> 4], axis=3))


def _crumbs(q2: NDArray[Any]) -> NDArray[np.uint8]:
    return _rows(np.stack([(q2 >> (2 * i)) & 3 for i in range(4)], axis=3))


def _bits(q1: NDArray[Any]) -> NDArray[np.uint8]:
    return _rows(np.stack([(q1 >> k) & 1 for k in range(8)], axis=2))


def _f32(scale: NDArray[Any]) -> F32:
    return scale.astype(np.float32)


def _per_row(values: NDArray[Any]) -> NDArray[Any]:
    """Turn ``[n_rowgroup, n, 16]`` into ``[n_rowgroup, 16, n]``."""
    return values.transpose(0, 2, 1)


def _scaled(d: NDArray[Any], q: NDArray[Any]) -> Fields:
    """Return scales ``d`` [n_rowgroup, n_block, 16] as [n_rowgroup, 16, n_block], and the quants."""
    return _f32(_per_row(d)), q, None


def _with_min(dm: NDArray[Any], q: NDArray[Any]) -> Fields:
    d, m = (_f32(_per_row(dm[:, :, i])) for i in range(2))
    return d, q, m


def _sub_blocks(d: NDArray[Any], scales: NDArray[Any]) -> F32:
    """Return the effective scale of every sub-block, ``[n_rowgroup, 16, n_super * n_sub]``.

    Args:
        d: scale of the super-block, ``[n_rowgroup, n_super, 16]``.
        scales: integers, ``[n_rowgroup, n_super, n_sub, 16]``.
    """
    effective = _f32(d)[:, :, None] * _f32(scales)
    return effective.transpose(0, 3, 1, 2).reshape(d.shape[0], ROW_LANES, -1)


def _k_with_min(dm: NDArray[Any], scales: NDArray[Any], mins: NDArray[Any], q: NDArray[Any]) -> Fields:
    return _sub_blocks(dm[:, :, 0], scales), q, -_sub_blocks(dm[:, :, 1], mins)


def _k_signed(d: NDArray[Any], scales: NDArray[Any], q: NDArray[Any]) -> Fields:
    return _sub_blocks(d, scales), q, None


def _q4_k_scales(s6: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scales and minima of Q4_K and Q5_K, ``[n_rowgroup, n_super, 8, 16]`` each."""
    low = s6[..., :128].reshape(*s6.shape[:2], 8, ROW_LANES)
    high = s6[..., 128:].reshape(*s6.shape[:2], 4, ROW_LANES)
    sc_high = np.concatenate([high & 3, (high >> 4) & 3], axis=2)
    m_high = np.concatenate([(high >> 2) & 3, high >> 6], axis=2)
    return (low & 15) | (sc_high << 4), (low >> 4) | (m_high << 4)


def _scales_6(s6: NDArray[Any], n: int) -> NDArray[Any]:
    """Return ``n`` 6-bit scales of Q3_K (16) or IQ4_XS (8), less 32: ``[n_rowgroup, n_super, n, 16]``."""
    low = s6[..., : 8 * n].reshape(*s6.shape[:2], n // 2, ROW_LANES)
    high = s6[..., 8 * n :].reshape(*s6.shape[:2], n // 4, ROW_LANES)
    low = np.concatenate([low & 15, low >> 4], axis=2)
    high = np.concatenate([(high >> (2 * i)) & 3 for i in range(4)], axis=2)
    scales: NDArray[np.int8] = (low | (high << 4)).astype(np.int8)
    return scales - np.int8(32)


def _q4_0(p: Parts) -> Fields:
    return _scaled(p["d"], _nibbles(p["q4"]).astype(np.int8) - np.int8(8))


def _q4_1(p: Parts) -> Fields:
    return _with_min(p["dm"], _nibbles(p["q4"]))


def _q5(p: Parts) -> NDArray[Any]:
    return _nibbles(p["q5"][:, :, 1:]) | (_bits(p["q5"][:, :, 0]) << 4)


def _q5_0(p: Parts) -> Fields:
    return _scaled(p["d"], _q5(p).astype(np.int8) - np.int8(16))


def _q5_1(p: Parts) -> Fields:
    return _with_min(p["dm"], _q5(p))


def _q8_0(p: Parts) -> Fields:
    return _scaled(p["d"], _rows(p["q8"]))


def _q2_k(p: Parts) -> Fields:
    return _k_with_min(p["dm"], p["s4"] & 15, p["s4"] >> 4, _crumbs(p["q2"]))


def _q3_0(p: Parts) -> Fields:
    q = p["q33"]
    high = q >> 6
    rest = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4
    vectors = [q[:, :, v] >> shift & 7 for v in range(3) for shift in (0, 3)]
    threes = _rows(np.stack([*vectors, rest & 7, rest >> 3], axis=2))
    return _scaled(f8(p["d8"]), threes.astype(np.int8) - np.int8(4))


def _q3_k(p: Parts) -> Fields:
    q = _crumbs(p["q3"][:, :, 1:]) | (_bits(p["q3"][:, :, 0]) << 2)
    return _k_signed(p["d"], _scales_6(p["s6"], 16), q.astype(np.int8) - np.int8(4))


def _q4_k(p: Parts) -> Fields:
    return _k_with_min(p["dm"], *_q4_k_scales(p["s6"]), _nibbles(p["q4"]))


def _q5_k(p: Parts) -> Fields:
    return _k_with_min(p["dm"], *_q4_k_scales(p["s6"]), _q5(p))


def _q6_k(p: Parts) -> Fields:
    q = _nibbles(p["q6"][:, :, 2:]) | (_crumbs(p["q6"][:, :, :2]) << 4)
    return _k_signed(p["d"], p["s8"], q.astype(np.int8) - np.int8(32))


def _iq4_nl(p: Parts) -> Fields:
    return _scaled(p["d"], np.array(IQ4_VALUES, np.int8)[_nibbles(p["q4"])])


def _iq4_xs(p: Parts) -> Fields:
    return _k_signed(p["d"], _scales_6(p["s6"], 8), np.array(IQ4_VALUES, np.int8)[_nibbles(p["q4"])])


def _mxfp4(p: Parts) -> Fields:
    return _scaled(e8m0_half(p["e"]), np.array(E2M1_VALUES, np.int8)[_nibbles(p["q4"])])


def _f16(p: Parts) -> F32:
    return _f32(_per_row(p["w"].view(np.float16)))


def _bf16(p: Parts) -> F32:
    return (_per_row(p["w"]).astype(np.uint32) << 16).view(np.float32)


def _float32(p: Parts) -> F32:
    return _per_row(p["w"])


_QUANTIZED: dict[GgmlType, Callable[[Parts], Fields]] = {
    GgmlType.Q3_0: _q3_0,
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q4_1: _q4_1,
    GgmlType.Q5_0: _q5_0,
    GgmlType.Q5_1: _q5_1,
    GgmlType.Q8_0: _q8_0,
    GgmlType.Q2_K: _q2_k,
    GgmlType.Q3_K: _q3_k,
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q5_K: _q5_k,
    GgmlType.Q6_K: _q6_k,
    GgmlType.IQ4_NL: _iq4_nl,
    GgmlType.IQ4_XS: _iq4_xs,
    GgmlType.MXFP4: _mxfp4,
}
_FLOATS: dict[GgmlType, Callable[[Parts], F32]] = {
    GgmlType.F16: _f16,
    GgmlType.BF16: _bf16,
    GgmlType.F32: _float32,
}
