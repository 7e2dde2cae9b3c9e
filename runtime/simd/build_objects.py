"""Build kernels for other machines into a folder: ``python -m llmrun.runtime.simd.build_objects FOLDER``.

The folder gets what a wheel carries: ``<hash of the sources>/<target>/<kernel>.o``, and a stamp file with the
hash and the compilers' versions. What is there already and current is kept, what the user's cache has is taken from
there, and what is compiled goes there too. ``build_wheel.py`` calls this; ``make objects`` too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

from .isa import TARGETS, supported_targets
from .object_cache import STAMP, ObjectCache, read_object, write_object
from .source_hash import all_kernels_hash, compilers_hash

MAX_PROCESSES = 16  # a compiling process takes about 300 MB
HEAVY = ("attention", "matmul_")  # compiled first, so that no process is left alone with them at the end


def target_names(text: str) -> list[str]:
    """Return the targets that ``all``, ``host``, ``none`` or names with commas between them stand for.

    Raises:
        ValueError: there is no target of that name.
    """
    if text == "all":
        return list(TARGETS)
    if text == "host":
        return [target.name for target in supported_targets()[:1]]
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in TARGETS:
            raise ValueError(f"no target {name!r}, expected all, host, none or some of {', '.join(TARGETS)}")
    return names


def build(folder: Path, targets: Sequence[str], kernels: Iterable[str], n_process: int) -> int:
    """Compile what neither the folder nor the cache has, in several processes; return the number of objects compiled.

    Raises:
        RuntimeError: a kernel did not compile.
        OSError: the folder cannot be written.
    """
    _clear_stale(folder)
    out, cache = folder / all_kernels_hash(), ObjectCache()
    jobs: dict[tuple[str, tuple[object, ...]], list[str]] = {}  # targets by kernel and LLVM text
    for kernel in sorted(kernels, key=lambda name: (not name.startswith(HEAVY), name)):
        for target in targets:
            path = out / target / f"{kernel}.o"
            if read_object(path) is not None:
                continue
            data = cache.get(target, kernel)
            if data is not None:
                write_object(path, data)
            else:
                jobs.setdefault((kernel, TARGETS[target].lowering), []).append(target)
    context = multiprocessing.get_context("spawn")  # the same start on every system
    names = [kernel for kernel, _ in jobs]
    with ProcessPoolExecutor(max(1, min(n_process, len(jobs))), mp_context=context) as pool:
        for kernel, objects in zip(names, pool.map(_compile, names, jobs.values()), strict=True):
            for target, data in objects.items():
                write_object(out / target / f"{kernel}.o", data)
                cache.put(target, kernel, data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).write_text(_stamp(), encoding="ascii")
    return sum(map(len, jobs.values()))


def _compile(kernel_name: str, targets: Sequence[str]) -> dict[str, bytes]:
    """Return the kernel's object for each of some targets that share their LLVM text."""
    from ..kernels.registry import build_kernel
    from .compiler import compile_object, lower  # here: imports Numba, which only the child processes need

    kernel = build_kernel(kernel_name, TARGETS[targets[0]])
    lowered = lower(kernel, TARGETS[targets[0]])
    return {name: compile_object(kernel, TARGETS[name], lowered) for name in targets}


def _stamp() -> str:
    """Return what the stamp file says; its first word is what a start reads."""
    versions = " ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite", "gguf"))
    return f"{all_kernels_hash()} {versions} {compilers_hash()}\n"


def _clear_stale(folder: Path) -> None:
    """Delete the objects that other sources or other compilers made."""
    path = folder / STAMP
    if not path.exists() or path.read_text(encoding="ascii") != _stamp():
        for child in folder.glob("[0-9a-f]" * 16):
            shutil.rmtree(child)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from ..kernels.registry import kernel_names

    parser = argparse.ArgumentParser(prog="build_objects", description="Compile kernels ahead, for any target.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--targets", type=target_names, default="all", help="all, host, none, or names with commas")
    parser.add_argument("--kernels", help="names with commas; default all", default=",".join(kernel_names()))
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, MAX_PROCESSES))
    options = parser.parse_args(args)
    started = time.perf_counter()
    n_object = build(options.folder, options.targets, options.kernels.split(","), options.processes)
    print(f"{n_object} objects compiled in {time.perf_counter() - started:.0f} s, {options.processes} processes")
    for target in options.targets:
        paths = list((options.folder / all_kernels_hash() / target).glob("*.o"))
        print(f"{target}: {len(paths)} objects, {sum(path.stat().st_size for path in paths)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
