"""The quality card: always the same size, read back as it was written, and never believed blindly."""

import math

import numpy as np
import pytest

from llmrun.formats.gguf import GgufFile
from llmrun.formats.record import replace
from llmrun.quant.quality_card import FIGURES, QualityCard

from ..tiny_gguf import write_gguf

CARD = QualityCard(
    ppl_base=10.0, ppl=10.5, kld_mean=0.0123, kld_median=0.004, kld_q999=0.5, kld_max=1.25, same_top=0.95,
    p_diff_rms=0.03, n_token=1000, n_ctx=512, flips={"refusals": (1, 8), "code": (0, 8), "arithmetic": (2, 8)},
    worst=["blk.0.attn_k.weight Q4_K 8.1%", "blk.1.ffn_down.weight Q6_K 2.0%"], text="a text", text_sha256="ab" * 32,
    source_sha256="cd" * 32,
)  # fmt: skip


def as_written(values):
    """Return metadata values as ``write_gguf`` takes them."""
    return {
        key: value.value.decode() if isinstance(value.value, bytes)
        else np.float32(value.value) if isinstance(value.value, float) else value.value
        for key, value in values.items()
    }  # fmt: skip


def read(path, values):
    with GgufFile.open(write_gguf(path, values, {"w": np.zeros(32, np.float32)})) as file:
        return QualityCard.from_metadata(file.metadata)


def sizes(values):
    return {
        key: (v.value_type, v.is_array, len(v.value) if v.is_array or isinstance(v.value, bytes) else 0)
        for key, v in values.items()
    }


def test_reads_what_it_writes(tmp_path):
    card = read(tmp_path / "x.gguf", as_written(CARD.metadata()))
    for name in FIGURES:
        assert getattr(card, name) == pytest.approx(getattr(CARD, name), rel=1e-6)
    assert replace(card, **{name: getattr(CARD, name) for name in FIGURES}) == CARD


def test_every_card_has_the_size_of_the_placeholder():
    long = replace(
        CARD, worst=["x" * 600] * 9, text="ü" * 99, ppl=math.inf, kld_max=math.nan, flips={}, source_sha256=""
    )
    assert sizes(CARD.metadata()) == sizes(long.metadata()) == sizes(QualityCard.placeholder())
    assert all(math.isfinite(v.value) for v in long.metadata().values() if isinstance(v.value, float))


def test_a_placeholder_is_no_card(tmp_path):
    assert read(tmp_path / "x.gguf", as_written(QualityCard.placeholder())) is None
    assert read(tmp_path / "y.gguf", {}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"llmrun.quality.version": 2},
        {"llmrun.quality.ppl": "high"},
        {"llmrun.quality.kld_mean": np.float32(np.nan)},
        {"llmrun.quality.flips.code": 3},
        {"llmrun.quality.text": 3},
    ],
)
def test_other_cards_are_ignored(change, tmp_path):
    assert read(tmp_path / "x.gguf", as_written(CARD.metadata()) | change) is None


def test_line_and_rows():
    assert CARD.line() == (
        "quality: KL 0.0123 from its source · same likeliest token 95.0 % · perplexity +5.00 % · 3 of 24 probes flipped"
    )
    rows = dict(CARD.rows())
    assert rows["quality: flipped probes"] == "refusals 1 of 8, code 0 of 8, arithmetic 2 of 8"
    assert rows["quality: KL divergence"].startswith("mean 0.012300, median 0.004000, 99.9% 0.500000")
