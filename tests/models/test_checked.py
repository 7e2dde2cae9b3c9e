"""The checked interpreter with float activations computes what the file says: llama.cpp in float32, to rounding."""

import numpy as np
import pytest

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.batch import Batch
from llmrun.runtime.engine import load_program
from llmrun.runtime.executor.checked import CheckedExecutor
from llmrun.runtime.weights import GgufWeights

from .golden import Golden, Summary, figures, log_softmax
from .models import MODELS, model_path

MAX_DIVERGENCE = 1e-4

pytestmark = [pytest.mark.models, pytest.mark.slow]


def logits_of(file, ids, first):
    """Return the logits after ``ids[first:]`` in one pass: f32 [n, n_vocab]."""
    weights = GgufWeights(file)
    _, program = load_program(file, weights, len(ids), is_fused=False)
    executor = CheckedExecutor(program, weights, len(ids), is_exact=False)
    executor.run(Batch.of_tokens(np.zeros(0, np.int64), 0, ids, range(first, len(ids))))
    return executor.output("logits")


@pytest.mark.parametrize("name", MODELS)
def test_float_activations_give_the_truth(name):
    golden = Golden.load(f"{name}-short")
    with GgufFile.open(model_path(name)) as file:
        parts = [logits_of(file, chunk[:-1].tolist(), golden.first) for chunk in golden.fed]
    values = np.concatenate([figures(golden, i * golden.n_scored, log_softmax(p)) for i, p in enumerate(parts)])
    summary = Summary.of(golden, values)
    print(f"{name}: {len(values)} rows, {summary}, largest {values[:, 0].max():.2e}")
    assert summary.divergence < MAX_DIVERGENCE
    assert summary.n_differ <= 1
