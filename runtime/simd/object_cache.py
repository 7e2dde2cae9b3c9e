"""Where compiled kernels lie: beside the package (wheels), in the user's cache folder, or nowhere.

A wheel carries objects under ``runtime/objects/<fingerprint>/<target>/<kernel>.o`` and a stamp file that
says the fingerprint, so that a start hashes no sources. An object needs nothing of the compiler that made
it: shipped ones are looked up by the sources alone, whatever versions are installed. What is compiled here
is kept by sources and compilers.

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
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

MAGIC = b"llmrun-object-1\n"
KEEP_FINGERPRINTS = 3  # older builds of the kernels are deleted
_PACKAGE = Path(__file__).parents[1]
SHIPPED = _PACKAGE / "objects"  # filled when a wheel is built
STAMP = "stamp"  # a file beside the fingerprints' folders
# What kernels are made from, as (folder beside this package's, pattern) ...
_SOURCES = (
    ("runtime/kernels", "*.py"), ("runtime/simd", "*.py"), ("formats", "ggml_types.py"), ("quant", "pack_format.py"),
    ("quant", "twins.py"), ("quant", "twin_*.py"), ("quant", "tables.py"), ("quant", "iq_grids.py"),
    ("quant", "floats.py"),
)  # fmt: skip
# ... but for modules that only load, check or store them.
_NOT_SOURCES = {"reference.py", "kernel_set.py", "object_cache.py", "loader.py", "build_objects.py"}
# Files of other packages that decide what machine code is: the compilers' versions, gguf's codebooks.
_OTHER_SOURCES = (("numba", "_version.py"), ("llvmlite", "_version.py"), ("gguf", "quants.py"))


def source_fingerprint() -> str:
    """Return a hash of every source that kernels are made from: the stamp's, or worked out (1 ms)."""
    with contextlib.suppress(OSError, UnicodeError):
        stamp = (SHIPPED / STAMP).read_text(encoding="ascii").split()
        if stamp and re.fullmatch("[0-9a-f]{16}", stamp[0]):
            return stamp[0]
    digest = hashlib.sha256()
    for path in fingerprint_sources():
        digest.update(f"{path.parent.name}/{path.name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiler_fingerprint() -> str:
    """Return a hash of what other packages put into kernels; imports none (importlib.metadata alone takes 40 ms)."""
    digest = hashlib.sha256()
    for package, file in _OTHER_SOURCES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            with contextlib.suppress(OSError):
                digest.update((Path(spec.origin).parent / file).read_bytes())
    return digest.hexdigest()[:8]


def fingerprint_sources() -> Iterator[Path]:
    """Yield the source files of ``source_fingerprint``."""
    for folder, pattern in _SOURCES:
        paths = sorted((_PACKAGE.parent / folder).glob(pattern))
        yield from (path for path in paths if path.name not in _NOT_SOURCES)


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
        data = read_object(SHIPPED / self.fingerprint / target / f"{kernel}.o")
        if data is None and self.folder is not None:  # a wheel that has all it needs makes no cache folder
            data = read_object(self.folder / target / f"{kernel}.o")
        return data

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
        folder = base / f"{self.fingerprint}-{compiler_fingerprint()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(MAGIC)
        probe.unlink()
        with contextlib.suppress(OSError):
            os.utime(folder)
            _prune(base, folder)
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


def _prune(base: Path, current: Path) -> None:
    others = [p for p in base.iterdir() if p.is_dir() and p != current]
    others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for stale in others[KEEP_FINGERPRINTS - 1 :]:
        shutil.rmtree(stale, ignore_errors=True)


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
