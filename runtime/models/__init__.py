"""One file per family: hyper-parameters, weight names, forward pass. Here: which file an architecture needs."""

from __future__ import annotations

from ...formats.errors import FormatError
from ...formats.metadata import Metadata
from ..weights import WeightSource
from . import eagle3, gemma, llama, phi3
from .model import Model

ARCHITECTURES = {
    "llama": llama.build,  # Llama 1 to 3.x, Mistral, SmolLM2, TinyLlama
    "qwen2": llama.build,
    "qwen3": llama.build,
    "gemma2": gemma.build,
    "gemma3": gemma.build,
    "phi3": phi3.build,
}


def build_model(meta: Metadata, weights: WeightSource, n_ctx: int | None) -> Model:
    """Return the model of a file.

    Args:
        meta: the file's metadata.
        weights: describes the file's tensors.
        n_ctx: context length wanted (some models rotate differently beyond their original context).

    Raises:
        FormatError: the architecture is unknown, or a key or tensor is missing or has a wrong shape.
    """
    name = meta.required("general.architecture", str)
    if name == eagle3.ARCHITECTURE:
        raise FormatError(f"{meta.path}: a draft head, not a model: give it beside its model, with --draft")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise FormatError(f"{meta.path}: architecture {name!r} is not supported, expected one of {known}")
    return ARCHITECTURES[name](meta, weights, n_ctx)
