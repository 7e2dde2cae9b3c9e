"""``llmrun bench compare``: two results of ``llmrun bench -o json`` (or of llama-bench), row by row."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from ...formats.errors import ConfigError
from ..declare import Argument, Option, UsageError
from ..render.text import escaped
from .record import SETTINGS, varying

_PERCENT = re.compile(r"([+-]?\d{1,4}(?:\.\d{1,6})?)\s*%?")
_KEY = ("model", "n_threads", "n_batch", "n_ubatch", "type_k", "n_prompt", "n_gen", "n_depth", "n_seq", "is_shared")
_SAME = {"cpu_info": "processors", "model_size": "model sizes", "model_n_params": "numbers of weights"}
MAX_BYTES = 256 << 20


def compare(
    before: Annotated[Path, Argument(metavar="A", help="The result to compare with: JSON or JSONL.")],
    after: Annotated[Path, Argument(metavar="B", help="The newer result.")],
    fail_if: Annotated[
        str | None,
        Option(
            "--fail-if",
            metavar="PERCENT",
            help="End with exit code 1 if a row changed by this or worse, such as -3%, or is missing in B.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Compare two results of `llmrun bench -o json`, or of llama-bench, row by row."""
    from .writers import table

    limit = None if fail_if is None else _percent(fail_if)
    old, new = _rows(before), _rows(after)
    common = [key for key in old if key in new]
    if not common:
        raise ConfigError(f"{before} and {after} have no row in common")
    changes = [_change(old[key], new[key]) for key in common]
    if as_json:
        for change in changes:
            print(json.dumps(change, ensure_ascii=False))
    else:
        settings = list(dict.fromkeys(["n_threads", *varying(changes)]))
        headings = [("model", -20), *((SETTINGS[name], 7) for name in settings), ("test", 12)]
        headings += [("A t/s", 16), ("B t/s", 16), ("change", 8), ("sigma", 6)]
        print(table(headings, [_cells(change, settings) for change in changes]))
    missing = [_name(old[key]) for key in old if key not in new]
    added = [_name(new[key]) for key in new if key not in old]
    for path, only in ((before, missing), (after, added)):
        if only:
            print(f"only in {escaped(str(path))}: {', '.join(only)}", file=sys.stderr)
    for warning in _differences([(old[key], new[key]) for key in common]):
        print(f"warning: {warning}", file=sys.stderr)
    if limit is not None:
        if missing:
            raise ConfigError(f"{after}: lacks rows of {before}: {', '.join(missing)}")
        worse = [c for c in changes if _is_beyond(c["change_pct"], limit)]
        if worse:
            names = ", ".join(f"{c['test']} {c['change_pct']:+.2f} %" for c in worse)
            raise ConfigError(f"slower than {limit:+g} % allows: {names}")


def _differences(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Return what makes two results hard to compare: other machines, or other files of the same name."""
    found = []
    for name, what in _SAME.items():
        values = [(a[name], b[name]) for a, b in pairs if name in a and name in b]
        found += [f"different {what}: {escaped(f'{a} and {b}')}" for a, b in dict.fromkeys(values) if a != b]
    return found


def _percent(text: str) -> float:
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r}: expected a percentage, such as -3%", "--fail-if")
    return float(match[1])


def _is_beyond(change: float, limit: float) -> bool:
    """Whether a change is as bad as the limit: below a negative one, above a positive one."""
    return change <= limit if limit <= 0 else change >= limit


def _rows(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return a file's rows by what they measure; of several of the same, the last.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES >> 20} MiB, expected the output of llmrun bench -o json")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    try:
        found = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line]
        )
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    rows = {}
    for row in found:
        if not isinstance(row, dict) or not _is_row(row):
            raise ConfigError(f"{path}: expected rows of llmrun bench -o json or llama-bench -o json")
        row = row | {"model": Path(row["model_filename"]).name, "n_seq": row.get("n_seq", 1)}
        row = row | {"is_shared": row.get("is_shared", False)}
        rows[tuple(row.get(name) for name in _KEY)] = row
    return rows


def _is_row(row: dict[str, Any]) -> bool:
    numbers = ("avg_ts", "stddev_ts", "n_prompt", "n_gen", "n_depth", "n_threads")
    return (
        isinstance(row.get("model_filename"), str)
        and all(isinstance(row.get(name), int | float) and 0 <= row[name] < math.inf for name in numbers)
        and isinstance(row.get("n_seq", 1), int)
        and not any(isinstance(value, list | dict) for name, value in row.items() if name in (*_KEY, *_SAME))
    )


def _change(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    before, after = float(old["avg_ts"]), float(new["avg_ts"])
    noise = (float(old["stddev_ts"]) ** 2 + float(new["stddev_ts"]) ** 2) ** 0.5
    return {
        "model": new["model"],
        **{name: new.get(name) for name in SETTINGS if name in _KEY},
        "test": _name(new),
        "before_ts": before,
        "before_stddev_ts": float(old["stddev_ts"]),
        "after_ts": after,
        "after_stddev_ts": float(new["stddev_ts"]),
        "change_pct": 100 * (after / before - 1) if before else 0.0,
        "sigma": (after - before) / noise if noise else None,
    }


def _name(row: dict[str, Any]) -> str:
    from ...runtime.measure.bench_row import BenchTest

    n_prompt, n_gen, n_depth, n_seq = (int(row[name]) for name in ("n_prompt", "n_gen", "n_depth", "n_seq"))
    return BenchTest(n_prompt=n_prompt, n_gen=n_gen, n_depth=n_depth, n_seq=n_seq).name


def _cells(change: dict[str, Any], settings: list[str]) -> list[str]:
    return [
        escaped(change["model"]).replace("|", "/"),
        *(str(change[name]) for name in settings),
        change["test"],
        f"{change['before_ts']:.2f} ± {change['before_stddev_ts']:.2f}",
        f"{change['after_ts']:.2f} ± {change['after_stddev_ts']:.2f}",
        f"{change['change_pct']:+.2f} %",
        "" if change["sigma"] is None else f"{change['sigma']:+.1f}",
    ]
