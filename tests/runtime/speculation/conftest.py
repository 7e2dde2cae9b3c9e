"""Opened tiny targets, shared by the tests of speculation."""

import pytest

from llmrun.runtime.engine import Engine

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
