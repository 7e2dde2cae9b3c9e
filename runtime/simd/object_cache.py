"""Where compiled kernels lie: beside the package (wheels), in the user's cache folder, or nowhere.

A wheel carries objects under ``runtime/objects/<hash of all sources>/<target>/<kernel>.o`` and a stamp file
that says the hash, so that a start hashes no sources. An object needs nothing of the compiler that made it:
shipped ones are looked up by the sources alone, whatever versions are installed. What is compiled here is kept
as ``<hash of the compilers>/<target>/<kernel>.<hash of the kernel's own sources>.o`` (``source_hash.py``).

Nothing about the cache may stop the program. A folder that cannot be used is passed over for the next
one (cache folder, temporary folder, memory only) and the reason is kept in ``notices``, once. A file
that is truncated, foreign or stale is treated as missing. Because the files are machine code, a folder
that other users can write to is refused.

A file holds ``MAGIC``, the SHA-256 of the object, and the object. It is written to a temporary name and
renamed, so two processes at once are harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .source_hash import compilers_hash, module_hash, module_of

MAGIC = b"llmrun-object-1\n"
KEEP_COMPILERS = 3  # what older compilers made is deleted,
KEEP_VERSIONS = 5  # and what older sources of a kernel are compiled to
SHIPPED = Path(__file__).parents[1] / "objects"  # filled when a wheel is built
STAMP = "stamp"  # a file beside the shipped hash's folder


def shipped_folder() -> Path | None:
    """Return the folder of the objects that came with the package, or None in a checkout."""
    with contextlib.suppress(OSError, UnicodeError):
        stamp = (SHIPPED / STAMP).read_text(encoding="ascii").split()
        if stamp and re.fullmatch("[0-9a-f]{16}", stamp[0]):
            return SHIPPED / stamp[0]
    return None


class ObjectCache:
    """Objects by target and kernel."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self._shipped = shipped_folder()
        self._memory: dict[tuple[str, str], bytes] = {}
        self._folder: Path | None = None
        self._is_settled = False

    @property
    def folder(self) -> Path | None:
        """The folder in use, or None when objects stay in memory."""
        if not self._is_settled:
            self._folder, self._is_settled = self._choose_folder(), True
        return self._folder

    def path(self, target: str, kernel: str) -> Path | None:
        """Return where an object compiled here lies; None when objects stay in memory."""
        return self.folder and self.folder / target / f"{kernel}.{module_hash(module_of(kernel))}.o"

    def get(self, target: str, kernel: str) -> bytes | None:
        """Return a sound object, or None."""
        if (target, kernel) in self._memory:
            return self._memory[target, kernel]
        data = read_object(self._shipped / target / f"{kernel}.o") if self._shipped else None
        if data is None:  # a wheel that has all it needs makes no cache folder
            path = self.path(target, kernel)
            data = read_object(path) if path else None
        return data

    def put(self, target: str, kernel: str, data: bytes) -> None:
        """Keep an object, on disk if that is possible."""
        self._memory[target, kernel] = data
        path = self.path(target, kernel)
        if path is not None:
            try:
                write_object(path, data)
                _keep_newest(path.parent.glob(f"{kernel}.*.o"), KEEP_VERSIONS)
            except OSError as error:
                assert self._folder is not None
                self._give_up(self._folder, error)

    def _give_up(self, folder: Path, error: OSError) -> None:
        self.notices.append(f"compiled kernels are not kept: {folder}: {error.strerror or error}")
        self._folder = None

    def _choose_folder(self) -> Path | None:
        reasons = []
        for base in _candidates():
            try:
                folder = self._prepare(base)
            except OSError as error:
                reasons.append(f"{base}: {error.strerror or error}")
                continue
            if reasons:
                self.notices.append(f"compiled kernels are kept in {base}: " + "; ".join(reasons))
            return folder
        self.notices.append("compiled kernels are not kept: " + "; ".join(reasons))
        return None

    def _prepare(self, base: Path) -> Path:
        for private in (base.parent, base):  # whoever can write to the parent can put another folder in place
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(private)
        folder = base / compilers_hash()
        folder.mkdir(mode=0o700, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(MAGIC)
        probe.unlink()
        with contextlib.suppress(OSError):
            os.utime(folder)
            _keep_newest((path for path in base.iterdir() if path.is_dir()), KEEP_COMPILERS)
        return folder


def _check_private(folder: Path) -> None:
    """Raise OSError unless the folder (and a link to it) is this user's, and no other user can write to it."""
    if not hasattr(os, "getuid"):
        return
    status = folder.stat()
    if {status.st_uid, folder.lstat().st_uid} != {os.getuid()}:
        raise OSError(f"{folder.name} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"other users can write to {folder.name}")


def _candidates() -> Iterator[Path]:
    chosen = os.environ.get("LLMRUN_CACHE")
    if chosen:
        yield Path(chosen).absolute() / "objects"
    else:
        with contextlib.suppress(Exception):  # no home folder at all
            from platformdirs import user_cache_path

            path = user_cache_path("llmrun", appauthor=False)
            if path.is_absolute():  # else nobody knows the home folder: it would be one called "~" right here
                yield path / "objects"
    with contextlib.suppress(OSError):
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        yield Path(tempfile.gettempdir()) / f"llmrun-{user}" / "objects"


def _keep_newest(paths: Iterable[Path], n: int) -> None:
    """Delete all but the n files or folders that were changed last."""
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[n:]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_object(path: Path) -> bytes | None:
    """Return a file's object; None when the file is missing, truncated or something else."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head = len(MAGIC) + 32
    data = content[head:]
    if content[: len(MAGIC)] != MAGIC or hashlib.sha256(data).digest() != content[len(MAGIC) : head]:
        return None
    return data


def write_object(path: Path, data: bytes) -> None:
    """Write an object file atomically.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + hashlib.sha256(data).digest() + data)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
