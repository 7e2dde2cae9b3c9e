"""IN of quantize: files, folders, and repositories on the hub, of which only texts and safetensors are fetched."""

from types import SimpleNamespace

import pytest

from llmrun.cli.checkpoint_source import open_source
from llmrun.cli.hub import choose_checkpoint_files
from llmrun.formats.errors import ConfigError, FormatError
from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.checkpoint import GgufCheckpoint
from llmrun.quant.convert.checkpoint import HfSource

from ..hf_tiny import write_hf_folder
from ..tiny_models import tiny_model_path

NAMES = [
    ".gitattributes",
    "README.md",
    "config.json",
    "consolidated.safetensors",
    "generation_config.json",
    "modeling_evil.py",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "onnx/model.onnx",
    "original/tokenizer.model",
    "pytorch_model.bin",
    "sub/model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
]


def test_only_texts_and_safetensors_of_a_repository_are_taken():
    assert choose_checkpoint_files("u/r", NAMES) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_repository_without_safetensors_says_what_it_has():
    with pytest.raises(ConfigError, match=r"has weights only as pickle \(pytorch_model\.bin\), which can run code"):
        choose_checkpoint_files("u/r", ["config.json", "pytorch_model.bin"])
    with pytest.raises(ConfigError, match="has no checkpoint"):
        choose_checkpoint_files("u/r", ["m-Q4_0.gguf"])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's library with one checkpoint; yields what was downloaded."""
    import huggingface_hub

    monkeypatch.setenv("LLMRUN_MODELS", str(tmp_path / "models"))
    remote = write_hf_folder(tmp_path / "remote", "llama", n_shard=2)
    (remote / "pytorch_model.bin").write_bytes(b"x")
    downloaded = []

    class HfApi:
        def model_info(self, repo, *, files_metadata, timeout):
            if repo != "u/tiny":
                raise ConnectionError("Name or service not known")
            files = [SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in remote.iterdir()]
            return SimpleNamespace(siblings=files)

    def hf_hub_download(repo, name, *, local_dir):
        (local_dir / name).write_bytes((remote / name).read_bytes())
        downloaded.append(name)
        return str(local_dir / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return downloaded


def test_a_repository_is_fetched_once_and_again_when_it_is_not_whole(hub, tmp_path, capsys):
    source = open_source("u/tiny")
    assert isinstance(source, HfSource)
    assert source.path == tmp_path / "models" / "u" / "tiny"
    assert len(source.tensors) == 30
    source.close()
    assert "pytorch_model.bin" not in hub
    assert "model-00002-of-00002.safetensors (" in capsys.readouterr().err
    n = len(hub)
    open_source("u/tiny").close()
    assert len(hub) == n
    (source.path / "model-00002-of-00002.safetensors").unlink()
    open_source("u/tiny").close()
    assert len(hub) == 2 * n


def test_a_repository_that_cannot_be_reached_is_one_line(hub):
    with pytest.raises(ConfigError, match=r"huggingface\.co/u/other: cannot be reached: Name or service not known"):
        open_source("u/other")


def test_files_and_folders(tmp_path):
    folder = write_hf_folder(tmp_path / "hf", "qwen2")
    source = open_source(str(folder), wanted=GgmlType.Q4_1, pre="qwen2")
    assert source.metadata["tokenizer.ggml.pre"].value == "qwen2"
    source.close()
    path = tiny_model_path(tmp_path, "qwen2")
    source = open_source(str(path))
    assert isinstance(source, GgufCheckpoint)
    source.close()
    with pytest.raises(ConfigError, match="--tokenizer-pre is for checkpoint folders"):
        open_source(str(path), pre="qwen2")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file or model"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(FormatError, match=r"has no config\.json"):
        open_source(str(tmp_path))
    with pytest.raises(ConfigError, match="--tokenizer-pre: 'qwen-two' is not known, expected one of: "):
        open_source(str(tmp_path), pre="qwen-two")
    with pytest.raises(ConfigError):
        open_source("a\0b")
    for name, message in (("m.pt", "is a pickle, which can run code"), ("m.safetensors", "give their folder")):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(ConfigError, match=message):
            open_source(str(tmp_path / name))
