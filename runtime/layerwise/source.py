"""A checkpoint that can be run: its tensors, and its metadata as the model files read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...formats.gguf import GgufFile
from ...formats.metadata import Metadata
from ...quant.checkpoint import Checkpoint, GgufCheckpoint, SourceTensor


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a runner reads.

    Attributes:
        path: for messages.
        metadata: in GGUF's keys.
        tensors: by name.
    """

    path: Path
    metadata: Metadata
    tensors: dict[str, SourceTensor]

    @classmethod
    def of(cls, checkpoint: Checkpoint, metadata: Metadata) -> ModelSource:
        """Return a checkpoint's tensors beside its metadata."""
        return cls(checkpoint.path, metadata, {t.name: t for t in checkpoint.tensors})


@contextmanager
def open_source(path: Path) -> Iterator[ModelSource]:
    """Open a model of any format, closed at the end of the ``with`` block.

    Raises:
        FormatError: it is no model, or damaged.
    """
    with open_gguf(path) as source:
        yield source


@contextmanager
def open_gguf(path: Path) -> Iterator[ModelSource]:
    """Open a GGUF file, closed at the end of the ``with`` block.

    Raises:
        FormatError: it is not a GGUF model, damaged, or has no architecture.
    """
    with GgufFile.open(path) as file:
        yield ModelSource.of(GgufCheckpoint(file), file.metadata)
