"""How a command declares its arguments and options, and what both parsers read from that.

A command is a function whose parameters are ``Annotated[type, Option(...)]``, ``Annotated[type, Argument(...)]``, or
a whole group: a record whose fields are declared likewise (``options.py``)::

    def run(model: Model, loading: LoadOptions, raw: Annotated[bool, Option("--raw", help="…")] = False) -> None: ...

``commands.py`` gives the declarations to Typer, which parses, explains and complains. ``quick.py`` reads ordinary
command lines by itself, because importing and driving Typer takes longer than opening a small model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from ..formats.record import Record, defaults_of, fields_of

REQUIRED: Final = inspect.Parameter.empty


class UsageError(Exception):
    """The command line asks for something senseless; raised before the command does anything.

    Args:
        message: what is wrong.
        hint: the argument or option that it is about.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Option:
    """An option: ``--name value``; a bool is a flag, ``--yes/--no`` a pair of flags; a list may repeat."""

    def __init__(
        self,
        *names: str,
        help: str,  # Typer's word for it
        metavar: str | None = None,
        min: float | None = None,
        max: float | None = None,
        show_default: bool = True,
    ) -> None:
        self.names, self.help, self.metavar = names, help, metavar
        self.min, self.max, self.show_default = min, max, show_default


class Argument:
    """A positional argument; a list takes all that are left."""

    def __init__(self, *, metavar: str, help: str, show_default: bool = True) -> None:
        self.metavar, self.help, self.show_default = metavar, help, show_default


class Parameter:
    """One declared argument or option of a command.

    Attributes:
        name: of the function's parameter, or of the group's field.
        group: the function's parameter that takes the whole group, if there is one.
        type: ``int``, ``float``, ``str``, ``bool`` or ``Path``, also ``list`` of it, also ``| None``.
        default: its value when it is not given; ``REQUIRED`` without one.
        declared: the declaration.
    """

    def __init__(self, name: str, group: str | None, hint: Any, default: Any) -> None:
        self.name, self.group, self.default = name, group, default
        self.type, self.declared = get_args(hint)

    @property
    def item_type(self) -> type:
        """The type of one value, without ``list`` and ``None``."""
        types = get_args(self.type) if get_origin(self.type) is UnionType else (self.type,)
        single = next(t for t in types if t is not type(None))
        return get_args(single)[0] if get_origin(single) is list else single  # type: ignore[no-any-return]

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        types = get_args(self.type) if get_origin(self.type) is UnionType else (self.type,)
        return any(get_origin(t) is list for t in types)


def parameters_of(command: Callable[..., None]) -> list[Parameter]:
    """Return what a command declares, groups replaced by their fields."""
    hints = get_type_hints(command, include_extras=True)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        if not _is_group(hint):
            found.append(Parameter(name, None, hint, parameter.default))
            continue
        fields = get_type_hints(hint, include_extras=True)
        found += [Parameter(key, name, fields[key], defaults_of(hint).get(key, REQUIRED)) for key in fields_of(hint)]
    return found


def _is_group(hint: Any) -> bool:
    """Return whether a parameter takes a whole group."""
    return isinstance(hint, type) and issubclass(hint, Record)


def call(command: Callable[..., None], values: Mapping[str, Any]) -> None:
    """Call a command with a value for each of its parameters, by name."""
    hints = get_type_hints(command)
    arguments: dict[str, Any] = {}
    for parameter in parameters_of(command):
        if parameter.group is None:
            arguments[parameter.name] = values[parameter.name]
        else:
            arguments.setdefault(parameter.group, {})[parameter.name] = values[parameter.name]
    command(**{name: hints[name](**v) if _is_group(hints[name]) else v for name, v in arguments.items()})
