"""The mixtures by their common names, and what llama-quantize chooses for each tensor of one.

Source of the rules: ``llama_tensor_get_type_impl``, ``tensor_allows_quantization``, ``tensor_type_fallback`` and
``llama_ftype_get_default_type`` in llama.cpp's ``src/llama-quant.cpp`` (tested against its output).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..formats.errors import ConfigError, FormatError
from ..formats.file_types import FILE_TYPES
from ..formats.ggml_types import BLOCK, GgmlType
from ..formats.meta_value import MetaValue
from ..formats.record import Record
from .checkpoint import SourceTensor

T = GgmlType


class FileType(Record):
    """A mixture.

    Attributes:
        name: as people call it.
        number: ``general.file_type``.
        default: type of most matrices.
    """

    name: str
    number: int
    default: GgmlType

    @property
    def is_mixture(self) -> bool:
        """Whether rules apply: plain floating-point files have none."""
        return self.default not in (T.F32, T.F16, T.BF16)


_DEFAULTS = {
    "F32": T.F32, "F16": T.F16, "BF16": T.BF16, "Q8_0": T.Q8_0, "Q6_K": T.Q6_K, "Q5_K_M": T.Q5_K, "Q5_K_S": T.Q5_K,
    "Q5_1": T.Q5_1, "Q5_0": T.Q5_0, "Q4_K_M": T.Q4_K, "Q4_K_S": T.Q4_K, "Q4_1": T.Q4_1, "Q4_0": T.Q4_0,
    "IQ4_NL": T.IQ4_NL, "IQ4_XS": T.IQ4_XS, "Q3_K_L": T.Q3_K, "Q3_K_M": T.Q3_K, "Q3_K_S": T.Q3_K, "Q2_K": T.Q2_K,
    "Q2_K_S": T.Q2_K, "MXFP4": T.MXFP4, "MXFP4_MOE": T.MXFP4,
}  # fmt: skip
_NUMBERS = {name: number for number, name in FILE_TYPES.items()} | {"MXFP4_MOE": 38}
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
MIXTURES = {name: FileType(name, _NUMBERS[name], default) for name, default in _DEFAULTS.items()}
NOT_WRITTEN = tuple(name for name in _NUMBERS if name not in MIXTURES)
"""Types that llama-quantize writes and llmrun does not."""


def file_type(name: str) -> FileType:
    """Return the mixture of a name, in any case.

    Raises:
        ConfigError: there is none, or it cannot be written.
    """
    upper = name.upper()
    found = MIXTURES.get(ALIASES.get(upper, upper))
    if found is not None:
        return found
    what = "is a type that llama-quantize writes and llmrun does not" if upper in NOT_WRITTEN else "is no file type"
    raise ConfigError(f"{name} {what}, expected one of: {', '.join(MIXTURES)}")


class ModelShape(Record):
    """What the rules need to know of a model.

    Attributes:
        n_layer: layers.
        n_gqa: query heads for each key head.
        n_expert: experts of a layer, 0 without.
        is_70b: 80 layers with grouped heads; llama-quantize gives these more bits for values.
    """

    n_layer: int
    n_gqa: int
    n_expert: int
    is_70b: bool

    @classmethod
    def read(cls, architecture: str, metadata: Mapping[str, MetaValue], where: object) -> ModelShape:
        """Read it.

        Raises:
            FormatError: a count is missing or no number.
        """

        def number(key: str, default: int | None = None) -> int:
            found = metadata.get(f"{architecture}.{key}")
            if found is None:
                if default is None:
                    raise FormatError(f"{where}: metadata key '{architecture}.{key}' is missing")
                return default
            first: Any = found.value
            if found.is_array:
                first = first[0] if len(first) else None
            if not isinstance(first, int | np.integer) or not 0 <= first < 1 << 32:
                raise FormatError(f"{where}: metadata key '{architecture}.{key}' is no count")
            return int(first)

        n_layer, n_head = number("block_count"), number("attention.head_count", 1)
        n_head_kv = number("attention.head_count_kv", n_head)
        is_70b = n_layer == 80 and architecture in ("llama", "qwen2") and n_head != n_head_kv
        return cls(n_layer, n_head // n_head_kv if n_head_kv else 0, number("expert_count", 0), is_70b)


# Parts of names whose matrices stay as they are: small, or not multiplied with.
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|"
    r"^position_embd\.weight|^token_types\.weight|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|"
    r"time_mix_(?:first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight|"
    r"\.position_embd|sam\.(?:pos_embd|neck\.|net_)|\.rel_pos|\.patch_embd|\.patch_merger|a\.rvq\.codebook|"
    r"mm\.a\.code_embd"
)


def is_quantized_by_rule(tensor: SourceTensor) -> bool:
    """Return whether a file type changes this tensor's type at all."""
    return n_dims(tensor) > 1 and tensor.name.endswith("weight") and _KEPT.search(tensor.name) is None


def n_dims(tensor: SourceTensor) -> int:
    """Return the number of dimensions, slow ones of 1 not counted (as GGML does)."""
    n = len(tensor.shape)
    while n > 1 and tensor.shape[-n] == 1:
        n -= 1
    return n


_CATEGORIES = (
    ("attn_qkv.weight", "qkv"), ("attn_kv_b.weight", "kv_b"), ("attn_v.weight", "v"), ("attn_k.weight", "k"),
    ("attn_q.weight", "q"), ("attn_output.weight", "attn_output"), ("ffn_up", "up"), ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)  # fmt: skip
