"""Rows as text: ``-o md|csv|json|jsonl|sql``, byte for byte llama-bench's forms where the fields are its own.

CSV, JSON and JSONL carry llmrun's own fields after llama-bench's. SQL keeps them in a table of their own, so that
the rows still fit a table that llama-bench made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from ..render.text import escaped
from .record import LLAMA_FIELDS, OWN_FIELDS

# name -> (heading, width; negative: to the left). llama-bench.cpp, markdown_printer
_COLUMNS = {
    "model": ("model", -30), "size": ("size", 10), "params": ("params", 10), "backend": ("backend", -10),
    "n_threads": ("threads", 7), "n_batch": ("n_batch", 7), "n_ubatch": ("n_ubatch", 8), "type_k": ("type_k", 6),
    "type_v": ("type_v", 6), "flash_attn": ("fa", 3), "load_mode": ("lm", 10), "test": ("test", 15), "t/s": ("t/s", 20),
}  # fmt: skip


class Writer:
    """Writes rows in one form. ``begin``, ``row`` for each, ``end``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._n_row = 0

    def begin(self) -> None:
        """Write what comes before the rows."""

    def row(self, record: Mapping[str, Any]) -> None:
        """Write one row."""
        self._row(record)
        self._n_row += 1
        self._stream.flush()

    def _row(self, record: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Write what comes after the rows."""

    def _print(self, text: str, end: str = "\n") -> None:
        self._stream.write(text + end)


class JsonWriter(Writer):
    """A list of objects, one after the other as they are measured."""

    def begin(self) -> None:
        """Open the list."""
        self._print("[")

    def _row(self, record: Mapping[str, Any]) -> None:
        body = json.dumps(record, ensure_ascii=False, indent=2).replace("\n", "\n  ")
        self._print((",\n" if self._n_row else "") + "  " + body, end="")

    def end(self) -> None:
        """Close the list."""
        self._print("\n]")


class JsonlWriter(Writer):
    """One object a line."""

    def _row(self, record: Mapping[str, Any]) -> None:
        self._print(json.dumps(record, ensure_ascii=False))


class CsvWriter(Writer):
    """Every value in quotes; what is not known is empty."""

    def begin(self) -> None:
        """Write the names."""
        self._print(",".join((*LLAMA_FIELDS, *OWN_FIELDS)))

    def _row(self, record: Mapping[str, Any]) -> None:
        values = (_plain(record[name]) for name in (*LLAMA_FIELDS, *OWN_FIELDS))
        self._print(",".join('"' + value.replace('"', '""') + '"' for value in values))


class SqlWriter(Writer):
    """Statements for SQLite: ``llama_bench`` as llama-bench has it, ``llmrun_bench`` with the same keys and ours."""

    def begin(self) -> None:
        """Create the tables."""
        key = {name: LLAMA_FIELDS[name] for name in ("model_filename", "n_threads", "test_time")}
        for table, fields in (("llama_bench", LLAMA_FIELDS), ("llmrun_bench", key | OWN_FIELDS)):
            kinds = {str: "TEXT", int: "INTEGER", bool: "INTEGER", float: "REAL"}
            columns = ",\n".join(f"  {name} {kinds[kind]}" for name, kind in fields.items())
            self._print(f"CREATE TABLE IF NOT EXISTS {table} (\n{columns}\n);\n")

    def _row(self, record: Mapping[str, Any]) -> None:
        names = ("model_filename", "n_threads", "test_time", *OWN_FIELDS)
        for table, fields in (("llama_bench", tuple(LLAMA_FIELDS)), ("llmrun_bench", names)):
            values = ", ".join(_sql(record[name]) for name in fields)
            self._print(f"INSERT INTO {table} ({', '.join(fields)}) VALUES ({values});")


class MarkdownWriter(Writer):
    """llama-bench's table; other than default settings become further columns.

    Args:
        stream: where to.
        extra: fields that are not at their defaults, or differ between rows.
        build: the line under the table.
    """

    def __init__(self, stream: TextIO, extra: Sequence[str], build: str) -> None:
        super().__init__(stream)
        self._build = build
        known = [name for name in _COLUMNS if name in extra and name != "n_threads"]
        self._fields = ["model", "size", "params", "backend", "n_threads", *known, "test", "t/s"]

    def begin(self) -> None:
        """Write the heading."""
        heads, lines = [], []
        for name in self._fields:
            heading, width = _COLUMNS[name]
            heads.append(_padded(heading, width))
            lines.append("-" * (abs(width) - 1) + (":" if width > 0 else "-"))
        self._print("| " + " | ".join(heads) + " |\n| " + " | ".join(lines) + " |")

    def _row(self, record: Mapping[str, Any]) -> None:
        size, n_params = record["model_size"], record["model_n_params"]
        shown = {
            "model": escaped(record["model_type"]).replace("|", "/"),
            "size": f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB",
            "params": f"{n_params / 1e9:.2f} B" if n_params >= 10**9 else f"{n_params / 1e6:.2f} M",
            "backend": record["backends"],
            "t/s": f"{record['avg_ts']:.2f} ± {record['stddev_ts']:.2f}",
        }
        cells = (_padded(str(shown.get(name, record.get(name))), _COLUMNS[name][1]) for name in self._fields)
        self._print("| " + " | ".join(cells) + " |")

    def end(self) -> None:
        """Write the build."""
        self._print(f"\nbuild: {self._build}")


def make_writer(form: str, stream: TextIO, *, extra: Sequence[str], build: str) -> Writer:
    """Return the writer of a form; ``extra`` and ``build`` are for Markdown."""
    if form == "md":
        return MarkdownWriter(stream, extra, build)
    kinds = {"csv": CsvWriter, "json": JsonWriter, "jsonl": JsonlWriter, "sql": SqlWriter}
    return kinds[form](stream)


def table(headings: Sequence[tuple[str, int]], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; widths as in ``_COLUMNS``, columns grow with what they hold."""
    widths = [
        max(abs(width), len(heading), *(len(row[i]) for row in rows)) * (-1 if width < 0 else 1)
        for i, (heading, width) in enumerate(headings)
    ]
    lines = ["| " + " | ".join(_padded(heading, w) for (heading, _), w in zip(headings, widths, strict=True)) + " |"]
    lines.append("| " + " | ".join("-" * (abs(w) - 1) + (":" if w > 0 else "-") for w in widths) + " |")
    lines += ["| " + " | ".join(_padded(cell, w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join(lines)


def _padded(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)


def _plain(value: Any) -> str:
    """Return a value as llama-bench's CSV has it: numbers plain, truth as 0 and 1, six decimals."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _sql(value: Any) -> str:
    return "NULL" if value is None else "'" + _plain(value).replace("'", "''") + "'"


def write_records(records: Iterable[dict[str, Any]], form: str, as_text: Callable[[list[dict[str, Any]]], str]) -> None:
    """Print records that are no rows of llama-bench: each when it is there (jsonl), or together (json, md)."""
    found = []
    for record in records:
        if form == "jsonl":
            print(json.dumps(record, ensure_ascii=False), flush=True)
        found.append(record)
    if form == "json":
        print(json.dumps(found, ensure_ascii=False, indent=2))
    elif form == "md":
        print(as_text(found))
