"""Opened tiny targets, shared by the tests of speculation."""

import pytest

from llmrun.runtime.engine import Engine

from ...tiny_heads import HEADS, write_head
from ..machine import BEST


@pytest.fixture(scope="session")
def targets(machine, tiny_path):
    """Return a function that opens a tiny model once: (name, type, threads)."""
    machine.kernels(BEST)
    engines = {}

    def target(name="llama", ggml_type="Q8_0", n_threads=1, n_ctx=160):
        key = name, ggml_type, n_threads, n_ctx
        if key not in engines:
            engines[key] = Engine.open(tiny_path(name, ggml_type), n_ctx=n_ctx, n_threads=n_threads, n_ubatch=32)
        return engines[key]

    yield target
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="module")
def target(machine, tiny_path):
    machine.kernels(BEST)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=160, n_threads=1, n_ubatch=32) as engine:
        yield engine


@pytest.fixture(scope="module")
def head_path(tmp_path_factory):
    """Return a function that writes a head once: (name, type)."""
    folder = tmp_path_factory.mktemp("heads")

    def path(name, ggml_type="F32"):
        place = folder / f"{name}-{ggml_type}.gguf"
        return place if place.exists() else write_head(place, HEADS[name], ggml_type)

    return path
