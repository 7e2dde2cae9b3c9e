"""``llmrun eval kld``: how far a model's predictions are from another's."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .declare import Argument, Option, UsageError
from .imports import import_engine
from .options import Model, Threads
from .render.progress import ProgressBar
from .text_input import read_text

if TYPE_CHECKING:
    from ..runtime.layerwise.runner import LayerwiseRunner, Progress
    from ..runtime.layerwise.source import ModelSource

DEFAULT_CTX = 512
ACTIVATIONS = ("float", "int8")

TextFile = Annotated[
    Path | None,
    Option("--file", "-f", metavar="FILE", help="The text; without: the one that llmrun brings.", show_default=False),
]
CtxSize = Annotated[int, Option("--ctx-size", "-c", "--ctx", min=4, metavar="N", help="Tokens of a chunk.")]
Chunks = Annotated[int, Option("--chunks", min=-1, metavar="N", help="Only the first N chunks; -1: all.")]
Activations = Annotated[
    str,
    Option("--activations", metavar="KIND", help="float: what the files say; int8: as the engine runs them."),
]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object.")]


def kld(
    model: Model,
    base: Annotated[
        str | None,
        Argument(
            metavar="[BASE]", help="The model to compare with: the same one before quantising.", show_default=False
        ),
    ] = None,
    base_file: Annotated[
        Path | None,
        Option(
            "--kl-divergence-base",
            "--base-file",
            metavar="FILE",
            help="Compare with the log-probabilities in a file of llama-perplexity, instead of BASE.",
            show_default=False,
        ),
    ] = None,
    save_base: Annotated[
        Path | None,
        Option(
            "--save-base",
            metavar="FILE",
            help="Only write MODEL's log-probabilities to such a file.",
            show_default=False,
        ),
    ] = None,
    file: TextFile = None,
    ctx_size: CtxSize = DEFAULT_CTX,
    chunks: Chunks = -1,
    activations: Activations = "float",
    threads: Threads = 0,
    force: Annotated[bool, Option("--force", help="Replace the file of --save-base if there is one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the Kullback-Leibler divergence of a model from another, as llama-perplexity does.

    Both models run layer by layer over the same text and are compared on the way: no file of logits is
    needed, and neither model must fit into memory. Of each chunk the second half counts.
    """
    check_activations(activations)
    if [base, base_file, save_base].count(None) != 2:
        raise UsageError("give either BASE, --kl-divergence-base or --save-base", hint="BASE")
    if save_base is not None and save_base.exists() and not force:
        raise UsageError(f"{save_base} exists already; --force replaces it", hint="--save-base")
    if base_file is not None and file is not None:
        raise UsageError("the file holds its text already", hint="--file")
    import_engine()  # here: --help must not pay for it
    from ..formats.logits_file import LogitsFile
    from ..runtime.divergence import report
    from ..runtime.evaluate import compare_file, compare_models, samples_of, write_logits
    from ..runtime.perplexity import plan_chunks
    from ..runtime.tokenizer.load import load_tokenizer

    logits = LogitsFile(base_file) if base_file is not None else None
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressBar("measuring", has_time_left=True))
        source = open_model(stack, model)
        other = open_model(stack, base) if base is not None else None
        tokenizer = load_tokenizer(source.metadata)
        if logits is not None:
            plan = logits.tokens.tolist()[: None if chunks < 0 else chunks]
        else:
            plan = plan_chunks(tokenizer, read(file), n_ctx=ctx_size, max_chunks=None if chunks < 0 else chunks)
        n_ctx, samples = len(plan[0]), samples_of(plan, tokenizer)

        def runner(of: ModelSource, what: str) -> LayerwiseRunner:
            return open_runner(stack, of, n_ctx, activations, threads, lambda w, d, t: progress(f"{what}: {w}", d, t))

        if save_base is not None:
            write_logits(save_base, runner(source, "model"), plan, tokenizer)
            return
        if other is not None:
            found = compare_models(runner(other, "base"), runner(source, "model"), samples, on_progress=progress)
        else:
            assert logits is not None
            found = compare_file(logits, runner(source, "model"), samples, on_progress=progress)
        summary = found.summary()
    if as_json:
        names = {"model": model, "base": base or str(base_file), "activations": activations}
        print(json.dumps({**names, "n_ctx": n_ctx, "n_chunk": len(plan), **summary}))
        return
    print("\n".join(report(summary)))


def check_activations(activations: str) -> None:
    """Refuse what is no kind of activations.

    Raises:
        UsageError: with the kinds there are.
    """
    if activations not in ACTIVATIONS:
        raise UsageError(f"{activations!r}, expected {' or '.join(ACTIVATIONS)}", hint="--activations")


def read(file: Path | None) -> str:
    """Return the text of a file, or the one that llmrun brings."""
    from ..runtime.texts import calibration_text

    return calibration_text() if file is None else read_text(file)


def open_model(stack: ExitStack, model: str) -> ModelSource:
    """Open a GGUF file or a checkpoint folder, closed with the stack."""
    from ..runtime.layerwise.source import open_checkpoint
    from .checkpoint_source import open_source

    return stack.enter_context(open_checkpoint(open_source(model)))


def open_runner(
    stack: ExitStack, source: ModelSource, n_ctx: int, activations: str, threads: int, on_progress: Progress | Any
) -> LayerwiseRunner:
    """Return a runner, closed with the stack."""
    from ..runtime.layerwise.runner import LayerwiseRunner

    return stack.enter_context(
        LayerwiseRunner(
            source, n_ctx=n_ctx, is_float=activations == "float", n_threads=threads or None, on_progress=on_progress
        )
    )
