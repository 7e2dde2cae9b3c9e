"""Write a GGUF file, tensor after tensor, never holding more than the caller gives at once.

The layout is in ``gguf_header.py``. Everything is written in version 3, little endian. (The ``gguf`` package's writer
would do the same, but wants whole tensors, and turns every string of a vocabulary into an object of its own.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .atomic_file import AtomicFile, Data
from .errors import ConfigError, quote
from .ggml_types import GgmlType, row_bytes
from .gguf_header import DEFAULT_ALIGNMENT, MAX_DIMS, MAX_NAME_BYTES
from .meta_value import MetaValue, Text
from .metadata import DTYPE, ValueType
from .record import Record

VERSION = 3
_MAX_NAME = min(MAX_NAME_BYTES, 63)  # GGML_MAX_NAME, with the zero at its end


class TensorEntry(Record):
    """One tensor of a file to be written.

    Attributes:
        name: unique in the file.
        shape: slowest dimension first.
        ggml_type: of its elements.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType

    @property
    def n_bytes(self) -> int:
        """Size of the data."""
        return prod(self.shape[:-1]) * row_bytes(self.ggml_type, self.shape[-1])


class GgufWriter:
    """A file that appears under its name when ``finish`` is called, and never otherwise.

    Args:
        path: the file.
        metadata: in order; ``general.alignment`` is left out, the default is used.
        tensors: in the order in which their data will be written.

    Raises:
        ConfigError: the file cannot be written, or a name is too long.
        CapacityError: the disk has too little space.
    """

    def __init__(self, path: Path, metadata: Mapping[str, MetaValue], tensors: Sequence[TensorEntry]) -> None:
        self._tensors = list(tensors)
        header = header_bytes(metadata, self._tensors, path)
        self._path, self._header_bytes = path, len(header)
        self._file = AtomicFile(path, len(header) + sum(_padded(t.n_bytes) for t in tensors))
        self._index, self._n_written = 0, 0
        try:
            self._file.write(header)
        except BaseException:
            self._file.close()
            raise

    def write(self, data: Data) -> None:
        """Write the next bytes of the current tensor; a tensor may come in pieces, but no piece belongs to two."""
        n_left = self._tensors[self._index].n_bytes - self._n_written
        if len(data) > n_left:
            raise ValueError(f"{len(data)} bytes for {self._tensors[self._index].name}, which lacks {n_left}")
        self._file.write(data)
        self._n_written += len(data)
        while self._index < len(self._tensors) and self._n_written == self._tensors[self._index].n_bytes:
            self._file.write(bytes(_padded(self._n_written) - self._n_written))
            self._index, self._n_written = self._index + 1, 0

    @property
    def unfinished_path(self) -> Path:
        """A name under which this process can open the file before it is finished, when all tensors are written."""
        return self._file.unfinished_path

    def replace_metadata(self, metadata: Mapping[str, MetaValue]) -> None:
        """Put other values in place of the metadata; together they must have the same size.

        Raises:
            ConfigError: the file cannot be written.
        """
        header = header_bytes(metadata, self._tensors, self._path)
        if len(header) != self._header_bytes:
            raise ValueError(f"metadata of {len(header)} bytes in place of {self._header_bytes}")
        self._file.overwrite(header)

    def finish(self) -> None:
        """Flush the file to the disk and give it its name.

        Raises:
            ConfigError: it cannot be written.
            CapacityError: the disk is full.
        """
        if self._index != len(self._tensors):
            raise ValueError(f"the data of {self._tensors[self._index].name} is not complete")
        self._file.finish()

    def close(self) -> None:
        """Throw away an unfinished file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def header_bytes(metadata: Mapping[str, MetaValue], tensors: Sequence[TensorEntry], path: Path) -> bytes:
    """Return everything before the data, padded.

    Raises:
        ConfigError: a tensor's name is too long or it has too many dimensions.
    """
    values = {key: value for key, value in metadata.items() if key != "general.alignment"}
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(values))]
    for key, value in values.items():
        parts += [_text(key), _value(value)]
    offset = 0
    for t in tensors:
        if len(t.name.encode()) > _MAX_NAME or not 1 <= len(t.shape) <= MAX_DIMS:
            raise ConfigError(
                f"{path}: tensor {quote(t.name)} of {len(t.shape)} dimensions cannot be written, "
                f"expected a name of at most {_MAX_NAME} bytes and 1 to {MAX_DIMS} dimensions"
            )
        parts.append(_text(t.name))
        parts.append(struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *reversed(t.shape), t.ggml_type, offset))
        offset += _padded(t.n_bytes)
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(text: Text) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(value: MetaValue) -> bytes:
    kind = struct.pack("<I", value.value_type)
    if not value.is_array:
        return kind + _scalar(value.value_type, value.value)
    items: Any = value.value
    head = struct.pack("<IIQ", ValueType.ARR, value.value_type, len(items))
    if value.value_type is ValueType.STR:
        return head + b"".join(_text(text) for text in items)
    return head + np.ascontiguousarray(items, DTYPE[value.value_type]).tobytes()


def _scalar(value_type: ValueType, value: Any) -> bytes:
    return _text(value) if value_type is ValueType.STR else np.array(value, DTYPE[value_type]).tobytes()
