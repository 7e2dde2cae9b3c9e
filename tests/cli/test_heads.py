"""A draft head in every command that takes a draft, on a real, tiny model."""

import json

import pytest

from ..tiny_heads import HEADS, write_head
from ..tiny_models import tiny_model_path

N_CTX = ("-c", "512")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the paths of a model and of a head for it."""
    from gguf import GGMLQuantizationType

    folder = tmp_path_factory.mktemp("heads")
    model = tiny_model_path(folder, "llama", GGMLQuantizationType.Q8_0)
    return model, write_head(folder / "head.gguf", HEADS["d2t"], "Q8_0")


def test_run_with_a_head(cli, files):
    model, head = files
    result = cli(
        "run", model, "--draft", head, "-p", "x", "-n", "40", "-s", "1", "--temp", "1.2", "--verify-lossless", *N_CTX
    )
    assert result.code == 0, result.err
    assert "the same " in result.err
    plain = cli("run", model, "-p", "x", "-n", "40", "-s", "1", "--temp", "1.2", "--spec", "off", *N_CTX)
    assert result.out == plain.out


def test_chat_with_a_head(cli, files):
    model, head = files
    result = cli("chat", model, "-md", head, "-p", "x", "-n", "8", "-s", "1", "--spec", "draft", *N_CTX, stdin="")
    assert result.code == 0, result.err


def test_bench_with_a_head(cli, files):
    model, head = files
    result = cli(
        "bench", "-m", model, "--spec", "draft", "-md", head, "--kinds", "random", "-n", "8", "-r", "1", "-o", "json"
    )
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)
    assert row["draft_filename"] == str(head)
    assert set(row["sources"]) == {"draft"}


def test_heads_are_measured_like_models(cli, files):
    model, head = files
    result = cli("draft", model, "-c", "2048", "-md", head, "-md", model, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    by_name = {one["path"].rsplit("/", 1)[1]: one for one in report["candidates"]}
    assert set(by_name) == {head.name, model.name}
    assert by_name[head.name]["n_shared"] == 90
    assert by_name[head.name]["is_same_vocabulary"]
    assert not report["refused"]


def test_a_head_for_another_model_is_one_line(cli, files, tmp_path):
    head = write_head(tmp_path / "head.gguf", HEADS["plain"], changes={"eagle3.target_layers": [1, 2, 9]})
    result = cli("run", files[0], "--draft", head, "-p", "x", *N_CTX)
    assert result.code == 1
    assert len(result.lines) == 1
    assert "a draft head that looks at layers [1, 2, 9]" in result.lines[0]
    refused = json.loads(cli("draft", files[0], "-c", "2048", "-md", head, "--json").out)["refused"]
    assert list(refused) == ["head.gguf"]


def test_a_head_alone_is_one_line(cli, files):
    result = cli("run", files[1], "-p", "x", *N_CTX)
    assert result.code == 1
    assert result.lines == [f"error: {files[1]}: a draft head, not a model: give it beside its model, with --draft"]
