"""Kernels compiled once per test run, and teams of threads that use them."""

import pytest

from .machine import Machine


@pytest.fixture(scope="session")
def machine():
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture(autouse=True)
def no_forced_isa(monkeypatch):
    """A developer's own settings change no test."""
    for name in ("LLMRUN_ISA", "LLMRUN_THREADS"):
        monkeypatch.delenv(name, raising=False)
