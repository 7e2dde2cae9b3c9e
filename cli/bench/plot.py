"""``--plot``: the rows as a chart, a panel for prompts and one for generation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...formats.errors import ConfigError
from ..declare import UsageError
from .record import varying

ROOM = 1.6  # width of an axis beside its longest bar: what is written behind the bar must fit
SUFFIXES = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Refuse a chart that cannot be drawn, before anything is measured.

    Raises:
        UsageError: neither a .png nor a .svg file.
        ConfigError: matplotlib is not installed, or there is no such folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path.name!r}: expected a name that ends in {' or '.join(SUFFIXES)}", "--plot")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
    try:
        import matplotlib  # noqa: F401  # only to know that it is there
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'llmrun[plot]'") from None


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows into a file, which appears whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed

    panels = {
        "prompt (pp)": [r for r in records if r["n_prompt"] and not r["n_gen"]],
        "generation (tg)": [r for r in records if not r["n_prompt"]],
        "both": [r for r in records if r["n_prompt"] and r["n_gen"]],
    }
    shown = {title: rows for title, rows in panels.items() if rows}
    figure = Figure(figsize=(10, 1.2 + 0.45 * sum(map(len, shown.values())) + 0.6 * len(shown)), layout="constrained")
    heights = [len(rows) + 1 for rows in shown.values()]
    axes = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, (title, rows) in zip(axes, shown.items(), strict=True):
        labels = [label(r, records) for r in rows]
        values, errors = [r["avg_ts"] for r in rows], [r["stddev_ts"] for r in rows]
        axis.barh(range(len(rows)), values, xerr=errors, height=0.7, color="#4c72b0", error_kw={"ecolor": "#333333"})
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel("tokens per second", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        for i, r in enumerate(rows):
            share = (
                "" if r["bandwidth_pct"] is None else f"  {max(r['bandwidth_pct'], r['int8_pct']):.0f} % of the limit"
            )
            axis.annotate(f" {r['avg_ts']:.1f}{share}", (r["avg_ts"] + r["stddev_ts"], i), va="center", fontsize=8)
        axis.set_xlim(0, max(v + e for v, e in zip(values, errors, strict=True)) * ROOM)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"llmrun on {records[0]['cpu_info']}", fontsize=10)
    try:
        descriptor, temporary = tempfile.mkstemp(suffix=path.suffix.lower(), dir=path.absolute().parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                figure.savefig(file, format=path.suffix.lower()[1:], dpi=150)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # as an ordinary file, not a temporary one
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def label(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Return a row's name, with what differs between the rows."""
    parts = [record["test"]]
    if len({r["model_filename"] for r in records}) > 1:
        parts.insert(0, record["model_type"])
    n = record["n_threads"]
    words = {
        "n_threads": f"{n} thread{'s' * (n > 1)}", "n_batch": f"-b {record['n_batch']}",
        "n_ubatch": f"-ub {record['n_ubatch']}", "type_k": record["type_k"], "load_mode": f"-lm {record['load_mode']}",
    }  # fmt: skip
    parts += [words[name] for name in varying(records)]
    return ", ".join(parts)
