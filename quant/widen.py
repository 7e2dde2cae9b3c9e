"""Types that no kernel reads: the cheapest kernel type that holds their weights exactly, and the way there.

========  ====  ================================================================================
from      to    how; a scale that cannot be divided exactly (tiny, infinite) rules it out
========  ====  ================================================================================
Q1_0      Q4_0  ``d * (+-1)``
TQ1_0     Q2_K  ``d * (t - 1) = d*1*t - d*1``
TQ2_0     Q2_K  the same
IQ1_S     Q5_K  ``d*(2s+1)*(g+-1/8) = d/8*(2s+1)*(8g+-1+k) - d*m``, ``m = (2s+1)*k/8``, k = 8 or 16
IQ1_M     Q6_K  ``d/8 * (2s+1) * (8g +- 1)``
IQ3_XXS   Q6_K  ``d/2 * (2s+1) * g/2``; all values g are even and at most 62
IQ3_S     Q6_K  ``d * (2s+1) * g``
Q8_1      Q8_0  where the float32 scale is a half-precision number
Q8_K      Q8_0  the same
========  ====  ================================================================================

All others, and where a scale does not allow it: F16 if it holds every value, else BF16, else F32. NVFP4 always
fits F16; IQ2 types (22 significant bits) need F32. Whatever was chosen is proven when it is converted:
every weight is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import BLOCK, GgmlType
from ..formats.record import Record
from . import encode, iq_quants, ternary
from .dequantize import CHUNK_WEIGHTS, DEQUANTIZERS, dequantize
from .floats import F32, U8, half_at
from .pack_format import PACKED_FORMATS


class Widening(Record):
    """One way from a type's blocks to blocks that kernels read."""

    target: GgmlType
    fits: Callable[[U8], bool]  # whether blocks [n_block, block_bytes] keep their values
    convert: Callable[[U8], U8]  # blocks to as many weights' blocks of the target


def _is_half(scale: NDArray[np.floating[Any]]) -> bool:
    """Return whether every scale is a finite half-precision number."""
    return bool(np.all(np.isfinite(scale)) and np.all(scale.astype(np.float16).astype(np.float32) == scale))


def _q1_0(blocks: U8) -> U8:
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    q = (7 + 2 * bits).reshape(-1, 32)  # -1 or +1, plus 8
    return encode.encode_q4_0(np.repeat(blocks[:, :2], 4, axis=0), q).reshape(len(blocks), -1)


def _ternary(quants: Callable[[U8], U8], offset: int) -> Callable[[U8], U8]:
    def convert(blocks: U8) -> U8:
        d = blocks[:, offset : offset + 2]
        return encode.encode_q2_k(d, d, np.full((len(blocks), 16), 0x11, np.uint8), quants(blocks))

    return convert


def _iq1_s(blocks: U8) -> U8:
    d, s, values = iq_quants.iq1_s_fields(blocks)
    eighths = (8 * values).astype(np.int8).reshape(-1, 8, 32)  # 8g + 1 or 8g - 1, one of them in all of a sub-block
    is_below = eighths[:, :, 0] % 8 == 7
    q = (eighths + np.where(is_below, 16, 8)[..., None]).astype(np.uint8)  # 1 to 23
    sc = (2 * s + 1).astype(np.uint8)
    m = np.where(is_below, 2 * sc, sc)
    return encode.encode_q5_k(encode.half_bytes(d / np.float32(8)), encode.half_bytes(d), (sc, m), q.reshape(-1, 256))


