"""Our logits are as near to llama.cpp's in float32 as llama.cpp's own are on the same quantised file.

Both errors come from int8 activations: their rounding is random, so two correct programs differ in each row
and agree in the mean. The limits are therefore llama.cpp's means on the same rows plus three standard errors;
README.md has the figures over the whole of both texts, where no allowance is needed.
"""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from llmrun.runtime.engine import Engine

from .golden import Golden, Summary, figures, log_softmax
from .models import MODELS, model_path

TEXTS = ("english", "python")
ROWS = 32  # compared at once: 64 MB of float64 for the largest vocabulary
MAX_LOG_RATIO = 0.003  # perplexity within 0.3 % of the truth, or as near as llama.cpp's

pytestmark = pytest.mark.models


def our_figures(engine, golden):
    """Run the chunks of a golden and return ``figures`` of all rows."""
    parts, row = [], 0
    for chunk in golden.fed:
        for block in engine.logits(chunk[:-1].tolist(), golden.first):
            for start in range(0, len(block), ROWS):
                parts.append(figures(golden, row, log_softmax(block[start : start + ROWS])))
                row += len(parts[-1])
    return np.concatenate(parts)


@pytest.fixture(scope="module", params=MODELS)
def engine(request):
    with Engine.open(model_path(request.param), n_ctx=512) as opened:
        yield request.param, opened


@pytest.mark.parametrize("text", TEXTS)
def test_as_near_to_the_truth_as_llama_cpp(engine, text):
    name, opened = engine
    golden = Golden.load(f"{name}-{text}")
    assert golden.sha256 == MODELS[name][1]
    ours = Summary.of(golden, our_figures(opened, golden))
    theirs = Summary.of(golden, golden.llama_cpp)
    print(f"{name} {text}\n  llmrun    {ours}\n  llama.cpp {theirs}")
    assert ours.divergence <= theirs.divergence + 3 * theirs.divergence_error
    assert ours.n_differ <= theirs.n_differ + 3 * math.sqrt(theirs.n_differ)
    assert abs(ours.log_ratio) <= max(MAX_LOG_RATIO, abs(theirs.log_ratio)) + 3 * theirs.log_ratio_error


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])  # without and with BOS in place of a chunk's first token
def test_eval_perplexity_scores_the_same_rows(name, tmp_path):
    """``llmrun eval perplexity`` on the golden's text gives the perplexity of the golden's rows."""
    path, golden = model_path(name), Golden.load(f"{name}-english")
    assert (golden.bos >= 0) == (name == "gemma3")
    with Engine.open(path, n_ctx=512) as opened:
        expected = our_figures(opened, golden)[:, 2]
        text = opened.tokenizer.decode(golden.tokens.reshape(-1).tolist())
        assert opened.tokenizer.encode(text) == golden.tokens.reshape(-1).tolist()
    file = tmp_path / "text"
    file.write_bytes(text.encode())
    command = [sys.executable, "-m", "llmrun", "eval", "perplexity", path, "-f", file, "--json", "--per-token"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["n_token"] == len(expected)
    np.testing.assert_allclose(report["nll"], expected, rtol=0, atol=1e-9)
    assert report["perplexity"] == pytest.approx(math.exp(expected.mean()), rel=1e-9)
