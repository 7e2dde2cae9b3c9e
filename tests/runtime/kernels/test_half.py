"""Half precision, with and without the instructions for it: every half, every kind of rounding."""

import numpy as np
import pytest

from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.kv_cache import KvPages

from ..bits import assert_same_bits
from ..machine import WHOLE_TARGETS, rng_for
from ..memory_weights import MemoryWeights
from ..one_op import Bound, builder, plain_rows

HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)
N_HEAD, WIDTH, N_TOK = 8, 256, 64


def hard_to_round():
    """Return f32 values: every half, the middle between neighbours, one bit beside it, random bits."""
    with np.errstate(invalid="ignore"):
        exact = HALVES.astype(np.float32)
    finite = np.sort(exact[np.isfinite(exact)])
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    beside = np.concatenate([np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])
    edges = np.float32([65504, 65519.996, 65520, 65536, 1e38, 2**-24, 2**-25, 2**-25 * 1.0000001, 1e-45, 0, -0.0])
    bits = rng_for("half").integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    return np.concatenate([exact, middle, beside, edges, -edges, bits])


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
def test_kv_store_rounds_to_nearest_even(machine, target_name):
    """Keys go out one by one, values as vectors; both as NumPy rounds."""
    values = hard_to_round()
    n_col = N_HEAD * WIDTH
    pages = KvPages(1, N_HEAD, WIDTH, N_TOK)
    b, k = builder(n_col)
    v = b._new("v", n_col)
    b.kv_append(0, k, v, N_HEAD)
    bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=N_TOK, pages=pages)
    with np.errstate(all="ignore"):
        want = values.astype(np.float16)
    step = N_TOK * n_col
    for start in range(0, len(values), step):
        rows = np.zeros(step, np.float32)
        part = values[start : start + step]
        rows[: len(part)] = part
        rows = rows.reshape(N_TOK, n_col)
        bound.put(k, rows)
        bound.put(v, rows)
        bound.run_op("kv_store", plain_rows(N_TOK), n_worker=3)
        keys = pages.keys[0, 0].reshape(N_HEAD, 4, WIDTH, 16).transpose(1, 3, 0, 2).reshape(-1)  # slots outermost
        stored = pages.values[0, 0].reshape(N_HEAD, N_TOK, WIDTH).transpose(1, 0, 2).reshape(-1)
        assert_same_bits(keys[: len(part)], want[start : start + step])
        assert_same_bits(stored[: len(part)], want[start : start + step])


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half_as_a_weight(machine, target_name, name):
    """A matrix of one column times 1 is the weights themselves (added to zero: -0 becomes 0)."""
    weights = MemoryWeights()
    w = weights.add_matrix("w", name, HALVES.view(np.uint8).reshape(-1, 2))
    b, x = builder(1)
    y = b.matmul(x, w)
    b.output("y", y)
    bound = Bound(machine, target_name, b.build(1), weights, n_tok=1)
    bound.put(x, np.ones((1, 1), np.float32))
    bound.run_op("matmul", plain_rows(1))
    with np.errstate(invalid="ignore"):
        if name == "F16":
            want = HALVES.astype(np.float32)
        else:
            want = (HALVES.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        assert_same_bits(bound.get(y, 1)[0], want + np.float32(0))


def test_fma_twin_is_exact():
    """Against integers: f32 values as multiples of 2**-149, the sum rounded once."""
    rng = rng_for("fma")
    bits = rng.integers(0, 1 << 32, (3, 3000), dtype=np.uint32)
    x, y, z = (b.view(np.float32) for b in bits)
    near = rng.integers(-3, 4, 3000).astype(np.int64)
    with np.errstate(all="ignore"):
        opposite = -(x.astype(np.float64) * y).astype(np.float32)  # sums that cancel nearly or wholly
        opposite = (opposite.view(np.int32) + near.astype(np.int32)).view(np.float32)
    for addend in (z, opposite, np.zeros_like(z)):
        ok = np.isfinite(x) & np.isfinite(y) & np.isfinite(addend)
        got = twin.fma(x, y, addend)
        want = np.array(
            [rounded(units(a) * units(b) + (units(c) << 149)) for a, b, c in zip(x[ok], y[ok], addend[ok], strict=True)]
        )
        assert (got[ok] == want.astype(np.float32)).all()


def units(value):
    """Return a finite f32 as an integer number of 2**-149."""
    mantissa, exponent = np.frexp(np.float64(value))
    return (
        int(mantissa * 2**24) << int(exponent) + 125
        if exponent + 125 >= 0
        else int(mantissa * 2**24) >> -(int(exponent) + 125)
    )


def rounded(total):
    """Return an integer number of 2**-298 as the nearest f32, ties to even, infinite beyond the largest."""
    sign, total = (-1, -total) if total < 0 else (1, total)
    shift = max(total.bit_length() - 24, 149)  # bits below the last place of a normal or subnormal result
    quotient, rest = total >> shift, total & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    quotient += rest > half or (rest == half and quotient & 1)
    result = float(quotient) * 2.0 ** (shift - 298) if shift < 600 else float("inf")
    return sign * (float("inf") if result >= 2.0**128 else result)
