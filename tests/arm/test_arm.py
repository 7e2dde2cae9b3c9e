"""Machine code for Arm under qemu: every kernel and whole models give the bits that x86 gives.

``make check-arm`` fills a folder with an arm64 Python and objects, names it in LLMRUN_ARM and runs this;
without it everything here is skipped. The macOS objects run too: LLVM loads Mach-O on any system.
Payloads of NaNs differ between machines; that they are NaNs must not.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ..runtime.bits import assert_same_bits
from ..runtime.machine import TARGET_NAMES
from ..tiny_models import tiny_model_path
from .arm_root import ArmPython

HERE = Path(__file__).parent
FOLDER = os.environ.get("LLMRUN_ARM", "")
MODELS = [
    ("llama", "Q4_1"),
    ("gemma3_256", "Q4_K"),
    ("phi3_longrope", "F16"),
    ("qwen2_yarn", "Q8_0"),
    ("llama_256", "Q6_K"),
]
CPUS = {"max": "neon-dotprod", "cortex-a53": "neon"}

pytestmark = pytest.mark.skipif(not FOLDER, reason="needs an arm64 Python: run make check-arm")


@pytest.fixture(scope="module")
def arm():
    return ArmPython(FOLDER)


def run_here(*args, isa=None):
    """Run a script as this machine's Python would be started by a user; return what it printed."""
    environment = os.environ | ({"LLMRUN_ISA": isa} if isa else {})
    return subprocess.run([sys.executable, *args], env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "inputs.npz"
    run_here(HERE / "kernel_cases.py", "make", path)
    return path


@pytest.fixture(scope="module")
def native(inputs):
    """What the kernels of this machine's best target write, by operation."""
    out = inputs.with_name("native.npz")
    run_here(HERE / "kernel_cases.py", "run", inputs, TARGET_NAMES[0], out)
    return dict(np.load(out))


def check_same(got, want):
    assert got.keys() == want.keys()
    for what, values in want.items():
        if values.dtype.kind == "f":
            assert_same_bits(got[what], values, what)
        else:
            np.testing.assert_array_equal(got[what], values, what)


def test_operations_give_finite_numbers(native):
    """The comparisons below would otherwise compare NaNs."""
    layers = [
        values for what, values in native.items() if what.startswith(("plain", "fused")) and values.dtype == np.float32
    ]
    assert len(layers) > 20
    for values in layers:
        assert np.isfinite(values).all()
        assert np.abs(values).max() > 0


@pytest.mark.parametrize("target_name", ["neon", "neon-dotprod", "neon-dotprod-macos"])
def test_every_kernel_gives_the_bits_of_x86(arm, inputs, native, tmp_path, target_name):
    out = tmp_path / "arm.npz"
    arm.run(HERE / "kernel_cases.py", "run", inputs, target_name, out)
    check_same(dict(np.load(out)), native)


@cache
def native_pass(model):
    out = model.with_suffix(".npz")
    assert run_here(HERE / "model_pass.py", model, out).split()[0] == TARGET_NAMES[0]
    return dict(np.load(out))


@pytest.mark.parametrize(("name", "kind"), MODELS, ids=[f"{name}-{kind}" for name, kind in MODELS])
@pytest.mark.parametrize("cpu", CPUS)
def test_a_model_gives_the_bits_of_x86(arm, tmp_path_factory, tmp_path, cpu, name, kind):
    """Logits of every position and a sampled answer, through the engine, with the target that the CPU calls for."""
    model = tiny_model_path(tmp_path_factory.getbasetemp(), name, GGMLQuantizationType[kind])
    out = tmp_path / "arm.npz"
    assert arm.run(HERE / "model_pass.py", model, out, cpu=cpu).split()[0] == CPUS[cpu]
    check_same(dict(np.load(out)), native_pass(model))
