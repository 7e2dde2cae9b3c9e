"""The memory plan: what a run will take, worked out before anything is allocated."""

from __future__ import annotations

from pathlib import Path

from ..formats.errors import CapacityError
from ..formats.record import Record

OVERHEAD_BYTES = 300 << 20  # Python, tokenizer, kernels, temporaries
GRAIN = 256  # a context that is lowered is rounded down to this


class MemoryPlan(Record):
    """Bytes of one run."""

    weight_bytes: int
    slot_bytes: int  # KV cache, per token of context
    arena_bytes: int
    available_bytes: int

    def kv_bytes(self, n_ctx: int) -> int:
        """Return the bytes of a full context."""
        return n_ctx * self.slot_bytes

    def largest_context(self) -> int:
        """Return the context that fits beside the weights."""
        free = self.available_bytes - self.weight_bytes - self.arena_bytes - OVERHEAD_BYTES
        return max(0, free // self.slot_bytes)


def gigabytes(n_bytes: int) -> str:
    """Return a size as people write it."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"


def choose_context(plan: MemoryPlan, path: Path, *, wanted: int | None, n_ctx_train: int) -> int:
    """Return the context to reserve: the wanted one, or the model's own lowered to what fits.

    Raises:
        CapacityError: the weights do not fit, or the wanted context does not.
    """
    largest = plan.largest_context()
    if largest < min(GRAIN, wanted or n_ctx_train):
        needed = plan.weight_bytes + plan.arena_bytes + OVERHEAD_BYTES
        raise CapacityError(
            f"{path}: the model needs {gigabytes(needed)} without any context, {gigabytes(plan.available_bytes)} free"
        )
    fitting = n_ctx_train if n_ctx_train <= largest else largest // GRAIN * GRAIN or largest
    if wanted is None:
        return fitting
    if wanted > largest:
        raise CapacityError(
            f"context of {wanted} tokens needs {gigabytes(plan.kv_bytes(wanted))} for the KV cache beside"
            f" {gigabytes(plan.weight_bytes)} of weights, {gigabytes(plan.available_bytes)} free",
            f"try --ctx-size {fitting}",
        )
    return wanted


def available_bytes() -> int:
    """Return the memory that this process can still get: the machine's, or what its cgroup leaves."""
    free = _machine_bytes()
    for folder, limit_name, used_name in (
        ("/sys/fs/cgroup/", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory/", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit, used = (int(Path(folder + n).read_text(encoding="ascii")) for n in (limit_name, used_name))
        except (OSError, ValueError):
            continue
        free = min(free, max(0, limit - used + _file_cache_bytes(folder + "memory.stat")))
    return free


def _file_cache_bytes(stat: str) -> int:
    """Return the bytes of a cgroup's use that are cached files: a model just fetched, which the system can drop."""
    try:
        lines = Path(stat).read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))
    except (OSError, ValueError, IndexError):
        return 0


def _machine_bytes() -> int:
    """Return the memory that the machine can still give without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    import psutil  # here: takes 20 ms, and Linux needs none of it

    return int(psutil.virtual_memory().available)
