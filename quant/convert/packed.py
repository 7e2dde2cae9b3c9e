"""Which tensors of a quantised checkpoint make a matrix, checked; and the matrix as a tensor of the GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError, quote
from ...formats.ggml_types import GgmlType
from ...formats.hf_checkpoint import HfCheckpoint
from ...formats.hf_config import JsonObject
from ...formats.record import Record
from ...formats.safetensors import SafeTensor
from .carry import encode, exact_type, minimum_error
from .grids import Awq, CompressedTensors, Gptq, GridReader
from .sources import F32, U8, ConvertedTensor, ScaledTensor, to_f32

METHODS = "gptq, awq, compressed-tensors (pack-quantized or 8-bit floats) or fp8"


class Quantization(Record):
    """``quantization_config`` of config.json.

    Attributes:
        method: ``gptq``, ``awq``, ``packed`` (compressed-tensors) or ``fp8``.
        bits: of an integer.
        group_size: columns of a group, None: all of a row.
        zero_offset: what GPTQ subtracted from stored zero points.
        block: rows and columns that share a scale of an fp8 checkpoint, where it says so.
    """

    method: str
    bits: int = 4
    group_size: int | None = None
    zero_offset: int = 1
    block: tuple[int, int] | None = None


def read_quantization(config: JsonObject) -> Quantization | None:
    """Return how a checkpoint is quantised, None when it is not.

    Raises:
        FormatError: in a way that is not supported.
    """
    settings = config.object("quantization_config")
    if settings is None:
        return None
    method = settings.optional("quant_method", str)
    if method == "gptq":
        form = settings.optional("checkpoint_format", str) or "gptq"
        if form not in ("gptq", "gptq_v2"):
            raise FormatError(f"{settings.where}: checkpoint_format {quote(form)}, expected gptq or gptq_v2")
        offset = 0 if form == "gptq_v2" else 1
        return Quantization("gptq", _bits(settings, "bits"), _group_size(settings, "group_size"), offset)
    if method == "awq":
        version = (settings.optional("version", str) or "gemm").lower()
        if version != "gemm" or _bits(settings, "bits") != 4:
            raise FormatError(f"{settings.where}: AWQ of version {quote(version)}, expected gemm with 4 bits")
        return Quantization("awq", 4, _group_size(settings, "group_size"))
    if method == "compressed-tensors":
        return _compressed(settings)
    if method == "fp8":
        block = settings.array("weight_block_size", int, 2)
        if block is not None and not all(0 < size <= 1 << 20 for size in block):
            raise FormatError(f"{settings.where}: weight_block_size is {block}")
        return Quantization("fp8", 8, block=(block[0], block[1]) if block else None)
    raise FormatError(f"{settings.where}: quant_method {quote(method or '')} is not supported, expected {METHODS}")


def _bits(settings: JsonObject, key: str) -> int:
    bits = settings.required(key, int)
    if bits not in (4, 8):
        raise FormatError(f"{settings.where}: {quote(key)} is {bits}, expected 4 or 8")
    return bits


def _group_size(settings: JsonObject, key: str) -> int | None:
    size = settings.optional(key, int)
    if size is not None and size != -1 and not 1 <= size <= 1 << 20:
        raise FormatError(f"{settings.where}: {quote(key)} is {size}, expected -1 or a count of columns")
    return None if size == -1 else size


def _compressed(settings: JsonObject) -> Quantization:
    form = settings.optional("format", str)
    groups = settings.object("config_groups")
    if groups is None or len(groups.values) != 1:
        raise FormatError(f"{settings.where}: expected one group of config_groups")
    weights = JsonObject(groups.where, next(iter(groups.values.values()))).object("weights")
    if weights is None:
        raise FormatError(f"{groups.where}: 'weights' is missing")
    kind, strategy = weights.optional("type", str) or "int", weights.optional("strategy", str)
    if form == "pack-quantized" and kind == "int" and strategy in ("group", "channel", None):
        size = _group_size(weights, "group_size") if strategy != "channel" else None
        return Quantization("packed", _bits(weights, "num_bits"), size)
    if form in ("float-quantized", "naive-quantized") and kind == "float" and _bits(weights, "num_bits") == 8:
        block = weights.array("block_structure", int, 2)
        return Quantization("fp8", 8, block=(block[0], block[1]) if block else None)
    raise FormatError(f"{settings.where}: format {quote(form or '')} of {kind} weights is not supported")


class GridTensor(ConvertedTensor):
    """A matrix of integers with scales.

    Attributes:
        is_exact: ``ggml_type`` holds the checkpoint's integers and scales in every bit; otherwise it is F32.
    """

    is_exact: bool

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        reader: GridReader,
        order: NDArray[np.int64] | None,
        release: Callable[[], None],
    ) -> None:
        exact = exact_type(reader, shape[0])
        super().__init__(name, shape, GgmlType.F32 if exact is None else exact, order)
        self.is_exact = exact is not None
        self._reader, self._release = reader, release

    def _index(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.arange(start, stop) if self._order is None else self._order[start:stop]

    def read_rows(self, start: int, stop: int) -> F32:
        """Return some rows."""
        return self._reader.rows(self._index(start, stop)).values()

    def read_raw(self, start: int, stop: int) -> U8:
        """Return the blocks of some rows."""
        if not self.is_exact:
            return self.read_rows(start, stop).view(np.uint8)
        return encode(self._reader.rows(self._index(start, stop)), self.ggml_type)

    def can_be(self, ggml_type: GgmlType) -> bool:
        """Return whether ``read_as`` gives this type: the exact one, and Q4_1 for 4 bits with zero points."""
        is_near = ggml_type == GgmlType.Q4_1 and self.ggml_type == GgmlType.Q5_0
        return self.is_exact and (is_near or ggml_type == self.ggml_type)

    def read_as(self, start: int, stop: int, ggml_type: GgmlType) -> U8:
        """Return the blocks of some rows in a type for which ``can_be``: its grid, minima of Q4_1 rounded."""
        return encode(self._reader.rows(self._index(start, stop)), ggml_type)

    def loss_as_q4_1(self) -> float:
        """Return by how much a weight is off at most in Q4_1, in steps of the grid."""
        scale, zero = self._reader.scales_and_zeros(np.arange(self.shape[0]))
        return float(minimum_error(scale, zero).max())

    def release(self) -> None:
        """Drop resident pages of the source."""
        self._release()


def _array(
    checkpoint: HfCheckpoint, parts: dict[str, SafeTensor], part: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return a part with the type and shape that it must have.

    Raises:
        FormatError: it is missing or differs.
    """
    tensor = parts.get(part)
    if tensor is None:
        other = next(iter(parts.values()))
        raise FormatError(f"{checkpoint.where(other.name)} is there without its {part}")
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise FormatError(
            f"{checkpoint.where(tensor.name)} is {tensor.dtype} {list(tensor.shape)}, "
            f"expected {' or '.join(dtypes)} {list(shape)}"
        )
    return checkpoint.rows(tensor.name)


