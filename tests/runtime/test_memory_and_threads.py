"""The memory plan and the number of threads: what they say, and what they believe about the machine."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from llmrun.formats.errors import CapacityError, ConfigError
from llmrun.runtime import memory, threads
from llmrun.runtime.memory import GRAIN, OVERHEAD_BYTES, MemoryPlan, choose_context

GB = 10**9
PATH = Path("m.gguf")


def plan(available, *, weights=GB, slot=100_000, arena=0):
    return MemoryPlan(weight_bytes=weights, slot_bytes=slot, arena_bytes=arena, available_bytes=available)


def test_the_models_own_context_is_taken_when_it_fits():
    assert choose_context(plan(4 * GB), PATH, wanted=None, n_ctx_train=8192) == 8192


def test_it_is_lowered_to_what_fits():
    n_ctx = choose_context(plan(2 * GB), PATH, wanted=None, n_ctx_train=131_072)
    assert n_ctx % GRAIN == 0
    assert n_ctx == (2 * GB - GB - OVERHEAD_BYTES) // 100_000 // GRAIN * GRAIN


def test_a_wanted_context_is_never_lowered():
    assert choose_context(plan(2 * GB), PATH, wanted=4000, n_ctx_train=131_072) == 4000
    with pytest.raises(CapacityError) as caught:
        choose_context(plan(2 * GB), PATH, wanted=100_000_000, n_ctx_train=131_072)
    assert str(caught.value) == (
        "context of 100000000 tokens needs 10000.0 GB for the KV cache beside 1.0 GB of weights, 2.0 GB free;"
        " try --ctx-size 6656"
    )


def test_a_context_beyond_the_models_own_is_not_recommended():
    with pytest.raises(CapacityError, match=r"try --ctx-size 2048$"):
        choose_context(plan(2 * GB), PATH, wanted=100_000_000, n_ctx_train=2048)
    with pytest.raises(CapacityError, match=r"try --ctx-size 200$"):
        choose_context(plan(2 * GB), PATH, wanted=100_000_000, n_ctx_train=200)


def test_weights_that_do_not_fit_are_said_with_sizes():
    with pytest.raises(CapacityError, match=r"m\.gguf: the model needs 1\.3 GB without any context, 1\.2 GB free"):
        choose_context(plan(12 * GB // 10), PATH, wanted=None, n_ctx_train=8192)


def test_a_small_context_may_be_all_that_fits():
    room = GB + OVERHEAD_BYTES + 100 * 100_000
    assert choose_context(plan(room), PATH, wanted=100, n_ctx_train=8192) == 100
    with pytest.raises(CapacityError):
        choose_context(plan(room), PATH, wanted=None, n_ctx_train=8192)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads Linux's own numbers")
def test_free_memory_is_what_psutil_says(monkeypatch):
    assert memory._machine_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.05)
    assert memory.available_bytes() <= psutil.virtual_memory().total
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "nothing: 1 kB")
    assert memory._machine_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.05)


def test_physical_cores_are_what_psutil_says(monkeypatch):
    expected = psutil.cpu_count(logical=False)
    if expected is None:
        pytest.skip("unknown here")
    assert threads._physical_cores() == expected
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    assert threads._physical_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("junk", None)])
def test_cgroup_quota(monkeypatch, quota, expected):
    def read_text(self, encoding):
        if str(self) == "/sys/fs/cgroup/cpu.max":
            return quota
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert threads._cgroup_quota() == expected


def test_the_smallest_limit_wins(monkeypatch):
    monkeypatch.delenv("LLMRUN_THREADS", raising=False)
    monkeypatch.setattr(threads, "_physical_cores", lambda: 8)
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: 2.7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert threads.default_threads() == (2, "a cgroup quota of 2.7 processors")
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: 0.5)
    assert threads.default_threads()[0] == 1
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: None)
    assert threads.default_threads() == (4, "processors that this process may use")
    monkeypatch.setenv("LLMRUN_THREADS", "3")
    assert threads.default_threads() == (3, "LLMRUN_THREADS")


def test_no_psutil_where_linux_answers():
    import subprocess

    if not Path("/proc/meminfo").exists() or not list(Path("/sys/devices/system/cpu").glob("cpu0/topology")):
        pytest.skip("not Linux, or without /sys")
    code = (
        "import sys; from llmrun.runtime import memory, threads; memory.available_bytes(); threads.default_threads();"
        "print('psutil' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " 2", "٣", "99999"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv("LLMRUN_THREADS", value)
    with pytest.raises(ConfigError) as caught:
        threads.default_threads()
    assert str(caught.value) == f"LLMRUN_THREADS is {value!r}, expected a number from 1 to 1024"


def test_a_cgroup_limit_counts_and_cached_files_do_not(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable:   8000000 kB\n",
        "/sys/fs/cgroup/memory.max": "3000000000\n",
        "/sys/fs/cgroup/memory.current": "1000000000\n",
    }

    def read_text(self, encoding):
        if str(self) not in files:
            raise FileNotFoundError(self)
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory.available_bytes() == 2_000_000_000
    files["/sys/fs/cgroup/memory.stat"] = "anon 5\ninactive_file 300000000\nactive_file 4000000\nfile 999999999\n"
    assert memory.available_bytes() == 2_304_000_000  # a model that was just fetched fills the cache, not the memory
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.available_bytes() == 8_192_000_000
    files["/sys/fs/cgroup/memory.max"] = "100000000\n"  # less than is used
    assert memory.available_bytes() == 0


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 MB"), (1_400_000, "1 MB"), (99_999_999, "100 MB"), (10**8, "0.1 GB"), (172 * 10**8, "17.2 GB")],
)
def test_sizes_as_people_write_them(n_bytes, text):
    assert memory.gigabytes(n_bytes) == text
