"""``llmrun eval compare``: where two files of one model behave differently."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

from .declare import Argument, Option
from .eval_kld import DEFAULT_CTX, Activations, AsJson, CtxSize, TextFile, check_activations, open_model, read
from .imports import import_engine
from .options import Model, Threads
from .render.progress import ProgressBar
from .render.text import escaped

if TYPE_CHECKING:
    from ..runtime.quality import Comparison
    from ..runtime.tensor_stats import TensorStats

CONTEXT_TOKENS = 12
MAX_SUSPICIOUS = 10


def compare(
    model: Model,
    other: Annotated[str, Argument(metavar="OTHER", help="The file to judge by MODEL.", show_default=False)],
    file: TextFile = None,
    ctx_size: CtxSize = DEFAULT_CTX,
    chunks: Annotated[
        int, Option("--chunks", min=-1, metavar="N", help="N chunks, spread over the text; -1: all.")
    ] = 8,
    top: Annotated[int, Option("--top", min=0, metavar="N", help="Show the N most divergent tokens.")] = 10,
    activations: Activations = "float",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Show where two files of one model behave differently: whether a quantised file is what it says.

    Both read a text; shown are figures, probes (refusals, code, arithmetic) that are answered differently,
    the tokens that diverge most with what stands before them, and tensors that stand out.
    """
    check_activations(activations)
    import_engine()  # here: --help must not pay for it
    from ..runtime.quality import compare_on_text
    from ..runtime.tensor_stats import compare_tensors, suspicious

    text = read(file)
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressBar("comparing", has_time_left=True))
        base, judged = open_model(stack, model), open_model(stack, other)
        found = compare_on_text(
            base, judged, text, n_ctx=ctx_size, n_chunk=None if chunks < 0 else chunks,
            is_float=activations == "float", n_threads=threads or None, on_progress=progress,
        )  # fmt: skip
        stats, notes = compare_tensors(base.tensors, judged.tensors, on_progress=progress)
    record = {
        "model": model,
        "other": other,
        "activations": activations,
        **found.divergence.summary(),
        "probes": _probes(found),
        "divergent": _divergent(found, top),
        "suspicious": [_tensor(s, why) for s, why in suspicious(stats)],
        "notes": notes,
    }
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
        return
    print("\n".join(_lines(record)))


def _probes(found: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "kind": r.probe.kind,
            "prompt": r.probe.prompt,
            "model": r.probe.answers[r.base],
            "model_p": r.base_p,
            "other": r.probe.answers[r.other],
            "other_p": r.other_p,
            "is_flip": r.is_flip,
        }
        for r in found.probes
    ]


def _divergent(found: Comparison, n: int) -> list[dict[str, Any]]:
    """Return the rows with the largest divergence, the largest first."""
    import numpy as np  # here: --help must not pay for it

    d, decode = found.divergence, found.tokenizer.decode
    places = [(sample, i) for sample in found.samples for i in range(sample.first, len(sample.ids) - 1)]
    result = []
    for row in np.argsort(-d.kld, kind="stable")[:n].tolist():
        sample, i = places[row]
        result.append(
            {
                "kld": float(d.kld[row]),
                "context": decode(sample.ids[max(0, i + 1 - CONTEXT_TOKENS) : i + 1]),
                "next": decode([sample.ids[i + 1]]),
                "model": decode([int(d.top_base[row])]),
                "model_p": float(d.top_p_base[row]),
                "other": decode([int(d.top[row])]),
                "other_p": float(d.top_p[row]),
            }
        )
    return result


def _tensor(s: TensorStats, why: str) -> dict[str, Any]:
    numbers = {"error": s.error, "cosine": s.cosine, "largest": s.largest, "gain": s.gain}
    shown = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
    return {"name": s.name, "type_model": s.type_base, "type_other": s.type, **shown, "why": why}


def _lines(record: dict[str, Any]) -> list[str]:
    r, flips = record, [p for p in record["probes"] if p["is_flip"]]
    lines = [
        f"{'perplexity':16}  {r['ppl']:.4f}, {r['ppl_base']:.4f} with {escaped(r['model'])}",
        f"{'KL divergence':16}  mean {r['kld_mean']:.6f} ± {r['kld_mean_error']:.6f}, median {r['kld_q0.5']:.6f},"
        f" 99.9% {r['kld_q0.999']:.6f}, maximum {r['kld_q1']:.6f}",
        f"{'same top token':16}  {100 * r['same_top']:.2f} ± {100 * r['same_top_error']:.2f} %",
        f"{'RMS Δp':16}  {100 * r['p_diff_rms']:.3f} %",
        f"{'flipped probes':16}  {len(flips)} of {len(r['probes'])}",
    ]
    lines += [f"  {p['kind']}: {_quoted(p['prompt'])} {_choice(p, 'model')} -> {_choice(p, 'other')}" for p in flips]
    if r["divergent"]:
        lines += ["", "most divergent tokens (KL; what stands before; what comes; likeliest of both)"]
    for d in r["divergent"]:
        choices = f"{_choice(d, 'model')} -> {_choice(d, 'other')}"
        lines.append(f"  {d['kld']:8.4f}  …{_quoted(d['context'])}  {_quoted(d['next'])}  {choices}")
    lines += ["", f"tensors that stand out: {len(r['suspicious']) or 'none'}"]
    for s in r["suspicious"][:MAX_SUSPICIOUS]:
        lines.append(f"  {escaped(s['name'])} ({s['type_model']} -> {s['type_other']}): {s['why']}")
    if len(r["suspicious"]) > MAX_SUSPICIOUS:
        lines.append(f"  and {len(r['suspicious']) - MAX_SUSPICIOUS} more (--json lists all)")
    return [*lines, *(f"note: {escaped(note)}" for note in r["notes"])]


def _quoted(text: str) -> str:
    return f"'{escaped(text)}'"


def _choice(record: dict[str, Any], whose: str) -> str:
    return f"{_quoted(record[whose])} ({100 * record[whose + '_p']:.0f} %)"
