"""Whole measurements on tiny models: against llama.cpp's own figures, and against the engine's logits."""

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.formats.logits_file import LogitsFile
from llmrun.quant.imatrix import Imatrix
from llmrun.runtime import evaluate
from llmrun.runtime.calibrate import measure_imatrix
from llmrun.runtime.divergence import report
from llmrun.runtime.evaluate import compare_file, compare_models, samples_of, scored_rows, write_logits
from llmrun.runtime.layerwise import runner as runner_module
from llmrun.runtime.layerwise.runner import LayerwiseRunner
from llmrun.runtime.layerwise.source import open_gguf
from llmrun.runtime.perplexity import plan_chunks
from llmrun.runtime.tokenizer.load import load_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXT = (GOLDENS / "imatrix" / "text.txt").read_text().removesuffix("\n")


@pytest.fixture
def opened(tiny_path):
    """Return a function that opens (runner, chunks of the text, tokenizer), closed after the test."""
    with ExitStack() as stack:

        def open_(name, kind="F32", *, n_ctx=32, n_chunk=7, **options):
            source = stack.enter_context(open_gguf(tiny_path(name, kind)))
            tokenizer = load_tokenizer(source.metadata)
            plan = plan_chunks(tokenizer, TEXT, n_ctx=n_ctx, max_chunks=n_chunk)
            return stack.enter_context(LayerwiseRunner(source, n_ctx=n_ctx, n_threads=2, **options)), plan, tokenizer

        yield open_


def numbers(line):
    return [float(x) for x in re.findall(r"-?\d+\.\d+", line.split(":", 1)[1])]


def test_a_file_of_log_probabilities_gives_llama_cpps_figures(opened):
    file = LogitsFile(GOLDENS / "logits" / "qwen2.base")
    model, plan, tokenizer = opened("qwen2", "Q8_0")
    assert file.tokens.tolist() == plan
    lines = report(compare_file(file, model, samples_of(plan, tokenizer)).summary())
    theirs = (GOLDENS / "logits" / "qwen2_q8.txt").read_text().splitlines()
    expected = {line.split(":")[0]: numbers(line) for line in theirs if ":" in line}
    got = {line.split(":")[0]: numbers(line) for line in lines if ":" in line}
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        # llama.cpp sums in another order before keys and values are rounded to f16; these networks are steep.
        assert got[name] == pytest.approx(values, rel=0.1, abs=0.01 if "KLD" not in name else 2e-5), name


def test_our_file_is_llama_cpps(opened, tmp_path):
    model, plan, tokenizer = opened("qwen2")
    write_logits(tmp_path / "ours", model, plan, tokenizer)
    ours, theirs = LogitsFile(tmp_path / "ours"), LogitsFile(GOLDENS / "logits" / "qwen2.base")
    assert (ours.tokens == theirs.tokens).all()
    assert np.abs(ours.log_p(0, 105) - theirs.log_p(0, 105)).max() < 0.05  # of 0 to -20: f16 keys and values
    model, _, _ = opened("qwen2")
    summary = compare_file(ours, model, samples_of(plan, tokenizer)).summary()
    assert summary["kld_q1"] < 8 / 65535 + 301 * np.exp(-16)  # rounded to steps of 16 / 65535, and cut off
    assert summary["same_top"] == 1


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_two_models_side_by_side_are_the_engines_logits(name, opened, make_runner, monkeypatch):
    """With int8 activations the figures are exactly those of the logits that the engine makes."""
    monkeypatch.setattr(evaluate, "BLOCK_BYTES", 4 * 64 * 20)
    monkeypatch.setattr(runner_module, "BLOCK_BYTES", 4 * 64 * 64)
    base, plan, tokenizer = opened(name, is_float=False)
    other, _, _ = opened(name, "Q4_0", is_float=False)
    samples = samples_of(plan, tokenizer)
    found = compare_models(base, other, samples)
    p, q = (
        np.concatenate([make_runner((name, kind)).logits(s.ids[:-1])[s.first :] for s in samples]).astype(np.float64)
        for kind in ("F32", "Q4_0")
    )
    p, q = (x - x.max(axis=1, keepdims=True) for x in (p, q))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    targets = scored_rows(samples)[1]
    np.testing.assert_allclose(found.kld, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.nll, -q[np.arange(len(q)), targets], rtol=1e-6, atol=1e-6)
    assert (found.top == q.argmax(axis=1)).all()


def test_other_models_are_refused(opened, tmp_path):
    one, plan, tokenizer = opened("qwen2")
    other, _, _ = opened("qwen2")
    object.__setattr__(other.hparams, "n_vocab", 300)
    with pytest.raises(ConfigError, match="not two files of one model"):
        compare_models(one, other, samples_of(plan, tokenizer))
    with pytest.raises(ConfigError, match="made with 301 tokens, the model has 300"):
        compare_file(LogitsFile(GOLDENS / "logits" / "qwen2.base"), other, samples_of(plan, tokenizer))


def test_chunks_are_fed_as_llama_perplexity_does(opened):
    _, plan, tokenizer = opened("gemma3")
    samples = samples_of(plan, tokenizer)
    assert tokenizer.add_bos
    assert [s.ids[0] for s in samples] == [tokenizer.bos_id] * 7
    assert [s.ids[1:] for s in samples] == [chunk[1:] for chunk in plan]
    rows, targets = scored_rows(samples)
    assert rows[:15].tolist() == list(range(16, 31))
    assert rows[15] == 31 + 16
    assert targets.tolist() == [t for chunk in plan for t in chunk[17:]]


def test_importance_is_llama_imatrixs(opened):
    model, plan, tokenizer = opened("qwen2", n_ctx=64, n_chunk=3)
    ours = measure_imatrix(model, [s.ids for s in samples_of(plan, tokenizer)], dataset="text.txt", has_output=True)
    theirs = Imatrix.load(GOLDENS / "imatrix" / "qwen2.gguf")
    assert ours.names == sorted([*theirs.names, "output.weight"])
    assert (ours.n_chunk, ours.chunk_size, ours.datasets) == (3, 64, ["text.txt"])
    for name in theirs.names:
        n_in = 128 if "ffn_down" in name else 64
        np.testing.assert_allclose(ours.importance(name, n_in), theirs.importance(name, n_in), rtol=0.02)
