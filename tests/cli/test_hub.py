"""``llmrun quantize user/repo``, end to end, by ``huggingface_hub`` itself from a hub on this machine."""

import os
import subprocess
import sys

import pytest

from llmrun.formats.gguf import GgufFile

from ..hf_tiny import write_hf_folder
from .hub_server import hub_server

SHARDS = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_hf_folder(tmp_path_factory.mktemp("hub") / "tiny", "qwen2", n_shard=3)


@pytest.fixture
def quantize(tmp_path):
    """Return a function (URL of the hub, IN, OUT, more of the environment) -> what the command did."""

    def quantize(url, repo, out, **environment):
        home = {"HOME": str(tmp_path), "LLMRUN_MODELS": str(tmp_path / "models"), "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-m", "llmrun", "quantize", str(repo), str(tmp_path / out), "Q8_0", "-t", "1"]
        return subprocess.run(
            command, capture_output=True, text=True, check=False,
            env={**os.environ, "no_proxy": "*", **home, "HF_ENDPOINT": url, **environment},
        )  # fmt: skip

    return quantize


def test_a_repository_becomes_a_file_though_its_download_breaks_off_once(checkpoint, quantize, tmp_path):
    with hub_server(checkpoint, "org/tiny", cut=SHARDS[1:2]) as server:
        result = quantize(server.url, "org/tiny", "one.gguf")
        assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'one.gguf'}\n"), result.stderr
        assert f"downloading 9 files (536 kB) from {server.url}/org/tiny to " in result.stderr
        fetched = [name.partition("@")[0] for name in server.fetched]
        assert fetched.count(SHARDS[1]) == 2  # the rest of it in a second request
        assert {*SHARDS, "config.json", "tokenizer.json", "chat_template.jinja"} <= set(fetched)
        server.fetched.clear()
        assert quantize(server.url, "org/tiny", "two.gguf").returncode == 0
        assert server.fetched == []
    assert quantize("http://127.0.0.1:9", checkpoint, "folder.gguf").returncode == 0
    with GgufFile.open(tmp_path / "one.gguf") as one, GgufFile.open(tmp_path / "folder.gguf") as folder:
        assert one.tensors.keys() == folder.tensors.keys()
        assert all((one.data(t) == folder.data(folder.tensors[n])).all() for n, t in one.tensors.items())
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("org/none", "no such repository, or a private one; then log in with `hf auth login`, or set HF_TOKEN"),
        ("org/gated", "its owner wants terms to be accepted on its page first; then log in with"),
        ("org/broken", "the server answers with status 500"),
        ("org/tiny:Q4_K_M", "has no GGUF files"),
        ("org/tiny", f"/{SHARDS[2]}: no such file, though the repository lists it"),
    ],
)
def test_what_the_hub_refuses_is_one_line(checkpoint, quantize, tmp_path, repo, message):
    with hub_server(checkpoint, "org/tiny", missing=SHARDS[2:]) as server:
        result = quantize(server.url, repo, "out.gguf")
    assert (result.returncode, result.stdout, (tmp_path / "out.gguf").exists()) == (1, "", False)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("downloading")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {server.url}/{repo.partition(':')[0]}")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("environment", "message"),
    [({}, "cannot be reached: "), ({"HF_HUB_OFFLINE": "1"}, "not here, and HF_HUB_OFFLINE forbids to fetch it")],
)
def test_without_a_network_it_is_one_line(quantize, environment, message):
    result = quantize("http://127.0.0.1:9", "org/tiny", "out.gguf", **environment)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: http://127.0.0.1:9/org/tiny: {message}")
    assert result.stderr.count("\n") == 1
