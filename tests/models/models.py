"""The models that the checks in this folder run on: their files, found in the folder LLMRUN_TEST_MODELS."""

import hashlib
import os
from functools import cache
from pathlib import Path

import pytest

# Short name: file name, SHA-256.
MODELS = {
    "smollm2": (
        "smollm2-135m-instruct-q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": (
        "gemma3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen05": (
        "qwen2.5-coder-0.5b-q4_k_m.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen15": (
        "qwen2.5-coder-1.5b-q4_k_m.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


@cache
def sha256(path):
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_path(name):
    """Return a model's file; skip the test where the folder has none, fail where the file is another one."""
    folder = os.environ.get("LLMRUN_TEST_MODELS")
    if not folder:
        pytest.skip("LLMRUN_TEST_MODELS names no folder with models (make check-models)")
    file_name, expected = MODELS[name]
    path = Path(folder).expanduser() / file_name
    if not path.is_file():
        pytest.skip(f"{file_name} is not in LLMRUN_TEST_MODELS")
    assert sha256(path) == expected, f"{path} is not the file that the goldens were made from"
    return path
