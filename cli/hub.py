"""Fetch GGUF files and checkpoints from the hub with ``huggingface_hub``: resumable, with its progress bar."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from ..formats.errors import ConfigError
from .download import require_space, say
from .models_folder import quant_of
from .render.text import size

# What to take when the user names no quantisation: llama.cpp's choice first, then the nearest sizes.
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "F16", "F32")

_WEIGHTS = re.compile(r"model\.safetensors|model-\d{5}-of-\d{5}\.safetensors")
_BESIDE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|tekken|chat_template"
    r"|model\.safetensors\.index)\.json|tokenizer\.model|chat_template\.jinja"
    r"|additional_chat_templates/[\w.-]+\.jinja|[\w.-]+\.tiktoken"
)
_MAX_SHOWN = 8


def fetch_from_hub(repo: str, quant: str | None, folder: Path) -> Path:
    """Return the (first) file of a repository's model, downloaded into ``<folder>/<user>/<repo>/``.

    Args:
        repo: ``user/repo``.
        quant: which quantisation; None: Q4_K_M, or the nearest that is there.
        folder: the models folder.

    Raises:
        ConfigError: no such repository or file, or no connection.
        CapacityError: the disk is too full.
    """
    return _download(repo, folder, lambda names: choose_files(repo, names, quant))[0]


def fetch_checkpoint_from_hub(repo: str, folder: Path) -> Path:
    """Return ``<folder>/<user>/<repo>/`` with the checkpoint of a repository: safetensors and the texts beside them.

    Raises:
        ConfigError: no such repository, no safetensors in it, or no connection.
        CapacityError: the disk is too full.
    """
    _download(repo, folder, lambda names: choose_checkpoint_files(repo, names))
    return folder / repo


def _download(repo: str, folder: Path, choose: Callable[[list[str]], list[str]]) -> list[Path]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the import, which reads it
    from huggingface_hub import HfApi, hf_hub_download  # here: 0.3 s, and only downloads need it
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the errors of whichever HTTP library this version of huggingface_hub uses.
    network_errors: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)

    file = repo
    try:
        siblings = HfApi().model_info(repo, files_metadata=True, timeout=30).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in siblings}
        names = choose(list(sizes))
        total = sum(sizes[name] for name in names)
        target = folder / repo
        target.mkdir(parents=True, exist_ok=True)
        require_space(folder, total)
        shown = ", ".join(names) if len(names) <= _MAX_SHOWN else f"{len(names)} files"
        say(f"downloading {shown} ({size(total)}) from {_where(repo)} to {target}")
        paths = []
        for name in names:
            file = f"{repo}/{name}"
            paths.append(Path(hf_hub_download(repo, name, local_dir=target)))
        return paths
    except network_errors as error:
        raise ConfigError(f"{_where(file)}: {_reason(error)}") from None


def _where(name: str) -> str:
    """Return where a repository or file is, for messages: the host that ``HF_ENDPOINT`` names, and its name."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{endpoint.removeprefix('https://').rstrip('/')}/{name}"


def _reason(error: BaseException) -> str:
    """Return what went wrong with a download, in one line."""
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner wants terms to be accepted on its page first; then {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such repository, or a private one; then {log_in}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error
    elif isinstance(error, errors.EntryNotFoundError):
        return "no such file, though the repository lists it"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "not here, and HF_HUB_OFFLINE forbids to fetch it"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HfHubHTTPError) and status is not None:
        return f"the server answers with status {status}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = re.sub(r"^\[Errno -?\d+\] ", "", lines[0]) if lines else type(error).__name__
    return line if isinstance(error, errors.HFValidationError) else f"cannot be reached: {line}"


def choose_checkpoint_files(repo: str, names: list[str]) -> list[str]:
    """Return the files of a checkpoint among a repository's: its safetensors and what describes them.

    Raises:
        ConfigError: there are no safetensors, or no config.json.
    """
    weights = sorted(name for name in names if _WEIGHTS.fullmatch(name))
    if "config.json" not in names or not weights:
        pickles = [name for name in names if name.endswith((".bin", ".pth", ".pt"))]
        why = f"has weights only as pickle ({pickles[0]}), which can run code" if pickles else "has no checkpoint"
        raise ConfigError(f"{_where(repo)}: {why}. Expected config.json and model.safetensors")
    if "model.safetensors.index.json" in names:
        weights = [name for name in weights if name != "model.safetensors"]
    return [*sorted(name for name in names if _BESIDE.fullmatch(name)), *weights]


def choose_files(repo: str, names: list[str], quant: str | None) -> list[str]:
    """Return the files of one model among a repository's: one, or all the parts of a split one, in order.

    Raises:
        ConfigError: there is no GGUF file, or none of that quantisation; the line lists what is there.
    """
    by_quant: dict[str, list[str]] = {}
    for name in sorted(names):
        file_name = name.rpartition("/")[2].lower()
        if file_name.endswith(".gguf") and not file_name.startswith("mmproj") and "imatrix" not in file_name:
            by_quant.setdefault(quant_of(file_name) or "", []).append(name)
    if not by_quant:
        raise ConfigError(f"{_where(repo)}: has no GGUF files")
    if quant is None:
        quant = next((name for name in _PREFERRED if name in by_quant), next(iter(by_quant)))
    files = by_quant.get(quant.upper())
    if files is None:
        found = ", ".join(name or "unnamed" for name in by_quant)
        raise ConfigError(f"{_where(repo)}: has no {quant}, but: {found}")
    parts = [name for name in files if "-of-" in name]
    return parts or files[:1]
