"""Measure a quality card: a quantised model beside its source, on a text and on probe prompts.

Both run layer by layer with float activations, and each row is compared while it is at hand. A writer calls
``measure_quality`` on the file that it is about to finish.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..formats.errors import FormatError
from ..formats.record import Record
from ..quant.imatrix import Imatrix
from ..quant.quality_card import N_WORST, QualityCard
from .divergence import Divergence
from .evaluate import Sample, compare_models, samples_of
from .layerwise.runner import LayerwiseRunner
from .layerwise.source import ModelSource
from .perplexity import plan_chunks
from .probes import ProbeResult, count_flips, probe_samples, results
from .tensor_stats import TensorStats, compare_tensors
from .tokenizer.base import Tokenizer

Progress = Callable[[str, int, int], None]

DEFAULT_CTX = 512
DEFAULT_CHUNKS = 8
HASH_BYTES = 1 << 22


class Comparison(Record):
    """What was found on a text and on the probes.

    Attributes:
        samples: of the text.
        divergence: of the rows of the text that count.
        probes: what both models choose.
        tokenizer: of the models.
    """

    samples: list[Sample]
    divergence: Divergence
    probes: list[ProbeResult]
    tokenizer: Tokenizer


def compare_on_text(
    base: ModelSource,
    other: ModelSource,
    text: str,
    *,
    n_ctx: int = DEFAULT_CTX,
    n_chunk: int | None = None,
    is_float: bool = True,
    n_threads: int | None = None,
    folder: Path | None = None,
    on_progress: Progress | None = None,
) -> Comparison:
    """Compare two models on a text and on the probes.

    Args:
        base: the source.
        other: the model.
        text: what they read.
        n_ctx: tokens of a chunk; shorter where the text is too short for two.
        n_chunk: chunks, spread evenly over the text; None: all.
        is_float: see ``LayerwiseRunner``.
        n_threads: None takes what ``default_threads`` says.
        folder: for temporary files; None: the system's.
        on_progress: called as (what, done, total).

    Raises:
        LlmrunError: a model cannot be run, or the two are not of one kind.
    """
    from .chat_template import ChatTemplate
    from .tokenizer.load import load_tokenizer

    tokenizer = load_tokenizer(base.metadata)
    try:
        template = ChatTemplate.from_metadata(base.metadata, tokenizer)
    except FormatError:
        template = None  # one that cannot be read changes nothing of the weights
    n_token = len(tokenizer.encode(text, add_special=True))
    n_ctx = min(n_ctx, max(4, n_token // 2))
    chunks = spread(plan_chunks(tokenizer, text, n_ctx=n_ctx), n_chunk)
    samples, probes = samples_of(chunks, tokenizer), probe_samples(tokenizer, template, max(n_ctx, 128))
    with ExitStack() as stack:

        def runner(of: ModelSource, name: str) -> LayerwiseRunner:
            def report(what: str, done: int, total: int) -> None:
                if on_progress:
                    on_progress(f"measuring {name}: {what}", done, total)

            made = LayerwiseRunner(
                of, n_ctx=max(n_ctx, 128), is_float=is_float, n_threads=n_threads, folder=folder, on_progress=report
            )
            return stack.enter_context(made)

        both = compare_models(
            runner(base, "the source"), runner(other, "the result"), [*samples, *probes], on_progress=on_progress
        )
    n_row = sum(sample.n_scored for sample in samples)
    of_probes = both.rows(slice(n_row, None))
    return Comparison(
        samples, both.rows(slice(0, n_row)), results(probes, of_probes.nll_base, of_probes.nll), tokenizer
    )


def spread(chunks: Sequence[list[int]], n: int | None) -> list[list[int]]:
    """Return ``n`` chunks at even distances, or all of them."""
    if n is None or n >= len(chunks):
        return list(chunks)
    return [chunks[int(i)] for i in np.linspace(0, len(chunks) - 1, max(n, 1)).round()]


def measure_quality(
    source: ModelSource,
    result: ModelSource,
    text: str,
    *,
    text_name: str,
    imatrix: Imatrix | None = None,
    has_same_scales: bool = True,
    n_ctx: int = DEFAULT_CTX,
    n_chunk: int | None = DEFAULT_CHUNKS,
    n_threads: int | None = None,
    folder: Path | None = None,
    on_progress: Progress | None = None,
) -> QualityCard:
    """Return the card of a quantised model; arguments as for ``compare_on_text``.

    Args:
        source: what was quantised.
        result: the quantised model.
        text: what both read.
        text_name: name of the text.
        imatrix: weighs the errors of tensors, where it is known.
        has_same_scales: False: channels were scaled, so that single tensors cannot be compared.
        n_ctx: tokens of a chunk.
        n_chunk: chunks, spread evenly over the text; None: all.
        n_threads: None takes what ``default_threads`` says.
        folder: for temporary files; None: the system's.
        on_progress: called as (what, done, total).

    Raises:
        LlmrunError: what ``compare_on_text`` raises.
    """
    found = compare_on_text(
        source, result, text, n_ctx=n_ctx, n_chunk=n_chunk, n_threads=n_threads, folder=folder, on_progress=on_progress
    )
    stats: list[TensorStats] = []
    if has_same_scales:
        stats, _ = compare_tensors(source.tensors, result.tensors, imatrix, on_progress=on_progress)
    summary = found.divergence.summary()
    return QualityCard(
        ppl_base=summary["ppl_base"], ppl=summary["ppl"], kld_mean=summary["kld_mean"],
        kld_median=summary["kld_q0.5"], kld_q999=summary["kld_q0.999"], kld_max=summary["kld_q1"],
        same_top=summary["same_top"], p_diff_rms=summary["p_diff_rms"], n_token=len(found.divergence.kld),
        n_ctx=len(found.samples[0].ids), flips=count_flips(found.probes), worst=worst_tensors(stats),
        text=text_name, text_sha256=hashlib.sha256(text.encode()).hexdigest(), source_sha256=hash_source(source.path),
    )  # fmt: skip


def worst_tensors(stats: Sequence[TensorStats], n: int = N_WORST) -> list[str]:
    """Return the tensors with the largest relative errors as texts, the worst first."""
    worst = sorted((s for s in stats if s.error > 0), key=lambda s: -s.error)[:n]
    return [f"{s.name} {s.type} {100 * s.error:.1f}%" for s in worst]


def hash_source(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's weights and configuration (names and hashes, in order).

    Raises:
        FormatError: something cannot be read.
    """
    try:
        if not path.is_dir():
            return _hash_file(path)
        names = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".model") and p.is_file())
        digest = hashlib.sha256()
        for file in names:
            digest.update(f"{_hash_file(file)}  {file.name}\n".encode())
        return digest.hexdigest()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(HASH_BYTES):
            digest.update(data)
    return digest.hexdigest()
