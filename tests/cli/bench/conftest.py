"""A real, tiny model: the bench measures the engine itself."""

import pytest
from gguf import GGMLQuantizationType

from ...tiny_models import tiny_model_path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_model_path(tmp_path_factory.mktemp("bench"), "llama", GGMLQuantizationType.Q8_0)
