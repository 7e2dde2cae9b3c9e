"""What all tests share: a cache of compiled kernels that is not the user's, and tests that run only when asked for."""

import os
import tempfile

import pytest

# Before NumPy is imported: its threads spin for a while after every product, which tests of idle threads would see.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes of work that other tests sample (pytest --slow)")
    # Kernels compiled once stay for the next run, beside pytest's own cache; their names hold a hash of the sources.
    if "LLMRUN_CACHE" not in os.environ:
        cache = getattr(config, "cache", None)
        os.environ["LLMRUN_CACHE"] = str(cache.mkdir("llmrun-kernels") if cache else tempfile.mkdtemp())


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run pytest --slow"))
