"""Old x86 CPUs under qemu: the x86-v2 build runs on one, and what is older is refused in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ..runtime.machine import TARGET_NAMES
from .test_arm import FOLDER, check_same, run_here

HERE = Path(__file__).parent
QEMU = shutil.which("qemu-x86_64-static")
pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="needs qemu-user-static"),
    pytest.mark.skipif("x86-v2" not in TARGET_NAMES, reason="needs an x86 machine's Python"),
]


def run_on(cpu, *args):
    return subprocess.run([QEMU, "-cpu", cpu, sys.executable, *args], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("cpu", "missing"), [("core2duo", "popcnt, sse4.1, sse4.2"), ("qemu64", "popcnt, sse4.1, sse4.2, ssse3")]
)
def test_older_cpus_are_refused_in_one_line(cpu, missing):
    """Even for --version, and before NumPy, which would stop with a warning of its own or an illegal instruction."""
    result = run_on(cpu, "-m", "llmrun", "--version")
    assert result.returncode == 1
    assert result.stderr == f"error: this CPU lacks {missing}: llmrun needs at least x86-64-v2 (2009 or later)\n"
    assert result.stdout == ""


def test_nehalem_is_accepted():
    result = run_on("Nehalem", "-m", "llmrun", "--version")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not FOLDER, reason="compiles every kernel: run make check-arm")
def test_every_kernel_runs_on_nehalem(tmp_path):
    """No instruction newer than x86-64-v2, and the bits of this machine's best target."""
    inputs, native, old = (tmp_path / f"{name}.npz" for name in ("inputs", "native", "old"))
    script = HERE / "kernel_cases.py"
    run_here(script, "make", inputs)
    run_here(script, "run", inputs, TARGET_NAMES[0], native)
    run_here(script, "run", inputs, "x86-v2", tmp_path / "compiled.npz")  # compiles what is missing: slow under qemu
    result = run_on("Nehalem", script, "run", inputs, "x86-v2", old)
    assert result.returncode == 0, result.stderr
    check_same(dict(np.load(old)), dict(np.load(native)))
