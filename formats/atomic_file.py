"""Write a large file whole or not at all.

The file has no name until it is complete (Linux, ``O_TMPFILE``): a process that is killed leaves nothing. Where
that cannot be done it has a hidden name beside its place, which the next writer of the same place clears away if
the process that wrote it is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from .errors import CapacityError, ConfigError

Data = bytes | npt.NDArray[np.uint8]


class AtomicFile:
    """A file that appears at ``path`` when it is complete.

    Args:
        path: where; an existing file there is replaced at the end.
        n_bytes: its size, if known: the free space of the disk is checked.

    Raises:
        ConfigError: the folder cannot be written to.
        CapacityError: the disk has too little space.
    """

    def __init__(self, path: Path, n_bytes: int = 0) -> None:
        self.path = path
        self._named: Path | None = None
        self._fd = -1
        _clear_leftovers(path)
        check_space(path, n_bytes)
        try:
            self._fd = self._open_nameless()
            if self._fd < 0:
                self._fd, name = tempfile.mkstemp(prefix=f"{_prefix(path)}{os.getpid()}.", dir=path.parent)
                self._named = Path(name)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def _open_nameless(self) -> int:
        flag = getattr(os, "O_TMPFILE", 0)
        if not flag or not Path("/proc/self/fd").is_dir():
            return -1
        try:
            return os.open(self.path.parent, flag | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOSPC):
                raise
            return -1  # a file system without it

    def write(self, data: Data) -> None:
        """Append bytes.

        Raises:
            CapacityError: the disk is full.
            ConfigError: the file cannot be written for another reason.
        """
        view = memoryview(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)
        try:
            while len(view):
                view = view[os.write(self._fd, view[: 1 << 30]) :]
        except OSError as error:
            raise self._failure(error) from None

    @property
    def unfinished_path(self) -> Path:
        """A name under which this process can read what was written so far."""
        return self._named if self._named is not None else Path(f"/proc/self/fd/{self._fd}")

    def overwrite(self, data: bytes) -> None:
        """Replace the file's first bytes.

        Raises:
            CapacityError: the disk is full.
            ConfigError: the file cannot be written for another reason.
        """
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], done)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> CapacityError | ConfigError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return CapacityError(f"{self.path}: the disk is full")
        return ConfigError(f"{self.path}: cannot be written: {error.strerror}")

    def finish(self) -> None:
        """Flush everything to the disk and give the file its name.

        Raises:
            CapacityError: the disk is full.
            ConfigError: the file cannot be written.
        """
        try:
            os.fsync(self._fd)
            if self._named is None:
                self._named = self._name_it()
            else:
                mask = os.umask(0)
                os.umask(mask)
                self._named.chmod(0o666 & ~mask)
            os.close(self._fd)
            self._fd = -1
            self._named.replace(self.path)
            self._named = None
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._failure(error) from None

    def _name_it(self) -> Path:
        """Link the nameless file to a hidden name, which can then replace a file."""
        # With a folder's descriptor Python calls linkat, which alone follows the link that /proc shows.
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for attempt in range(100):
                name = self.path.with_name(f"{_prefix(self.path)}{os.getpid()}.{attempt}")
                with contextlib.suppress(FileExistsError):
                    os.link(str(self._fd), name, src_dir_fd=folder, follow_symlinks=True)
                    return name
        finally:
            os.close(folder)
        raise FileExistsError(errno.EEXIST, "too many temporary files", str(self.path))

    def close(self) -> None:
        """Throw away what was written, unless it is finished."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._named is not None:
            self._named.unlink(missing_ok=True)
            self._named = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_space(path: Path, n_bytes: int) -> None:
    """Check that the disk of ``path`` has room for a file.

    Raises:
        CapacityError: it has not.
        ConfigError: the folder does not exist.
    """
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    if n_bytes > free:
        raise CapacityError(f"{path}: needs {n_bytes / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free")


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}.part-"


def _clear_leftovers(path: Path) -> None:
    """Delete hidden files of this place whose writers are gone."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        for leftover in path.parent.iterdir():
            if not leftover.name.startswith(_prefix(path)):
                continue
            writer = leftover.name.removeprefix(_prefix(path)).split(".")[0]
            if writer.isdigit() and not _is_running(int(writer)):
                leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not everywhere possible, and the file itself is safe
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
