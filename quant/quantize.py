"""Quantise rows of float32 weights to GGML blocks: the counterpart of ``dequantize``.

Types with a single scale and no importance are rounded to nearest (``round_to_nearest.py``), all others searched
for (``scale_search.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..formats.errors import ConfigError, FormatError
from ..formats.ggml_types import BLOCK, GgmlType
from . import encode, round_to_nearest
from .floats import F32, U8, half_at
from .scale_search import Found, NumpySearch, OffsetShape, ScaleSearch, SymmetricShape

_T = GgmlType
_NUMPY = NumpySearch()
LEAST_IMPORTANCE = 1e-4  # of the mean: no column may be free, or its block's scale would be arbitrary

SHAPES: dict[GgmlType, OffsetShape | SymmetricShape] = {
    _T.Q4_0: SymmetricShape(1, 32, -8, 7),
    _T.Q5_0: SymmetricShape(1, 32, -16, 15),
    _T.Q4_1: OffsetShape(1, 32, 15, is_signed=True),
    _T.Q5_1: OffsetShape(1, 32, 31, is_signed=True),
    _T.Q2_K: OffsetShape(16, 16, 3, 15, reach=1),
    _T.Q3_K: SymmetricShape(16, 16, -4, 3, -32, 31, reach=1),
    _T.Q4_K: OffsetShape(8, 32, 15, 63, reach=1),
    _T.Q5_K: OffsetShape(8, 32, 31, 63, reach=1),
    _T.Q6_K: SymmetricShape(16, 16, -32, 31, -128, 127, reach=1),
    _T.IQ4_NL: SymmetricShape(1, 32, -127, 113, is_iq4=True),
    _T.IQ4_XS: SymmetricShape(8, 32, -127, 113, -32, 31, reach=1, is_iq4=True),
}
"""How each type is searched."""

_ROUNDED: dict[GgmlType, Callable[[F32], U8]] = {
    _T.Q4_0: round_to_nearest.q4_0,
    _T.Q4_1: round_to_nearest.q4_1,
    _T.Q5_0: round_to_nearest.q5_0,
    _T.Q5_1: round_to_nearest.q5_1,
    _T.Q8_0: round_to_nearest.q8_0,
}
_HALVES: dict[GgmlType, tuple[int, ...]] = {
    _T.F16: (0,), _T.Q4_0: (0,), _T.Q4_1: (0, 2), _T.Q5_0: (0,), _T.Q5_1: (0, 2), _T.Q8_0: (0,), _T.Q2_K: (80, 82),
    _T.Q3_K: (108,), _T.Q4_K: (0, 2), _T.Q5_K: (0, 2), _T.Q6_K: (208,), _T.IQ4_NL: (0,), _T.IQ4_XS: (0,),
}  # fmt: skip
"""Where the half-precision numbers of a block lie."""

QUANTIZABLE = frozenset({_T.F32, _T.F16, _T.BF16, _T.Q8_0, _T.MXFP4, *SHAPES})
"""Types that ``quantize`` writes."""


def quantize(values: F32, ggml_type: GgmlType, importance: F32 | None = None, *, search: ScaleSearch = _NUMPY) -> U8:
    """Return rows of weights as blocks of a type.

    Args:
        values: f32 [n_row, n_in], finite where the type is quantised; rows are whole blocks.
        ggml_type: one of ``QUANTIZABLE``.
        importance: f32 [n_in], how much a squared error in each column counts; None where all count the same.
        search: an implementation of the search for scales; all give the same bytes.

    Returns:
        u8 [n_row, row_bytes]; the same for a row whatever other rows there are.

    Raises:
        ConfigError: the type cannot be written.
        FormatError: the weights are too large for the type's half-precision numbers.
    """
    if ggml_type not in QUANTIZABLE:
        raise ConfigError(
            f"{ggml_type.name} cannot be written, expected {', '.join(sorted(t.name for t in QUANTIZABLE))}"
        )
    n_weight, n_byte = BLOCK[ggml_type]
    n_row, n_in = values.shape
    if n_in % n_weight:
        raise ValueError(f"rows of {n_in} weights are not whole blocks of {n_weight}")
    if not values.size:
        return np.zeros((n_row, n_in // n_weight * n_byte), np.uint8)
    with np.errstate(all="ignore"):
        blocks = _blocks(np.ascontiguousarray(values, np.float32), ggml_type, importance, search)
    _check_range(values, ggml_type, blocks)
    return blocks.reshape(n_row, -1)


def _blocks(values: F32, ggml_type: GgmlType, importance: F32 | None, search: ScaleSearch) -> U8:
    if ggml_type is _T.F32:
        return values.view(np.uint8)
    if ggml_type is _T.F16:
        return round_to_nearest.f16(values)
    if ggml_type is _T.BF16:
        return round_to_nearest.bf16(values)
    weights = normalized(importance, values.shape[1])
    if ggml_type is _T.MXFP4:
        of_blocks = np.broadcast_to(weights, values.shape).reshape(-1, 32)
        return round_to_nearest.mxfp4(values.reshape(-1, 32), of_blocks)
    if ggml_type in _ROUNDED and (importance is None or ggml_type not in SHAPES):
        return _ROUNDED[ggml_type](values.reshape(-1, 32))
    return encode_found(ggml_type, find(values, ggml_type, weights, search))


def find(values: F32, ggml_type: GgmlType, weights: F32, search: ScaleSearch) -> Found:
    """Search the blocks of rows f32 [n_row, n_in] of a type in ``SHAPES``; ``weights``: see ``normalized``."""
    shape = SHAPES[ggml_type]
    if isinstance(shape, OffsetShape):
        return search.offset(values, weights, shape)
    return search.symmetric(values, weights, shape)


def encode_found(ggml_type: GgmlType, found: Found) -> U8:
    """Return the blocks that a search has found, u8 [n, block_bytes]."""
    shape = SHAPES[ggml_type]
    if isinstance(shape, OffsetShape):
        return _encode_offset(ggml_type, found)
    return _encode_symmetric(ggml_type, shape, found)


def normalized(importance: F32 | None, n_in: int) -> F32:
    """Return importance with mean 1, so that sums stay far from the ends of float32."""
    if importance is None:
        return np.ones(n_in, np.float32)
    wide = np.asarray(importance, np.float64)
    mean = wide.mean()
    if not (mean > 0 and np.isfinite(mean)):
        return np.ones(n_in, np.float32)
    weights: F32 = np.maximum(wide / mean, LEAST_IMPORTANCE).astype(np.float32)
    return weights


def _encode_offset(ggml_type: GgmlType, found: Found) -> U8:
    d = encode.half_bytes(found.d[:, None])
    scales: U8 = found.scales.astype(np.uint8)
    if ggml_type in (_T.Q4_1, _T.Q5_1):  # their minimum is added
        m = encode.half_bytes(np.float32(0) - (found.m * found.lows[:, 0])[:, None])
        return (encode.encode_q4_1 if ggml_type is _T.Q4_1 else encode.encode_q5_1)(d, m, found.q)
    m = encode.half_bytes(found.m[:, None])
    if ggml_type is _T.Q2_K:
        return encode.encode_q2_k(d, m, np.bitwise_or(scales, found.lows << 4).astype(np.uint8), found.q)
    encoder = encode.encode_q4_k if ggml_type is _T.Q4_K else encode.encode_q5_k
    return encoder(d, m, (scales, found.lows), found.q)


def _encode_symmetric(ggml_type: GgmlType, shape: SymmetricShape, found: Found) -> U8:
    if shape.n_sub == 1:
        d = encode.half_bytes(np.float32(0) + (found.d * found.scales[:, 0])[:, None])
        return (encode.encode_q5_0 if ggml_type is _T.Q5_0 else encode.encode_q4_0)(d, found.q)  # IQ4_NL: as Q4_0
    d = encode.half_bytes(found.d[:, None])
    if ggml_type is _T.Q6_K:
        return encode.encode_q6_k(d, found.scales, found.q)
    above = (found.scales - shape.scale_min).astype(np.uint8)
    return (encode.encode_q3_k if ggml_type is _T.Q3_K else encode.encode_iq4_xs)(d, above, found.q)


def _check_range(values: F32, ggml_type: GgmlType, blocks: U8) -> None:
    for offset in _HALVES.get(ggml_type, ()):
        flat = blocks.reshape(-1, BLOCK[ggml_type][1])
        is_lost = ~np.isfinite(half_at(flat, offset))
        if is_lost.any() and (ggml_type is not _T.F16 or (np.isfinite(values.reshape(-1)) & is_lost[:, 0]).any()):
            peak = float(np.abs(values[np.isfinite(values)]).max())
            raise FormatError(f"a weight of {peak:.3g} is too large for {ggml_type.name}; BF16 and F32 hold it")
