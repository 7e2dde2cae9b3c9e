"""Sums over blocks of the vocabulary against the plain formula, and statistics against llama-perplexity's words."""

import numpy as np
import pytest

from llmrun.runtime import divergence
from llmrun.runtime.divergence import FileRows, PairRows, report

N_ROW, N_VOCAB = 50, 301


@pytest.fixture
def logits():
    rng = np.random.default_rng(1)
    a = rng.normal(0, 4, (N_ROW, N_VOCAB)).astype(np.float32)
    b = (a + rng.normal(0, 0.3, a.shape) + 5).astype(np.float32)  # a softmax does not see the 5
    return a, b, rng.integers(0, N_VOCAB, N_ROW)


def log_p(x):
    x = x.astype(np.float64)
    return x - x.max(axis=1, keepdims=True) - np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(1, keepdims=True))


def add_blocks(pairs, a, b, columns, rows):
    for start in range(0, N_VOCAB, columns):
        for row in range(0, N_ROW, rows):
            block = slice(row, row + rows), slice(start, start + columns)
            pairs.add(row, start, a[block], b[block])
    return pairs.result()


@pytest.mark.parametrize(("columns", "rows", "piece"), [(301, 50, 1 << 20), (64, 7, 1 << 20), (1, 50, 40), (100, 9, 1)])
def test_blocks_give_the_plain_formula(columns, rows, piece, logits, monkeypatch):
    monkeypatch.setattr(divergence, "PIECE_BYTES", piece)
    a, b, targets = logits
    found = add_blocks(PairRows(targets, 2), a, b, columns, rows)
    p, q = log_p(a), log_p(b)
    np.testing.assert_allclose(found.kld, (np.exp(p) * (p - q)).sum(axis=1), rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(found.nll_base, -p[np.arange(N_ROW), targets], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.nll, -q[np.arange(N_ROW), targets], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.top_p, np.exp(q.max(axis=1)), rtol=1e-6)
    assert (found.top_base == a.argmax(axis=1)).all()
    assert (found.top == b.argmax(axis=1)).all()


def test_of_equal_logits_the_lowest_id_is_the_top():
    pairs = PairRows(np.zeros(1, np.int64))
    x = np.array([[1, 3, 3, 3]], np.float32)
    for start in (0, 2):
        pairs.add(0, start, x[:, start : start + 2], x[:, start : start + 2])
    found = pairs.result()
    assert (found.top_base[0], found.top[0]) == (1, 1)
    assert found.kld[0] == pytest.approx(0, abs=1e-12)


def test_a_file_counts_what_is_above_its_floor(logits):
    a, b, targets = logits
    a = np.maximum(log_p(a), log_p(a).max(axis=1, keepdims=True) - 16).astype(np.float32)
    found = add_blocks(FileRows(targets, 2), a, b, 64, 7)
    q, counted = log_p(b), a > -16
    expected = np.where(counted, np.exp(a.astype(np.float64)) * (a - q), 0).sum(axis=1)
    # Products of f32: relative 2**-24 of p * (a - b), where a - b is about 25.
    np.testing.assert_allclose(found.kld, expected, rtol=2e-5, atol=3e-6)
    np.testing.assert_allclose(found.nll_base, -a[np.arange(N_ROW), targets], rtol=1e-6)


def test_small_divergences_are_not_lost_in_rounding(logits):
    a, _, targets = logits
    rng = np.random.default_rng(2)
    b = (a + rng.normal(0, 1e-3, a.shape)).astype(np.float32)
    found = add_blocks(PairRows(targets), a, b, 64, 50)
    p, q = log_p(a), log_p(b)
    # Exponentials are f32: each sum of them, and so each logarithm, is off by at most 2**-23.
    np.testing.assert_allclose(found.kld, (np.exp(p) * (p - q)).sum(axis=1), rtol=0, atol=2**-22)
    assert found.kld.mean() < 1e-6


def test_report_has_llama_perplexitys_names(logits):
    a, b, targets = logits
    lines = report(add_blocks(PairRows(targets), a, b, 301, 50).summary())
    names = "Mean PPL(Q)", "Mean PPL(base)", "Mean ln(PPL(Q)/PPL(base))", "Mean    KLD", "99.9%   KLD", "Median  KLD"
    for name in (*names, "Maximum KLD", "RMS Δp", "Same top p"):
        assert any(line.startswith(name) for line in lines), name


def test_identical_models_differ_by_nothing(logits):
    a, _, targets = logits
    summary = add_blocks(PairRows(targets), a, a, 64, 7).summary()
    assert summary["kld_q1"] == pytest.approx(0, abs=1e-12)
    assert (summary["same_top"], summary["p_diff_rms"], summary["ln_ppl_ratio"]) == (1, 0, 0)
    assert (summary["p_diff_rms_error"], summary["same_top_error"], summary["correlation"]) == (
        0, 0, pytest.approx(1),
    )  # fmt: skip
