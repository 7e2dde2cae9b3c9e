"""Build kernels for other machines into a folder: ``python -m llmrun.runtime.simd.build_objects FOLDER``.

The folder gets what a wheel carries: ``<fingerprint>/<target>/<kernel>.o``, and a stamp file with the
fingerprint and the compilers' versions. ``setup.py`` calls this; ``make objects`` too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .isa import TARGETS, supported_targets
from .object_cache import STAMP, compiler_fingerprint, source_fingerprint, write_object

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


def build(folder: Path, targets: Sequence[str], kernels: Iterable[str], n_process: int) -> Counter[str]:
    """Compile kernels for targets, in several processes; return the bytes of each target's objects.

    Raises:
        RuntimeError: a kernel did not compile.
        OSError: the folder cannot be written.
    """
    order = sorted(kernels, key=lambda name: (not name.startswith(HEAVY), name))
    jobs = [(target, kernel) for kernel in order for target in targets]
    out = folder / source_fingerprint()
    sizes: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")  # the same start on every system
    with ProcessPoolExecutor(max(1, min(n_process, len(jobs))), mp_context=context) as pool:
        for (target, kernel), data in zip(jobs, pool.map(_compile, jobs), strict=True):
            write_object(out / target / f"{kernel}.o", data)
            sizes[target] += len(data)
    return sizes


def _compile(job: tuple[str, str]) -> bytes:
    from ..kernels.registry import build_kernel
    from .compiler import compile_object  # here: imports Numba, which only the child processes need

    target = TARGETS[job[0]]
    return compile_object(build_kernel(job[1], target), target)


def write_stamp(folder: Path) -> None:
    """Write the file that tells a start the fingerprint."""
    import llvmlite
    import numba

    folder.mkdir(parents=True, exist_ok=True)
    text = (
        f"{source_fingerprint()} numba {numba.__version__} llvmlite {llvmlite.__version__} {compiler_fingerprint()}\n"
    )
    (folder / STAMP).write_text(text, encoding="ascii")


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
    sizes = build(options.folder, options.targets, options.kernels.split(","), options.processes)
    write_stamp(options.folder)
    for target, n_bytes in sizes.items():
        print(f"{target}: {n_bytes} bytes")
    print(f"{time.perf_counter() - started:.0f} s, {options.processes} processes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
