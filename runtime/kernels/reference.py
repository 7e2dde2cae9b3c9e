"""NumPy twins of the kernels: slow, readable, nobody optimises them, and the same bits.

A twin does what its kernel does in the same order, with fused multiply-adds emulated exactly, so tests
compare bits instead of tolerances (payloads of NaNs excepted).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.record import Record
from ...formats.ggml_types import GgmlType
from ...quant.pack_format import PackedTensor
from ...quant.unpack import sub_blocks, unpack
from ..key_balance import query_factors

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 32  # columns of an activation record
SMALLEST = np.float32(2.0**-93)  # largest activation of a block that counts as zero
ZERO, ONE = np.float32(0), np.float32(1)


def fma(x: Any, y: Any, z: Any) -> F32:
    """Return ``x * y + z`` of f32, rounded once.

    The product is exact in f64; the sum is rounded to odd there and then to f32 (Boldo and Melquiond 2008).
    """
    with np.errstate(all="ignore"):
        product = np.asarray(x, np.float64) * np.asarray(y, np.float64)
        addend = np.asarray(z, np.float64)
        total = np.asarray(product + addend)
        virtual = total - product
        error = (product - (total - virtual)) + (addend - virtual)
        bits = total.view(np.int64)
        step = np.where((error > 0) == (total > 0), 1, -1)
        is_to_odd = (error != 0) & np.isfinite(error) & (bits & 1 == 0)
        return np.where(is_to_odd, bits + step, bits).view(np.float64).astype(np.float32)


def add_lanes(x: F32) -> F32:
    """Return the sum over the last axis of 16 lanes, halves added until one is left."""
    n = 16
    while n > 1:
        n //= 2
        x = x[..., :n] + x[..., n : 2 * n]
    return x[..., 0]


def in_lanes(x: F32) -> F32:
    """Return rows cut into vectors, padded with zeros: ``[..., n_vector, 16]``."""
    n = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-n // 16) * 16), np.float32)
    padded[..., :n] = x
    return padded.reshape(*x.shape[:-1], -1, 16)


# ---- vector_math.py ---------------------------------------------------------------------------

EXP_MIN, EXP_MAX = np.float32(-87.33654), np.float32(88.02)
LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
EXP_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)


def exp(x: F32) -> F32:
    """Return e**x; 0 below EXP_MIN, clamped above EXP_MAX."""
    with np.errstate(all="ignore"):
        lower = np.where(x > EXP_MIN, x, EXP_MIN)
        clamped = np.where(lower < EXP_MAX, lower, EXP_MAX)
        n = np.rint(clamped * LOG2_E)
        r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, clamped))
        p = fma(EXP_COEFFICIENTS[0], r, EXP_COEFFICIENTS[1])
        for c in EXP_COEFFICIENTS[2:]:
            p = fma(p, r, c)
        p = fma(p, r * r, r) + ONE
        power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
        return np.where(x < EXP_MIN, ZERO, p * power)


def silu(x: F32) -> F32:
    """Return x / (1 + exp(-x))."""
    return x / (ONE + exp(ZERO - x))


def gelu(x: F32) -> F32:
    """Return x / (1 + exp(-2u)), the tanh form."""
    inner = np.float32(0.7978845608028654) * (x * fma(np.float32(0.044715) * x, x, ONE))
    return x / (ONE + exp(np.float32(-2) * inner))


def tanh(x: F32) -> F32:
    """Return 1 - 2 / (exp(2x) + 1)."""
    return ONE - np.float32(2) / (exp(np.float32(2) * x) + ONE)


ACTIVATIONS = {"silu": silu, "gelu": gelu}

# ---- quantize.py and rows.py ------------------------------------------------------------------


class Activations(Record):
    """Quantised rows: ``q i8 [n_tok, n_block, 32]``, ``scale f32 [n_tok, n_block]``."""

    q: NDArray[np.int32]
    scale: F32

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.q)

    def scaled_sum(self, start: int, stop: int) -> F32:
        """Return ``scale * sum(q[start:stop])`` of every block: [n_tok, n_block]."""
        result: F32 = self.scale * self.q[:, :, start:stop].sum(axis=2).astype(np.float32)
        return result


def quantize(x: F32) -> Activations:
    """Quantise rows in blocks of 32 columns."""
    blocks = x.reshape(len(x), -1, BLOCK)
    largest = np.abs(blocks).max(axis=2)
    with np.errstate(all="ignore"):
        inverse = np.where(largest > SMALLEST, np.float32(127) / largest, ZERO)
        scaled = blocks * inverse[..., None]
        q = np.rint(scaled).astype(np.int32)
        squares = (q.astype(np.float32) ** 2).sum(axis=2)  # exact in any order
        (left, right), (q_left, q_right) = (np.split(a, 2, axis=2) for a in (scaled, q.astype(np.float32)))
        products = add_lanes(fma(right, q_right, left * q_left))
        scale = np.where(squares > 0, products / squares * (largest / np.float32(127)), ZERO)
    return Activations(q, scale)


def rest(x: F32, first: Activations) -> F32:
    """Return what quantised rows leave over of the rows."""
    q = first.q.astype(np.float32).reshape(x.shape)
    return fma(np.repeat(ZERO - first.scale, BLOCK, axis=1), q, x)


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Normalise the last axis."""
    n = x.shape[-1]
    total = np.zeros((*x.shape[:-1], 16), np.float32)
    vectors = in_lanes(x)
    for i in range(vectors.shape[-2]):
        total = fma(vectors[..., i, :], vectors[..., i, :], total)
    mean = add_lanes(total) / np.float32(n)
    scale = ONE / np.sqrt(mean + np.float32(eps))
    result: F32 = (x * scale[..., None]) * weight[:n]
    return result


