"""Factors of key columns: products stay, pairs share one, and errors of both sides are balanced."""

import numpy as np
import pytest

from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.key_balance import factors_of, key_factors, query_factors
from llmrun.runtime.program import Biases, ProgramBuilder, Rope

from .memory_weights import MemoryWeights

N_HEAD_KV, N_GROUP, WIDTH = 2, 3, 32


def biases(seed=0):
    """Return (keys', queries') biases, as vectors."""
    rng = np.random.default_rng(seed)
    k, q = (rng.normal(size=n * WIDTH).astype(np.float32) for n in (N_HEAD_KV, N_HEAD_KV * N_GROUP))
    return k, q


def rope(n_pair, *, is_neox=True):
    return Rope(n_pair=n_pair, frequencies=(1.0,) * n_pair, is_neox=is_neox)


def test_without_pairs_it_is_the_root_of_sizes():
    k, q = biases()
    sizes_k = np.sqrt(1 + k.astype(float).reshape(N_HEAD_KV, WIDTH) ** 2)
    sizes_q = np.sqrt(1 + (q.astype(float).reshape(N_HEAD_KV, N_GROUP, WIDTH) ** 2).mean(axis=1))
    got = key_factors(k, q, N_HEAD_KV, WIDTH, rope(0))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.sqrt(sizes_q / sizes_k), rtol=1e-6)


@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize("n_pair", [5, 16])
def test_pairs_share_a_factor(is_neox, n_pair):
    k, q = biases()
    k[3] = 100.0
    got = key_factors(k, q, N_HEAD_KV, WIDTH, rope(n_pair, is_neox=is_neox))
    columns = np.arange(2 * n_pair)
    first, second = (columns[:n_pair], columns[n_pair:]) if is_neox else (columns[::2], columns[1::2])
    assert np.array_equal(got[:, first], got[:, second])
    alone = key_factors(k, q, N_HEAD_KV, WIDTH, rope(0))
    assert np.array_equal(got[:, 2 * n_pair :], alone[:, 2 * n_pair :])
    assert got[0].argmin() in (3, 3 + n_pair if is_neox else 2)


def test_queries_get_the_inverse_and_the_rotation_s_share():
    factors = key_factors(*biases(), N_HEAD_KV, WIDTH, rope(16))
    np.testing.assert_allclose(query_factors(factors) * factors, 1 / 32, rtol=2e-7)
    assert (query_factors(np.ones(3, np.float32)) == np.float32(1 / 32)).all()


def test_the_largest_biases_of_f32_give_finite_factors():
    k, q = biases()
    k[0], q[1] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    factors = key_factors(k, q, N_HEAD_KV, WIDTH, rope(0))
    assert np.isfinite(factors).all()
    assert np.isfinite(query_factors(factors)).all()


def test_what_operations_see():
    """Both operations see the same biases, cut where vectors are padded; without any there are ones."""
    k, q = biases()
    weights = MemoryWeights()
    known = Biases(weights.add_vector("k", k), weights.add_vector("q", q), rope(16))
    for added, want in ((None, np.ones((N_HEAD_KV, WIDTH))), (known, key_factors(k, q, N_HEAD_KV, WIDTH, rope(16)))):
        b = ProgramBuilder()
        x, y, z = (b._new("x", n * WIDTH) for n in (N_HEAD_KV, N_HEAD_KV, N_HEAD_KV * N_GROUP))
        b.kv_append(0, x, y, N_HEAD_KV, added)
        b.attention(0, z, N_HEAD_KV * N_GROUP, N_HEAD_KV, 1.0, biases=added)
        for op in b.ops:
            assert np.array_equal(factors_of(op, weights, WIDTH), want)


def test_the_error_of_scores_falls():
    """Two columns a hundred times as large as the others: a third of the error is left, or less."""
    rng = np.random.default_rng(1)
    k, q = (rng.normal(size=(n, 2 * WIDTH)).astype(np.float32) for n in (200, 50))
    bias = np.zeros(2 * WIDTH, np.float32)
    bias[[3, 40]] = 100
    k += bias
    want = q.astype(float) @ k.astype(float).T
    errors = []
    for factors in (key_factors(bias, 0 * bias, 1, 2 * WIDTH, rope(0))[0], np.ones(2 * WIDTH, np.float32)):
        keys = twin.kept(k, "q8_0", is_key=True, factors=factors)
        scores = twin._scores(q, keys, np.arange(len(k)), factors)
        error = scores - want
        errors.append((error - error.mean(axis=1, keepdims=True)).std())  # what all slots share changes no weight
    assert 0 < errors[0] < errors[1] / 3
