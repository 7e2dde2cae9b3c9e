"""``llmrun doctor``: what this machine is, and what llmrun makes of it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .declare import Argument, Option
from .model_ref import resolve
from .models_folder import local_models, models_folder
from .options import Threads
from .render.text import escaped, size

if TYPE_CHECKING:
    from ..runtime.measure.roofline import Roofline


def doctor(
    model: Annotated[
        str | None, Argument(metavar="[MODEL]", help="Also explain how fast this model is.", show_default=False)
    ] = None,
    threads: Threads = 0,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the CPU, the instruction set chosen, threads and why, caches, memory, its bandwidth and the int8 peak.

    With MODEL, also what limits the model here (memory or arithmetic), what is lost to barriers, page faults, heat or
    other virtual machines, and which quantisation would decode faster.
    """
    from ..runtime.threads import team_size

    path = None if model is None else resolve(model)
    n_threads = team_size(threads or None)
    roofline = _limits(n_threads)
    rows = {**_software(), **_processor(), **_threads(), **_memory(roofline), **_kernels(), **_models()}
    if path is not None:
        from .explain import explain, need_roofline

        rows |= explain(path, need_roofline(roofline), n_threads)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {escaped(value)}")


def _software() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    packages = []
    for name in ("numpy", "numba", "llvmlite"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} missing")
    return {
        "llmrun": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": ", ".join(packages),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }


def _processor() -> dict[str, str]:
    from ..runtime.measure.machine import cpu_name
    from ..runtime.simd.isa import choose_target, supported_targets

    chosen = choose_target()
    names = ", ".join(target.name for target in supported_targets())
    why = "LLMRUN_ISA asks for it" if os.environ.get("LLMRUN_ISA") else "the best that this CPU runs"
    return {
        "cpu": cpu_name(),
        "caches": _caches() or "unknown",
        "instruction set": f"{chosen.name} ({why}; it runs {names})",
    }


def _caches() -> str:
    """Return the first core's caches as Linux tells them; empty elsewhere."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, n = ((folder / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size"))
            shared = (folder / "shared_cpu_list").read_text(encoding="ascii").strip()
        except OSError:
            continue
        letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
        found.append(f"L{level}{letter} {n} (cores {shared})")
    return ", ".join(found)


def _threads() -> dict[str, str]:
    import psutil

    from ..runtime.threads import default_threads

    n_thread, why = default_threads()
    return {
        "threads": f"{n_thread} ({why})",
        "processors": f"{psutil.cpu_count(logical=False) or '?'} physical, {psutil.cpu_count() or '?'} logical",
    }


def _limits(n_thread: int) -> Roofline | None:
    """Return what the machine reaches at most, measured by as many threads as a model would use."""
    from ..runtime.measure.roofline import measure
    from .render.progress import ProgressBar

    with ProgressBar("measuring read bandwidth and int8 peak"):
        return measure(n_thread)


def _memory(roofline: Roofline | None) -> dict[str, str]:
    import psutil

    from ..runtime.memory import available_bytes

    rows = {"memory": f"{size(psutil.virtual_memory().total)}, {size(available_bytes())} available to this process"}
    if roofline is None:
        return rows | {"memory bandwidth": "unknown: the probe failed"}
    return rows | {
        "memory bandwidth": f"{roofline.read_bytes_s / 1e9:.1f} GB/s read by {roofline.n_thread} threads",
        "int8 peak": f"{roofline.int8_ops_s / 1e9:.0f} Gop/s by {roofline.n_thread} threads",
    }


def _kernels() -> dict[str, str]:
    """Return where compiled kernels come from and go to."""
    from ..runtime.simd.isa import choose_target
    from ..runtime.simd.object_cache import ObjectCache, shipped_folder

    target = choose_target().name
    shipped, cache = shipped_folder(), ObjectCache()
    found = [] if shipped is None else [f"{_n_object(shipped / target)} for {target} came with llmrun"]
    if cache.folder is not None:
        found.append(f"{_n_object(cache.folder / target)} for {target} in {cache.folder}")
    return {"compiled kernels": "; ".join([*found, *cache.notices])}


def _n_object(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.o"))


def _models() -> dict[str, str]:
    folder = models_folder()
    return {"models": f"{len(local_models(folder))} in {folder}"}