def softcap(x: F32, cap: float) -> F32:
    """Return ``cap * tanh(x / cap)``."""
    result: F32 = np.float32(cap) * tanh(x / np.float32(cap))
    return result


# ---- matmul.py --------------------------------------------------------------------------------


def matmul(weight: PackedTensor, x: Activations | F32) -> F32:
    """Return ``x @ weight.T``: [n_tok, n_row]; activations are f32 exactly for float weights."""
    if isinstance(x, Activations):
        return _matmul_quantized(weight, x)
    w = unpack(weight)
    y = np.zeros((len(x), weight.n_row), np.float32)
    for column in range(weight.n_col):
        y = fma(w[None, :, column], x[:, None, column], y)
    return y


def _matmul_quantized(weight: PackedTensor, x: Activations) -> F32:
    blocks = sub_blocks(weight)
    n_sub, width = blocks.q.shape[1:]
    y = np.zeros((len(x.q), weight.n_row), np.float32)
    n_part = BLOCK // width  # sub-blocks of an activation record: one, or two halves
    with np.errstate(all="ignore"):
        for block in range(n_sub // n_part):
            parts = range(block * n_part, block * n_part + n_part)
            value: F32 | None = None
            for j in parts:
                start = j * width % BLOCK
                dot = (x.q[:, block, start : start + width] @ blocks.q[:, j].astype(np.int32).T).astype(np.float32)
                scale = blocks.scale[None, :, j]
                value = dot * scale if value is None else fma(dot, scale, value)
            y = fma(value, x.scale[:, block, None], y)
            if blocks.minimum is not None:
                for j in parts:
                    start = j * width % BLOCK
                    y = fma(blocks.minimum[None, :, j], x.scaled_sum(start, start + width)[:, block, None], y)
    return y


def is_float(weight: PackedTensor) -> bool:
    """Whether a format multiplies f32 activations."""
    return weight.format.ggml_type in (GgmlType.F16, GgmlType.BF16, GgmlType.F32)


# ---- rope.py ----------------------------------------------------------------------------------

PIO2 = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21)
TWO_OVER_PI = 6.36619772367581382433e-01
SIN_COEFFICIENTS = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
COS_COEFFICIENTS = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip


