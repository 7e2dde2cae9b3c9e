"""Typed access to the key-value part of a GGUF file; every error names the file and the key.

``gguf_header.py`` finds where each value lies; here it is read when someone asks for it. Scalars
are decoded at once, strings and arrays stay in the file until then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, overload

import numpy as np
import numpy.typing as npt

from .byte_file import ByteFile
from .errors import FormatError, quote
from .record import Record
from .string_offsets import Offsets

Scalar = int | float | bool
Raw = bytes  # StringArray.bytes() hides the built-in name inside its class
T = TypeVar("T")
D = TypeVar("D")

_MAX_LIST = 1 << 16  # larger arrays are vocabularies: strings() and numbers() read those


class ValueType(IntEnum):
    """Type of a metadata value, numbered as in GGUF files."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STR = 8
    ARR = 9
    U64 = 10
    I64 = 11
    F64 = 12


DTYPE: dict[ValueType, np.dtype[Any]] = {
    ValueType.U8: np.dtype("<u1"),
    ValueType.I8: np.dtype("<i1"),
    ValueType.U16: np.dtype("<u2"),
    ValueType.I16: np.dtype("<i2"),
    ValueType.U32: np.dtype("<u4"),
    ValueType.I32: np.dtype("<i4"),
    ValueType.F32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("<u1"),
    ValueType.U64: np.dtype("<u8"),
    ValueType.I64: np.dtype("<i8"),
    ValueType.F64: np.dtype("<f8"),
}
"""Types of fixed size, as they lie in the file (a bool is a byte, 0 or 1)."""

_INTEGERS = {t for t, dtype in DTYPE.items() if dtype.kind in "ui"} - {ValueType.BOOL}
_ACCEPTS: dict[type, set[ValueType]] = {
    int: _INTEGERS,
    float: _INTEGERS | {ValueType.F32, ValueType.F64},
    bool: {ValueType.BOOL},
    str: {ValueType.STR},
}


class Entry(Record):
    """Where one value lies.

    Attributes:
        value_type: type of the value, or of the elements of an array.
        is_array: whether it is an array.
        count: elements of an array, 1 otherwise.
        offset: first byte of the value (of its text, for a string) or of the first element.
        n_bytes: from ``offset`` to the end of the value.
        scalar: the value, when it is a number or a bool.
        string_offsets: for an array of strings, what ``find_strings`` returned.
    """

    value_type: ValueType
    is_array: bool
    count: int
    offset: int
    n_bytes: int
    scalar: Scalar | None = None
    string_offsets: Offsets | None = None

    @property
    def type_name(self) -> str:
        """The type in words, such as ``u32`` or ``array of 49152 str``."""
        name = self.value_type.name.lower()
        return f"array of {self.count} {name}" if self.is_array else name


