"""Quality cards and probes of tiny models."""

import hashlib
from contextlib import ExitStack

import numpy as np
import pytest

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.layerwise.source import open_gguf
from llmrun.runtime.probes import KINDS, PROBES, count_flips, probe_samples, results
from llmrun.runtime.quality import compare_on_text, hash_source, measure_quality, spread
from llmrun.runtime.texts import calibration_text
from llmrun.runtime.tokenizer.load import load_tokenizer

TEXT = calibration_text()[:3000]


@pytest.fixture
def pair(tiny_path):
    with ExitStack() as stack:
        yield [stack.enter_context(open_gguf(tiny_path("qwen2", kind))) for kind in ("F32", "Q4_0")]


def test_card_of_a_quantised_model(pair, tiny_path):
    card = measure_quality(*pair, TEXT, text_name="some text", n_ctx=64, n_chunk=3, n_threads=1)
    found = compare_on_text(*pair, TEXT, n_ctx=64, n_chunk=3, n_threads=1)
    summary = found.divergence.summary()
    assert (card.n_token, card.n_ctx) == (93, 64) == (summary["n_token"], 64)
    assert (card.kld_mean, card.ppl, card.same_top) == (summary["kld_mean"], summary["ppl"], summary["same_top"])
    assert card.kld_mean > 1e-3
    assert {kind: n for kind, (_, n) in card.flips.items()} == dict.fromkeys(KINDS, 8)
    assert len(card.worst) == 5
    assert all(" Q4_0 " in worst for worst in card.worst)
    assert card.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert card.source_sha256 == hashlib.sha256(tiny_path("qwen2").read_bytes()).hexdigest()


def test_a_model_does_not_differ_from_itself(pair):
    card = measure_quality(pair[0], pair[0], TEXT, text_name="", n_ctx=64, n_chunk=2, n_threads=1)
    assert card.kld_max == pytest.approx(0, abs=1e-12)
    assert (card.same_top, card.worst, card.n_flip) == (1, [], (0, 24))


def test_a_short_text_makes_shorter_chunks(pair):
    found = compare_on_text(*pair, "a few words and a few more of them", n_threads=1)
    assert 4 <= len(found.samples[0].ids) < 20


def test_chunks_are_spread_over_the_text():
    chunks = [[i] for i in range(10)]
    assert spread(chunks, 4) == [[0], [3], [6], [9]]
    assert spread(chunks, 1) == [[0]]
    assert spread(chunks, None) == spread(chunks, 99) == chunks


def test_probes_are_well_formed():
    assert {p.kind for p in PROBES} == set(KINDS)
    for probe in PROBES:
        assert len(set(probe.answers)) == len(probe.answers) > 1


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_the_answers_tokens_are_what_counts(name, tiny_path):
    with GgufFile.open(tiny_path(name)) as file:
        tokenizer = load_tokenizer(file.metadata)
    samples = iter(probe_samples(tokenizer, None, 512))
    for probe in PROBES:
        for answer in probe.answers:
            sample = next(samples)
            assert tokenizer.decode(sample.ids[sample.first + 1 :]) == answer
    assert next(samples, None) is None


def test_a_flip_is_another_choice(tiny_path):
    with GgufFile.open(tiny_path("qwen2")) as file:
        tokenizer = load_tokenizer(file.metadata)
    samples = probe_samples(tokenizer, None, 512)
    n = sum(s.n_scored for s in samples)
    base = np.full(n, 5.0)
    row = 0
    for probe in PROBES:  # the base likes every first answer
        n_first = samples[0].n_scored
        base[row : row + n_first] = 0.01
        row += sum(s.n_scored for s in samples[: len(probe.answers)])
        samples = samples[len(probe.answers) :]
    samples = probe_samples(tokenizer, None, 512)
    found = results(samples, base, base)
    assert [r.base for r in found] == [0] * 24
    assert count_flips(found) == dict.fromkeys(KINDS, (0, 8))
    other = base.copy()
    other[: samples[0].n_scored] = 50.0
    flipped = results(samples, base, other)
    assert [r.is_flip for r in flipped] == [True] + [False] * 23
    assert count_flips(flipped)["refusals"] == (1, 8)


def test_hash_of_a_folder_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "config.json").write_bytes(b"{}")
    first = hash_source(tmp_path)
    (tmp_path / "README.md").write_bytes(b"not part of it")
    assert hash_source(tmp_path) == first
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert hash_source(tmp_path) != first
