"""A Hugging Face folder as a ``Checkpoint``: config.json, tokenizer and tensors put together.

The modules of this package by what they read: ``network.py`` and ``rope.py`` config.json; ``names.py``,
``sources.py`` and ``packed.py`` tensors; ``tokenizer.py`` everything about tokens.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError
from ...formats.ggml_types import GgmlType
from ...formats.hf_checkpoint import HfCheckpoint
from ...formats.hf_config import HfFolder
from ...formats.meta_value import MetaValue
from ..checkpoint import SourceTensor
from ..floats import F32, U8
from .names import Names, match_names
from .network import Network, read_network, text_config
from .packed import GridTensor, Quantization, grid_tensor, read_quantization
from .sources import ConvertedTensor, MadeTensor, PlainTensor, rope_order
from .special import sampling_metadata
from .tokenizer import convert_tokenizer


class HfSource:
    """A Hugging Face checkpoint as a source; see ``quant.checkpoint.Checkpoint``."""

    path: Path
    architecture: str
    metadata: dict[str, MetaValue]
    tensors: list[SourceTensor]
    notes: list[str]

    def __init__(self, files: HfCheckpoint, folder: HfFolder, name: str, wanted: GgmlType | None, pre: str | None):
        network = read_network(folder.config)
        names = match_names(files, network)
        self.path = folder.path
        self.architecture = network.family.arch
        n_vocab = names.shapes["token_embd.weight"][0]
        tokenizer = convert_tokenizer(folder, n_vocab, network.family.arch, pre)
        self.metadata = {
            "general.architecture": MetaValue.text(self.architecture),
            "general.type": MetaValue.text("model"),
            "general.name": MetaValue.text(_model_name(name, network, tokenizer.metadata)),
            **sampling_metadata(folder),
            **network.metadata,
            **tokenizer.metadata,
        }
        self.notes = [*network.notes, *names.notes, *tokenizer.notes]
        settings = read_quantization(text_config(folder.config))
        converted = _tensors(files, network, names, settings)
        self.notes += _grid_notes(converted, wanted)
        self.tensors = [_source(tensor, wanted) for tensor in converted]
        self._files = files

    @classmethod
    def open(
        cls, path: Path, *, name: str | None = None, wanted: GgmlType | None = None, pre: str | None = None
    ) -> HfSource:
        """Open a folder.

        Args:
            path: the folder.
            name: ``general.name``, None: the folder's.
            wanted: type of the matrices to be made. 4-bit integers with zero points, which Q5_0 holds exactly, are
                given as Q4_1 (minima rounded) when that is it.
            pre: name of the pre-tokenizer, None: as recognised.

        Raises:
            FormatError: a file is missing or damaged, the architecture or the tokenizer is unknown, or something
                does not fit together.
        """
        if not path.is_dir():
            raise FormatError(f"{path}: is no folder")
        folder = HfFolder(path)
        read_network(folder.config)  # before the weights: what is not a known model at all is said first
        files = HfCheckpoint.open(path)
        try:
            return cls(files, folder, name or path.resolve().name, wanted, pre)
        except BaseException:
            files.close()
            raise

    def close(self) -> None:
        """Close all files."""
        self._files.close()


def _model_name(name: str, network: Network, tokenizer: dict[str, MetaValue]) -> str:
    """Return ``general.name``. Engines take "phi-3" and "phi3" in it for a vocabulary of Phi-3's kind.

    With such a vocabulary special tokens swallow the space behind them; on another llama.cpp looks for tokens that
    are not there, and does not load the file.
    """
    tokens = tokenizer["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, list)
    is_phi3 = network.family.arch == "phi3" and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(tokens)
    says_phi3 = re.search("phi-?3", name, re.IGNORECASE) is not None
    if is_phi3 and not says_phi3:
        return f"{name} (Phi-3)"
    return name if is_phi3 else re.sub("(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)


def _tensors(
    files: HfCheckpoint, network: Network, names: Names, settings: Quantization | None
) -> list[ConvertedTensor]:
    """Return all tensors of the file to be, in its order."""
    tensors: list[ConvertedTensor] = []
    for name, shape in names.shapes.items():
        parts = names.parts[name]
        order = _row_order(name, shape, network)
        plain = parts.get("weight") or parts.get("bias")
        if plain is not None and len(parts) == 1:
            shift = network.family.norm_shift if name.endswith("norm.weight") else 0.0
            tensors.append(PlainTensor(files, plain, name, order, shift))
            continue
        first = next(iter(parts.values()))
        if settings is None or len(shape) != 2:
            raise FormatError(f"{files.where(first.name)} is of a quantised matrix, but config.json names no method")
        tensors.append(grid_tensor(files, parts, name, shape, settings, order))
    tensors += [MadeTensor(name, values) for name, values in network.tensors.items()]
    return tensors


def _row_order(name: str, shape: tuple[int, ...], network: Network) -> NDArray[np.int64] | None:
    part = name.split(".")[-2]
    if not network.family.permutes_qk or part not in ("attn_q", "attn_k"):
        return None
    return rope_order(shape[0], network.sizes["h"])


def _source(tensor: ConvertedTensor, wanted: GgmlType | None) -> SourceTensor:
    is_near = isinstance(tensor, GridTensor) and wanted is not None and tensor.can_be(wanted)
    ggml_type = wanted if is_near and wanted is not None else tensor.ggml_type
    n_rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))

    def rows(start: int, stop: int) -> F32:
        return np.ascontiguousarray(tensor.read_rows(start, stop))

    def raw() -> U8:
        if isinstance(tensor, GridTensor):
            return tensor.read_as(0, n_rows, ggml_type) if tensor.is_exact else tensor.read_raw(0, n_rows)
        return tensor.read_raw(0, n_rows)

    return SourceTensor(tensor.name, tensor.shape, ggml_type, rows, raw, tensor.release)


def _grid_notes(tensors: list[ConvertedTensor], wanted: GgmlType | None) -> list[str]:
    """Say what becomes of matrices that were integers already."""
    grids = [tensor for tensor in tensors if isinstance(tensor, GridTensor)]
    notes = []
    near = [t for t in grids if wanted == GgmlType.Q4_1 and t.ggml_type == GgmlType.Q5_0 and t.can_be(GgmlType.Q4_1)]
    if near:
        loss = max(tensor.loss_as_q4_1() for tensor in near)
        notes.append(
            f"{len(near)} matrices keep their integers in Q4_1, their minima rounded: off by at most {100 * loss:.2g} %"
            " of a step. Q5_0 holds them exactly"
        )
    exact: dict[str, int] = {}
    for tensor in grids:
        if tensor.is_exact and tensor not in near:
            exact[tensor.ggml_type.name] = exact.get(tensor.ggml_type.name, 0) + 1
    for type_name, count in exact.items():
        notes.append(f"{count} matrices of integers are held exactly by {type_name}")
    lost = [tensor for tensor in grids if not tensor.is_exact]
    if lost:
        notes.append(
            f"{len(lost)} matrices of integers have groups or scales that no GGUF type holds, such as {lost[0].name}:"
            " they are made floats and quantised anew"
        )
    return notes
