"""Read and write files of importance matrices: llama.cpp's GGUF layout and its older ``.dat`` layout.

GGUF: ``general.type`` "imatrix", ``imatrix.datasets`` (strings), ``imatrix.chunk_count`` and ``imatrix.chunk_size``
(u32), and for every matrix NAME two tensors of F32: ``NAME.in_sum2 [n_mat, n_in]``, the sums of squared activations
by input column, and ``NAME.counts [n_mat, 1]``, the rows that were summed (n_mat: experts; left out where it is 1).

``.dat``, little-endian, nothing between the parts:

==========================  ==================================================================
i32 n_entry                 then for each matrix:
i32 n, n bytes              its name
i32 n_call                  chunks
i32 n_value, f32 [n_value]  mean of the squared activations, times ``n_call``
==========================  ==================================================================

and at the end i32 chunks, i32 n, n bytes: the text file's name (this part may be missing).

Source: llama.cpp, tools/imatrix/imatrix.cpp (save_imatrix, save_imatrix_legacy), common/imatrix-loader.cpp.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .atomic_file import AtomicFile
from .errors import ConfigError, FormatError, quote
from .ggml_types import GgmlType
from .gguf import GgufFile
from .gguf_writer import GgufWriter, TensorEntry
from .meta_value import MetaValue
from .record import Record, field

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_ENTRIES = 1 << 17
MAX_FILE_BYTES = 1 << 32
MAX_NAME_BYTES = 1 << 10


class ImatrixFile(Record, kw_only=True, frozen=False):
    """What such a file holds.

    Attributes:
        sums: by matrix, sums of squares, f32 [n_mat, n_in]; in ``.dat`` files their mean times the chunks.
        counts: by matrix, rows that were summed, i64 [n_mat]; in ``.dat`` files the chunks.
        chunk_size: tokens of a chunk; 0 where the file does not say (``.dat``).
        n_chunk: chunks that were measured.
        datasets: names of the texts.
        is_legacy: whether it is a ``.dat`` file.
    """

    sums: dict[str, F32] = field(default_factory=dict)
    counts: dict[str, I64] = field(default_factory=dict)
    chunk_size: int = 0
    n_chunk: int = 0
    datasets: list[str] = field(default_factory=list)
    is_legacy: bool = False


def read_imatrix(path: Path) -> ImatrixFile:
    """Read a file of either layout, and check every value.

    Raises:
        FormatError: it cannot be read, is damaged, or holds no importance matrix.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    result = _read_gguf(path) if is_gguf else _read_dat(path)
    if not result.sums:
        raise FormatError(f"{path}: holds no importance matrix")
    for name, sums in result.sums.items():
        if not (np.isfinite(sums).all() and (sums >= 0).all() and (result.counts[name] >= 0).all()):
            raise FormatError(f"{path}: entry {quote(name)} holds values that no sum of squares can have")
    return result


def _read_gguf(path: Path) -> ImatrixFile:
    result = ImatrixFile()
    with GgufFile.open(path, use_mmap=False) as file:
        meta = file.metadata
        missing = [k for k in ("datasets", "chunk_count", "chunk_size") if f"imatrix.{k}" not in meta]
        if missing:
            raise FormatError(f"{path}: metadata key 'imatrix.{missing[0]}' is missing: no importance matrix")
        result.datasets = list(meta.strings("imatrix.datasets")) if meta.count("imatrix.datasets") else []
        result.n_chunk = meta.required("imatrix.chunk_count", int)
        result.chunk_size = meta.required("imatrix.chunk_size", int)
        for key, info in file.tensors.items():
            name = key.removesuffix(SUMS)
            if name == key:
                continue
            counts_info = file.tensors.get(name + COUNTS)
            if counts_info is None:
                raise FormatError(f"{path}: tensor {quote(name + COUNTS)} is missing")
            if info.ggml_type is not GgmlType.F32 or counts_info.ggml_type is not GgmlType.F32:
                raise FormatError(f"{path}: entry {quote(name)} has other types than F32")
            counts = file.data(counts_info).view("<f4")
            if not (np.isfinite(counts).all() and (np.abs(counts) < 2**62).all()):
                raise FormatError(f"{path}: entry {quote(name)} holds counts that are no numbers")
            sums = file.data(info).view("<f4")
            if not len(counts) or len(sums) % len(counts):
                raise FormatError(f"{path}: entry {quote(name)} has {len(sums)} sums for {len(counts)} counts")
            result.sums[name] = sums.reshape(len(counts), -1).astype(np.float32)
            result.counts[name] = np.rint(counts).astype(np.int64)
    return result


