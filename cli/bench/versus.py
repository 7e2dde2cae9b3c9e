"""``llmrun bench --vs llama-cpp``: both engines in turn, and how many times as fast llmrun is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..declare import UsageError
from ..imports import import_engine
from ..model_ref import resolve
from ..render.progress import ProgressBar
from ..render.text import escaped
from .grid import Setting, words
from .options import MachineOptions, OutputOptions, PeerOptions, TestOptions, measuring_options
from .plan import Plan
from .record import SETTINGS, quant_description, varying
from .writers import table, write_records

if TYPE_CHECKING:
    from ...runtime.measure.traffic import Traffic
    from ...runtime.measure.versus import Comparison, Worker

ENGINES = ("llama-cpp",)
FORMS = ("md", "json", "jsonl")
MAX_SHARE_PCT = 105.0
_SETTING = ("model_filename", "n_threads", "n_batch", "n_ubatch", "type_k")


def check_peer_options(
    plan: Plan, tests: TestOptions, machine: MachineOptions, output: OutputOptions, peer: PeerOptions
) -> None:
    """Refuse what the comparison cannot do.

    Raises:
        UsageError: with the option that asks for it.
    """
    from ...runtime.measure.statistics import MIN_RATIOS

    if peer.vs not in ENGINES:
        raise UsageError(f"{peer.vs!r}: expected {', '.join(ENGINES)}", "--vs")
    if tests.repetitions is not None and tests.repetitions < MIN_RATIOS:
        raise UsageError(f"{tests.repetitions} rounds: quartiles need at least {MIN_RATIOS}", "-r")
    if output.output not in FORMS:
        raise UsageError(f"{output.output!r}: a comparison is written as one of {', '.join(FORMS)}", "-o")
    if any(test.is_shared for test in plan.tests):
        raise UsageError("sequences that share their prompt are not compared", "-pps")
    if output.plot is not None or output.output_err is not None:
        raise UsageError("neither --plot nor -oe goes with --vs", "--vs")
    for name, value in measuring_options(tests, machine).items():
        if value is not None:
            raise UsageError("does not go with --vs", name)


def run_versus(
    plan: Plan, tests: TestOptions, machine: MachineOptions, output: OutputOptions, peer: PeerOptions
) -> None:
    """Run the comparison of every setting and write it.

    Raises:
        LlmrunError: llama-cpp-python is missing, or a model cannot be opened by one of the two.
    """
    import_engine()
    records = (record for setting in plan.settings for record in _compare_setting(setting, plan, tests, machine, peer))
    write_records(records, output.output, comparison_text)


def _compare_setting(
    setting: Setting, plan: Plan, tests: TestOptions, machine: MachineOptions, peer: PeerOptions
) -> Iterator[dict[str, Any]]:
    from ...runtime.measure.read_probe import ReadProbe
    from ...runtime.measure.statistics import MIN_RATIOS
    from ...runtime.measure.traffic import read_traffic
    from ...runtime.measure.versus import OWN_COMMAND, Worker, compare

    path = resolve(setting.model)
    traffic = read_traffic(path, setting.type_k)
    settings = {
        "path": str(path),
        "n_ctx": max(test.n_slot for test in plan.tests),
        "n_ctx_seq": max(test.n_slot // test.n_seq for test in plan.tests),
        "n_seq": max(test.n_seq for test in plan.tests),
        "n_batch": setting.n_batch,
        "n_ubatch": setting.n_ubatch,
        "n_threads": setting.n_threads,
        "type_k": setting.type_k,
        "flash_attn": {"1": "on", "-1": "auto"}.get(flag := words(tests.flash_attn, "auto")[0], flag),
    }
    with (
        ProgressBar("opening the model twice") as bar,
        Worker(OWN_COMMAND, settings) as own,
        Worker(_peer(peer), settings) as other,
        nullcontext() if machine.no_roofline else ReadProbe(setting.n_threads) as probe,
    ):
        n_round = tests.repetitions or MIN_RATIOS
        has_warmup = not tests.no_warmup
        results = compare(own, other, plan.tests, n_round, has_warmup=has_warmup, probe=probe, on_progress=bar)
        about = _about(path, setting, settings, own, other)
    records = [_record(result, traffic, about) for result in results]
    validity = judge(records)
    for record in records:
        yield record | validity


def _peer(peer: PeerOptions) -> tuple[str, ...]:
    from ...runtime.measure.versus import peer_command

    return peer_command(peer.peer_python or sys.executable)


def _about(path: Path, setting: Setting, settings: dict[str, Any], own: Worker, other: Worker) -> dict[str, Any]:
    from ...runtime.measure.machine import cpu_name

    return {
        "cpu_info": cpu_name(),
        "model_filename": str(path),
        "sha256": own.about["sha256"],
        "n_threads": setting.n_threads,
        "n_batch": setting.n_batch,
        "n_ubatch": setting.n_ubatch,
        "type_k": setting.type_k,
        "flash_attn": settings["flash_attn"],
        "engine": own.about["version"],
        "isa": own.about["system_info"],
        "peer": other.about["version"],
        "peer_system_info": other.about["system_info"],
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _record(result: Comparison, traffic: Traffic, about: dict[str, Any]) -> dict[str, Any]:
    from ...runtime.measure.statistics import quantile
    from ..render.text import count

    test, ratios = result.test, result.ratios
    own_ts, peer_ts = quantile(result.own_ts, 0.5), quantile(result.peer_ts, 0.5)
    shares: list[float | None] = [None, None]
    bandwidth = result.bandwidth
    if bandwidth is not None:
        n_byte = traffic.test_bytes(test, [])
        shares = [round(100 * n_byte * ts / test.n_token / bandwidth, 1) for ts in (own_ts, peer_ts)]
    return about | {
        "model_type": f"{traffic.architecture} {count(traffic.n_params)} {quant_description(traffic.quant)}",
        "test": test.name,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "n_seq": test.n_seq,
        "own_ts": round(own_ts, 3),
        "peer_ts": round(peer_ts, 3),
        "ratio_lower": round(ratios.lower, 4),
        "ratio_median": round(ratios.median, 4),
        "ratio_upper": round(ratios.upper, 4),
        "n_ratio": ratios.n,
        "bandwidth_bytes_s": None if bandwidth is None else round(bandwidth),
        "own_bandwidth_pct": shares[0],
        "peer_bandwidth_pct": shares[1],
        "own_ns": result.own_ns,
        "peer_ns": result.peer_ns,
    }


def judge(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return whether a setting's comparison may be quoted (``is_valid``; None: not known), and why not.

    A peer that decodes below 70 % of what the memory gives is not at its best here: a bad build, too many threads, or
    a busy machine.
    """
    from ...runtime.measure.versus import MIN_ROOFLINE_PCT

    shares = [r[side] for r in records for side in ("own_bandwidth_pct", "peer_bandwidth_pct") if r[side] is not None]
    if max(shares, default=0) > MAX_SHARE_PCT:
        return {
            "is_valid": None,
            "reason": "an engine beats the roofline: the weights stay in a cache, or the machine was busy meanwhile",
        }
    slow = [r for r in records if r["peer_bandwidth_pct"] is not None and r["peer_bandwidth_pct"] < MIN_ROOFLINE_PCT]
    if slow:
        worst = min(slow, key=lambda r: float(r["peer_bandwidth_pct"]))
        reason = (
            f"the peer decodes at {worst['peer_bandwidth_pct']:.1f} % of the read bandwidth ({worst['test']}),"
            f" expected at least {MIN_ROOFLINE_PCT:.0f} %"
        )
        return {"is_valid": False, "reason": reason}
    if not shares:
        return {"is_valid": None, "reason": "no decoding was compared with the roofline"}
    return {"is_valid": True, "reason": ""}


