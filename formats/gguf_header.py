"""The header of one GGUF file: metadata, then the directory of tensors.

Everything is checked against the file before it is used, and every count before anything of that
size is allocated. Split files are put together in ``gguf.py``.

Layout (little endian; ``str`` is a u64 length and UTF-8 bytes)::

    "GGUF"  u32 version  u64 n_tensor  u64 n_key
    n_key    x { str key, u32 type, value }          value of an array: u32 type, u64 count, elements
    n_tensor x { str name, u32 n_dim, u64 dim[n_dim], u32 type, u64 offset }
    padding to general.alignment, then the data that the offsets count from

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3 differ only in that
3 may be big endian) and llama.cpp's ``ggml/src/gguf.cpp``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from struct import Struct, unpack

from .byte_file import ByteFile
from .errors import FormatError, quote
from .ggml_types import BLOCK, GgmlType
from .metadata import DTYPE, Entry, Scalar, ValueType
from .record import Record
from .string_offsets import StringTooLongError, find_strings

# Far above what real models hold (262k tokens, 515k merges, 47k tensors in unmerged mixtures), low enough
# that a file with nothing but such things is answered within a second.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ARRAY = 1 << 24
MAX_STRINGS = 1 << 22  # of all arrays together
MAX_STRING_BYTES = 1 << 24
MAX_ARRAY_BYTES = 1 << 28
MAX_KEY_BYTES = 1 << 10
MAX_NAME_BYTES = 1 << 8
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT

_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_WINDOW = 1 << 16

_U32 = Struct("<I")
_U64 = Struct("<Q")
_SCALARS = {t: Struct("<" + code) for t, code in zip(DTYPE, "BbHhIifBQqd", strict=True)}


class TensorInfo(Record):
    """Where one tensor lies.

    Attributes:
        name: unique in the model.
        ggml_type: type of the elements.
        shape: slowest dimension first: a matrix is ``[n_out, n_in]``. 1 to 4 dimensions, none is 0.
        n_bytes: size of the data.
        shard: index of the split file, 0 for an ordinary one.
        offset: of the data in its file; a multiple of the file's alignment.
    """

    name: str
    ggml_type: GgmlType
    shape: tuple[int, ...]
    n_bytes: int
    shard: int
    offset: int

    @property
    def n_weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Header(Record):
    """What the header of one file says."""

    version: int
    entries: dict[str, Entry]
    tensors: list[TensorInfo]


class _Cursor:
    """Reads forward through a file by way of a small window, and never past the end."""

    def __init__(self, file: ByteFile) -> None:
        self.file = file
        self.pos = 0
        self._window = b""
        self._window_start = 0

    @property
    def n_left(self) -> int:
        return self.file.size - self.pos

    def fail(self, text: str) -> FormatError:
        return FormatError(f"{self.file.path}: {text}")

    def take(self, n_bytes: int, what: str) -> bytes:
        """Return the next ``n_bytes``, which the caller has bounded."""
        if n_bytes > self.n_left:
            raise self.fail(
                f"the file is truncated: {what} at byte {self.pos} needs {n_bytes} bytes, {self.n_left} left"
            )
        start = self.pos - self._window_start
        if start < 0 or start + n_bytes > len(self._window):
            self._window = self.file.read(self.pos, min(max(n_bytes, _WINDOW), self.n_left))
            self._window_start, start = self.pos, 0
        self.pos += n_bytes
        return self._window[start : start + n_bytes]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def name(self, max_bytes: int, what: str) -> str:
        n_bytes = self.u64(f"the length of {what}")
        if not 0 < n_bytes <= max_bytes:
            raise self.fail(f"{what} has {n_bytes} bytes, expected 1 to {max_bytes}. The file is damaged")
        raw = self.take(n_bytes, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8: {quote(raw)}") from None


def read_header(file: ByteFile, shard: int) -> Header:
    """Read and check the header of one file.

    Args:
        file: the open file.
        shard: its index, for ``TensorInfo.shard``.

    Raises:
        FormatError: the file is not GGUF, is of a version that cannot be read, or is damaged.
    """
    cursor = _Cursor(file)
    version = _read_version(cursor)
    n_tensor = cursor.u64("the number of tensors")
    n_key = cursor.u64("the number of metadata keys")
    _check_count(cursor, n_key, _MIN_KEY_BYTES, MAX_KEYS, "metadata keys")
    _check_count(cursor, n_tensor, _MIN_TENSOR_BYTES, MAX_TENSORS, "tensors")
    entries = _read_entries(cursor, n_key)
    alignment = _alignment(cursor, entries)
    _check_count(cursor, n_tensor, _MIN_TENSOR_BYTES, MAX_TENSORS, "tensors")
    tensors = [_read_tensor(cursor, i, shard, alignment) for i in range(n_tensor)]
    data_start = cursor.pos + -cursor.pos % alignment
    return Header(version, entries, _place_tensors(cursor, tensors, data_start))


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.file.read(0, min(4, cursor.file.size))
    if magic != b"GGUF":
        raise cursor.fail(f"not a GGUF file: starts with {magic!r}, expected b'GGUF'")
    cursor.pos = 4
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version == 1:
        raise cursor.fail("GGUF version 1 is not supported, expected 2 or 3. Convert the model again")
    if version and version & 0xFFFF == 0:
        raise cursor.fail("big-endian GGUF is not supported. Use the little-endian file of this model")
    raise cursor.fail(f"GGUF version {version} is not supported, expected 2 or 3")


def _check_count(cursor: _Cursor, count: int, min_bytes: int, max_count: int, what: str) -> None:
    """Refuse a count that the rest of the file cannot hold, or that no real model reaches."""
    if count * min_bytes > cursor.n_left:
        raise cursor.fail(
            f"{count} {what} do not fit into the {cursor.n_left} bytes left. The file is truncated or damaged"
        )
    if count > max_count:
        raise cursor.fail(f"{count} {what}, expected at most {max_count}")


def _read_entries(cursor: _Cursor, n_key: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    n_string_left = MAX_STRINGS
    for i in range(n_key):
        key = cursor.name(MAX_KEY_BYTES, f"metadata key {i}")
        if key in entries:
            raise cursor.fail(f"metadata key {quote(key)} appears twice")
        entry = _read_entry(cursor, f"metadata key {quote(key)}", n_string_left)
        if entry.string_offsets is not None:
            n_string_left -= entry.count
        entries[key] = entry
    return entries


def _value_type(cursor: _Cursor, what: str) -> ValueType:
    number = cursor.u32(f"the type of {what}")
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.fail(f"{what} has type {number}, expected a GGUF value type (0 to 12)") from None


def _read_entry(cursor: _Cursor, what: str, n_string_left: int) -> Entry:
    value_type = _value_type(cursor, what)
    if value_type is ValueType.ARR:
        return _read_array(cursor, what, n_string_left)
    if value_type is ValueType.STR:
        n_bytes = cursor.u64(f"the length of {what}")
        return _skip(cursor, what, Entry(value_type, False, 1, cursor.pos, n_bytes), MAX_STRING_BYTES)
    offset, unpacker = cursor.pos, _SCALARS[value_type]
    scalar: Scalar = unpacker.unpack(cursor.take(unpacker.size, what))[0]
    if value_type is ValueType.BOOL:
        if scalar not in (0, 1):
            raise cursor.fail(f"{what} is the bool {scalar}, expected 0 or 1")
        scalar = bool(scalar)
    return Entry(value_type, False, 1, offset, unpacker.size, scalar)


def _read_array(cursor: _Cursor, what: str, n_string_left: int) -> Entry:
    item_type = _value_type(cursor, what)
    if item_type is ValueType.ARR:
        raise cursor.fail(f"{what} is an array of arrays, which no model uses. The file is damaged")
    count = cursor.u64(f"the length of {what}")
    if item_type is not ValueType.STR:
        _check_count(cursor, count, DTYPE[item_type].itemsize, MAX_ARRAY, f"elements of {what}")
        entry = Entry(item_type, True, count, cursor.pos, count * DTYPE[item_type].itemsize)
        return _skip(cursor, what, entry, MAX_ARRAY_BYTES)
    _check_count(cursor, count, 8, n_string_left, f"strings of {what}")
    limit = min(cursor.file.size, cursor.pos + MAX_ARRAY_BYTES)
    try:
        offsets = find_strings(cursor.file.read, cursor.pos, count, limit)
    except StringTooLongError as error:
        index, n_bytes, n_left = error.args
        raise cursor.fail(
            f"{what}: string {index} of {count} needs {n_bytes} bytes, {n_left} left. The file is truncated or damaged"
        ) from None
    entry = Entry(ValueType.STR, True, count, cursor.pos, int(offsets[-1]) - cursor.pos, None, offsets)
    cursor.pos += entry.n_bytes
    return entry


def _skip(cursor: _Cursor, what: str, entry: Entry, max_bytes: int) -> Entry:
    """Move past a value that stays in the file."""
    if entry.n_bytes > cursor.n_left:
        raise cursor.fail(f"the file is truncated: {what} needs {entry.n_bytes} bytes, {cursor.n_left} left")
    if entry.n_bytes > max_bytes:
        raise cursor.fail(f"{what} has {entry.n_bytes} bytes, expected at most {max_bytes}")
    cursor.pos += entry.n_bytes
    return entry


def _alignment(cursor: _Cursor, entries: dict[str, Entry]) -> int:
    entry = entries.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.is_array or entry.value_type is not ValueType.U32 or not isinstance(entry.scalar, int):
        raise cursor.fail(f"metadata key 'general.alignment' has type {entry.type_name}, expected u32")
    if not 1 <= entry.scalar <= MAX_ALIGNMENT or entry.scalar & (entry.scalar - 1):
        raise cursor.fail(f"general.alignment is {entry.scalar}, expected a power of two from 1 to {MAX_ALIGNMENT}")
    return entry.scalar


def _read_tensor(cursor: _Cursor, index: int, shard: int, alignment: int) -> TensorInfo:
    """Read one line of the directory; its offset still counts from the start of the data."""
    name = cursor.name(MAX_NAME_BYTES, f"the name of tensor {index}")
    what = f"tensor {quote(name)}"
    n_dim = cursor.u32(f"the number of dimensions of {what}")
    if not 1 <= n_dim <= MAX_DIMS:
        raise cursor.fail(f"{what} has {n_dim} dimensions, expected 1 to {MAX_DIMS}")
    dims = unpack(f"<{n_dim}Q", cursor.take(8 * n_dim, f"the shape of {what}"))
    type_number = cursor.u32(f"the type of {what}")
    offset = cursor.u64(f"the offset of {what}")
    try:
        ggml_type = GgmlType(type_number)
    except ValueError:
        raise cursor.fail(
            f"{what} has type {type_number}, expected a GGML type from 0 to {max(GgmlType)} that is still in use. "
            "The file is damaged, or older or newer than this llmrun"
        ) from None
    shape = tuple(reversed(dims))
    n_weight, n_byte = BLOCK[ggml_type]
    if 0 in shape:
        raise cursor.fail(f"{what} has shape {list(shape)}, expected no dimension of 0")
    if shape[-1] % n_weight:
        raise cursor.fail(
            f"{what} has rows of {shape[-1]} weights, expected a multiple of {n_weight} for {ggml_type.name}"
        )
    if offset % alignment:
        raise cursor.fail(f"{what} begins at offset {offset}, expected a multiple of the alignment {alignment}")
    return TensorInfo(name, ggml_type, shape, math.prod(shape) // n_weight * n_byte, shard, offset)


def _place_tensors(cursor: _Cursor, tensors: list[TensorInfo], data_start: int) -> list[TensorInfo]:
    """Return the tensors with offsets in the file; names are unique, all data are in the file and do not overlap."""
    size = cursor.file.size
    placed: dict[str, TensorInfo] = {}
    for t in tensors:
        if t.name in placed:
            raise cursor.fail(f"tensor {quote(t.name)} appears twice")
        offset = data_start + t.offset
        if offset + t.n_bytes > size:
            raise cursor.fail(
                f"tensor {quote(t.name)} needs bytes {offset} to {offset + t.n_bytes}, "
                f"but the file has {size}. The file is truncated or damaged"
            )
        placed[t.name] = TensorInfo(t.name, t.ggml_type, t.shape, t.n_bytes, t.shard, offset)
    in_order = sorted(placed.values(), key=lambda t: t.offset)
    for t, after in pairwise(in_order):
        if after.offset < t.offset + t.n_bytes:
            raise cursor.fail(f"tensors {quote(t.name)} and {quote(after.name)} overlap. The file is damaged")
    return list(placed.values())
