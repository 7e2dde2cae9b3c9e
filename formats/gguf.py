"""Open a GGUF model, in one file or split over several.

Reading is lazy: ``GgufFile.open`` reads the header, tensors are views of the mapped file until
someone touches them. ``gguf_header.py`` reads and checks one header, ``metadata.py`` gives out its values.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from .byte_file import ByteFile, Bytes
from .errors import FormatError, quote
from .gguf_header import Header, TensorInfo, read_header
from .metadata import Metadata

__all__ = ["GgufFile", "TensorInfo"]

MAX_SHARDS = 1 << 10

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class GgufFile:
    """A model in GGUF format, version 2 or 3.

    Attributes:
        path: the file; the first one of a split model, whichever was given.
        version: of the format.
        metadata: of the first file; a split model keeps its metadata there.
        tensors: by name, in the order of the files.
        n_bytes: size of all files together.
    """

    path: Path
    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    n_bytes: int

    def __init__(self, files: list[ByteFile], headers: list[Header]) -> None:
        self.path = files[0].path
        self.version = headers[0].version
        self.metadata = Metadata(files[0], headers[0].entries)
        self.n_bytes = sum(file.size for file in files)
        self.tensors = _merge_tensors(files, headers)
        self._files = files

    @classmethod
    def open(cls, path: str | Path, *, use_mmap: bool = True) -> GgufFile:
        """Open a model and check everything in its header, and in those of its other files.

        Args:
            path: a GGUF file; any ``-00001-of-000NN.gguf`` file of a split model stands for all of it.
            use_mmap: map the files. A mapped file that another program truncates kills the process
                (SIGBUS) at the next access; without, tensors are read into fresh arrays.

        Raises:
            FormatError: a file is missing, not readable, not GGUF, damaged, or does not belong to the others.
        """
        path = Path(path)
        with ExitStack() as on_error:
            file = _open(path, use_mmap, on_error)
            header = read_header(file, 0)
            count = _split_value(file, header, "split.count", default=1)
            if count <= 1:
                files, headers = [file], [header]
            else:
                files, headers = _open_shards(file, header, count, use_mmap, on_error)
            model = cls(files, headers)
            on_error.pop_all()
        return model

    def tensor(self, name: str) -> TensorInfo:
        """Return one tensor's place.

        Raises:
            FormatError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise FormatError(f"{self.path}: tensor {quote(name)} is missing") from None

    def data(self, info: TensorInfo, start: int = 0, stop: int | None = None) -> Bytes:
        """Return the bytes of a tensor, or some of them: u8, a read-only view when mapped, a fresh array otherwise.

        A view starts at a multiple of the file's alignment, no more.

        Raises:
            FormatError: the file cannot be read any more.
        """
        stop = info.n_bytes if stop is None else stop
        if not 0 <= start <= stop <= info.n_bytes:
            raise ValueError(f"bytes {start} to {stop} of a tensor of {info.n_bytes}")
        return self._files[info.shard].array(info.offset + start, stop - start)

    def release(self, info: TensorInfo, start: int = 0, stop: int | None = None) -> None:
        """Drop the resident pages of some bytes of a tensor, or of all; they come back from the file when touched.

        Does nothing on Windows.
        """
        self._files[info.shard].release(info.offset + start, (info.n_bytes if stop is None else stop) - start)

    def fetch(self, info: TensorInfo) -> None:
        """Let the system read a tensor of a mapped file into its cache, without making it resident; waits for that."""
        self._files[info.shard].fetch(info.offset, info.n_bytes)

    def check_unchanged(self) -> None:
        """Check that no file has changed since ``open``; call it before touching mapped data after a pause.

        Raises:
            FormatError: a file has another size or modification time.
        """
        for file in self._files:
            file.check_unchanged()

    def check_mapped(self) -> None:
        """Check likewise those files that are mapped: reading what was cut off would kill the process (SIGBUS).

        Raises:
            FormatError: a file has another size or modification time.
        """
        for file in self._files:
            if file.is_mapped:
                file.check_unchanged()

    def close(self) -> None:
        """Close all files. Arrays that ``data`` returned stay valid; metadata that was not read yet does not."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path, use_mmap: bool, on_error: ExitStack) -> ByteFile:
    file = ByteFile.open(path, use_mmap=use_mmap)
    on_error.callback(file.close)
    return file


def _split_value(file: ByteFile, header: Header, key: str, default: int | None = None) -> int:
    metadata = Metadata(file, header.entries)
    value = metadata.required(key, int) if default is None else metadata.optional(key, int, default)
    if value < 0:
        raise FormatError(f"{file.path}: {key} is {value}, expected no negative number")
    return value


def _open_shards(
    file: ByteFile, header: Header, count: int, use_mmap: bool, on_error: ExitStack
) -> tuple[list[ByteFile], list[Header]]:
    """Open the other files of a split model; ``file`` is any one of them."""
    given = file.path
    if count > MAX_SHARDS:
        raise FormatError(f"{given}: split.count is {count}, expected at most {MAX_SHARDS}")
    match = _SHARD_NAME.fullmatch(given.name)
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"{given}: one of the {count} files of a split model, expected a name that ends in "
            f"-00001-of-{count:05d}.gguf. Give the files their original names"
        )
    given_index = int(match["number"]) - 1
    if not 0 <= given_index < count:
        raise FormatError(f"{given}: the name says file {given_index + 1} of {count}")
    files: list[ByteFile] = []
    headers: list[Header] = []
    for i in range(count):  # by name, one after the other: files cannot refer to each other, so no cycles
        path = given.with_name(f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf")
        if i == given_index:
            part, part_header = file, read_header(file, i) if i else header
        else:
            if not path.exists():
                raise FormatError(f"{path}: missing, file {i + 1} of {count} of a split model")
            part = _open(path, use_mmap, on_error)
            part_header = read_header(part, i)
        _check_shard(part, part_header, i, count)
        files.append(part)
        headers.append(part_header)
    expected = _split_value(files[0], headers[0], "split.tensors.count")
    n_tensor = sum(len(h.tensors) for h in headers)
    if n_tensor != expected:
        raise FormatError(f"{files[0].path}: the {count} files hold {n_tensor} tensors, expected {expected}")
    return files, headers


def _check_shard(file: ByteFile, header: Header, index: int, count: int) -> None:
    """Check that a file is the one that its name says (a copy or a link of another one is not)."""
    actual_count = _split_value(file, header, "split.count")
    actual_index = _split_value(file, header, "split.no")
    if (actual_index, actual_count) != (index, count):
        raise FormatError(
            f"{file.path}: holds file {actual_index + 1} of {actual_count}, expected file {index + 1} of {count}"
        )


def _merge_tensors(files: list[ByteFile], headers: list[Header]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file, header in zip(files, headers, strict=True):
        for t in header.tensors:
            if t.name in tensors:
                raise FormatError(f"{file.path}: tensor {quote(t.name)} is also in {files[tensors[t.name].shard].path}")
            tensors[t.name] = t
    return tensors