def comparison_text(records: list[dict[str, Any]]) -> str:
    """Return the table of ratios and what the reader must know of both sides."""
    settings = list(dict.fromkeys(["n_threads", *varying(records)]))
    headings = [
        ("model", -24), *((SETTINGS[name], 7) for name in settings), ("test", 15),
        ("llmrun t/s", 10), ("llama.cpp t/s", 10),
        ("ratio: lower quartile", 6), ("median", 7), ("upper quartile", 7), ("n", 3), ("% bandwidth", 6),
        ("its % bandwidth", 6),
    ]  # fmt: skip
    rows = []
    for r in records:
        shares = ("" if v is None else f"{v:.1f}" for v in (r["own_bandwidth_pct"], r["peer_bandwidth_pct"]))
        ratios = (f"{r[name]:.2f}" for name in ("ratio_lower", "ratio_median", "ratio_upper"))
        speeds = (f"{r['own_ts']:.2f}", f"{r['peer_ts']:.2f}")
        model = escaped(r["model_type"]).replace("|", "/")
        rows.append(
            [model, *(str(r[name]) for name in settings), r["test"], *speeds, *ratios, str(r["n_ratio"]), *shares]
        )
    lines = [table(headings, rows), ""]
    first = records[0]
    lines += [f"machine: {escaped(first['cpu_info'])}", f"{first['engine']}: {first['isa']}"]
    lines.append(f"{escaped(first['peer'])}: {escaped(first['peer_system_info'])}")
    first_rows = {tuple(r[name] for name in _SETTING): r for r in reversed(records)}
    for row in reversed(first_rows.values()):
        lines.append(
            f"{escaped(Path(row['model_filename']).name)}: SHA-256 {row['sha256']}, {row['n_threads']} threads,"
            f" -b {row['n_batch']} -ub {row['n_ubatch']} -ctk {row['type_k']} -ctv {row['type_k']}"
            f" -fa {row['flash_attn']}"
        )
        if row["is_valid"] is False:
            lines.append(f"INVALID: {row['reason']}")
        elif row["is_valid"] is None:
            lines.append(f"not checked: {row['reason']}")
    return "\n".join(lines)
