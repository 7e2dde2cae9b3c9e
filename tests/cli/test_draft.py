"""``llmrun draft`` on real, tiny models."""

import json
import shutil

import pytest
from gguf import GGMLQuantizationType

from llmrun.cli.draft import find_candidates

from ..tiny_models import tiny_model_path

N_CTX = ("-c", "2048")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, a smaller one, and one that is broken."""
    place = tmp_path_factory.mktemp("models")
    large = tiny_model_path(place, "llama", GGMLQuantizationType.F32)
    large.rename(place / "large.gguf")
    small = tiny_model_path(place, "llama", GGMLQuantizationType.Q4_0)
    small.rename(place / "small.gguf")
    (place / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    return place


@pytest.fixture(autouse=True)
def no_other_models(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMRUN_MODELS", str(tmp_path / "none"))


def test_candidates_are_the_smaller_models_beside_it_and_in_the_models_folder(folder, tmp_path, monkeypatch):
    other = tmp_path / "more"
    other.mkdir()
    shutil.copy(folder / "small.gguf", other / "other.gguf")
    monkeypatch.setenv("LLMRUN_MODELS", str(other))
    assert [p.name for p in find_candidates(folder / "large.gguf")] == ["broken.gguf", "other.gguf", "small.gguf"]
    assert [p.name for p in find_candidates(folder / "small.gguf")] == ["broken.gguf"]


def test_measures_and_refuses(cli, folder):
    result = cli("draft", folder / "large.gguf", *N_CTX, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    (one,) = report["candidates"]
    assert one["path"].endswith("small.gguf")
    assert one["is_same_vocabulary"]
    assert one["n_shared"] == 301
    assert 0 < one["step_price"] < 50
    assert set(one["speedup"]) == set(one["acceptance"]) == {"code", "chat"}
    assert list(report["refused"]) == ["broken.gguf"]


def test_text(cli, folder):
    result = cli("draft", folder / "large.gguf", *N_CTX, "-md", folder / "small.gguf")
    assert result.code == 0, result.err
    assert "small.gguf: " in result.out
    assert "same vocabulary" in result.out
    assert "a step costs " in result.out
    assert ("recommended: llmrun chat" in result.out) != ("none of these gains time here" in result.out)


def test_nothing_is_there(cli, folder):
    result = cli("draft", folder / "small.gguf", *N_CTX, "-md", folder / "broken.gguf")
    assert result.code == 0
    assert "no smaller model is in" in result.out
    assert "broken.gguf: " in result.out
