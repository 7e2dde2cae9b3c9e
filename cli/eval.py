"""``llmrun eval``: measure a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .declare import Option
from .generation import open_engine
from .imports import import_engine
from .model_ref import resolve
from .options import LoadOptions, Model
from .render.progress import ProgressBar
from .text_input import read_text

if TYPE_CHECKING:
    from ..runtime.perplexity import Perplexity


class ChunkOptions(LoadOptions, kw_only=True):
    """How a model is opened, with the context of a chunk."""

    ctx_size: Annotated[
        int,
        Option(
            "--ctx-size", "-c", "--ctx", min=0, metavar="N", help="Tokens of a chunk; 0: the model's whole context."
        ),
    ] = 512


def perplexity(
    model: Model,
    loading: ChunkOptions,
    file: Annotated[Path, Option("--file", "-f", metavar="FILE", help="The text.", show_default=False)],
    chunks: Annotated[
        int, Option("--chunks", min=-1, metavar="N", help="Measure only the first N chunks; -1: all.")
    ] = -1,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    per_token: Annotated[
        bool, Option("--per-token", help="Also give the negative log-likelihood of every token that counts.")
    ] = False,
) -> None:
    """Measure the perplexity on a text, as llama-perplexity does.

    The text is cut into chunks of -c tokens; the second half of each chunk counts.
    """
    import_engine()  # here: --help must not pay for it
    from ..runtime.perplexity import measure, plan_chunks

    text = read_text(file)
    with open_engine(resolve(model), loading) as engine:
        plan = plan_chunks(engine.tokenizer, text, n_ctx=engine.n_ctx, max_chunks=chunks if chunks >= 0 else None)
        with ProgressBar("measuring") as progress:

            def report(so_far: Perplexity) -> None:
                progress(f"perplexity {so_far.perplexity:.4f}", so_far.n_done, so_far.n_chunk)
                if not as_json and not sys.stderr.isatty():
                    print(f"[{so_far.n_done}]{so_far.perplexity:.4f},", end="", file=sys.stderr, flush=True)

            result = measure(engine, engine.tokenizer, plan, on_chunk=report)
        if not as_json and not sys.stderr.isatty():
            print(file=sys.stderr)
        if as_json:
            print(json.dumps(_record(engine.info.path.name, result, per_token=per_token)))
            return
        print(f"Final estimate: PPL = {result.perplexity:.4f} +/- {result.error:.5f}")
        if per_token:
            for i, (token_id, nll) in enumerate(zip(_counted(plan), result.nll, strict=True)):
                print(f"{i}\t{token_id}\t{nll:.6f}")


def _record(model: str, result: Perplexity, *, per_token: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "model": model,
        "perplexity": result.perplexity,
        "error": result.error,
        "mean_nll": result.mean_nll,
        "n_ctx": result.n_ctx,
        "n_chunk": result.n_chunk,
        "n_token": result.count,
    }
    if per_token:
        record["nll"] = result.nll
    return record


def _counted(chunks: list[list[int]]) -> list[int]:
    """Return the token ids that count, in the order of ``Perplexity.nll``."""
    return [token_id for chunk in chunks for token_id in chunk[len(chunk) // 2 + 1 :]]
