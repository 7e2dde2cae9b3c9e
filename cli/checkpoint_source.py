"""What IN of ``llmrun quantize`` means: a GGUF file, a checkpoint folder, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.errors import ConfigError, LlmrunError
from .models_folder import find_local, make_models_folder, models_folder

if TYPE_CHECKING:
    from ..formats.ggml_types import GgmlType
    from ..quant.checkpoint import Checkpoint


def open_source(reference: str, *, wanted: GgmlType | None = None, pre: str | None = None) -> Checkpoint:
    """Open the model that IN names; a repository that is not here yet is downloaded, never silently.

    A path that exists wins, then a name of the models folder or the catalogue. ``user/repo`` without a quantisation
    means the repository's safetensors; with one, its GGUF file.

    Args:
        reference: IN.
        wanted: type of the matrices to be made, see ``HfSource.open``.
        pre: name of the pre-tokenizer of a checkpoint, None: as recognised.

    Raises:
        ConfigError: nothing is called so, the download failed, or ``pre`` is no name.
        FormatError: the model is damaged or of an unknown kind.
    """
    from .model_ref import hub_reference, resolve

    if pre is not None:
        _check_pre(pre)
    path = Path(reference).expanduser()
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # too long, or holds a NUL
        raise ConfigError(f"{reference}: {error}") from None
    if not is_folder and not path.exists():
        hub = hub_reference(reference)
        if hub is not None and hub[1] is None and find_local(models_folder(), reference) is None:
            path, is_folder = _checkpoint_of(hub[0]), True
    if is_folder:
        from ..quant.convert.checkpoint import HfSource

        return HfSource.open(path, wanted=wanted, pre=pre)
    _check_file(path)
    if pre is not None:
        raise ConfigError(f"{reference}: --tokenizer-pre is for checkpoint folders; a GGUF file has its name already")
    from ..quant.checkpoint import GgufCheckpoint

    return GgufCheckpoint.open(resolve(reference))


def _check_file(path: Path) -> None:
    """Refuse the weights of a checkpoint without the rest of it."""
    from ..formats.hf_checkpoint import PICKLE_SUFFIXES, why_no_pickle

    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ConfigError(why_no_pickle(f"{path}: is a pickle"))
    if path.suffix.lower() == ".safetensors":
        raise ConfigError(f"{path}: weights alone are no model; give their folder, with config.json and the tokenizer")


def _check_pre(pre: str) -> None:
    from ..runtime.tokenizer.pre_tokenizers import PRE_TOKENIZERS

    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise ConfigError(f"--tokenizer-pre: {pre!r} is not known, expected one of: {known}")


def _checkpoint_of(repo: str) -> Path:
    """Return the folder of a repository's checkpoint; what is there and whole is not asked for again."""
    from ..formats.hf_checkpoint import HfCheckpoint

    local = models_folder() / repo
    if (local / "config.json").exists():
        try:
            HfCheckpoint.open(local).close()
            return local
        except LlmrunError:  # a download that was interrupted
            pass
    from .hub import fetch_checkpoint_from_hub

    return fetch_checkpoint_from_hub(repo, make_models_folder())
