"""Where a quantised file comes from: one contract for GGUF files and Hugging Face folders.

``GgufCheckpoint`` reads GGUF files of any type; ``quant/hf_checkpoint.py`` reads folders of safetensors. What is
done with the tensors is planned in ``quantize_plan.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Protocol

from ..formats.errors import FormatError, quote
from ..formats.ggml_types import BLOCK, GgmlType
from ..formats.gguf import GgufFile, TensorInfo
from ..formats.meta_value import MetaValue, read_values, text_of
from ..formats.record import Record
from .dequantize import DEQUANTIZERS, dequantize
from .floats import F32, U8


class SourceTensor(Record):
    """One tensor of a checkpoint; reading is safe from several threads at once.

    Attributes:
        name: as in GGUF, such as ``blk.0.attn_q.weight``.
        shape: slowest dimension first, 1 to 4 dimensions: a matrix is ``[n_out, n_in]``, a stack of them
            ``[n_mat, n_out, n_in]``. Rows run through the leading dimensions; a vector is one row.
        ggml_type: type of the stored values. ``quantize`` copies a tensor whose type is the wanted one
            where ``raw`` is given.
        rows: see ``read_rows``; arguments are in range.
        raw: see ``read_raw``; None where the values do not lie in GGML's layout.
        release: lets go of memory that reading has taken (pages of a mapping), where there is any.
        shard: number of the source's file that holds it, from 0 (for ``--keep-split``).
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType
    rows: Callable[[int, int], F32]
    raw: Callable[[], U8] | None = None
    release: Callable[[], None] | None = None
    shard: int = 0

    @property
    def n_rows(self) -> int:
        """Rows: the product of all dimensions but the last."""
        return prod(self.shape[:-1])

    @property
    def n_in(self) -> int:
        """Weights of a row."""
        return self.shape[-1]

    @property
    def n_weights(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def read_rows(self, start: int, stop: int) -> F32:
        """Return rows ``start`` to ``stop`` as f32 [stop - start, n_in], C-contiguous; do not write to it.

        Raises:
            FormatError: the file cannot be read any more, or the type is not one of weights.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows {start} to {stop} of {self.n_rows}")
        return self.rows(start, stop)

    def read_raw(self) -> U8 | None:
        """Return the stored blocks, u8 [n_rows, row_bytes] (perhaps a view of the file), or None without any.

        Raises:
            FormatError: the file cannot be read any more.
        """
        return None if self.raw is None else self.raw()


class Checkpoint(Protocol):
    """A model to quantise.

    Attributes:
        path: the file or folder, for messages and names.
        architecture: ``general.architecture`` of the result.
        metadata: as it will be written, in order; ``general.file_type`` and ``general.quantization_version`` are
            set by the writer, ``split.*`` too.
        tensors: in the order of the result.
        notes: lines that the user should read (what could not be carried over exactly, what was guessed).
    """

    path: Path
    architecture: str
    metadata: dict[str, MetaValue]
    tensors: list[SourceTensor]
    notes: list[str]

    def close(self) -> None:
        """Let go of all files; tensors cannot be read any more."""


class GgufCheckpoint:
    """A GGUF file of any type as a source; see ``Checkpoint``."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self.path = file.path
        self.metadata = {k: v for k, v in read_values(file.metadata).items() if not k.startswith("split.")}
        self.architecture = text_of(self.metadata, "general.architecture", file.path)
        self.tensors = [_source_tensor(file, info) for info in file.tensors.values()]
        self.notes: list[str] = []

    @classmethod
    def open(cls, path: str | Path) -> GgufCheckpoint:
        """Open a file, or all files of a split model.

        Raises:
            FormatError: it is not a GGUF model, damaged, or has no architecture.
        """
        file = GgufFile.open(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _source_tensor(file: GgufFile, info: TensorInfo) -> SourceTensor:
    n_weight, n_byte = BLOCK[info.ggml_type]
    n_rows, n_row_bytes = prod(info.shape[:-1]), info.shape[-1] // n_weight * n_byte

    def raw() -> U8:
        return file.data(info).reshape(n_rows, n_row_bytes)

    def rows(start: int, stop: int) -> F32:
        if info.ggml_type not in DEQUANTIZERS:
            raise FormatError(f"{file.path}: tensor {quote(info.name)} of type {info.ggml_type.name} holds no weights")
        return dequantize(info.ggml_type, raw()[start:stop])

    def release() -> None:
        file.release(info)

    return SourceTensor(info.name, info.shape, info.ggml_type, rows, raw, release, info.shard)
