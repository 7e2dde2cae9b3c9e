"""Finished tensors of a calibration: in a nameless temporary file, or in a journal that a later run goes on from.

=================  ==========================================================================================
first line         ``MAGIC`` and a key: what the tensors depend on (source, types, method, text), hashed
for each tensor    a line of JSON (``name``, ``type``, ``shape`` of the blocks, ``crc`` of them), then the blocks
for each step      a line of JSON (``step``): the tensors since the last such line belong together and are all there
=================  ==========================================================================================

What comes after the last complete step is cut off when a journal is opened; one with another key is begun anew.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from ..formats.errors import CapacityError, ConfigError
from ..formats.ggml_types import GgmlType
from ..formats.record import Record
from ..quant.floats import U8

MAGIC = "llmrun calibration 1"
MAX_LINE = 4096
CHECK_BYTES = 1 << 24


class KeptTensor(Record):
    """A finished tensor: its type, and what reads its blocks, u8 [n_row, row_bytes]."""

    name: str
    ggml_type: GgmlType
    raw: Callable[[], U8]


class BlockStore:
    """Blocks of tensors, kept in steps.

    Args:
        journal: a file that outlives the process; None: a temporary file without a name.
        key: of the journal.
        folder: of the temporary file; None: the system's.

    Raises:
        CapacityError: the file cannot be made.
        ConfigError: another process has the journal open.
    """

    def __init__(self, journal: Path | None = None, key: str = "", folder: Path | None = None) -> None:
        self._journal, self._where = journal, journal or folder or Path(tempfile.gettempdir())
        self.finished: dict[str, list[KeptTensor]] = {}
        self._open_step: list[KeptTensor] = []
        try:
            self._file: IO[bytes] = (
                tempfile.TemporaryFile(dir=folder) if journal is None else _open_locked(journal)  # noqa: SIM115
            )
        except BlockingIOError:
            raise ConfigError(f"{journal}: another llmrun is calibrating for the same file") from None
        except OSError as error:
            raise CapacityError(f"{self._where}: no file for finished tensors: {error.strerror}") from None
        head = f"{MAGIC} {key}\n".encode()
        if self._file.readline(MAX_LINE) == head:
            self._read_steps()
        else:
            self._file.seek(0)
            self._file.truncate()
            self._put(head)

    def _read_steps(self) -> None:
        end = self._file.tell()
        step: list[KeptTensor] = []
        while (line := self._file.readline(MAX_LINE)).endswith(b"\n"):
            try:
                record = json.loads(line)
                if "step" in record:
                    self.finished[str(record["step"])], step = step, []
                    end = self._file.tell()
                    continue
                kind, (n_row, n_byte) = GgmlType[record["type"]], record["shape"]
                start, size = self._file.tell(), int(n_row) * int(n_byte)
                if self._checksum(size) != record["crc"]:
                    break
                step.append(KeptTensor(str(record["name"]), kind, self._reader(start, (int(n_row), int(n_byte)))))
            except (ValueError, KeyError, TypeError):
                break
        self._file.seek(end)
        self._file.truncate()

    def _checksum(self, size: int) -> int | None:
        """Return the checksum of the next bytes, None where there are fewer."""
        crc = 0
        while size > 0:
            data = self._file.read(min(size, CHECK_BYTES))
            if not data:
                return None
            crc, size = zlib.crc32(data, crc), size - len(data)
        return crc

    def append(self, name: str, kind: GgmlType, blocks: U8) -> KeptTensor:
        """Keep blocks u8 [n_row, row_bytes] of a tensor.

        Raises:
            CapacityError: the disk is full.
        """
        data = np.ascontiguousarray(blocks)
        line = {"name": name, "type": kind.name, "shape": list(data.shape), "crc": zlib.crc32(data.data)}
        self._put(json.dumps(line).encode() + b"\n")
        start = self._file.tell()
        self._put(data.data)
        kept = KeptTensor(name, kind, self._reader(start, data.shape))
        self._open_step.append(kept)
        return kept

    def commit(self, step: str) -> None:
        """Say that all tensors of a step are there.

        Raises:
            CapacityError: the disk is full.
        """
        self._put(json.dumps({"step": step}).encode() + b"\n")
        if self._journal is not None:
            os.fsync(self._file.fileno())
        self.finished[step], self._open_step = self._open_step, []

    def _put(self, data: bytes | memoryview) -> None:
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise CapacityError(f"{self._where}: finished tensors cannot be kept: {error.strerror}") from None

    def _reader(self, start: int, shape: tuple[int, ...]) -> Callable[[], U8]:
        return lambda: np.memmap(self._file, np.uint8, "r", start, shape)

    def close(self, *, is_done: bool = True) -> None:
        """Close the file; the tensors cannot be read any more.

        Args:
            is_done: a journal is not needed any more. One without a complete step is removed anyway.
        """
        if self._journal is not None and not self._file.closed and (is_done or not self.finished):
            self._journal.unlink(missing_ok=True)
        self._file.close()


def _open_locked(path: Path) -> IO[bytes]:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600), "r+b")
    if sys.platform == "win32":  # no advisory locks in the standard library
        return file
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:  # a file system without locks
        pass
    return file
