"""Factors for the columns of keys that a q8_0 cache keeps, read from the biases of keys and queries.

Qwen2's biases make a few columns of a key head a hundred times as large as the others. 8 bits of a block leave these
others none, and a rotation (``kernels/kv_store.py``) only spreads the loss. So keys are multiplied by a factor for each
column before, and queries by its inverse, which leaves their products as they are. With keys of size ``K`` and queries
of size ``Q`` in a column, the error of a score is that of ``sum((K f)**2) * sum((Q / f)**2)``, least where
``f = sqrt(Q / K)``.

Sizes are the root of ``1 + bias**2``: what matrices make of normalised activations has a spread of about 1 in all
layers but Qwen2's first, and spreads measured there gained nothing over 1 (``bench/LOG.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .program import Op, Rope

if TYPE_CHECKING:
    from .weights import WeightSource

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def key_factors(k_bias: F32, q_bias: F32, n_head_kv: int, n_embd_head: int, rope: Rope) -> F32:
    """Return what columns of keys are multiplied by: f32 [n_head_kv, n_embd_head].

    Args:
        k_bias: of all key heads.
        q_bias: of all query heads, those that share a key head side by side.
        n_head_kv: key heads.
        n_embd_head: columns of a head.
        rope: rotates keys before they are kept: the two columns of a pair have one factor.
    """
    k = k_bias[: n_head_kv * n_embd_head].astype(np.float64).reshape(n_head_kv, 1, n_embd_head)
    n_group = len(q_bias) // (n_head_kv * n_embd_head)
    q = q_bias.astype(np.float64).reshape(n_head_kv, n_group, n_embd_head)
    ratio = _mean_squares(q, rope) / _mean_squares(k, rope)
    factors: F32 = np.sqrt(np.sqrt(ratio)).astype(np.float32)
    return factors


def _mean_squares(x: F64, rope: Rope) -> F64:
    """Return the mean over heads and over the pairs that are rotated: [n_head_kv, n_embd_head]."""
    squares: F64 = 1 + (x * x).mean(axis=1)
    first, second = rope.pairs()
    squares[:, first] = squares[:, second] = (squares[:, first] + squares[:, second]) / 2
    return squares


def factors_of(op: Op, weights: WeightSource, n_embd_head: int) -> F32:
    """Return what an operation on the KV cache takes keys to be multiplied by: f32 [n_head_kv, n_embd_head].

    These are ones where no biases are known.
    """
    n_head_kv = op.attributes["n_head_kv"]
    if not op.weights:
        return np.ones((n_head_kv, n_embd_head), np.float32)
    k_bias, q_bias = (weights.values(w)[: w.n_in] for w in op.weights)
    return key_factors(k_bias, q_bias, n_head_kv, n_embd_head, op.attributes["pairs"])


def query_factors(factors: F32 | np.float32) -> F32:
    """Return what queries are multiplied by: the inverse, over 32 for the rotation of both by a matrix of 32."""
    result: F32 = np.asarray(np.float32(1 / 32) / factors, np.float32)
    return result
