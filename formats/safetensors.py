"""One safetensors file: the header is checked whole, tensors are views of the mapped file.

Layout (little endian)::

    u64 n_header  JSON[n_header]  data
    JSON: { "__metadata__": {str: str}, NAME: {"dtype": DTYPE, "shape": [..], "data_offsets": [start, stop]} }

Offsets count from the start of the data; tensors lie there without gaps and without overlap. Shards are put
together in ``hf_checkpoint.py``.

Source: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .byte_file import ByteFile
from .errors import FormatError, quote
from .record import Record
from .strict_json import parse_json

MAX_HEADER_BYTES = 1 << 24
MAX_TENSORS = 1 << 16
MAX_DIMS = 8
MAX_NAME_CHARS = 1 << 10
_VALUES_PER_TENSOR = 20  # commas, colons and brackets of an entry

# How the bytes of an element are given out. bfloat16 and the 8-bit floats are no NumPy types: they stay integers.
STORAGE: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "u1", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
        "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4",
        "U64": "<u8", "I64": "<i8", "F64": "<f8",
    }.items()
}  # fmt: skip


class SafeTensor(Record):
    """Where one tensor lies.

    Attributes:
        name: unique in the checkpoint.
        dtype: a key of ``STORAGE``.
        shape: slowest dimension first.
        file: index of the shard.
        offset: of the data in its file, in bytes.
        n_bytes: size of the data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    n_bytes: int


def read_header(file: ByteFile, index: int) -> list[SafeTensor]:
    """Return the tensors of a file, in the order of their data.

    Args:
        file: an open file.
        index: its number in the checkpoint, for ``SafeTensor.file``.

    Raises:
        FormatError: the header is damaged, or the tensors do not fill the file exactly.
    """
    if file.size < 8:
        raise FormatError(f"{file.path}: has {file.size} bytes, too short for a safetensors file")
    n_header = int.from_bytes(file.read(0, 8), "little")
    if n_header > MAX_HEADER_BYTES:
        raise FormatError(
            f"{file.path}: not a safetensors file: its header would have {n_header} bytes, "
            f"expected at most {MAX_HEADER_BYTES}"
        )
    if n_header > file.size - 8:
        raise FormatError(f"{file.path}: truncated: the header of {n_header} bytes does not fit into {file.size}")
    raw = file.read(8, n_header)
    if not raw.startswith(b"{"):
        raise FormatError(f"{file.path}: not a safetensors file: the header starts with {quote(raw[:8])}")
    header = parse_json(raw, f"{file.path}: header", max_values=MAX_TENSORS * _VALUES_PER_TENSOR)
    _check_notes(file.path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise FormatError(f"{file.path}: {len(header)} tensors, expected at most {MAX_TENSORS}")
    data_start = 8 + n_header
    tensors = [_tensor(file.path, name, entry, index, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda t: (t.offset, t.n_bytes))
    _check_layout(file, tensors, data_start)
    return tensors


def _check_notes(path: Path, notes: Any) -> None:
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise FormatError(f"{path}: __metadata__ of the header holds something else than texts")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor(path: Path, name: str, entry: Any, index: int, data_start: int) -> SafeTensor:
    if len(name) > MAX_NAME_CHARS or not name:
        raise FormatError(f"{path}: tensor {quote(name)} has a name of {len(name)} characters")
    where = f"{path}: tensor {quote(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in STORAGE:
        shown = quote(dtype) if isinstance(dtype, str) else type(dtype).__name__
        raise FormatError(f"{where} has dtype {shown}, expected one of {', '.join(STORAGE)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_count, shape)):
        raise FormatError(f"{where} has a shape that is no list of at most {MAX_DIMS} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise FormatError(f"{where} has data_offsets that are no pair of counts")
    start, stop = offsets
    n_bytes = math.prod(shape) * STORAGE[dtype].itemsize  # unbounded integers: cannot wrap
    if stop - start != n_bytes:
        raise FormatError(f"{where} has {stop - start} bytes, expected {n_bytes} for {dtype} {shape}")
    return SafeTensor(name, dtype, tuple(shape), index, data_start + start, n_bytes)


def _check_layout(file: ByteFile, tensors: list[SafeTensor], data_start: int) -> None:
    """Check that the tensors, sorted by offset, fill the data without gap and without overlap."""
    expected, before = data_start, ""
    for tensor in tensors:
        where = f"{file.path}: tensor {quote(tensor.name)}"
        if tensor.offset < expected:
            raise FormatError(f"{where} overlaps {quote(before)}")
        if tensor.offset > expected:
            raise FormatError(f"{where} starts {tensor.offset - expected} bytes after the data before it ends")
        expected, before = tensor.offset + tensor.n_bytes, tensor.name
        if expected > file.size:
            raise FormatError(f"{where} ends at byte {expected}, but the file has {file.size}. The file is truncated")
    if expected != file.size:
        raise FormatError(f"{file.path}: {file.size - expected} bytes after the last tensor belong to none")


def elements(file: ByteFile, tensor: SafeTensor, start: int, stop: int) -> npt.NDArray[Any]:
    """Return a range of a tensor's rows (first dimension), ``[stop - start, ...]``, with its ``STORAGE`` type.

    A read-only view when the file is mapped (it need not be aligned), a fresh array otherwise.

    Raises:
        FormatError: the file cannot be read any more.
    """
    n_row = tensor.shape[0] if tensor.shape else 1
    if not 0 <= start <= stop <= n_row:
        raise ValueError(f"rows {start} to {stop} of {n_row}")
    n_row_bytes = tensor.n_bytes // n_row if n_row else 0
    raw = file.array(tensor.offset + start * n_row_bytes, (stop - start) * n_row_bytes)
    shape = (stop - start, *tensor.shape[1:]) if tensor.shape else (1,)
    return raw.view(STORAGE[tensor.dtype]).reshape(shape)
