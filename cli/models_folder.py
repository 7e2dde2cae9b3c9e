"""The folder in which downloaded models lie, and the names by which ``list``, ``rm`` and MODEL know them.

    <models>/smollm2-135m-instruct-q4_1.gguf        catalogue models
    <models>/<user>/<repo>/<file>.gguf              files from the Hugging Face hub

A file that stands there under its final name is complete and was verified when it came: downloads
grow under another name (``*.part``) and are renamed at the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..formats.errors import ConfigError
from ..formats.record import Record
from .catalogue import CATALOGUE

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:IQ|Q|TQ)[0-9]_(?:[0-9A-Z]+(?:_[A-Z]+)*)|BF16|F16|F32|FP16|MXFP4(?:_MOE)?|Q8_0)(?=[-._]|$)",
    re.IGNORECASE,
)


def models_folder() -> Path:
    """Return the folder: ``LLMRUN_MODELS``, or ``llmrun/models`` in the user's data folder. It may not exist yet."""
    chosen = os.environ.get("LLMRUN_MODELS")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_data_path  # here: a model given by its path does not need it

    return user_data_path("llmrun", appauthor=False) / "models"


def make_models_folder() -> Path:
    """Return the folder, made if it did not exist.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}. Set LLMRUN_MODELS to a folder for models") from None
    return folder


def quant_of(file_name: str) -> str | None:
    """Return the quantisation that a file name mentions (``Q4_K_M``), upper case; None if it mentions none."""
    found = _QUANT.findall(_SPLIT.sub("", file_name).removesuffix(".gguf"))
    return found[-1].upper() if found else None


class LocalModel(Record, kw_only=True):
    """A model in the models folder: one file, or all the files of a split one (the first is opened)."""

    name: str
    files: tuple[Path, ...]

    @property
    def n_bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.files)


def local_models(folder: Path) -> list[LocalModel]:
    """Return the models in the folder, sorted by name."""
    by_name = {entry.file_name: entry.name for entry in CATALOGUE.values() if entry.file_name}
    found: dict[str, LocalModel] = {}
    for path in _gguf_files(folder):
        split = _SPLIT.search(path.name)
        if split and int(split[1]) != 1:
            continue
        parts = path.relative_to(folder).parts
        files = (
            tuple(sorted(path.parent.glob(f"{_glob_escape(path.name[: split.start()])}-?????-of-{split[2]}.gguf")))
            if split
            else (path,)
        )
        quant = quant_of(path.name)
        if len(parts) == 1:
            name = by_name.get(path.name, path.name.removesuffix(".gguf"))
        elif len(parts) >= 3 and quant is not None:
            name = f"{parts[0]}/{parts[1]}:{quant}"
        else:
            name = path.relative_to(folder).as_posix().removesuffix(".gguf")
        if name in found:  # two files of one repository with the same quantisation
            name = path.relative_to(folder).as_posix().removesuffix(".gguf")
        found[name] = LocalModel(name=name, files=files)
    return [found[name] for name in sorted(found)]


def find_local(folder: Path, name: str) -> LocalModel | None:
    """Return the model in the folder that ``name`` means, ignoring case; ``user/repo`` alone means its only one.

    Raises:
        ConfigError: ``user/repo`` is there in several quantisations.
    """
    models = local_models(folder)
    wanted = name.lower()
    for model in models:
        if wanted in (
            model.name.lower(),
            model.files[0].name.lower(),
            model.files[0].name.lower().removesuffix(".gguf"),
        ):
            return model
    in_repo = [model for model in models if model.name.lower().startswith(f"{wanted}:")]
    if len(in_repo) > 1:
        raise ConfigError(f"{name}: several are here; say which: {', '.join(model.name for model in in_repo)}")
    return in_repo[0] if in_repo else None


def _gguf_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(".gguf") and not name.startswith("."):
                yield Path(root) / name


def _glob_escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)
