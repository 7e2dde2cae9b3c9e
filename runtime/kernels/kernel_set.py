"""The kernels that one program needs, loaded: from objects where they exist, compiled where they do not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..simd.isa import Target
from ..simd.loader import KernelModule
from ..simd.object_cache import ObjectCache

LOOP_KERNELS = ("lead", "work")
Progress = Callable[[str, int, int], None]


class KernelSet:
    """Addresses of loaded kernels.

    Args:
        names: kernels as in ``registry.kernel_names``; those of the program loop are always added.
        target: which build.
        on_progress: called with ("compiling kernels", done, total) while something must be compiled.
    """

    def __init__(
        self,
        names: Iterable[str],
        target: Target,
        *,
        cache: ObjectCache | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        wanted = sorted({*names, *LOOP_KERNELS})
        cache = cache or ObjectCache()
        objects = {name: cache.get(target.name, name) for name in wanted}
        missing = [name for name, data in objects.items() if data is None]
        if missing and on_progress:  # the first one takes longest: Numba is imported meanwhile
            on_progress("compiling kernels", 0, len(missing))
        for done, (name, data) in enumerate(compile_missing(missing, target)):
            objects[name] = data
            cache.put(target.name, name, data)
            if on_progress:
                on_progress("compiling kernels", done + 1, len(missing))
        self.target = target
        self.notices = list(cache.notices)
        self.n_compiled = len(missing)
        self._module = KernelModule(target)
        for content in objects.values():
            assert content is not None
            self._module.add(content)
        self._module.finalize()

    def address(self, name: str) -> int:
        """Return the address of a kernel."""
        return self._module.address(name)

    def function(self, name: str, n_argument: int, result: Any = None) -> Any:
        """Return a kernel as a ctypes function of int64 arguments; calling it releases the GIL."""
        return ctypes.CFUNCTYPE(result, *[ctypes.c_int64] * n_argument)(self.address(name))


def compile_missing(names: list[str], target: Target) -> Iterable[tuple[str, bytes]]:
    """Compile kernels in other processes, which Ctrl-C can end at any time; yields them as they are done.

    Raises:
        RuntimeError: a kernel did not compile (a bug of llmrun, with the compiler's words).
    """
    if not names:  # a start that finds its objects imports no Numba
        return
    n_process = min(len(names), os.cpu_count() or 1)
    command = [sys.executable, "-c", "from llmrun.runtime.kernels.kernel_set import compile_main; compile_main()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # Heaviest first would be ideal; names in turn are close enough.
    shares = [names[i::n_process] for i in range(n_process)]
    children: list[subprocess.Popen[bytes]] = []
    try:
        for share in shares:
            # A session of their own: Ctrl-C reaches this process alone, which then kills them.
            child = subprocess.Popen(
                [*command, str(os.getpid()), target.name, *share],
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            children.append(child)
    except OSError:  # no processes to be had
        _end(children)
        yield from _compile_here(names, target)
        return
    except BaseException:
        _end(children)
        raise
    try:
        pending = [(child, list(share)) for child, share in zip(children, shares, strict=True)]
        while pending:
            for child, share in list(pending):
                name = share.pop(0)
                data = _receive(child)
                if data is None:  # the child died (no fork allowed, killed for memory …): do its work here
                    yield from _compile_here([name, *share], target)
                    share.clear()
                else:
                    yield name, data
                if not share:
                    pending.remove((child, share))
    finally:
        _end(children)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def _compile_here(names: list[str], target: Target) -> Iterable[tuple[str, bytes]]:
    from ..simd.compiler import compile_object  # here: imports Numba
    from .registry import build_kernel

    for name in names:
        yield name, compile_object(build_kernel(name, target), target)


def _receive(child: subprocess.Popen[bytes]) -> bytes | None:
    assert child.stdout is not None
    head = child.stdout.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "little")
    data = child.stdout.read(size)
    return data if len(data) == size else None


def _end_with(parent: int) -> None:
    """End this process once its parent is another one: in the middle of a kernel too, which may take seconds."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def compile_main() -> None:
    """Compile the kernels that the command line names and write each as length and bytes to standard output.

    Ends when the process that asked for them is gone: one that is interrupted while it starts this one cannot end it.
    """
    from ..simd.isa import TARGETS

    parent, target, names = int(sys.argv[1]), TARGETS[sys.argv[2]], sys.argv[3:]
    if os.name == "posix":
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for _, data in _compile_here(names, target):
        sys.stdout.buffer.write(len(data).to_bytes(8, "little") + data)
        sys.stdout.buffer.flush()