class _Reader:
    """Takes values off the front of a file's bytes."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self.at = path, data, 0

    def take(self, n: int) -> bytes:
        if not 0 <= n <= len(self._data) - self.at:
            raise FormatError(
                f"{self._path}: ends within an entry, at byte {self.at}: expected {n} more bytes. "
                "No importance matrix, or a damaged one"
            )
        self.at += n
        return self._data[self.at - n : self.at]

    def i32(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def text(self) -> str:
        n = self.i32()
        if not 0 <= n <= MAX_NAME_BYTES:
            raise FormatError(f"{self._path}: a name of {n} bytes, expected at most {MAX_NAME_BYTES}")
        return self.take(n).decode(errors="replace")

    @property
    def is_at_end(self) -> bool:
        return self.at == len(self._data)


def _read_dat(path: Path) -> ImatrixFile:
    n_byte = path.stat().st_size
    if n_byte > MAX_FILE_BYTES:
        raise FormatError(f"{path}: {n_byte} bytes, expected at most {MAX_FILE_BYTES} in an importance matrix")
    reader, result = _Reader(path, path.read_bytes()), ImatrixFile(is_legacy=True)
    n_entry = reader.i32()
    if not 1 <= n_entry <= MAX_ENTRIES:
        raise FormatError(f"{path}: starts with {n_entry}, expected 1 to {MAX_ENTRIES} entries: no importance matrix")
    for _ in range(n_entry):
        name, n_call, n_value = reader.text(), reader.i32(), reader.i32()
        if n_value < 1:
            raise FormatError(f"{path}: entry {quote(name)} has {n_value} values, expected at least 1")
        values = np.frombuffer(reader.take(4 * n_value), "<f4").astype(np.float32)
        result.sums[name] = values.reshape(1, -1)
        result.counts[name] = np.array([n_call], np.int64)
    if not reader.is_at_end:
        result.n_chunk = reader.i32()
        if not reader.is_at_end:
            result.datasets = [reader.text()]
    return result


def write_gguf(path: Path, content: ImatrixFile) -> None:
    """Write the GGUF layout, the whole file or nothing.

    Raises:
        ConfigError: the file cannot be written.
    """
    metadata = {
        "general.type": MetaValue.text("imatrix"),
        "imatrix.datasets": MetaValue.texts(content.datasets or [""]),
        "imatrix.chunk_count": MetaValue.u32(content.n_chunk),
        "imatrix.chunk_size": MetaValue.u32(content.chunk_size),
    }
    tensors: dict[str, F32] = {}
    for name in sorted(content.sums):
        sums, counts = content.sums[name].astype(np.float32), content.counts[name].astype(np.float32)
        is_single = len(counts) == 1  # one dimension is enough then
        tensors[name + SUMS] = sums[0] if is_single else sums
        tensors[name + COUNTS] = counts if is_single else counts.reshape(-1, 1)
    entries = [TensorEntry(name, values.shape, GgmlType.F32) for name, values in tensors.items()]
    with GgufWriter(path, metadata, entries) as writer:
        for values in tensors.values():
            writer.write(np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(-1))
        writer.finish()


def write_dat(path: Path, content: ImatrixFile) -> None:
    """Write the older layout, the whole file or nothing.

    Raises:
        ConfigError: the file cannot be written, or the chunks' size is not known.
    """
    if content.chunk_size < 1:
        raise ConfigError(f"{path}: the size of the chunks is not known, which this layout needs")
    parts = [struct.pack("<i", len(content.sums))]
    for name in sorted(content.sums):
        counts = content.counts[name]
        n_call = -(-int(counts.max()) // content.chunk_size)
        rows = np.maximum(counts, 1).astype(np.float32)[:, None]  # f32 throughout: the same bits as llama.cpp's
        means = np.where(counts[:, None] > 0, content.sums[name] / rows, np.float32(1))
        values = (means * np.float32(n_call)).astype("<f4").reshape(-1)
        raw = name.encode()
        parts.append(struct.pack(f"<i{len(raw)}sii", len(raw), raw, n_call, len(values)) + values.tobytes())
    dataset = (content.datasets[-1] if content.datasets else "").encode()
    parts.append(struct.pack(f"<ii{len(dataset)}s", content.n_chunk, len(dataset), dataset))
    with AtomicFile(path) as file:
        file.write(b"".join(parts))
        file.finish()