def _to_q6_k(fields: Callable[[U8], iq_quants.Fields], divisor: int, factor: float) -> Callable[[U8], U8]:
    """Return the conversion of weights ``d / divisor * (2s + 1) * (factor * value)``."""

    def convert(blocks: U8) -> U8:
        d, s, values = fields(blocks)
        scales = np.repeat(2 * s.astype(np.int8) + 1, 16 // s.shape[1], axis=1).astype(np.int8)
        q = (np.float32(factor) * values + 32).astype(np.uint8)
        return encode.encode_q6_k(encode.half_bytes(d / np.float32(divisor)), scales, q)

    return convert


def _single(blocks: U8) -> F32:
    """Return the float32 scale in front of every block, ``[n_block, 1]``."""
    return np.ascontiguousarray(blocks[:, :4]).view(np.float32)


def _float_scale(offset: int) -> Callable[[U8], U8]:
    """Return the conversion from a float32 scale in front and int8 quants at ``offset``."""

    def convert(blocks: U8) -> U8:
        n_weight = 256 if blocks.shape[1] == BLOCK[GgmlType.Q8_K][1] else 32
        q = np.ascontiguousarray(blocks[:, offset : offset + n_weight]).view(np.int8).reshape(-1, 32)
        d = np.repeat(encode.half_bytes(_single(blocks)), n_weight // 32, axis=0)
        return encode.encode_q8_0(d, q).reshape(len(blocks), -1)

    return convert


def _as_f16(values: F32) -> NDArray[np.uint16]:
    return values.astype(np.float16).view(np.uint16)


def _as_bf16(values: F32) -> NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _float_widenings(source: GgmlType) -> list[Widening]:
    def way(target: GgmlType, encode_values: Callable[[F32], NDArray[Any]]) -> Widening:
        def convert(blocks: U8) -> U8:
            return encode_values(dequantize(source, blocks)).view(np.uint8)

        def fits(blocks: U8) -> bool:
            return _same_weights(source, blocks, target, convert(blocks))

        return Widening(target, fits, convert)

    return [way(GgmlType.F16, _as_f16), way(GgmlType.BF16, _as_bf16), way(GgmlType.F32, lambda values: values)]


def _divisible(divisor: int, scale: Callable[[U8], F32]) -> Callable[[U8], bool]:
    """Return the test that every scale, divided, is a finite half-precision number; reads scales only."""
    return lambda blocks: _is_half(scale(blocks) / np.float32(divisor))


def _half(offset: int) -> Callable[[U8], F32]:
    return lambda blocks: half_at(blocks, offset)


def _first_choices() -> dict[GgmlType, Widening]:
    iq = iq_quants
    return {
        GgmlType.Q1_0: Widening(GgmlType.Q4_0, _divisible(1, _half(0)), _q1_0),
        GgmlType.TQ1_0: Widening(GgmlType.Q2_K, _divisible(1, _half(52)), _ternary(ternary.tq1_0_quants, 52)),
        GgmlType.TQ2_0: Widening(GgmlType.Q2_K, _divisible(1, _half(64)), _ternary(ternary.tq2_0_quants, 64)),
        GgmlType.IQ1_S: Widening(GgmlType.Q5_K, _divisible(8, _half(0)), _iq1_s),
        GgmlType.IQ1_M: Widening(GgmlType.Q6_K, _divisible(8, iq.iq1_m_scale), _to_q6_k(iq.iq1_m_fields, 8, 8)),
        GgmlType.IQ3_XXS: Widening(GgmlType.Q6_K, _divisible(2, _half(0)), _to_q6_k(iq.iq3_xxs_fields, 2, 0.5)),
        GgmlType.IQ3_S: Widening(GgmlType.Q6_K, _divisible(1, _half(0)), _to_q6_k(iq.iq3_s_fields, 1, 1)),
        GgmlType.Q8_1: Widening(GgmlType.Q8_0, _divisible(1, _single), _float_scale(8)),
        GgmlType.Q8_K: Widening(GgmlType.Q8_0, _divisible(1, _single), _float_scale(4)),
    }


_FIRST_CHOICES = _first_choices()


def widenings(source: GgmlType) -> list[Widening]:
    """Return the ways to run a type that kernels do not read, those with the fewest bytes first."""
    first = _FIRST_CHOICES.get(source)
    return ([first] if first else []) + _float_widenings(source)


def run_type(name: str, ggml_type: GgmlType, data: U8) -> GgmlType:
    """Return the type whose kernel layout holds a tensor exactly with the fewest bytes.

    Types that kernels read are returned as they are, without reading ``data``. For others the scales
    (for F16 and BF16: the weights) are read, up to the first that rules a layout out.

    Raises:
        FormatError: the type is not one of weights.
    """
    if ggml_type in PACKED_FORMATS:
        return ggml_type
    if ggml_type not in DEQUANTIZERS:
        raise FormatError(f"tensor '{name}' has type {ggml_type.name}, expected floating-point or quantised weights")
    ways = widenings(ggml_type)
    with np.errstate(all="ignore"):  # scales may be infinite or NaN
        for way in ways[:-1]:
            if all(way.fits(blocks) for blocks in _block_chunks(ggml_type, data)):
                return way.target
    return ways[-1].target


def convert_blocks(name: str, source: GgmlType, target: GgmlType, blocks: U8) -> U8:
    """Return ``blocks u8 [n_block, block_bytes]`` in another type, ``u8 [n_block, bytes of as many weights]``.

    Raises:
        FormatError: the target does not hold every weight (``run_type`` was given other data, or the file changed).
    """
    way = next(w for w in widenings(source) if w.target is target)
    with np.errstate(all="ignore"):
        converted = way.convert(blocks)
    if not _same_weights(source, blocks, target, converted):
        raise FormatError(f"tensor '{name}' has {source.name} weights that {target.name} does not hold exactly")
    return converted


def _same_weights(source: GgmlType, blocks: U8, target: GgmlType, converted: U8) -> bool:
    """Return whether both stand for equal numbers; the sign of a zero and the payload of a NaN do not count."""
    want, got = dequantize(source, blocks), dequantize(target, converted)
    return np.array_equal(want, got, equal_nan=True)


def _block_chunks(ggml_type: GgmlType, data: U8) -> Iterator[U8]:
    n_weight, n_byte = BLOCK[ggml_type]
    blocks = data.reshape(-1, n_byte)
    step = max(1, CHUNK_WEIGHTS // n_weight)
    for start in range(0, len(blocks), step):
        yield blocks[start : start + step]
