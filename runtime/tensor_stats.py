"""Compare the weights of two files of one model, tensor by tensor, without holding a whole tensor of either.

What quantising does to weights is small and even: an error of a few per cent, more for fewer bits, of the same size in
all tensors of a type. A tensor that stands out was treated in another way, or is not the same model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..formats.record import Record
from ..quant.checkpoint import SourceTensor
from ..quant.dequantize import DEQUANTIZERS

F32 = NDArray[np.float32]
PIECE_WEIGHTS = 1 << 20  # 4 MB of f32 at a time
OUTLIER = 3.0  # times the median error of its type
FOREIGN = 0.5  # relative error of weights that are not the same ones
EVEN_ERROR = 0.02  # below, nothing stands out


class Importance(Protocol):
    """How much the input columns of a matrix matter; ``quant.imatrix.Imatrix``."""

    def importance(self, name: str, n_in: int) -> F32 | None:
        """Return the weight of every input column, f32 [n_in], or None."""


class TensorStats(Record, kw_only=True):
    """How one tensor of a model differs from the base's.

    Attributes:
        name: of the tensor.
        type_base: its type in the base.
        type: its type in the model.
        error: root of the summed squared differences, divided by the root of the base's summed squares; weighted by
            the importance of columns where it is known.
        cosine: of the angle between the two.
        largest: largest difference, in root mean squares of the base's weights.
        gain: norm of the model's weights by the base's.
    """

    name: str
    type_base: str
    type: str
    error: float
    cosine: float
    largest: float
    gain: float


def compare_tensors(
    base: dict[str, SourceTensor],
    other: dict[str, SourceTensor],
    importance: Importance | None = None,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[TensorStats], list[str]]:
    """Return the statistics of all tensors that both have in the same shape, and what else there is to say.

    Args:
        base: tensors of the base by name.
        other: tensors of the model.
        importance: weighs the columns of matrices.
        on_progress: called as (what, done, total).

    Raises:
        FormatError: a file cannot be read any more.
    """
    notes = [f"{name} is missing" for name in base if name not in other]
    notes += [f"{name} is not in the base" for name in other if name not in base]
    result: list[TensorStats] = []
    for n_done, (name, tensor) in enumerate(base.items()):
        found = other.get(name)
        if found is not None and found.shape != tensor.shape:
            notes.append(f"{name} has shape {list(found.shape)}, {list(tensor.shape)} in the base")
        elif found is not None and tensor.ggml_type in DEQUANTIZERS and found.ggml_type in DEQUANTIZERS:
            weights = importance.importance(name, tensor.n_in) if importance and len(tensor.shape) == 2 else None
            result.append(_compare(tensor, found, weights))
            for one in (tensor, found):
                if one.release:
                    one.release()
        if on_progress:
            on_progress("comparing weights", n_done + 1, len(base))
    return result, notes


def _compare(base: SourceTensor, other: SourceTensor, importance: F32 | None) -> TensorStats:
    step = max(1, PIECE_WEIGHTS // base.n_in)
    scale = np.ones(base.n_in, np.float32) if importance is None else np.sqrt(importance)
    error = square = square_other = product = plain = 0.0
    largest = 0.0
    with np.errstate(all="ignore"):  # what is infinite or NaN shows as such
        for start in range(0, base.n_rows, step):
            stop = min(start + step, base.n_rows)
            a, b = base.read_rows(start, stop), other.read_rows(start, stop)
            largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
            plain += _square_sum(a)
            a, b = a * scale, b * scale
            error += _square_sum(a - b)
            square += _square_sum(a)
            square_other += _square_sum(b)
            product += float(np.einsum("ij,ij->", a, b, dtype=np.float64))
        rms = math.sqrt(plain / base.n_weights) if plain > 0 else 0.0
    return TensorStats(
        name=base.name,
        type_base=base.ggml_type.name,
        type=other.ggml_type.name,
        error=_ratio(_root(error), _root(square)),
        cosine=_ratio(product, _root(square) * _root(square_other)),
        largest=_ratio(largest, rms),
        gain=_ratio(_root(square_other), _root(square)),
    )


def _square_sum(x: F32) -> float:
    return float(np.einsum("ij,ij->", x, x, dtype=np.float64))


def _root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _ratio(a: float, b: float) -> float:
    if a == b:
        return 1.0 if a else 0.0
    return a / b if b else math.inf


def suspicious(stats: list[TensorStats]) -> list[tuple[TensorStats, str]]:
    """Return the tensors that stand out, with the reason, the worst first."""
    found: list[tuple[TensorStats, str]] = []
    by_type: dict[str, list[float]] = {}
    for s in stats:
        by_type.setdefault(s.type, []).append(s.error)
    usual = {kind: median(errors) for kind, errors in by_type.items()}
    for s in stats:
        if not (math.isfinite(s.error) and math.isfinite(s.gain)):
            found.append((s, "holds infinite or NaN weights, or is zero in the base"))
        elif s.error > FOREIGN:
            found.append((s, f"{100 * s.error:.0f} % off: other weights, not a rounding of the same ones"))
        elif s.error > max(OUTLIER * usual[s.type], EVEN_ERROR):
            found.append((s, f"{100 * s.error:.1f} % off, {100 * usual[s.type]:.1f} % is usual for {s.type} here"))
    return sorted(found, key=lambda item: -item[0].error if math.isfinite(item[0].error) else -math.inf)