def _groups(
    checkpoint: HfCheckpoint, parts: dict[str, SafeTensor], part: str, n_in: int, group_size: int
) -> NDArray[np.int64]:
    """Return the group of every column, ``[n_in]``."""
    usual = np.arange(n_in) // group_size
    if part not in parts:
        return usual
    group = _array(checkpoint, parts, part, ("I32", "I64"), (n_in,)).astype(np.int64)
    if np.all(group == -1):
        return usual
    n_group = -(-n_in // group_size)
    if group.min() < 0 or group.max() >= n_group:
        raise FormatError(f"{checkpoint.where(parts[part].name)} names groups outside 0 to {n_group - 1}")
    return group


def grid_tensor(
    checkpoint: HfCheckpoint,
    parts: dict[str, SafeTensor],
    name: str,
    shape: tuple[int, ...],
    settings: Quantization,
    order: NDArray[np.int64] | None,
) -> ConvertedTensor:
    """Return the matrix that several tensors of a checkpoint hold.

    Raises:
        FormatError: one is missing or has a wrong type or shape.
    """
    n_out, n_in = shape
    if settings.method == "fp8":
        return _fp8(checkpoint, parts, name, (n_out, n_in), settings, order)
    make = _packed_reader if settings.method == "packed" else _gptq_or_awq_reader
    reader = make(checkpoint, parts, name, (n_out, n_in), settings)
    names = [tensor.name for tensor in parts.values()]

    def release() -> None:
        for one in names:
            checkpoint.release(one)

    return GridTensor(name, (n_out, n_in), reader, order, release)


def _packed_reader(
    checkpoint: HfCheckpoint, parts: dict[str, SafeTensor], name: str, shape: tuple[int, int], settings: Quantization
) -> GridReader:
    (n_out, n_in), n_per_word = shape, 32 // settings.bits
    size = min(settings.group_size or n_in, n_in)
    n_group = -(-n_in // size)
    if "weight_shape" in parts:
        stated = tuple(_array(checkpoint, parts, "weight_shape", ("I64", "I32"), (2,)).tolist())
        if stated != shape:
            raise FormatError(f"{checkpoint.path}: weight_shape of {name} is {list(stated)}, expected {list(shape)}")
    zero = None
    if "weight_zero_point" in parts:
        zero = _array(checkpoint, parts, "weight_zero_point", ("I32",), (-(-n_out // n_per_word), n_group))
    return CompressedTensors(
        packed=_array(checkpoint, parts, "weight_packed", ("I32",), (n_out, -(-n_in // n_per_word))),
        scale=_array(checkpoint, parts, "weight_scale", ("F16", "BF16", "F32"), (n_out, n_group)),
        zero_point=zero,
        group=_groups(checkpoint, parts, "weight_g_idx", n_in, size),
        bits=settings.bits,
        is_bf16=parts["weight_scale"].dtype == "BF16",
    )


def _gptq_or_awq_reader(
    checkpoint: HfCheckpoint, parts: dict[str, SafeTensor], name: str, shape: tuple[int, int], settings: Quantization
) -> GridReader:
    (n_out, n_in), n_per_word = shape, 32 // settings.bits
    if n_out % n_per_word or n_in % n_per_word:
        raise FormatError(f"{checkpoint.path}: {name} of {list(shape)} does not fit words of {n_per_word} integers")
    size = min(settings.group_size or n_in, n_in)
    n_group = -(-n_in // size)
    zeros = _array(checkpoint, parts, "qzeros", ("I32",), (n_group, n_out // n_per_word))
    scales = _array(checkpoint, parts, "scales", ("F16", "F32"), (n_group, n_out))
    if settings.method == "awq":
        weight = _array(checkpoint, parts, "qweight", ("I32",), (n_in, n_out // n_per_word))
        return Awq(weight, zeros, scales, np.arange(n_in) // size)
    weight = _array(checkpoint, parts, "qweight", ("I32",), (n_in // n_per_word, n_out))
    group = _groups(checkpoint, parts, "g_idx", n_in, size)
    return Gptq(weight, zeros, scales, group, settings.bits, settings.zero_offset)


def _fp8(
    checkpoint: HfCheckpoint,
    parts: dict[str, SafeTensor],
    name: str,
    shape: tuple[int, int],
    settings: Quantization,
    order: NDArray[np.int64] | None,
) -> ConvertedTensor:
    """Return a matrix of 8-bit floats; its scale is one number, one for each row, or one for each block."""
    weight = parts.get("weight")
    part = next((p for p in ("weight_scale_inv", "weight_scale") if p in parts), None)
    if weight is None or part is None or weight.shape != shape or not weight.dtype.startswith("F8"):
        raise FormatError(f"{checkpoint.path}: {name} is no matrix of 8-bit floats {list(shape)} with a scale")
    found = parts[part]
    is_whole = settings.block is None and found.shape in ((), (1,))
    block = settings.block or (shape if is_whole else (1, shape[1]))
    wanted = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    is_column = wanted[1] == 1 and found.shape == wanted[:1]
    if found.dtype not in ("F32", "BF16", "F16") or not (is_whole or is_column or found.shape == wanted):
        raise FormatError(
            f"{checkpoint.where(found.name)} is {found.dtype} {list(found.shape)}, expected floats {list(wanted)}"
        )
    scale = to_f32(found.dtype, checkpoint.rows(found.name)).reshape(wanted)
    return ScaledTensor(checkpoint, weight, name, scale, block, order)
