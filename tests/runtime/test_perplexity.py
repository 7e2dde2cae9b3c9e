"""Perplexity: the chunks, the tokens that count, the arithmetic."""

import math

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.runtime.perplexity import measure, negative_log_likelihood, plan_chunks

from ..cli.fake_engine import FakeTokenizer

TEXT = "".join(chr(33 + i * i % 90) for i in range(107))


class TableEngine:
    """Gives logits that depend on the token before, and notes what it was asked."""

    def __init__(self):
        self.asked = []
        self.table = np.random.default_rng(5).normal(size=(259, 259)).astype(np.float32) * 4

    def logits(self, ids, first):
        self.asked.append((list(ids), first))
        rows = self.table[np.array(ids[first:])]
        yield rows[:2]
        yield rows[2:]


def by_hand(table, ids, n_ctx, bos):
    """Return -ln p of every token that counts, from the definition of softmax in float64."""
    nll = []
    for start in range(0, len(ids) - n_ctx + 1, n_ctx):
        chunk = list(ids[start : start + n_ctx])
        for i in range(n_ctx // 2, n_ctx - 1):
            before = bos if i == 0 and bos is not None else chunk[i]
            row = table[before].astype(np.float64)
            nll.append(-math.log(math.exp(row[chunk[i + 1]]) / sum(math.exp(x) for x in row)))
    return nll


@pytest.mark.parametrize("add_bos", [False, True])
def test_matches_the_definition(add_bos):
    engine, tokenizer = TableEngine(), FakeTokenizer()
    tokenizer.add_bos = add_bos
    chunks = plan_chunks(tokenizer, TEXT, n_ctx=10)
    ids = tokenizer.encode(TEXT)
    assert [len(chunk) for chunk in chunks] == [10] * 10
    result = measure(engine, tokenizer, chunks)
    expected = by_hand(engine.table, ids, 10, tokenizer.bos_id if add_bos else None)
    # exp and log in float64 differ from those of `math` by a few units in the last place of values below 20
    assert np.allclose(result.nll, expected, rtol=0, atol=1e-13)
    assert result.count == 10 * 4  # positions 6 to 9 of each chunk
    mean = sum(expected) / 40
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-12)
    deviation = math.sqrt((sum(x * x for x in expected) / 40 - mean**2) / 39)
    assert result.error == pytest.approx(deviation * math.exp(mean), rel=1e-9)
    assert engine.asked[3][0][0] == (tokenizer.bos_id if add_bos else ids[30])
    assert engine.asked[3][0][1:] == ids[31:39]
    assert {first for _, first in engine.asked} == {5}


def test_extreme_logits_do_not_overflow():
    logits = np.array([[3e38, -3e38, 0], [-1e30, -1e30, -1e30]], np.float32)
    assert negative_log_likelihood(logits, np.array([0, 2])).tolist() == [0.0, pytest.approx(math.log(3))]


def test_text_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="the text has 19 tokens, expected at least 20 for a context of 10"):
        plan_chunks(FakeTokenizer(), "x" * 19, n_ctx=10)