class StringArray(Sequence[str]):
    """The strings of one array, decoded one by one as they are asked for.

    The bytes of the whole array are read from the file at the first access.
    """

    def __init__(self, file: ByteFile, key: str, entry: Entry) -> None:
        assert entry.string_offsets is not None
        self._file = file
        self._key = key
        self._entry = entry
        self._data: Raw | None = None
        self._starts: Offsets = entry.string_offsets[:-1] - entry.offset + 8  # [len], of the text in _data
        self._stops: Offsets = entry.string_offsets[1:] - entry.offset  # [len]

    def __len__(self) -> int:
        return self._entry.count

    @property
    def lengths(self) -> Offsets:
        """Bytes of each string, i64 [len]; known without reading any."""
        return self._stops - self._starts

    def _bytes(self) -> Raw:
        if self._data is None:
            self._data = self._file.read(self._entry.offset, self._entry.n_bytes)
        return self._data

    def bytes(self, index: int) -> Raw:
        """Return the bytes of one string, decoded or not."""
        return self._bytes()[self._starts[index] : self._stops[index]]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one string.

        Raises:
            FormatError: it is not UTF-8.
            IndexError: there is no such string.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            return self.bytes(index).decode()
        except UnicodeDecodeError:
            where = f"{self._file.path}: metadata key {quote(self._key)}: string {index % len(self)}"
            raise FormatError(f"{where} is not UTF-8: {quote(self.bytes(index))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_list())

    def to_byte_list(self) -> list[Raw]:
        """Return the bytes of every string; 262,144 take about 50 ms."""
        data = self._bytes()
        return [data[i:j] for i, j in zip(self._starts.tolist(), self._stops.tolist(), strict=True)]

    def to_list(self) -> list[str]:
        """Return every string; 262,144 take about 40 ms.

        Raises:
            FormatError: one is not UTF-8.
        """
        data = np.frombuffer(self._bytes(), np.uint8)
        is_kept = np.ones(data.size, np.bool_)
        for i in range(1, 8):
            is_kept[self._starts - 1 - i] = False
        joined = data[is_kept].tobytes()  # of each length one byte is left, the last one, which is zero
        if joined.count(0) == len(self):  # no text holds another
            with suppress(UnicodeDecodeError):
                return joined.decode().split("\0")[1:]
        return [self[i] for i in range(len(self))]  # names the string that is not UTF-8


class Metadata:
    """The metadata of a model; valid while its ``GgufFile`` is open.

    Attributes:
        path: the file, for messages.
    """

    path: Path

    def __init__(self, file: ByteFile, entries: dict[str, Entry]) -> None:
        self.path = file.path
        self._file = file
        self._entries = entries

    def keys(self) -> list[str]:
        """Return all keys, in the order of the file."""
        return list(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def is_array(self, key: str) -> bool:
        """Return whether the key is there and is an array (some keys hold a number, or one per layer)."""
        return key in self._entries and self._entries[key].is_array

    def count(self, key: str) -> int:
        """Return the number of elements of an array, 1 for a scalar, 0 when the key is missing."""
        return self._entries[key].count if key in self._entries else 0

    def type_name(self, key: str) -> str:
        """Return the type of a value as text, such as ``u32`` or ``array of 49152 str``."""
        return self._entry(key).type_name

    def value_type(self, key: str) -> ValueType:
        """Return the type of a value, or of the elements of an array.

        Raises:
            FormatError: the key is missing.
        """
        return self._entry(key).value_type

    def text_bytes(self, key: str) -> Raw:
        """Return the bytes of a string, which need not be UTF-8.

        Raises:
            FormatError: the key is missing or has another type.
        """
        entry = self._entry(key)
        if entry.is_array or entry.value_type is not ValueType.STR:
            raise self._wrong_type(key, entry, "str")
        return self._file.read(entry.offset, entry.n_bytes)

    def get(self, key: str) -> Scalar | str | StringArray | npt.NDArray[Any] | None:
        """Return a value as it is in the file, None when the key is missing.

        Raises:
            FormatError: it is a string that is not UTF-8.
        """
        if key not in self._entries:
            return None
        entry = self._entries[key]
        if entry.is_array:
            return self.strings(key) if entry.value_type is ValueType.STR else self.numbers(key)
        return self._text(key, entry) if entry.value_type is ValueType.STR else entry.scalar

    def required(self, key: str, type_: type[T]) -> T:
        """Return a value that must be there.

        Args:
            key: name of the value.
            type_: ``int``, ``float`` (finite; integers are converted), ``bool``, ``str``, or a list of one of
                them, such as ``list[int]`` (for short arrays; ``strings`` and ``numbers`` read long ones).

        Raises:
            FormatError: the key is missing or has another type.
        """
        return self._typed(key, self._entry(key), type_)

    def optional(self, key: str, type_: type[T], default: D) -> T | D:
        """Return a value, or ``default`` when the key is missing; see ``required``.

        Raises:
            FormatError: the key is there with another type.
        """
        return self.required(key, type_) if key in self._entries else default

    def strings(self, key: str) -> StringArray:
        """Return an array of strings, nothing of it read yet.

        Raises:
            FormatError: the key is missing or has another type.
        """
        entry = self._entry(key)
        if not entry.is_array or entry.value_type is not ValueType.STR:
            raise self._wrong_type(key, entry, "an array of str")
        return StringArray(self._file, key, entry)

    def numbers(self, key: str) -> npt.NDArray[Any]:
        """Return an array of numbers or bools, [count], with the element type of the file; read-only, aligned.

        Raises:
            FormatError: the key is missing or has another type, or a bool is neither 0 nor 1.
        """
        entry = self._entry(key)
        if not entry.is_array or entry.value_type is ValueType.STR:
            raise self._wrong_type(key, entry, "an array of numbers")
        values = np.frombuffer(self._file.read(entry.offset, entry.n_bytes), DTYPE[entry.value_type])
        if entry.value_type is not ValueType.BOOL:
            return values
        if values.size and values.max() > 1:
            raise FormatError(f"{self._where(key)} holds the bool {values.max()}, expected 0 or 1")
        return values.view(np.bool_)

    def _entry(self, key: str) -> Entry:
        try:
            return self._entries[key]
        except KeyError:
            raise FormatError(f"{self._where(key)} is missing") from None

    def _where(self, key: str) -> str:
        return f"{self.path}: metadata key {quote(key)}"

    def _wrong_type(self, key: str, entry: Entry, expected: str) -> FormatError:
        return FormatError(f"{self._where(key)} has type {entry.type_name}, expected {expected}")

    def _text(self, key: str, entry: Entry) -> str:
        try:
            return self._file.read(entry.offset, entry.n_bytes).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self._where(key)} is not UTF-8 (byte {error.start} of {entry.n_bytes})") from None

    def _typed(self, key: str, entry: Entry, type_: type[T]) -> T:
        is_list = get_origin(type_) is list
        item_type: type = get_args(type_)[0] if is_list else type_
        if entry.is_array != is_list or entry.value_type not in _ACCEPTS[item_type]:
            raise self._wrong_type(key, entry, f"list of {item_type.__name__}" if is_list else item_type.__name__)
        if entry.count > _MAX_LIST:
            raise FormatError(f"{self._where(key)} has {entry.count} elements, expected at most {_MAX_LIST}")
        if item_type is str:
            return cast(T, self.strings(key).to_list() if is_list else self._text(key, entry))
        values: list[Any] = self.numbers(key).tolist() if is_list else [entry.scalar]
        if item_type is float:
            values = [float(value) for value in values]
            if not all(map(math.isfinite, values)):
                raise FormatError(f"{self._where(key)} is not finite")
        return cast(T, values if is_list else values[0])
