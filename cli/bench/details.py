"""The tables under llama-bench's: latency, roofline, energy and cost, batched decoding, and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..render.text import escaped, size
from .record import SETTINGS, varying
from .writers import table

Record = Mapping[str, Any]
MISSING = "n/a"


def details(records: Sequence[Record], energy: str, *, has_prices: bool = False) -> str:
    """Return the tables.

    Args:
        records: the rows.
        energy: where energy comes from, or why it does not.
        has_prices: whether it is asked what tokens cost.
    """
    parts = [_latency(records, has_cost=has_prices)]
    batched = [r for r in records if r["n_seq"] > 1 or _is_batched(r, records)]
    if batched:
        parts.append(_batched(batched))
    remarks = _remarks(records, energy)
    if has_prices and any(r["cost_per_mtok"] is None for r in records):
        remarks.append("cost: n/a, since energy has a price and is not counted; --hardware-cost alone needs no counter")
    return "\n\n".join([*parts, "\n".join(remarks)])


def _is_batched(record: Record, records: Sequence[Record]) -> bool:
    """Whether a row of one sequence is the first of a series of ``-npl``."""
    key = ("model_filename", "n_threads", "n_gen", "n_depth", "n_batch", "n_ubatch", "type_k")
    same = [r for r in records if all(r[k] == record[k] for k in key)]
    return record["n_prompt"] == 0 and any(r["n_seq"] > 1 for r in same)


def _latency(records: Sequence[Record], *, has_cost: bool) -> str:
    has_models = len({r["model_filename"] for r in records}) > 1
    settings = varying(records)
    headings = [("model", -10)] * has_models + [(SETTINGS[name], 7) for name in settings] + [
        ("test", 15), ("first token ms", 6), ("p50 ms", 6), ("p90 ms", 6), ("p99 ms", 6), ("GB/s", 6),
        ("% bandwidth", 6), ("Gop/s", 6), ("% int8 peak", 6), ("peak memory", 8), ("J/token", 7),
    ]  # fmt: skip
    headings += [("cost / 1M tokens", 8)] * has_cost
    rows = []
    for r in records:
        cells = [_model(r)] * has_models + [str(r[name]) for name in settings]
        cells += [
            r["test"],
            *(_ms(r[name]) for name in ("ttft_ns", "itl_p50_ns", "itl_p90_ns", "itl_p99_ns")),
            _number(r["read_bytes_s"], 1e9),
            _number(r["bandwidth_pct"]),
            _number(r["int8_ops_s"], 1e9),
            _number(r["int8_pct"]),
            MISSING if r["peak_bytes"] is None else size(r["peak_bytes"]),
            MISSING if r["joules_per_token"] is None else f"{r['joules_per_token']:.3g}",
        ]
        cells += [MISSING if r["cost_per_mtok"] is None else f"{r['cost_per_mtok']:.4g}"] * has_cost
        rows.append(cells)
    return table(headings, rows)


def _batched(records: Sequence[Record]) -> str:
    """Return llama-batched-bench's table."""
    settings, has_models = varying(records), len({r["model_filename"] for r in records}) > 1
    headings = [("model", -10)] * has_models + [(SETTINGS[name], 7) for name in settings] + [
        ("PP", 6), ("TG", 6), ("B", 4), ("N_KV", 6), ("T_PP s", 8), ("S_PP t/s", 8), ("T_TG s", 8), ("S_TG t/s", 8),
        ("T s", 8), ("S t/s", 8),
    ]  # fmt: skip
    rows = []
    for r in records:
        n_pp, n_tg, n = r["n_depth"], r["n_gen"], r["n_seq"]
        n_prompt = n_pp if r["is_shared"] else n_pp * n
        t_pp, t_tg = (r["depth_ns"] or 0) / 1e9, r["avg_ns"] / 1e9
        counts = (n_pp, n_tg, n, n_prompt + n_tg * n)
        prompt_rate = f"{n_prompt / t_pp:.2f}" if t_pp else MISSING
        total, total_rate = t_pp + t_tg, (n_prompt + n_tg * n) / (t_pp + t_tg)
        rates = [
            f"{t_pp:.3f}",
            prompt_rate,
            f"{t_tg:.3f}",
            f"{n_tg * n / t_tg:.2f}",
            f"{total:.3f}",
            f"{total_rate:.2f}",
        ]
        where = [_model(r)] * has_models + [str(r[name]) for name in settings]
        rows.append([*where, *map(str, counts), *rates])
    return table(headings, rows)


def _remarks(records: Sequence[Record], energy: str) -> list[str]:
    first = records[0]
    lines = [f"machine: {escaped(first['cpu_info'])}, {first['isa']}"]
    for n_threads in dict.fromkeys(r["n_threads"] for r in records):
        rows = [r for r in records if r["n_threads"] == n_threads and r["bandwidth_bytes_s"] is not None]
        if rows:
            rates = [f"{r['bandwidth_bytes_s'] / 1e9:.1f}" for r in rows]
            least, most = min(rates, key=float), max(rates, key=float)
            read = most if least == most else f"{least} to {most}"
            lines.append(
                f"roofline of {n_threads} threads: {read} GB/s read, {rows[0]['int8_peak_ops_s'] / 1e9:.0f} Gop/s int8"
            )
    for model in dict.fromkeys(r["model_filename"] for r in records):
        rows = [r for r in records if r["model_filename"] == model]
        row, loads = rows[0], sorted({r["load_ns"] for r in rows})
        start = "" if row["start_ns"] is None else f", process start to first token {row['start_ns'] / 1e9:.3f} s"
        load = " to ".join(f"{ns / 1e9:.3f}" for ns in dict.fromkeys((loads[0], loads[-1])))
        lines.append(f"{escaped(row['model_type'])}: loaded in {load} s{start}")
    lines.append(f"energy: {escaped(energy)}")
    if any((r["bandwidth_pct"] or 0) > 105 for r in records):
        lines.append(
            "warning: a row beats the roofline: the weights stay in a cache, or the machine was busy meanwhile"
        )
    stolen = max((r["steal_pct"] or 0 for r in records), default=0)
    if stolen >= 2:
        lines.append(f"warning: up to {stolen:.1f} % of processor time went to other virtual machines")
    if any(r["throttles"] for r in records):
        lines.append("warning: the processor was slowed down because of heat")
    if any((r["major_faults"] or 0) > 100 for r in records):
        lines.append("warning: pages had to be read from disk during a test")
    return lines


def _model(record: Record) -> str:
    return escaped(record["model_type"]).replace("|", "/")


def _ms(ns: int | None) -> str:
    return "" if ns is None else f"{ns / 1e6:.2f}"


def _number(value: float | None, unit: float = 1.0) -> str:
    return MISSING if value is None else f"{value / unit:.1f}"
