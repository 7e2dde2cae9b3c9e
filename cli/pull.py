"""``llmrun pull``, ``list`` and ``rm``: the models folder."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

from ..formats.errors import ConfigError
from .catalogue import CATALOGUE
from .declare import Argument, Option
from .model_ref import fetch
from .models_folder import find_local, local_models, models_folder
from .render.text import escaped, size


def pull(
    name: Annotated[
        str,
        Argument(
            metavar="NAME", help="A catalogue name, or user/repo[:QUANT] on the Hugging Face hub.", show_default=False
        ),
    ],
) -> None:
    """Download a model; what is already here is checked and kept, an interrupted download goes on."""
    print(fetch(name))


def list_models(as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False) -> None:
    """List the downloaded models, and the names that `pull` knows."""
    folder = models_folder()
    models = local_models(folder)
    if as_json:
        rows = [{"name": model.name, "path": str(model.files[0]), "bytes": model.n_bytes} for model in models]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    here = {model.name for model in models}
    width = max((len(name) for name in [*here, *CATALOGUE]), default=0)
    for model in models:
        print(f"{escaped(model.name):{width}}  {size(model.n_bytes):>8}  {escaped(str(model.files[0]))}")
    for entry in CATALOGUE.values():
        if entry.name not in here:
            print(f"{entry.name:{width}}  {'-':>8}  not here: llmrun pull {entry.name}")


def remove(
    name: Annotated[str, Argument(metavar="NAME", help="A name that `llmrun list` shows.", show_default=False)],
) -> None:
    """Delete a downloaded model."""
    folder = models_folder()
    model = find_local(folder, name)
    if model is None:
        raise ConfigError(f"{name}: not in {folder}. `llmrun list` shows what is there")
    freed = model.n_bytes
    for path in model.files:
        try:
            path.unlink()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
    for parent in model.files[0].relative_to(folder).parents[:-1]:  # empty folders of user/repo
        with contextlib.suppress(OSError):
            (folder / parent).rmdir()
    print(f"removed {escaped(model.name)}, {size(freed)}")
