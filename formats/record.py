"""Records: classes of named fields, written like those of ``dataclasses``, that cost next to nothing to define.

``dataclasses`` compiles up to six methods for each class, which takes 0.6 ms: 25 ms of a start, for its forty records.
The methods here are shared by all of them, and look up which fields a class has::

    class Place(Record, kw_only=True):
        name: str
        offset: int = 0

Records cannot be changed, unless ``frozen=False``, and are compared and hashed by their fields, unless ``eq=False``.
Fields are slots, so there are no other attributes. They and a class's keywords mean what they do in ``dataclasses``,
which type checkers are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform

R = TypeVar("R", bound="Record")


class _Factory:
    """Stands for a default value that every record gets a new one of."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], Any]) -> Any:
    """Return what stands for a default value that is made for every record."""
    return _Factory(default_factory)


class _RecordType(type):
    """Makes slots of the annotated names of a class, and takes note of their defaults."""

    _fields: tuple[str, ...]
    _defaults: Mapping[str, Any]
    _values: Callable[[Any], Any]  # of a record: a tuple of all fields, or the only one
    _n_positional: int

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        kw_only: bool = False,
        frozen: bool = True,
        eq: bool = True,
    ) -> _RecordType:
        base = next((b for b in bases if isinstance(b, _RecordType)), None)
        inherited = base._fields if base else ()
        own = tuple(namespace.get("__annotations__", ()))
        defaults = {key: namespace.pop(key) for key in own if key in namespace}
        namespace["__slots__"] = tuple(key for key in own if key not in inherited)
        if not frozen:
            namespace |= {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__, "__hash__": None}
        if not eq:
            namespace |= {"__eq__": object.__eq__, "__hash__": object.__hash__}
        made = super().__new__(cls, name, bases, namespace)
        made._fields = (*inherited, *namespace["__slots__"])
        made._defaults = {**base._defaults, **defaults} if base else defaults
        made._values = attrgetter(*made._fields) if made._fields else lambda _: ()
        made._n_positional = 0 if kw_only else len(made._fields)
        return made


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record(metaclass=_RecordType):
    """The base of all records."""

    def __init__(self, *args: Any, **named: Any) -> None:
        """Take the values of the fields, in their order or by name."""
        kind, set_field = type(self), object.__setattr__
        if len(args) > kind._n_positional:
            raise TypeError(f"{kind.__name__} takes {kind._n_positional} values without a name, got {len(args)}")
        for key, value in zip(kind._fields, args, strict=False):
            set_field(self, key, value)
        for key in kind._fields[len(args) :]:
            if key in named:
                value = named.pop(key)
            elif key in kind._defaults:
                value = kind._defaults[key]
                value = value.make() if isinstance(value, _Factory) else value
            else:
                raise TypeError(f"{kind.__name__} needs a value for {key!r}")
            set_field(self, key, value)
        if named:
            raise TypeError(f"{kind.__name__} has no field {next(iter(named))!r}, or got it twice")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check or complete the values, in records that do."""

    def __setattr__(self, key: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {key!r}")

    def __delattr__(self, key: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {key!r}")

    def __eq__(self, other: object) -> bool:
        kind = type(self)
        return kind._values(self) == kind._values(other) if type(other) is kind else NotImplemented

    def __hash__(self) -> int:
        return hash(type(self)._values(self))

    def __repr__(self) -> str:
        words = (f"{key}={getattr(self, key)!r}" for key in type(self)._fields)
        return f"{type(self).__name__}({', '.join(words)})"


def replace(record: R, **changes: Any) -> R:
    """Return a record with other values for some fields."""
    kind = type(record)
    return kind(**as_dict(record) | changes)


def as_dict(record: Record) -> dict[str, Any]:
    """Return the values of the fields by name."""
    return {key: getattr(record, key) for key in fields_of(type(record))}


def fields_of(kind: type[Record]) -> tuple[str, ...]:
    """Return the names of the fields of a record class."""
    return kind._fields


def defaults_of(kind: type[Record]) -> Mapping[str, Any]:
    """Return the default values of a record class, by field; not those that are made for every record."""
    return kind._defaults
