"""The limits of a template's work, and those filters of Jinja2 that need one of their own.

`template_sandbox.py` uses them, and limits everything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.utils import pass_environment

if TYPE_CHECKING:
    from .template_sandbox import BoundedEnvironment

MAX_SECONDS = 0.5  # and two seconds for every million characters of conversation
MAX_TOKENS = 12_000  # of the template; the longest ones in use have 5,000
MAX_PYTHON = 1 << 20  # characters that it compiles to
MAX_TEXT = 1 << 20  # characters of one text, or more if the conversation is longer
MAX_SIZE = 1 << 24  # characters (a list element counts as eight) of all values that are made, likewise
MAX_NODES = 100_000  # values within one value
MAX_BITS = 4096  # of a whole number
MAX_WIDTH = 10_000  # of a padded field
MAX_RANGE = 10_000  # numbers

WIDE_PERCENT = re.compile(r"%[-+ #.\d]*(\*|\d{5})")


class LimitError(TemplateError):
    """The template asks for more work than any conversation needs."""


def bounded_range(*args: int) -> range:
    """Return ``range``, if it is short."""
    numbers = range(*args)
    if len(numbers) > MAX_RANGE:
        raise LimitError(f"a range of {len(numbers)} numbers, expected at most {MAX_RANGE}")
    return numbers


def strftime_now(form: str) -> str:
    """Return the local time in the format of ``strftime``, without widths (glibc pads to any width)."""
    if len(form) > 256 or re.search(r"%[^a-zA-Z%]*\d", form):
        raise LimitError("a date in a wide format")
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as Hugging Face's ``tojson`` writes it; Jinja2's own would escape for HTML."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise LimitError("an indent of more than 16 characters")
    if separators is not None and sum(map(len, separators)) > 16:
        raise LimitError("separators of more than 16 characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_environment
def _replace(environment: BoundedEnvironment, text: Any, old: str, new: str, count: int | None = None) -> str:
    environment.check_replace(str(text), str(old), str(new))
    return str(text).replace(str(old), str(new), -1 if count is None else count)


@pass_environment
def _join(
    environment: BoundedEnvironment, value: Iterable[Any], d: Any = "", attribute: str | int | None = None
) -> str:
    items = map(make_attrgetter(environment, attribute), value) if attribute is not None else value
    parts: list[Any] = []
    for i, item in enumerate(items):
        parts += (d, item) if i else (item,)
    return environment.join_texts(parts)


@pass_environment
def _sum(
    environment: BoundedEnvironment, iterable: Iterable[Any], attribute: str | int | None = None, start: float = 0
) -> float:
    items = map(make_attrgetter(environment, attribute), iterable) if attribute is not None else iterable
    total = start
    for item in items:
        if not isinstance(item, int | float) or not isinstance(total, int | float):
            raise TemplateError("sum of what is no number")
        environment.tick()
        total += item
    return total


def _center(value: Any, width: int = 80) -> str:
    if width > MAX_WIDTH:
        raise LimitError(f"a field wider than {MAX_WIDTH}")
    return str(value).center(width)


@pass_environment
def _indent(
    environment: BoundedEnvironment, s: Any, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    text, n_width = str(s), width if isinstance(width, int) else len(width)
    environment.check_text(len(text) + (text.count("\n") + 1) * max(n_width, 0))
    return str(FILTERS["indent"](text, width, first, blank))


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> Iterator[list[Any]]:
    if linecount > MAX_WIDTH:
        raise LimitError(f"a batch of more than {MAX_WIDTH} items")
    yield from FILTERS["batch"](value, linecount, fill_with)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 100:
        raise LimitError("rounding to more than 100 digits")
    return float(FILTERS["round"](value, precision, method))


@pass_environment
def _format(environment: BoundedEnvironment, value: Any, *args: Any, **kwargs: Any) -> str:
    if WIDE_PERCENT.search(str(value)):
        raise LimitError(f"a format with a field wider than {MAX_WIDTH}")
    environment.check_format(str(value), kwargs or args)
    return str(value) % (kwargs or args)


OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "batch": _batch,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "tojson": _to_json,
}
