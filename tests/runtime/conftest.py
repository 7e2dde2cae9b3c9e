"""Kernels compiled once per test run, and teams of threads that use them."""

import pytest
from gguf import GGMLQuantizationType

from llmrun.runtime import engine
from llmrun.runtime.layerwise import runner as layerwise_runner
from llmrun.runtime.threads import default_threads

from ..tiny_models import tiny_model_path
from .machine import EMBED_TYPES, Machine
from .runner import Runner


@pytest.fixture(scope="session", autouse=True)
def _as_many_threads_as_asked_for():
    """Let tests have more threads than there are processors: no bit may depend on their number."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, layerwise_runner):
            patch.setattr(module, "team_size", lambda n_thread: n_thread or default_threads()[0])
        yield


@pytest.fixture(scope="session")
def machine():
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """Return a function that writes a tiny model once and returns its path: (name, type="F32", overrides=None).

    Embeddings are of one of ``EMBED_TYPES``, whatever the type of the other matrices.
    """
    folder, paths = tmp_path_factory.mktemp("tiny"), {}

    def path(name, ggml_type="F32", overrides=None):
        overrides = dict(overrides or {})
        if ggml_type not in EMBED_TYPES:
            overrides.setdefault("token_embd.weight", "Q8_0")
        key = name, ggml_type, str(overrides)
        if key not in paths:
            place = folder / str(len(paths))
            place.mkdir()
            kinds = {ending: GGMLQuantizationType[kind] for ending, kind in overrides.items()}
            paths[key] = tiny_model_path(place, name, GGMLQuantizationType[ggml_type], kinds)
        return paths[key]

    return path


@pytest.fixture
def make_runner(machine, tiny_path):
    """Return a function that makes runners, closed after the test: (model or (model, type), ...)."""
    runners = []

    def make(model, *args, **options):
        names = (model,) if isinstance(model, str) else model
        runners.append(Runner(machine, tiny_path(*names), *args, **options))
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


@pytest.fixture(autouse=True)
def no_kept_speeds(monkeypatch):
    """Speeds of tiny models are nobody's business."""
    monkeypatch.setattr("llmrun.runtime.speculation.speed_file._folder", lambda: None)


@pytest.fixture(autouse=True)
def no_forced_isa(monkeypatch):
    """A developer's own settings change no test."""
    for name in ("LLMRUN_ISA", "LLMRUN_THREADS"):
        monkeypatch.delenv(name, raising=False)
