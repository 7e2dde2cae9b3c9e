"""One regular file, read by position or through a mapping; never written.

Knows nothing of formats. ``gguf.py`` holds one of these per split file.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import FormatError

Bytes = npt.NDArray[np.uint8]

# A fifo without a writer blocks an ordinary open for ever; Windows would translate line ends in a text file.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)

FETCH_BYTES = 1 << 20  # read at a time


class ByteFile:
    """An open file whose size is fixed at ``open``; every read is checked against it.

    Safe to use from several threads.

    Attributes:
        path: as given.
        size: bytes, at the time of ``open``.
    """

    path: Path
    size: int

    def __init__(self, path: Path, fd: int, status: os.stat_result) -> None:
        self.path = path
        self.size = status.st_size
        self._mtime_ns = status.st_mtime_ns
        self._fd = fd
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._view: Bytes | None = None  # [size], over the mapping

    @classmethod
    def open(cls, path: Path, *, use_mmap: bool = True) -> ByteFile:
        """Open ``path``.

        Args:
            path: a regular file that is not empty.
            use_mmap: map the file, so that ``array`` returns views. A mapped file that another program
                truncates kills the process with SIGBUS at the next access; without, it is a ``FormatError``.

        Raises:
            FormatError: the file is missing, not readable, not regular, empty or cannot be mapped.
        """
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before open: opening a device can have effects
                raise FormatError(f"{path}: not a regular file")
            fd = os.open(path, _OPEN_FLAGS)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise FormatError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{path}: not a regular file")
            if status.st_size == 0:
                raise FormatError(f"{path}: the file is empty")
            file = cls(path, fd, status)
            if use_mmap:
                file._map_all()
        except BaseException:
            os.close(fd)
            raise
        return file

    def _map_all(self) -> None:
        try:
            self._map = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            raise FormatError(f"{self.path}: cannot be mapped: {error}. Try --no-mmap") from None
        self._view = np.frombuffer(self._map, np.uint8)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return a copy of ``n_bytes`` bytes at ``offset``, without touching the mapping.

        Raises:
            FormatError: the range is not inside the file, or the file has become shorter.
        """
        return self._read_new(offset, n_bytes).tobytes() if n_bytes else b""

    def array(self, offset: int, n_bytes: int) -> Bytes:
        """Return ``n_bytes`` bytes at ``offset``: a read-only view when mapped, a fresh array otherwise.

        Raises:
            FormatError: the range is not inside the file, or (not mapped) the file has become shorter.
        """
        if self._view is None:
            return self._read_new(offset, n_bytes)
        self._check_range(offset, n_bytes)
        return self._view[offset : offset + n_bytes]

    def _check_range(self, offset: int, n_bytes: int) -> None:
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size:
            raise FormatError(f"{self.path}: {n_bytes} bytes at offset {offset} are outside the file of {self.size}")

    def _read_new(self, offset: int, n_bytes: int) -> Bytes:
        self._check_range(offset, n_bytes)
        out = np.empty(n_bytes, np.uint8)  # [n_bytes]
        view, done = out.data, 0
        while done < n_bytes:  # one call may read less, at most 2 GiB on Linux
            try:
                n_read = self._read_into(view[done : done + (1 << 30)], offset + done)
            except OSError as error:
                raise FormatError(f"{self.path}: cannot be read: {error.strerror}") from None
            if n_read == 0:
                raise FormatError(
                    f"{self.path}: the file ended at byte {offset + done}, it had {self.size} when opened"
                )
            done += n_read
        return out

    def _read_into(self, view: memoryview, offset: int) -> int:
        if self._fd < 0:
            raise ValueError(f"{self.path} is closed")
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [view], offset)
        with self._lock:  # Windows: the position belongs to the file, not to the call
            os.lseek(self._fd, offset, os.SEEK_SET)
            piece = os.read(self._fd, min(len(view), 1 << 24))
        view[: len(piece)] = piece
        return len(piece)

    def release(self, offset: int, n_bytes: int) -> None:
        """Drop the resident pages of a range of the mapping; they come back from the file when touched.

        Does nothing where there is no mapping or no ``madvise`` (Windows).
        """
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if self._map is None or advice is None:
            return
        self._check_range(offset, n_bytes)
        start = offset - offset % mmap.PAGESIZE
        stop = min(offset + n_bytes, self.size)
        if stop > start:
            self._map.madvise(advice, start, stop - start)

    def fetch(self, offset: int, n_bytes: int) -> None:
        """Let the system read a range of the mapped file into its cache: who touches it later does not wait for a disk.

        Takes as long as the disk does, about a microsecond a MB where the range is cached, and on macOS no time: there
        the system is only asked. Ends early when the file is closed or cannot be read. Makes no page resident. Does
        nothing without a mapping, on Windows, and on file systems that do not tell what is cached.
        """
        self._check_range(offset, n_bytes)
        start, stop = offset - offset % FETCH_BYTES, offset + n_bytes
        with self._lock:
            if self._map is None:
                return
            if not hasattr(os, "RWF_NOWAIT"):
                if hasattr(mmap, "MADV_WILLNEED"):  # Linux would read no more than it reads ahead
                    self._map.madvise(mmap.MADV_WILLNEED, start, stop - start)
                return
            fd = os.dup(self._fd)  # its own: ``close`` does not wait
        pieces = range(start, stop, FETCH_BYTES)
        buffer = bytearray(FETCH_BYTES)
        try:
            if not all(_is_cached(fd, piece) for piece in pieces):
                for piece in pieces:
                    if self._fd < 0:
                        break
                    os.preadv(fd, [buffer], piece)
        except OSError:
            pass  # who needs it will say so
        finally:
            os.close(fd)

    @property
    def is_mapped(self) -> bool:
        """Whether ``array`` returns views of the file, not of a copy."""
        return self._map is not None

    def check_unchanged(self) -> None:
        """Check that the open file still has the size and modification time that it had at ``open``.

        Raises:
            FormatError: another program has changed it.
        """
        status = os.fstat(self._fd)
        if status.st_size != self.size:
            raise FormatError(
                f"{self.path}: the file changed while it was open, expected {self.size} bytes, got {status.st_size}"
            )
        if status.st_mtime_ns != self._mtime_ns:
            raise FormatError(f"{self.path}: the file was written to while it was open")

    def close(self) -> None:
        """Close the file. Views that ``array`` returned stay valid: the mapping ends with the last of them."""
        with self._lock:
            if self._fd < 0:
                return
            os.close(self._fd)
            mapping, self._fd, self._view, self._map = self._map, -1, None, None
        if mapping is not None:
            try:
                mapping.close()
            except BufferError:  # views are still in use
                return


def _is_cached(fd: int, offset: int) -> bool:
    """Return whether a byte of a file can be read without waiting.

    Raises:
        OSError: the file system does not tell.
    """
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
