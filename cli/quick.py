"""Reads ordinary command lines without Typer: known options, spelled in full, with values that are plainly right.

Anything else (help, a typing error, an odd number, ``--``) is left to Typer, so this module never complains and
never decides what a doubtful command line means. Where it answers, it answers as Typer does (tests compare them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .command_table import COMMANDS, load_command
from .declare import REQUIRED, Argument, Option, Parameter, parameters_of

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")


class _Doubt(Exception):  # noqa: N818  # not an error
    """Typer shall read this command line."""


def quick_read(args: Sequence[str]) -> tuple[Callable[..., None], dict[str, Any]] | None:
    """Return the command and a value for each of its parameters; None when Typer must read it."""
    for n_word in (1, 2):
        words = " ".join(args[:n_word])
        if words in COMMANDS:
            command = load_command(words)
            try:
                return command, _values(parameters_of(command), list(args[n_word:]))
            except _Doubt:
                return None
    return None


def _values(parameters: list[Parameter], args: list[str]) -> dict[str, Any]:
    options = {
        name: (p, index == 0)
        for p in parameters
        if isinstance(p.declared, Option)
        for spelling in p.declared.names
        for index, name in enumerate(spelling.split("/"))
    }
    values: dict[str, Any] = {}
    positional: list[str] = []
    args.reverse()
    while args:
        word = args.pop()
        if word == "-" or not word.startswith("-"):
            positional.append(word)
            continue
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in options:
            raise _Doubt
        parameter, is_first = options[name]
        if parameter.item_type is bool:
            if equals:
                raise _Doubt
            values[parameter.name] = is_first
            continue
        if not equals:
            if not args:
                raise _Doubt
            value = args.pop()
        converted = _converted(parameter, value)
        values[parameter.name] = [*values.get(parameter.name, ()), converted] if parameter.is_list else converted
    _take_positional(parameters, positional, values)
    for parameter in parameters:
        if values.setdefault(parameter.name, parameter.default) is REQUIRED:
            raise _Doubt
    return values


def _take_positional(parameters: list[Parameter], words: list[str], values: dict[str, Any]) -> None:
    for parameter in parameters:
        if isinstance(parameter.declared, Argument) and words:
            if parameter.is_list:
                values[parameter.name], words = [_converted(parameter, word) for word in words], []
            else:
                values[parameter.name], words = _converted(parameter, words[0]), words[1:]
    if words:
        raise _Doubt


def _converted(parameter: Parameter, text: str) -> Any:
    """Return a value of the parameter's type, in range."""
    kind, declared = parameter.item_type, parameter.declared
    if kind is str:
        return text
    if kind is Path:
        if "\0" in text:
            raise _Doubt
        return Path(text)
    pattern, convert = (_INTEGER, int) if kind is int else (_NUMBER, float)
    if not pattern.fullmatch(text):
        raise _Doubt
    value = convert(text)
    low, high = (declared.min, declared.max) if isinstance(declared, Option) else (None, None)
    if (low is not None and value < low) or (high is not None and value > high) or not math.isfinite(value):
        raise _Doubt
    return value