_VALUE_LIKE = ("v", "qkv", "kv_b")
TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


def category_of(name: str) -> str:
    """Return the role of a tensor: "output", "embedding", a short word of a layer's part, or ""."""
    if name == "output.weight":
        return "output"
    if name in TOKEN_EMBEDDINGS:
        return "embedding"
    return next((category for part, category in _CATEGORIES if part in name), "")


def layer_of(name: str) -> int:
    """Return the number in ``blk.N.``, -1 without one."""
    match = re.match(r"blk\.(\d{1,9})\.", name)
    return int(match[1]) if match else -1


def _has_more_bits(i: int, n: int) -> bool:
    """Return whether the i-th of n layers is an important one: the first and last eighth, and every third."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


class MixtureRules:
    """Chooses types, tensor after tensor, in the order that ``sorted_for_rules`` gives.

    Args:
        mixture: the file type.
        shape: of the model.
        names: of all tensors.
        has_imatrix: whether there is an importance matrix.
    """

    def __init__(self, mixture: FileType, shape: ModelShape, names: Sequence[str], *, has_imatrix: bool) -> None:
        self._mixture, self._shape, self._has_imatrix = mixture, shape, has_imatrix
        self._n_value_like = sum(category_of(name) in _VALUE_LIKE for name in names)
        self.is_tied = "output.weight" not in names
        self._n_seen = {"value": 0, "down": 0}

    def choose(self, tensor: SourceTensor) -> GgmlType:
        """Return the type that the rules give, whether the tensor's width allows it or not."""
        name, kind, default = self._mixture.name, category_of(tensor.name), self._mixture.default
        if kind == "output" or (self.is_tied and kind == "embedding"):
            return self._output(tensor, default)
        if name == "MXFP4_MOE":
            return T.MXFP4 if n_dims(tensor) > 2 else T.Q8_0
        if name == "MXFP4" and kind == "embedding":
            return T.Q8_0
        if kind in _VALUE_LIKE:
            return self._value_like(default)
        if kind == "k" and self._shape.n_expert == 8:
            return T.Q8_0
        if kind == "down":
            return self._down(tensor.name, default)
        if kind == "attn_output":
            return self._attn_output(default)
        return default

    def _output(self, tensor: SourceTensor, default: GgmlType) -> GgmlType:
        if default in (T.Q8_0, T.MXFP4) or tensor.n_in % BLOCK[default][0]:
            return T.Q8_0
        return T.Q6_K

    def _value_like(self, default: GgmlType) -> GgmlType:
        i, shape = self._n_seen["value"], self._shape
        self._n_seen["value"] += 1
        chosen = default
        match self._mixture.name:
            case "Q2_K":
                chosen = T.Q4_K if shape.n_gqa >= 4 else T.Q3_K
            case "Q2_K_S" if shape.n_gqa >= 4:
                chosen = T.Q4_K
            case "Q3_K_M":
                chosen = T.Q5_K if i < 2 else T.Q4_K
            case "Q3_K_L":
                chosen = T.Q5_K
            case "IQ4_NL" | "IQ4_XS" if shape.n_gqa >= 4:
                chosen = T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _has_more_bits(i, self._n_value_like):
                chosen = T.Q6_K
            case "Q4_K_S" if i < 4:
                chosen = T.Q5_K
        if shape.is_70b and chosen in (T.Q3_K, T.Q4_K):
            chosen = T.Q5_K
        return T.Q8_0 if shape.n_expert == 8 else chosen

    def _down(self, name: str, default: GgmlType) -> GgmlType:
        n = self._shape.n_layer
        i = layer_of(name) if self._shape.n_expert > 1 else self._n_seen["down"]
        self._n_seen["down"] += 1
        match self._mixture.name:
            case "Q2_K":
                return T.Q3_K
            case "Q2_K_S" if i < n // 8:
                return T.Q4_K
            case "Q3_K_M":
                return T.Q5_K if i < n // 16 else T.Q4_K
            case "Q3_K_L":
                return T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _has_more_bits(i, n):
                return T.Q6_K
            case "Q4_K_S" if i < n // 8:
                return T.Q5_K
            case "IQ4_NL" | "IQ4_XS" if i < n // 8 and not self._has_imatrix:
                return T.Q5_K
            case "Q4_0" if i < n // 8 and self._has_imatrix:
                return T.Q4_1
            case "Q5_0" if i < n // 8 and self._has_imatrix:
                return T.Q5_1
        return default

    def _attn_output(self, default: GgmlType) -> GgmlType:
        name = self._mixture.name
        if self._shape.n_expert == 8:
            more = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return T.Q5_K if name in more else default
        return {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K}.get(name, default)


_NARROW = {
    T.IQ4_XS: T.IQ4_NL, T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0,
}  # fmt: skip


def fitting_type(wanted: GgmlType, n_in: int) -> GgmlType:
    """Return ``wanted``, or the type that llama-quantize takes where rows are not whole blocks of it."""
    if n_in % BLOCK[wanted][0] == 0:
        return wanted
    narrow = _NARROW.get(wanted, wanted)
    return narrow if n_in % BLOCK[narrow][0] == 0 else T.F16


def sorted_for_rules(tensors: Sequence[SourceTensor]) -> list[SourceTensor]:
    """Return tensors in the order in which the rules count layers."""
    return sorted(tensors, key=lambda t: (layer_of(t.name), t.name))
