"""Speculation changes no token id of real models; ``lossless.py`` as a program compares as many as one likes."""

import os

import pytest

from .lossless import check
from .models import model_path

pytestmark = pytest.mark.models
N_TOKEN = int(os.environ.get("LLMRUN_LOSSLESS_TOKENS", "1500"))


def test_no_id_differs():
    folder = model_path("smollm2").parent
    n_id, _ = check(folder, N_TOKEN)
    assert n_id >= N_TOKEN
