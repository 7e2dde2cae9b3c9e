"""One metadata value in memory, with the type that it has in a GGUF file.

``metadata.py`` reads values from a file, ``gguf_writer.py`` writes these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import FormatError
from .metadata import DTYPE, Metadata, ValueType
from .record import Record

Text = str | bytes  # bytes: text from a file that need not be UTF-8
Value = bool | int | float | Text | list[Text] | npt.NDArray[Any]


class MetaValue(Record):
    """A value or an array.

    Attributes:
        value_type: type of the value, or of the elements of an array; never ``ARR``.
        value: a scalar or a text; for an array, a list of texts or a NumPy array [count] of ``DTYPE[value_type]``
            (bools: ``np.bool_``).
    """

    value_type: ValueType
    value: Value

    @property
    def is_array(self) -> bool:
        """Whether it is written as an array."""
        return isinstance(self.value, list | np.ndarray)

    @classmethod
    def text(cls, text: Text) -> MetaValue:
        """Return a string."""
        return cls(ValueType.STR, text)

    @classmethod
    def u32(cls, number: int) -> MetaValue:
        """Return a u32."""
        return cls(ValueType.U32, number)

    @classmethod
    def f32(cls, number: float) -> MetaValue:
        """Return an f32."""
        return cls(ValueType.F32, number)

    @classmethod
    def boolean(cls, value: bool) -> MetaValue:
        """Return a bool."""
        return cls(ValueType.BOOL, value)

    @classmethod
    def texts(cls, texts: list[Text] | list[str] | list[bytes]) -> MetaValue:
        """Return an array of strings."""
        return cls(ValueType.STR, list(texts))

    @classmethod
    def numbers(cls, value_type: ValueType, values: npt.ArrayLike) -> MetaValue:
        """Return an array of numbers or bools."""
        dtype = np.dtype(np.bool_) if value_type is ValueType.BOOL else DTYPE[value_type]
        return cls(value_type, np.asarray(values, dtype))


def read_values(metadata: Metadata) -> dict[str, MetaValue]:
    """Return all values of an open file, in its order; texts stay bytes, as they lie there.

    Raises:
        FormatError: the file cannot be read any more, or a bool is neither 0 nor 1.
    """
    return {key: _read_value(metadata, key) for key in metadata.keys()}  # noqa: SIM118 (no mapping)


def _read_value(metadata: Metadata, key: str) -> MetaValue:
    value_type = metadata.value_type(key)
    if not metadata.is_array(key):
        value: Any = metadata.text_bytes(key) if value_type is ValueType.STR else metadata.get(key)
        return MetaValue(value_type, value)
    if value_type is ValueType.STR:
        return MetaValue.texts(metadata.strings(key).to_byte_list())
    return MetaValue(value_type, metadata.numbers(key))


def text_of(values: dict[str, MetaValue], key: str, where: object) -> str:
    """Return a text that must be there.

    Args:
        values: of a model.
        key: of the value.
        where: the file, for messages.

    Raises:
        FormatError: it is missing, no text, or not UTF-8.
    """
    found = values.get(key)
    if found is None or not isinstance(found.value, str | bytes):
        raise FormatError(f"{where}: metadata key '{key}' is {'missing' if found is None else 'not a text'}")
    try:
        return found.value if isinstance(found.value, str) else found.value.decode()
    except UnicodeDecodeError:
        raise FormatError(f"{where}: metadata key '{key}' is not UTF-8") from None
