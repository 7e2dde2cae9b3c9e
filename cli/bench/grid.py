"""The tests that the options ask for: lists, ranges, and their cross product in llama-bench's order."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ...formats.record import Record
from ..declare import UsageError

if TYPE_CHECKING:
    from ...runtime.measure.bench_row import BenchTest

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")
MAX_NUMBER = 10**9 - 1
MAX_VALUES = 10_000  # of one option, and tests of one run


class Setting(Record, kw_only=True):
    """What several tests share: the model and how it is opened."""

    model: str
    n_batch: int
    n_ubatch: int
    type_k: str
    n_threads: int
    use_mmap: bool


def numbers(texts: Sequence[str] | None, option: str, *, minimum: int = 0) -> list[int]:
    """Return the numbers of an option that takes ``1,2,4``, ``first-last``, ``first-last+step``, ``first-last*mult``.

    Raises:
        UsageError: something else is there.
    """
    found: list[int] = []
    for part in (part for text in texts or () for part in text.split(",")):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            if part.strip().isdecimal():
                raise UsageError(f"{part!r} is above {MAX_NUMBER}", option)
            raise UsageError(
                f"{part!r} is neither a number nor a range: first-last, first-last+step, first-last*mult", option
            )
        first, last, operator, step = int(match[1]), int(match[2] or match[1]), match[3] or "+", int(match[4] or 1)
        if last < first or (operator == "+" and step < 1) or (operator == "*" and (step < 2 or first < 1)):
            raise UsageError(f"the range {part!r} does not ascend", option)
        value = first
        while value <= last:
            found.append(value)
            if len(found) > MAX_VALUES:
                raise UsageError(f"more than {MAX_VALUES} values", option)
            value = value + step if operator == "+" else value * step
    wrong = next((n for n in found if n < minimum), None)
    if wrong is not None:
        raise UsageError(f"{wrong} is below {minimum}", option)
    return found


def pairs(texts: Sequence[str] | None, option: str) -> list[tuple[int, int]]:
    """Return the pairs of ``-pg 512,128``.

    Raises:
        UsageError: one is not two numbers.
    """
    found = []
    for text in texts or ():
        match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", text.strip())
        if match is None:
            raise UsageError(f"{text!r}: expected two numbers, such as 512,128", option)
        found.append((int(match[1]), int(match[2])))
    return found


def words(texts: Sequence[str] | None, default: str) -> list[str]:
    """Return the words of an option that takes a list of them."""
    return [part.strip() for text in texts or (default,) for part in text.split(",")]


def models(texts: Sequence[str] | None, option: str) -> list[str]:
    """Return the models of an option that takes a list of them; a file's own name may hold commas.

    Raises:
        UsageError: there is none, or an empty one.
    """
    found = []
    for text in texts or ():
        is_file = os.path.isfile(text)  # noqa: PTH113  # Path's raises where a name is too long
        found += [text] if is_file else [part.strip() for part in text.split(",")]
    if not all(found) or not found:
        raise UsageError("give at least one model" if not found else "a model's name is empty", option)
    return found


def tests_of(
    *,
    n_depth: Iterable[int],
    n_prompt: Sequence[int],
    n_gen: Sequence[int],
    prompt_and_gen: Sequence[tuple[int, int]],
) -> Iterator[BenchTest]:
    """Yield the tests of one setting: by depth, prompts first, then generation, then both."""
    from ...runtime.measure.bench_row import BenchTest

    for depth in n_depth:
        for n in n_prompt:
            if n:
                yield BenchTest(n_prompt=n, n_depth=depth)
        for n in n_gen:
            if n:
                yield BenchTest(n_gen=n, n_depth=depth)
        for n_pp, n_tg in prompt_and_gen:
            if n_pp or n_tg:
                yield BenchTest(n_prompt=n_pp, n_gen=n_tg, n_depth=depth)


def batched_tests(
    n_prompt: Sequence[int], n_gen: Sequence[int], n_seq: Sequence[int], *, is_shared: bool
) -> Iterator[BenchTest]:
    """Yield tests that decode several sequences at once, in llama-batched-bench's order."""
    from ...runtime.measure.bench_row import BenchTest

    for depth, n_tg, n in itertools.product(n_prompt, n_gen, n_seq):
        if n_tg:
            yield BenchTest(n_gen=n_tg, n_depth=depth, n_seq=n, is_shared=is_shared)
