"""Weights of a draft head: its file's, and its target's where the file leaves out embeddings or the output matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError
from ...formats.ggml_types import GgmlType
from ...formats.gguf import GgufFile
from ...formats.record import replace
from ...quant.pack_format import PackedTensor
from ..program import Program, Weight
from ..weights import WeightSource
from .draft_head import output_matrix
from .draft_weights import DraftWeights

SHARED = ("token_embd.weight", "output.weight")
DRAFT_IDS = "d2t"
UNKNOWN = "?"  # type of a weight of a target that is not there


class HeadWeights(DraftWeights):
    """A head's weights; matrices of more than five bits a weight become Q4_0, those of the target stay as they are.

    Args:
        file: the head; must stay open.
        target: program and weights of the model that it is made for; None: only the header is looked at, nothing is
            loaded.
        n_thread: threads that pack.
    """

    feed_forward = GgmlType.Q4_0  # a head has one layer: what three bits would lose was not measured

    def __init__(
        self, file: GgufFile, target: tuple[Program, WeightSource] | None, n_thread: int | None = None
    ) -> None:
        super().__init__(file, n_thread)
        self._target = target
        self._borrowed: dict[str, Weight] = {}  # the target's, by the name that they have here

    def draft_ids(self, n_vocab: int) -> NDArray[np.int64] | None:
        """Return the target's ids of the tokens that the head drafts, i64 [n_draft]; None: all, in their order.

        Raises:
            FormatError: they are not distinct ids of a vocabulary of ``n_vocab`` tokens.
        """
        if not self.has(DRAFT_IDS):
            return None
        info = self._file.tensors[DRAFT_IDS]
        self._described.add(DRAFT_IDS)
        if info.ggml_type is not GgmlType.I64 or len(info.shape) != 1 or not 1 <= info.shape[0] <= n_vocab:
            raise FormatError(
                f"{self._path}: tensor '{DRAFT_IDS}' is {info.ggml_type.name} {list(info.shape)},"
                f" expected I64 with at most {n_vocab} token ids"
            )
        ids = self._file.data(info).view("<i8").astype(np.int64)
        if ids.min() < 0 or ids.max() >= n_vocab or len(np.unique(ids)) < len(ids):
            raise FormatError(f"{self._path}: tensor '{DRAFT_IDS}' holds no distinct token ids of 0 to {n_vocab - 1}")
        return ids

    def matrix(self, name: str, n_out: int, n_in: int) -> Weight:
        """Describe a matrix, of the target if the file leaves it out.

        Raises:
            FormatError: it is missing, has another shape, or a type that cannot be a weight.
        """
        if name not in SHARED or self.has(name):
            return super().matrix(name, n_out, n_in)
        own_name = f"target.{name}"
        if self._target is None:
            return Weight(own_name, n_out, n_in, UNKNOWN)
        weight = _shared(self._target[0], name)
        if (weight.n_out, weight.n_in) != (n_out, n_in):
            raise FormatError(
                f"{self._path}: tensor '{name}' is missing, and the target's has shape {[weight.n_out, weight.n_in]},"
                f" expected {[n_out, n_in]}"
            )
        self._borrowed[own_name] = weight
        return replace(weight, name=own_name)

    def packed(self, weight: Weight) -> PackedTensor:
        """Return a matrix in the kernel layout; the target's whole one for some of its first rows."""
        if self._target is not None and weight.name in self._borrowed:
            return self._target[1].packed(self._borrowed[weight.name])
        return super().packed(weight)

    def table(self, weight: Weight) -> NDArray[np.uint8]:
        """Return a matrix as its file has it: u8 [n_out, bytes of a row]."""
        if self._target is not None and weight.name in self._borrowed:
            return self._target[1].table(self._borrowed[weight.name])
        return super().table(weight)


def _shared(program: Program, name: str) -> Weight:
    """Return the embeddings of a program, or its output matrix, which may be the same tensor."""
    if name == "output.weight":
        return output_matrix(program)
    return next(op.weights[0] for op in program.ops if op.kind == "embed")
