"""``llmrun doctor``: what this machine is, and what llmrun makes of it."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

from .declare import Option
from .models_folder import local_models, models_folder
from .render.text import escaped, size

_READ_BYTES = 1 << 30  # beyond any cache
_READ_SECONDS = 0.5


def doctor(as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the CPU, the instruction set chosen, threads and why, caches, memory and its bandwidth."""
    rows = {**_software(), **_processor(), **_threads(), **_memory(), **_models()}
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
    from ..runtime.simd.isa import choose_target, supported_targets

    chosen = choose_target()
    names = ", ".join(target.name for target in supported_targets())
    why = "LLMRUN_ISA asks for it" if os.environ.get("LLMRUN_ISA") else "the best that this CPU runs"
    return {
        "cpu": _cpu_name(),
        "caches": _caches() or "unknown",
        "instruction set": f"{chosen.name} ({why}; it runs {names})",
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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


def _memory() -> dict[str, str]:
    import psutil

    from ..runtime.memory import available_bytes
    from ..runtime.threads import default_threads

    n_thread = default_threads()[0]
    one, several = read_bandwidth(1) / 1e9, read_bandwidth(n_thread) / 1e9
    return {
        "memory": f"{size(psutil.virtual_memory().total)}, {size(available_bytes())} available to this process",
        "memory bandwidth": f"{one:.1f} GB/s read by one thread, {several:.1f} GB/s by {n_thread}",
    }


def read_bandwidth(n_thread: int) -> float:
    """Return the bytes per second that ``n_thread`` threads together read from arrays larger than the caches."""
    import numpy as np

    arrays = [np.ones(_READ_BYTES // 4 // n_thread, np.float32) for _ in range(n_thread)]
    n_read = [0] * n_thread
    deadline = time.perf_counter() + _READ_SECONDS

    def work(i: int) -> None:
        while time.perf_counter() < deadline:
            arrays[i].max()  # vectorised, and releases the interpreter's lock
            n_read[i] += arrays[i].nbytes

    start = time.perf_counter()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_thread)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(n_read) / (time.perf_counter() - start)


def _models() -> dict[str, str]:
    folder = models_folder()
    return {"models": f"{len(local_models(folder))} in {folder}"}
