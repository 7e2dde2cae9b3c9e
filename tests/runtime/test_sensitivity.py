"""What each matrix loses by each type, on a tiny model."""

import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.budget import Budget
from llmrun.quant.scale_search import NumpySearch
from llmrun.runtime.layerwise.runner import LayerwiseRunner
from llmrun.runtime.layerwise.source import open_gguf
from llmrun.runtime.sensitivity import Sensitivity, scaled

from ..models.off_grid import move_off_grid
from .machine import token_ids

TYPES = (GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q8_0, GgmlType.Q4_K)


@pytest.fixture(scope="module")
def measured(tiny_path, tmp_path_factory):
    """Return a function (threads) -> options of all matrices."""
    folder = tmp_path_factory.mktemp("sensitivity")
    move_off_grid(tiny_path("qwen2"), folder / "m.gguf")

    def measured(n_thread):
        with open_gguf(folder / "m.gguf") as source, LayerwiseRunner(source, n_ctx=48, n_threads=n_thread) as runner:
            names = [n for n, t in source.tensors.items() if len(t.shape) == 2]
            sensitivity = Sensitivity(runner, TYPES, search=NumpySearch(), n_thread=n_thread)
            return names, sensitivity.measure([token_ids(str(i), 48) for i in range(3)], names)

    return measured


def test_every_matrix_has_options_and_more_bits_lose_less(measured):
    names, options = measured(2)
    assert list(options) == names
    for name, of_matrix in options.items():
        assert [o.ggml_type for o in of_matrix] == list(TYPES[:3]), name  # rows are no whole blocks of 256
        q4, q5, q8 = (o.loss for o in of_matrix)
        assert q4 > 2 * q5 > 20 * q8 > 0, name  # a bit is a factor of 4 in squares, less the search's luck


def test_no_figure_depends_on_threads(measured):
    assert measured(1) == measured(3)


def test_one_measurement_makes_divergences_of_losses(measured):
    _, options = measured(2)
    found = Budget(options).within(1e9)
    assert Budget(scaled(options, found.loss, 0.25)).within(1e9).loss == pytest.approx(0.25)
