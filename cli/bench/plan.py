"""From the options to what is run: settings, and the tests of each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from ...formats.record import Record
from ...runtime.kernels.layout import DEFAULT_KV_TYPE, KV_TYPES
from ..declare import UsageError
from .grid import MAX_VALUES, Setting, batched_tests, models, numbers, pairs, tests_of, words
from .options import TestOptions, one_of

if TYPE_CHECKING:
    from ...runtime.measure.bench_row import BenchTest

_ON = ("on", "auto", "1", "-1")


class Plan(Record, kw_only=True):
    """Everything that one command line asks for."""

    settings: list[Setting]
    tests: list[BenchTest]
    extra: list[str]  # columns that the Markdown table needs besides its own


def make_plan(options: TestOptions) -> Plan:
    """Return the plan.

    Raises:
        UsageError: an option holds something senseless, or asks for what the engine has not got.
    """
    wanted = models(options.model, "-m")
    _refuse_what_is_missing(options)
    types = [one_of(t, KV_TYPES, "-ctv") for t in words(options.cache_type_v, DEFAULT_KV_TYPE)]
    if options.cache_type_k is not None:
        types_k = [one_of(t, KV_TYPES, "-ctk") for t in words(options.cache_type_k, DEFAULT_KV_TYPE)]
        if options.cache_type_v is not None and types != types_k:
            raise UsageError("keys and values of different types are not supported: expected the same as -ctk", "-ctv")
        types = types_k
    grid: dict[str, list[Any]] = {
        "model": wanted,
        "n_batch": numbers(options.batch_size, "-b", minimum=1) or [2048],
        "n_ubatch": numbers(options.ubatch_size, "-ub", minimum=1) or [512],
        "type_k": types,
        "n_threads": _threads(options),
        "use_mmap": [one_of(m, ("0", "1"), "-mmp") == "1" for m in words(options.mmap, "1")],
    }
    settings = [Setting(**dict(zip(grid, point, strict=True))) for point in itertools.product(*grid.values())]
    tests = _tests(options)
    if not tests:
        raise UsageError("no test is left: give -p, -n, -pg or -npl a number above 0", "-p")
    if len(settings) * len(tests) > MAX_VALUES:
        raise UsageError(f"{len(settings) * len(tests)} tests, more than {MAX_VALUES}", "-p")
    defaults = {"n_batch": [2048], "n_ubatch": [512], "type_k": [DEFAULT_KV_TYPE], "use_mmap": [True]}
    extra = [name for name, default in defaults.items() if grid[name] != default]
    if "use_mmap" in extra:
        extra.append("load_mode")
    if "type_k" in extra:
        extra.append("type_v")
    if any(value not in ("auto", "-1") for value in words(options.flash_attn, "auto")):
        extra.append("flash_attn")
    return Plan(settings=settings, tests=tests, extra=extra)


def _threads(options: TestOptions) -> list[int]:
    from ...runtime.threads import MAX_THREADS, team_size

    found = numbers(options.threads, "-t", minimum=1)
    if found and max(found) > MAX_THREADS:
        raise UsageError(f"{max(found)} is above {MAX_THREADS}", "-t")
    return list(dict.fromkeys(map(team_size, found))) or [team_size(None)]


def _tests(options: TestOptions) -> list[BenchTest]:
    n_prompt = numbers(options.n_prompt, "-p")
    n_gen = numbers(options.n_gen, "-n")
    both = pairs(options.pg, "-pg")
    n_seq = numbers(options.npl, "-npl", minimum=1)
    is_plain = not n_seq or options.n_prompt is not None or options.n_gen is not None or bool(both)
    tests: list[BenchTest] = []
    if is_plain:
        tests += tests_of(
            n_depth=numbers(options.n_depth, "-d") or [0],
            n_prompt=n_prompt if options.n_prompt is not None else [512],
            n_gen=n_gen if options.n_gen is not None else [128],
            prompt_and_gen=both,
        )
    npp, ntg = numbers(options.npp, "-npp"), numbers(options.ntg, "-ntg", minimum=1)
    if not n_seq and (options.npp is not None or options.ntg is not None or options.pps):
        raise UsageError("-npp, -ntg and -pps go with -npl", "-npl")
    tests += batched_tests(npp or [128], ntg or [128], n_seq, is_shared=options.pps)
    return tests


def _refuse_what_is_missing(options: TestOptions) -> None:
    for value in words(options.flash_attn, "on"):
        if value not in _ON:
            raise UsageError(f"{value!r}: attention is always of the flash kind, expected on or auto", "-fa")
    for value in words(options.n_gpu_layers, "0"):
        if value not in ("0", "-1"):
            raise UsageError(f"{value!r}: llmrun computes on the CPU, expected 0", "-ngl")
