"""A run needs little more resident memory than the weights that a step streams and the keys and values in use."""

import os
import subprocess
import sys

import pytest

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.engine import Engine

from .llmrun_process import llmrun
from .models import MODELS, model_path

N_CTX = 2048
OVERHEAD_BYTES = {name: (400 if name == "gemma3" else 300) << 20 for name in MODELS}  # gemma3: 262k words

# A small process in between: the peak of a child counts what its parent held when it started it.
PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "llmrun", *sys.argv[1:]], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else 1024 * peak)
"""  # noqa: E501

pytestmark = [pytest.mark.models, pytest.mark.skipif(os.name == "nt", reason="no getrusage")]


@pytest.mark.parametrize("mapping", ["--mmap", "--no-mmap"])
@pytest.mark.parametrize("name", MODELS)
def test_peak_of_resident_memory(name, mapping):
    path = model_path(name)
    command = ["run", path, "--raw", "-p", "The capital of France is", "-n", 8, "-c", N_CTX, "--temp", 0, mapping]
    llmrun(*command)  # compiles what is not compiled yet: that needs memory of its own
    with Engine.open(path, n_ctx=N_CTX) as engine:
        weight_bytes = engine.info.packed_bytes
    if mapping == "--no-mmap":  # then the embeddings, which are looked up, are memory too
        with GgufFile.open(path) as file:
            weight_bytes += file.tensors["token_embd.weight"].n_bytes
    result = subprocess.run([sys.executable, "-c", PEAK, *map(str, command)], capture_output=True, check=True)
    over = int(result.stdout) - weight_bytes  # the keys and values of 13 tokens are less than 1 MB
    print(f"{name} {mapping}: {over / 2**20:.0f} MiB more than the weights")
    assert over < OVERHEAD_BYTES[name]
