"""``llmrun imatrix``: measure which weights of a model matter most on a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from .declare import Option, UsageError
from .imports import import_engine
from .options import Model, Threads
from .render.progress import ProgressBar
from .render.text import count
from .text_input import read_text

DEFAULT_CTX = 512


def imatrix(
    model: Model,
    file: Annotated[
        Path | None,
        Option(
            "--file", "-f", metavar="FILE", help="The text; without: the one that llmrun brings.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path, Option("--output", "-o", "--output-file", metavar="FILE", help="The file to write.")
    ] = Path("imatrix.gguf"),
    output_format: Annotated[
        str, Option("--output-format", metavar="NAME", help="gguf, or dat for older programs.")
    ] = "gguf",
    in_file: Annotated[
        list[Path] | None,
        Option("--in-file", metavar="FILE", help="Add what this one holds (may repeat).", show_default=False),
    ] = None,
    ctx_size: Annotated[
        int, Option("--ctx-size", "-c", "--ctx", min=4, metavar="N", help="Tokens of a chunk.")
    ] = DEFAULT_CTX,
    chunks: Annotated[int, Option("--chunks", min=-1, metavar="N", help="Only the first N chunks; -1: all.")] = -1,
    process_output: Annotated[bool, Option("--process-output", help="Measure the output matrix too.")] = False,
    threads: Threads = 0,
    force: Annotated[bool, Option("--force", help="Replace the file if there is one.")] = False,
) -> None:
    """Measure the importance of a model's weights on a text, as llama-imatrix does.

    The model runs layer by layer with float activations: one larger than memory works. The file is for
    `llmrun quantize --imatrix` and for llama-quantize.
    """
    if output_format not in ("gguf", "dat"):
        raise UsageError(f"{output_format!r}, expected gguf or dat", hint="--output-format")
    if output.exists() and not force:
        raise UsageError(f"{output} exists already; --force replaces it", hint="--output")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is no folder", hint="--output")
    import_engine()  # here: --help must not pay for it
    from ..quant.imatrix import Imatrix
    from ..runtime.calibrate import measure_imatrix
    from ..runtime.evaluate import samples_of
    from ..runtime.layerwise.runner import LayerwiseRunner
    from ..runtime.layerwise.source import open_checkpoint
    from ..runtime.perplexity import plan_chunks
    from ..runtime.texts import CALIBRATION, calibration_text
    from ..runtime.tokenizer.load import load_tokenizer
    from .checkpoint_source import open_source

    others = [Imatrix.load(path, chunk_size=ctx_size) for path in in_file or []]
    text = calibration_text() if file is None else read_text(file)
    with ProgressBar("measuring", has_time_left=True) as progress, open_checkpoint(open_source(model)) as source:
        tokenizer = load_tokenizer(source.metadata)
        plan = plan_chunks(tokenizer, text, n_ctx=ctx_size, max_chunks=chunks if chunks >= 0 else None)
        fed = [sample.ids for sample in samples_of(plan, tokenizer)]
        with LayerwiseRunner(source, n_ctx=ctx_size, n_threads=threads or None, on_progress=progress) as runner:
            name = CALIBRATION if file is None else str(file)
            result = measure_imatrix(runner, fed, dataset=name, has_output=process_output)
    for other in others:
        result.merge(other)
    result.save(output, output_format)
    print(
        f"{output}: {len(result.names)} matrices, {result.n_chunk} chunks of {ctx_size} tokens"
        f" ({count(result.n_chunk * ctx_size)} tokens)",
        file=sys.stderr,
    )
