"""A built wheel: what is in it, and that llmrun starts from it without compiling anything.

``make check-wheel`` builds one the way ``pip install .`` does, names it in LLMRUN_WHEEL and runs this;
without it everything here is skipped.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from llmrun.runtime.kernels.registry import kernel_names
from llmrun.runtime.simd.isa import supported_targets

from .tiny_models import tiny_model_path

WHEEL = os.environ.get("LLMRUN_WHEEL", "")
OBJECTS = "llmrun/runtime/objects/"
pytestmark = pytest.mark.skipif(not WHEEL, reason="needs a wheel: run make check-wheel")

START = """
import json, sys, time
from pathlib import Path
import llmrun
from llmrun.runtime.engine import Engine
from llmrun.runtime.kernels.kernel_set import KernelSet
from llmrun.runtime.kernels.registry import kernel_names
from llmrun.runtime.simd.isa import choose_target

with Engine.open(Path(sys.argv[1]), n_ctx=64, n_threads=1) as engine:
    print(engine.logits([1, 2, 3], 2).__next__().shape, file=sys.stderr)
started = time.process_time()
kernels = KernelSet(kernel_names(), choose_target())
seconds = time.process_time() - started
print(json.dumps([llmrun.__file__, kernels.n_compiled, "numba" in sys.modules, seconds]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder to put on the path, with what the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(WHEEL) as archive:
        archive.extractall(folder)
    return folder


def test_it_is_for_every_machine():
    assert Path(WHEEL).name.endswith("-py3-none-any.whl")


def test_it_holds_the_package_and_objects_of_every_kernel():
    with zipfile.ZipFile(WHEEL) as archive:
        names = archive.namelist()
        stamp = archive.read(OBJECTS + "stamp").decode().split()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"llmrun"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    best = supported_targets()[0].name
    objects = {
        name.removeprefix(f"{OBJECTS}{stamp[0]}/{best}/")
        for name in names
        if name.startswith(f"{OBJECTS}{stamp[0]}/{best}/")
    }
    assert objects == {f"{name}.o" for name in kernel_names()}
    assert stamp[1:7:2] == ["numba", "llvmlite", "gguf"]


def test_it_starts_without_numba_and_without_a_cache(installed, tmp_path):
    model = tiny_model_path(tmp_path, "llama", GGMLQuantizationType.Q4_1)
    environment = os.environ | {"PYTHONPATH": str(installed), "LLMRUN_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", START, str(model)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True)
    file, n_compiled, has_numba, seconds = json.loads(result.stdout)
    assert Path(file).is_relative_to(installed)
    assert (n_compiled, has_numba) == (0, False)
    assert not (tmp_path / "cache").exists()
    assert seconds < 0.04  # all kernels, though a model needs a third of them: 6 ms (Sapphire Rapids)
