"""``llmrun eval perplexity``: the report; the arithmetic is tested with ``runtime/perplexity.py``."""

import json
import math

import pytest

TEXT = "".join(chr(33 + i * i % 90) for i in range(107))


def test_command(cli, engine, model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    result = cli("eval", "perplexity", model, "-f", path, "-c", 10, "--json", "--per-token")
    record = json.loads(result.out)
    assert record["perplexity"] == pytest.approx(math.exp(record["mean_nll"]))
    assert (record["n_ctx"], record["n_chunk"], record["n_token"], len(record["nll"])) == (10, 10, 40, 40)
    assert engine.opened["n_ctx"] == 10
    result = cli("eval", "perplexity", model, "-f", path, "-c", 10, "--chunks", 3)
    assert result.out.startswith("Final estimate: PPL = ")
    assert "+/-" in result.out
    assert result.err.startswith("[1]")
    result = cli("eval", "perplexity", model, "-f", path)
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: the text has 107 tokens, expected at least 1024 for a context of 512\n"
    engine.n_ctx = 2048
    result = cli("eval", "perplexity", model, "-f", path, "-c", 0)
    assert result.err == "error: the text has 107 tokens, expected at least 4096 for a context of 2048\n"
