"""Describing the weights of a model while its program is built: every tensor checked against what the program asks for.

How they are delivered is told by ``weights.py`` (a GGUF file, packed and kept) and ``layerwise/weights.py`` (one
segment at a time).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import FormatError
from ..formats.ggml_types import GgmlType
from ..formats.record import replace
from ..quant.dequantize import DEQUANTIZERS
from .kernels.layout import padded
from .packing import not_finite
from .program import Weight

F32 = NDArray[np.float32]

ALTERNATIVES = ("rope_factors_", "rope_freqs")  # one of several sets of rotation factors is used
VECTOR_PAD = 32  # columns; kernels read vectors in whole blocks


class Tensor(Protocol):
    """What is known of a tensor without reading it."""

    @property
    def name(self) -> str:
        """Name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Slowest dimension first."""

    @property
    def ggml_type(self) -> GgmlType:
        """Of its elements."""


TensorT = TypeVar("TensorT", bound=Tensor)


class DescribedWeights(ABC, Generic[TensorT]):
    """The describing half of a ``WeightSource``.

    Args:
        path: for messages.
        tensors: by name.
        architecture: for messages.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorT], architecture: object) -> None:
        self._path, self._tensors, self._architecture = path, tensors, architecture
        self._run_types: dict[str, GgmlType] = {}
        self._described: set[str] = set()

    @abstractmethod
    def _run_type(self, tensor: TensorT) -> GgmlType:
        """Return the type that a matrix is packed as.

        Raises:
            FormatError: its type cannot be a weight.
        """

    def has(self, name: str) -> bool:
        """Return whether the model has a tensor."""
        return name in self._tensors

    def _tensor(self, name: str, shape: tuple[int, ...]) -> TensorT:
        tensor = self._tensors.get(name)
        self._described.add(name)
        if tensor is None:
            raise FormatError(f"{self._path}: tensor '{name}' is missing")
        if tensor.shape != shape:
            raise FormatError(f"{self._path}: tensor '{name}' has shape {list(tensor.shape)}, expected {list(shape)}")
        return tensor

    def matrix(self, name: str, n_out: int, n_in: int) -> Weight:
        """Describe a matrix.

        Raises:
            FormatError: it is missing, has another shape, or a type that cannot be a weight.
        """
        tensor = self._tensor(name, (n_out, n_in))
        if name not in self._run_types:
            self._run_types[name] = self._run_type(tensor)
        return Weight(name, n_out, n_in, self._run_types[name].name, source=tensor.ggml_type.name)

    def vector(self, name: str, n_in: int) -> Weight:
        """Describe a vector.

        Raises:
            FormatError: it is missing, has another shape, or a type that cannot be a weight.
        """
        kind = self._tensor(name, (n_in,)).ggml_type
        if kind not in DEQUANTIZERS:
            raise FormatError(f"{self._path}: tensor '{name}' has type {kind.name}, expected floating-point weights")
        return Weight(name, 0, n_in, "F32")

    def check_all_used(self) -> None:
        """Refuse a file with tensors that the model did not ask for: nothing is dropped silently.

        Raises:
            FormatError: with the first such tensor.
        """
        unused = [n for n in self._tensors if n not in self._described and not n.startswith(ALTERNATIVES)]
        if unused:
            others = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
            kind = f"a {self._architecture} model as llmrun runs it"
            raise FormatError(f"{self._path}: tensor '{unused[0]}'{others} is not part of {kind}")

    def split(self, weight: Weight, n_rows: Sequence[int]) -> list[Weight]:
        """Describe consecutive rows of a matrix as matrices of their own."""
        starts = [weight.row_start + sum(n_rows[:i]) for i in range(len(n_rows))]
        return [replace(weight, n_out=n, row_start=start) for n, start in zip(n_rows, starts, strict=True)]

    def _vector_values(self, weight: Weight, values: F32) -> F32:
        """Return a vector's values as kernels read them: aligned, padded with zeros to a multiple of 32.

        Raises:
            FormatError: one is infinite or NaN.
        """
        n_padded = padded(weight.n_in, VECTOR_PAD)
        result = np.zeros(n_padded + 16, np.float32)
        skip = (-result.ctypes.data % 64) // 4
        result = result[skip : skip + n_padded]
        result[: weight.n_in] = values
        if not np.isfinite(result).all():
            raise FormatError(f"{self._path}: {not_finite(weight.name)}")
        return result