def _polynomial(z: F64, coefficients: tuple[float, ...]) -> F64:
    result = np.full_like(z, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = c + z * result
    return result


def rope_table(positions: NDArray[np.int64], frequencies: F64, factor: float) -> tuple[F32, F32]:
    """Return (cosines, sines), each f32 [n_tok, n_pair]."""
    angle = positions.astype(np.float64)[:, None] * frequencies
    quadrant = np.rint(angle * TWO_OVER_PI)
    r = ((angle - quadrant * PIO2[0]) - quadrant * PIO2[1]) - quadrant * PIO2[2]
    z = r * r
    sine = r + r * z * _polynomial(z, SIN_COEFFICIENTS)
    cosine = 1.0 - 0.5 * z + z * z * _polynomial(z, COS_COEFFICIENTS)
    turn = quadrant.astype(np.int64) & 3
    sines = np.select([turn == 0, turn == 1, turn == 2], [sine, cosine, -sine], -cosine)
    cosines = np.select([turn == 0, turn == 1, turn == 2], [cosine, -sine, -cosine], sine)
    return (cosines * factor).astype(np.float32), (sines * factor).astype(np.float32)


def rope(x: F32, cosines: F32, sines: F32, *, is_neox: bool) -> F32:
    """Return heads [n_tok, n_head, n_embd_head] with their first ``2 * n_pair`` columns rotated."""
    n_pair = cosines.shape[1]
    y = x.copy()
    first, second = (
        (slice(0, n_pair), slice(n_pair, 2 * n_pair)) if is_neox else (slice(0, 2 * n_pair, 2), slice(1, 2 * n_pair, 2))
    )
    a, b = x[..., first], x[..., second]
    cos, sin = cosines[:, None], sines[:, None]
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    return y


# ---- attention.py -----------------------------------------------------------------------------

PAGE_SLOTS, SEGMENT_PAGES = 64, 8
MINUS_INFINITY = np.float32(-np.inf)
NOTHING_SEEN = np.finfo(np.float32).min


def rotated(x: F32) -> F32:
    """Return blocks of 32 columns times the Hadamard matrix."""
    y = x.reshape(-1, 2, 2, 2, 2, 2)
    for axis in (2, 3, 4, 5, 1):
        a, b = np.split(y, 2, axis=axis)
        y = np.concatenate([a + b, a - b], axis=axis)
    return y.reshape(x.shape)


def kept(x: F32, kv_type: str, *, is_key: bool, factors: F32 | np.float32 = ONE) -> F32 | Activations:
    """Return keys or values [n_slot, n_embd_head] as the KV cache keeps them.

    ``factors`` [n_embd_head] are what a q8_0 cache multiplies keys by (``key_balance.py``).
    """
    if kv_type == "f16":
        return x.astype(np.float16).astype(np.float32)
    blocks = quantize(rotated(x * factors) if is_key else x)
    return Activations(blocks.q, blocks.scale.astype(np.float16).astype(np.float32))


def attention_row(
    q: F32, keys: F32 | Activations, values: F32 | Activations, start: int, scale: float, *, softcap_: float = 0.0,
    factors: F32 | np.float32 = ONE,
) -> F32:  # fmt: skip
    """Attend with query heads that share a key head.

    Args:
        q: [n_column, n_embd_head].
        keys: of all slots in their order (ancestors at the end), as ``kept`` returns them.
        values: likewise.
        start: slots before it are not seen.
        scale: of the scores.
        softcap_: of the scores; 0: none.
        factors: [n_embd_head] that keys were multiplied by, as for ``kept``.

    Returns:
        [n_column, n_embd_head].
    """
    n_column, n_embd_head = q.shape
    stop = len(keys)
    total = _Softmax(n_column, n_embd_head)
    segment = _Softmax(n_column, n_embd_head)
    for page in range(start // PAGE_SLOTS, -(-stop // PAGE_SLOTS)):
        slots = np.arange(max(start, page * PAGE_SLOTS), min(stop, (page + 1) * PAGE_SLOTS))
        lanes = slots - page * PAGE_SLOTS
        scores = np.full((n_column, PAGE_SLOTS), MINUS_INFINITY)
        raw = _scores(q, keys, slots, factors) * np.float32(scale)
        scores[:, lanes] = softcap(raw, softcap_) if softcap_ else raw
        segment.add_page(scores, values, slots, lanes)
        if (page + 1) % SEGMENT_PAGES == 0 or (page + 1) * PAGE_SLOTS >= stop:
            total.merge(segment)
            segment = _Softmax(n_column, n_embd_head)
    return total.weighted * (ONE / total.sum)[:, None] + ZERO


def _scores(q: F32, keys: F32 | Activations, slots: NDArray[np.int64], factors: F32 | np.float32) -> F32:
    raw = np.zeros((len(q), len(slots)), np.float32)
    if not isinstance(keys, Activations):
        for i in range(q.shape[1]):
            raw = fma(keys[None, slots, i], q[:, i, None], raw)
        return raw
    queries = quantize(rotated(q * query_factors(factors)))
    for block in range(q.shape[1] // BLOCK):
        dots = (queries.q[:, block] @ keys.q[slots, block].T).astype(np.float32)
        raw = fma(dots * keys.scale[slots, block], queries.scale[:, block, None], raw)
    return raw


class _Softmax:
    """Running maximum, sum and weighted values of some slots."""

    def __init__(self, n_column: int, n_embd_head: int) -> None:
        self.maximum = np.full(n_column, NOTHING_SEEN, np.float32)
        self.sum = np.zeros(n_column, np.float32)
        self.weighted = np.zeros((n_column, n_embd_head), np.float32)

    def add_page(
        self, scores: F32, values: F32 | Activations, slots: NDArray[np.int64], lanes: NDArray[np.int64]
    ) -> None:
        with np.errstate(all="ignore"):
            largest = scores.max(axis=1)
            now = np.where(largest > self.maximum, largest, self.maximum)
            factor = exp(self.maximum - now)
            weights = exp(scores - now[:, None])
        lane_sums = np.zeros((len(scores), 16), np.float32)
        for tile in range(PAGE_SLOTS // 16):
            lane_sums = lane_sums + weights[:, 16 * tile : 16 * tile + 16]
        self.sum = fma(self.sum, factor, add_lanes(lane_sums))
        self.maximum = now
        self.weighted = self.weighted * factor[:, None]
        for slot, lane in zip(slots, lanes, strict=True):
            if isinstance(values, Activations):
                value = values.q[slot].reshape(-1).astype(np.float32)
                weight = np.repeat(weights[:, lane, None] * values.scale[slot], BLOCK, axis=1)
            else:
                value, weight = values[slot], weights[:, lane, None]
            self.weighted = fma(value[None], weight, self.weighted)

    def merge(self, segment: _Softmax) -> None:
        with np.errstate(all="ignore"):
            now = np.where(segment.maximum > self.maximum, segment.maximum, self.maximum)
            old, new = exp(self.maximum - now), exp(segment.maximum - now)
        self.maximum = now
        self.sum = fma(self.sum, old, segment.sum * new)
        self.weighted = fma(self.weighted, old[:, None], segment.weighted * new[:, None])


def probe_read(data: F32, n_worker: int) -> F32:
    """Return the largest value of each lane in every worker's share of the runs: [n_worker, 16]."""
    runs = data.reshape(-1, 4, 16)
    bounds = [len(runs) * worker // n_worker for worker in range(n_worker + 1)]
    low = np.full(16, -3.0e38, np.float32)
    shares = [runs[a:b].reshape(-1, 16) for a, b in pairwise(bounds)]
    return np.stack([np.maximum(low, share.max(axis=0, initial=low.min())) for share in shares])


def probe_dot(weights: NDArray[np.uint8], quants: NDArray[np.int8], width: int, n_pass: int) -> NDArray[np.int32]:
    """Return the sums over all tiles of records: i32 [width, 16].

    Args:
        weights: [16, 32], the unpacked group.
        quants: [n_record, 32] of the activation records.
        width: records of a tile.
        n_pass: passes over the records.
    """
    dots = quants.astype(np.int64) @ weights.astype(np.int64).T
    sums: NDArray[np.int32] = (dots.reshape(-1, width, 16).sum(axis=0) * n_pass).astype(np.int32)
    return sums
