"""What a kernel is made from, as hashes: a change of one kernel's sources leaves the objects of others alone.

A kernel's sources are its module and all that this imports within the package, found by reading the import
lines: nothing is imported, so that a start costs a few milliseconds in a checkout and nothing with a wheel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "kernels"
# Files of other packages that decide what machine code is: the compilers' versions, gguf's codebooks.
_OTHER_SOURCES = (("numba", "_version.py"), ("llvmlite", "_version.py"), ("gguf", "quants.py"))
# Modules of runtime/kernels with the kernels that they build; all other kernels are of their own name's module.
_BY_PREFIX = {
    "matmul_": "matmul", "embed_": "embed", "pack_": "pack", "probe_": "probe", "search_": "scale_search",
    "attention_": "attention", "kv_store_": "kv_store", "narrow_": "narrow",
}  # fmt: skip
_BY_NAME = {
    **dict.fromkeys(("rms_norm", "add", "glu", "softcap", "scale", "select"), "rows"),
    **dict.fromkeys(("lead", "work"), "program_loop"),
    "norm_quantize": "quantize", "rope_table": "rope",
}  # fmt: skip
_IMPORT = re.compile(r"^[ ]*from (\.+)([\w.]*) import (\([^)]*\)|[^\n#]*)", re.MULTILINE)


def module_of(kernel: str) -> str:
    """Return the module of ``runtime/kernels`` that builds a kernel."""
    by_prefix = (module for prefix, module in _BY_PREFIX.items() if kernel.startswith(prefix))
    return _BY_NAME.get(kernel) or next(by_prefix, kernel)


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """Return the files of this package that one of them imports (in functions too)."""
    found: set[Path] = set()
    for dots, module, names in _IMPORT.findall(_text(path)):
        base = path.parents[len(dots) - 1].joinpath(*module.split("."))
        files = [base.with_suffix(".py")]
        if not files[0].is_file():  # a folder
            files = [base / f"{name}.py" for name in re.findall(r"\w+", names)]
        found |= {file for file in files if file.is_file()}
    if path.name == "twins.py":  # names its modules in a table
        found |= set(path.parent.glob("twin_*.py"))
    return frozenset(found)


@cache
def sources(path: Path) -> tuple[Path, ...]:
    """Return a file and all files of the package that it needs, in the order of their names."""
    reached: set[Path] = set()
    waiting = {path}
    while waiting:
        reached |= waiting
        waiting = set[Path]().union(*map(imported_files, waiting)) - reached
    return tuple(sorted(reached))


@cache
def module_hash(module: str) -> str:
    """Return a hash of what the kernels of one module (of ``runtime/kernels``) are made from: 16 hexadecimal digits."""
    return _hash(sources(KERNELS / f"{module}.py"))[:16]


def all_kernels_hash() -> str:
    """Return a hash of every source that any kernel is made from: 16 hexadecimal digits."""
    return module_hash("registry")


def compilers_hash() -> str:
    """Return a hash of what other packages put into kernels; imports none (importlib.metadata alone takes 40 ms)."""
    paths = []
    for package, file in _OTHER_SOURCES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            paths.append(Path(spec.origin).parent / file)
    return _hash(paths)[:8]


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name}\n{_text(path)}".encode())
    return digest.hexdigest()


@cache
def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # installed without sources
        return ""
