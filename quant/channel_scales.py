"""Scale channels between two tensors so that quantisation hurts less (AWQ), without changing what the model computes.

A column of a matrix times s, and what produces that column's input divided by s: the product is the same, but the
column's weights now stand out of their blocks (or less so). Where the producer is

=================================  ============================================================
attn_norm, ffn_norm                the vector is divided; columns of q, k, v or of gate, up times s
ffn_up                             its rows are divided (the gate multiplies later); columns of down times s
attn_v (and its bias)              its rows are divided; columns of attn_output times s, the same for
                                   every query head of a key head
=================================  ============================================================

s comes from a family with two exponents, ``x^a * w^-b``: x the root mean square of the channel's input, w that of
the weights in the column. The pair with the smallest error of the outputs counts, measured with the quantiser itself
on a sample of rows. Source: Lin et al., AWQ, section 3.2 (a alone); both exponents as in SmoothQuant's equation 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import numpy as np

from ..formats.record import Record
from .floats import F32
from .hessian import Hessian

INPUT_EXPONENTS = (0.0, 0.25, 0.5, 0.75)
WEIGHT_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SAMPLE_ROWS = 128  # of each matrix
LARGEST = 256.0  # factor between a scale and the middle one

Quantizer = Callable[[str, F32, F32], F32]
"""(name of the matrix, f32 [n, n_in], importance f32 [n_in]) -> what the file will say instead, f32 [n, n_in]."""


class Fold(Record):
    """One place where channels can be scaled.

    Attributes:
        producer: tensor whose rows (of a vector: elements) are divided.
        consumers: matrices whose columns are multiplied; all have the same input.
        n_shared: consecutive heads of the input that share one head of the producer; 1 except for attn_output.
        n_embd_head: width of a head where ``n_shared`` is above 1.
        row_start: first row of the producer.
    """

    producer: str
    consumers: tuple[str, ...]
    n_shared: int = 1
    n_embd_head: int = 0
    row_start: int = 0

    def spread(self, scales: F32) -> F32:
        """Return the factors of the consumers' columns from those of the producer's rows."""
        if self.n_shared == 1:
            return scales
        heads = scales.reshape(-1, self.n_embd_head)
        return np.repeat(heads, self.n_shared, axis=0).reshape(-1)

    def gather(self, squares: F32) -> F32:
        """Return the mean square of each row of the producer from those of the consumers' columns."""
        if self.n_shared == 1:
            return squares
        mean: F32 = squares.reshape(-1, self.n_shared, self.n_embd_head).mean(axis=1).reshape(-1)
        return mean


def folds_of_layer(
    layer: int, shapes: Mapping[str, tuple[int, ...]], n_head: int, n_head_kv: int, n_embd_head: int
) -> list[Fold]:
    """Return where a layer's channels can be scaled, in the order of its forward pass.

    Args:
        layer: its number.
        shapes: of all tensors.
        n_head: query heads.
        n_head_kv: key heads.
        n_embd_head: width of a value head.
    """

    def present(*parts: str) -> tuple[str, ...]:
        names = (f"blk.{layer}.{part}.weight" for part in parts)
        return tuple(name for name in names if name in shapes)

    folds = []
    readers = {"attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv"), "ffn_norm": ("ffn_gate", "ffn_up")}
    for norm, parts in readers.items():
        if (producer := present(norm)) and (consumers := present(*parts)):
            folds.append(Fold(producer[0], consumers))
    n_kv = n_head_kv * n_embd_head
    output = present("attn_output")
    for part in ("attn_v", "attn_qkv"):
        if output and (producer := present(part)) and shapes[output[0]][1] == n_head * n_embd_head:
            row_start = shapes[producer[0]][0] - n_kv
            folds.append(Fold(producer[0], output, n_head // n_head_kv, n_embd_head, row_start))
    down, up = present("ffn_down"), present("ffn_up")
    if down and up:
        folds.append(Fold(up[0], down, row_start=shapes[up[0]][0] - shapes[down[0]][1]))
    return folds


def choose_scales(
    fold: Fold, weights: Mapping[str, F32], hessian: Hessian, quantizer: Quantizer, pool: Executor
) -> F32 | None:
    """Return the factors of a fold's producer, f32 [n]; None where none helps.

    Args:
        fold: the place.
        weights: f32 [n_row, n_in] by name.
        hessian: second moments of the consumers' input, finished.
        quantizer: what will be done to the consumers; several threads call it.
        pool: threads.
    """
    samples = {name: _sample(weights[name]) for name in fold.consumers}
    diagonal = hessian.diagonal
    x = _root(fold.gather(diagonal))
    w = _root(fold.gather(np.mean([np.square(s).mean(axis=0) for s in samples.values()], axis=0, dtype=np.float32)))
    candidates = [None, *(_normalized(x**a * w**-b) for b in WEIGHT_EXPONENTS for a in INPUT_EXPONENTS if a or b)]

    def error(scales: F32 | None) -> float:
        columns = np.ones(hessian.n_in, np.float32) if scales is None else fold.spread(scales)
        return _error(columns, samples, hessian, quantizer)

    errors = list(pool.map(error, candidates))
    return candidates[int(np.argmin(errors))]


def _sample(matrix: F32) -> F32:
    step = max(1, len(matrix) // SAMPLE_ROWS)
    return np.ascontiguousarray(matrix[::step][:SAMPLE_ROWS])


def _root(squares: F32) -> F32:
    """Return root mean squares, the smallest raised so that no scale becomes extreme."""
    root: F32 = np.sqrt(squares.astype(np.float32))
    middle = float(np.median(root)) or 1.0
    clipped: F32 = np.clip(root / np.float32(middle), 1 / LARGEST, LARGEST).astype(np.float32)
    return clipped


def _normalized(scales: F32) -> F32:
    """Return scales with a geometric mean of 1."""
    logs = np.log(scales.astype(np.float64))
    limit = np.log(LARGEST)
    normalized: F32 = np.exp(np.clip(logs - logs.mean(), -limit, limit)).astype(np.float32)
    return normalized


def _error(columns: F32, samples: Mapping[str, F32], hessian: Hessian, quantizer: Quantizer) -> float:
    importance: F32 = (hessian.diagonal / np.square(columns)).astype(np.float32)
    total = 0.0
    for name, rows in samples.items():
        scaled: F32 = rows * columns
        error: F32 = (quantizer(name, scaled, importance) - scaled) / columns
        total += hessian.output_error(error)
    return total


def apply_scales(fold: Fold, scales: F32, tensors: dict[str, F32], hessian: Hessian) -> None:
    """Scale a fold's tensors and the second moments of their input, in place or replaced in ``tensors``."""
    columns = fold.spread(scales)
    for name in fold.consumers:
        tensors[name] = tensors[name] * columns
    stop = fold.row_start + len(scales)
    for name in (fold.producer, re.sub("weight$", "bias", fold.producer)):
        if name in tensors:
            values = tensors[name].copy()
            values[fold.row_start : stop] /= scales if values.ndim == 1 else scales[:, None]
            tensors[name] = values
    hessian.sums /= columns
    hessian.sums /= columns[:, None]
