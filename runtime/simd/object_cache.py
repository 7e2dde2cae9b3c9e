"""Where compiled kernels lie: beside the package (wheels), in the user's cache folder, or nowhere.

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
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAGIC = b"llmrun-object-1\n"
KEEP_FINGERPRINTS = 3  # older builds of the kernels are deleted
_PACKAGE = Path(__file__).parents[1]
SHIPPED = _PACKAGE / "objects"  # filled when a wheel is built


def source_fingerprint() -> str:
    """Return a hash of every source that kernels are made from, and of the compilers' versions."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    for package in ("numba", "llvmlite"):
        digest.update(f"{package} {version(package)}\n".encode())
    for path in _sources():
        digest.update(f"{path.parent.name}/{path.name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    quant = _PACKAGE.parent / "quant"
    for folder, pattern in ((_PACKAGE / "kernels", "*.py"), (_PACKAGE / "simd", "*.py"), (quant, "twin_*.py")):
        yield from sorted(folder.glob(pattern))


class ObjectCache:
    """Objects of one fingerprint, by (target, kernel)."""

    def __init__(self, fingerprint: str | None = None) -> None:
        self.fingerprint = fingerprint or source_fingerprint()
        self.notices: list[str] = []
        self._memory: dict[tuple[str, str], bytes] = {}
        self._folder: Path | None = None
        self._is_settled = False

    @property
    def folder(self) -> Path | None:
        """The folder in use for this fingerprint, or None when objects stay in memory."""
        if not self._is_settled:
            self._folder, self._is_settled = self._choose_folder(), True
        return self._folder

    def get(self, target: str, kernel: str) -> bytes | None:
        """Return a sound object, or None."""
        if (target, kernel) in self._memory:
            return self._memory[target, kernel]
        for folder in (SHIPPED / self.fingerprint, self.folder):
            if folder is not None:
                data = _read(folder / target / f"{kernel}.o")
                if data is not None:
                    return data
        return None

    def put(self, target: str, kernel: str, data: bytes) -> None:
        """Keep an object, on disk if that is possible."""
        self._memory[target, kernel] = data
        if self.folder is not None:
            try:
                write_object(self.folder / target / f"{kernel}.o", data)
            except OSError as error:
                self._give_up(self.folder, error)

    def _give_up(self, folder: Path, error: OSError) -> None:
        self.notices.append(f"compiled kernels are not kept: {folder}: {error.strerror or error}")
        self._folder = None

    def _choose_folder(self) -> Path | None:
        reasons = []
        for base in _candidates():
            try:
                return self._prepare(base)
            except OSError as error:
                reasons.append(f"{base}: {error.strerror or error}")
        self.notices.append("compiled kernels are not kept: " + "; ".join(reasons))
        return None

    def _prepare(self, base: Path) -> Path:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = base.stat()
        if hasattr(os, "getuid"):
            if status.st_uid != os.getuid():
                raise OSError("belongs to another user")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise OSError("other users can write to it")
        folder = base / self.fingerprint
        folder.mkdir(mode=0o700, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(MAGIC)
        probe.unlink()
        with contextlib.suppress(OSError):
            os.utime(folder)
            _prune(base, folder)
        return folder


def _candidates() -> Iterator[Path]:
    chosen = os.environ.get("LLMRUN_CACHE")
    if chosen:
        yield Path(chosen) / "objects"
    else:
        with contextlib.suppress(Exception):  # no home folder at all
            from platformdirs import user_cache_path

            yield user_cache_path("llmrun", appauthor=False) / "objects"
    with contextlib.suppress(OSError):
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        yield Path(tempfile.gettempdir()) / f"llmrun-{user}" / "objects"


def _prune(base: Path, current: Path) -> None:
    others = [p for p in base.iterdir() if p.is_dir() and p != current]
    others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for stale in others[KEEP_FINGERPRINTS - 1 :]:
        shutil.rmtree(stale, ignore_errors=True)


def _read(path: Path) -> bytes | None:
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
