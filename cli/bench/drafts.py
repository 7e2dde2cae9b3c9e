"""``llmrun bench --spec``: what guessing ahead gains on fixed prompts, each answered with and without it by turns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..declare import UsageError
from ..generation import open_engine
from ..imports import import_engine
from ..model_ref import resolve
from ..render.progress import ProgressBar
from ..render.text import escaped
from .grid import Setting, numbers
from .measure import load_options
from .options import DraftOptions, MachineOptions, OutputOptions, PeerOptions, TestOptions, measuring_options
from .plan import Plan
from .writers import table, write_records

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.measure.drafts import DraftResult
    from ...runtime.texts import DraftPrompt

MODES = ("auto", "draft", "ngram")
FORMS = ("md", "json", "jsonl")
N_GEN, N_ROUND = 200, 3
PROMPT_ROOM = 2048  # tokens of both prompts; the longest has 500 in a vocabulary that knows its language


def check_draft_options(
    tests: TestOptions, machine: MachineOptions, peer: PeerOptions, drafts: DraftOptions, output: OutputOptions
) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: with the option that asks for it.
    """
    if drafts.spec is None:
        raise UsageError("goes with --spec", "--draft" if drafts.draft is not None else "--kinds")
    if drafts.spec not in MODES:
        raise UsageError(f"{drafts.spec!r}: expected one of {', '.join(MODES)}", "--spec")
    if drafts.spec == "draft" and drafts.draft is None:
        raise UsageError("draft needs a draft model: --draft MODEL", "--spec")
    if drafts.spec == "ngram" and drafts.draft is not None:
        raise UsageError("is not used with --spec ngram", "--draft")
    if output.output not in FORMS:
        raise UsageError(f"{output.output!r}: with --spec one of {', '.join(FORMS)}", "-o")
    useless = {
        **measuring_options(tests, machine), "--vs": peer.vs, "--peer-python": peer.peer_python, "--plot": output.plot,
        "-oe": output.output_err, "-p": tests.n_prompt, "-pg": tests.pg, "-d": tests.n_depth, "-npl": tests.npl,
    }  # fmt: skip
    for name, value in useless.items():
        if value is not None:
            raise UsageError("does not go with --spec", name)
    if len(numbers(tests.n_gen, "-n", minimum=2)) > 1:
        raise UsageError("expected one number with --spec", "-n")
    _prompts(drafts)


def run_drafts(plan: Plan, tests: TestOptions, drafts: DraftOptions, output: OutputOptions) -> None:
    """Measure every setting and write it.

    Raises:
        LlmrunError: a model cannot be opened, or a text differs.
    """
    import_engine()
    records = (record for setting in plan.settings for record in _run_setting(setting, tests, drafts))
    write_records(records, output.output, drafts_text)


def _prompts(drafts: DraftOptions) -> list[DraftPrompt]:
    from ...runtime.texts import draft_prompts

    prompts = draft_prompts()
    if drafts.kinds is None:
        return prompts
    known = list(dict.fromkeys(p.kind for p in prompts))
    wanted = [kind.strip() for kind in drafts.kinds.split(",")]
    wrong = next((kind for kind in wanted if kind not in known), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is not one of {', '.join(known)}", "--kinds")
    return [p for p in prompts if p.kind in wanted]


def _run_setting(setting: Setting, tests: TestOptions, drafts: DraftOptions) -> Iterator[dict[str, Any]]:
    from ...runtime.measure.drafts import measure_drafts, warm_up
    from ...runtime.speculation.settings import SpeculationSettings

    assert drafts.spec is not None
    n_gen, n_round = (numbers(tests.n_gen, "-n") or [N_GEN])[0], tests.repetitions or N_ROUND
    draft = None if drafts.draft is None else resolve(drafts.draft)
    n_ctx = PROMPT_ROOM + 2 * n_gen
    with (
        open_engine(resolve(setting.model), load_options(setting), n_ctx=n_ctx, draft=draft) as engine,
        ProgressBar("measuring drafts") as bar,
    ):
        mode = SpeculationSettings(mode=drafts.spec)
        warm_up(engine, mode)
        prompts = _prompts(drafts)
        for i, prompt in enumerate(prompts):

            def on_round(n: int, i: int = i, name: str = f"{prompt.kind}-{prompt.name}") -> None:
                bar(name, i * n_round + n, len(prompts) * n_round)

            result = measure_drafts(engine, prompt, mode, n_gen=n_gen, n_round=n_round, on_round=on_round)
            yield _record(engine, setting, drafts, result)


def _record(engine: Engine, setting: Setting, drafts: DraftOptions, result: DraftResult) -> dict[str, Any]:
    from ...runtime.measure.machine import cpu_name
    from ...runtime.measure.statistics import quantile

    stats = result.stats
    return {
        "cpu_info": cpu_name(),
        "model_filename": str(engine.info.path),
        "draft_filename": None if engine.draft is None else str(engine.draft.path),
        "n_threads": setting.n_threads,
        "isa": engine.isa,
        "spec": drafts.spec,
        "kind": result.prompt.kind,
        "name": result.prompt.name,
        "n_prompt": result.n_prompt,
        "n_token": result.n_token,
        "n_round": len(result.plain_s),
        "plain_ts": round(result.plain_ts, 3),
        "drafted_ts": round(result.drafted_ts, 3),
        "speedup": round(result.speedup, 3),
        "told_speedup": round(quantile(result.told, 0.5), 3),
        "tokens_per_pass": round(stats.tokens_per_pass, 3),
        "sources": {
            name: {
                "n_pass": source.n_pass,
                "n_drafted": source.n_drafted,
                "n_accepted": source.n_accepted,
                "acceptance": round(source.acceptance, 4),
                "mean_accepted": round(source.mean_accepted, 3),
                "drafted_at": source.drafted_at,
                "accepted_at": source.accepted_at,
            }
            for name, source in stats.sources.items()
        },
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def drafts_text(records: list[dict[str, Any]]) -> str:
    """Return the table, and what the reader must know of the models and the machine."""
    headings = [
        ("prompt", -16), ("tokens", 6), ("plain t/s", 9), ("with drafts", 9), ("speed-up", 8), ("as told", 7),
        ("tokens a pass", 6), ("source: right/drafted, mean right", -20),
    ]  # fmt: skip
    rows = []
    for r in records:
        sources = (
            f"{name} {s['n_accepted']}/{s['n_drafted']} {s['mean_accepted']:.1f}"
            for name, s in r["sources"].items()
            if s["n_pass"]
        )
        rows.append([
            f"{r['kind']}-{r['name']}", str(r["n_token"]), f"{r['plain_ts']:.2f}", f"{r['drafted_ts']:.2f}",
            f"{r['speedup']:.2f}x", f"{r['told_speedup']:.2f}x", f"{r['tokens_per_pass']:.2f}", ", ".join(sources),
        ])  # fmt: skip
    lines = [table(headings, rows), ""]
    first = records[0]
    lines.append(f"machine: {escaped(first['cpu_info'])}, {first['n_threads']} threads, {first['isa']}")
    for key, name in (("model_filename", "model"), ("draft_filename", "draft")):
        files = dict.fromkeys(r[key] for r in records if r[key] is not None)
        lines += [f"{name}: {escaped(file)}" for file in files]
    lines.append(f"{first['n_round']} rounds, each way by turns; every text was the same with and without drafts")
    return "\n".join(lines)
