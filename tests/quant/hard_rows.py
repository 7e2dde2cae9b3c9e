"""Rows of weights that quantisers find hard: constant, one-sided, tiny, sparse, heavy-tailed, on a grid."""

import numpy as np


def hard_rows(rng, n_in):
    """Return f32 [19, n_in]; 19 rows are a whole group of lanes and a part of one."""
    normal = rng.standard_normal((19, n_in))
    rows = [
        normal[0] * 0, normal[1] * 0 + 1, normal[2] * 0 - 1, normal[3] * 1e-42, normal[4] * 1e-7, normal[5] * 1e4,
        np.where(np.arange(n_in) % 7, 0, 3), rng.integers(0, 3, n_in), -rng.integers(1, 4, n_in), normal[6] * 1e-39,
        normal[7] ** 5, np.abs(normal[8]), -np.abs(normal[9]), normal[10] + 10,
        np.where(np.arange(n_in) < 40, 0, normal[11]), *normal[12:16] * 0.02,
    ]  # fmt: skip
    return np.array(rows).astype(np.float32)
