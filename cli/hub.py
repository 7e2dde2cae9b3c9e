"""Fetch GGUF files from the Hugging Face hub with ``huggingface_hub``: resumable, with its progress bar."""

from __future__ import annotations

import os
from pathlib import Path

from ..formats.errors import ConfigError
from .download import require_space, say
from .models_folder import quant_of
from .render.text import size

# What to take when the user names no quantisation: llama.cpp's choice first, then the nearest sizes.
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "F16", "F32")


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
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the import, which reads it
    from huggingface_hub import HfApi, hf_hub_download  # here: 0.3 s, and only downloads need it
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the errors of whichever HTTP library this version of huggingface_hub uses.
    network_errors: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)

    try:
        siblings = HfApi().model_info(repo, files_metadata=True, timeout=30).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in siblings}
        names = choose_files(repo, list(sizes), quant)
        total = sum(sizes[name] for name in names)
        target = folder / repo
        target.mkdir(parents=True, exist_ok=True)
        require_space(folder, total)
        say(f"downloading {', '.join(names)} ({size(total)}) from huggingface.co/{repo} to {target}")
        paths = [Path(hf_hub_download(repo, name, local_dir=target)) for name in names]
    except network_errors as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"huggingface.co/{repo}: {lines[0] if lines else type(error).__name__}") from None
    return paths[0]


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
        raise ConfigError(f"huggingface.co/{repo}: has no GGUF files")
    if quant is None:
        quant = next((name for name in _PREFERRED if name in by_quant), next(iter(by_quant)))
    files = by_quant.get(quant.upper())
    if files is None:
        found = ", ".join(name or "unnamed" for name in by_quant)
        raise ConfigError(f"huggingface.co/{repo}: has no {quant}, but: {found}")
    parts = [name for name in files if "-of-" in name]
    return parts or files[:1]
