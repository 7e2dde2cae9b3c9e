"""A checkpoint that can be run: its tensors, and its metadata as the model files read it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...formats.gguf import GgufFile
from ...formats.gguf_writer import header_bytes
from ...formats.metadata import Metadata
from ...formats.record import Record
from ...quant.checkpoint import Checkpoint, GgufCheckpoint, SourceTensor


class ModelSource(Record):
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
def described(checkpoint: Checkpoint) -> Iterator[ModelSource]:
    """Run an opened checkpoint of any kind; it stays open.

    Raises:
        FormatError: its metadata are damaged.
    """
    with tempfile.TemporaryDirectory(prefix="llmrun-") as folder:
        path = Path(folder) / "metadata.gguf"  # what reads a model's metadata reads them from such a file
        path.write_bytes(header_bytes(checkpoint.metadata, [], path))
        with GgufFile.open(path) as file:
            file.metadata.path = checkpoint.path  # for messages
            yield ModelSource.of(checkpoint, file.metadata)


@contextmanager
def open_checkpoint(checkpoint: Checkpoint) -> Iterator[ModelSource]:
    """Run an opened checkpoint of any kind, closed at the end of the ``with`` block; raises like ``described``."""
    try:
        with described(checkpoint) as source:
            yield source
    finally:
        checkpoint.close()


@contextmanager
def open_gguf(path: Path) -> Iterator[ModelSource]:
    """Open a GGUF file, closed at the end of the ``with`` block.

    Raises:
        FormatError: it is not a GGUF model, damaged, or has no architecture.
    """
    with GgufFile.open(path) as file:
        yield ModelSource.of(GgufCheckpoint(file), file.metadata)
