"""Measure one model against another, or against a file of log-probabilities, on the same rows of text.

Models run layer by layer (``layerwise/``), with float activations on both sides unless the runners say otherwise. The
logits of both are made for a range of the vocabulary and a block of rows at a time; ``divergence.py`` keeps the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import ConfigError
from ..formats.logits_file import LogitsFile, LogitsWriter
from ..formats.record import Record
from .divergence import Divergence, FileRows, PairRows
from .layerwise.runner import BLOCK_BYTES, PASS_ROWS, LayerwiseRunner

I64 = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


class _Tokenizer(Protocol):
    bos_id: int | None
    add_bos: bool


class Sample(Record):
    """A sequence of its own, and from where on its predictions count.

    Attributes:
        ids: token ids.
        first: first position whose prediction counts; the last is that of the last token but one.
    """

    ids: list[int]
    first: int

    @property
    def n_scored(self) -> int:
        """Number of predictions that count."""
        return len(self.ids) - 1 - self.first


def samples_of(chunks: Sequence[Sequence[int]], tokenizer: _Tokenizer) -> list[Sample]:
    """Return chunks of a text as llama-perplexity feeds them: BOS in place of the first token, the second half counts.

    Args:
        chunks: token ids, from ``perplexity.plan_chunks``.
        tokenizer: says whether the vocabulary wants BOS.
    """
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    return [Sample([*bos, *chunk[len(bos) :]], len(chunk) // 2) for chunk in chunks]


def scored_rows(samples: Sequence[Sample]) -> tuple[I64, I64]:
    """Return the numbers of the rows that count and the token ids that follow them, [n] each.

    Rows are numbered over all samples without their last tokens, which predict nothing that counts.
    """
    rows, targets, start = [], [], 0
    for sample in samples:
        rows.append(np.arange(start + sample.first, start + len(sample.ids) - 1))
        targets.append(np.array(sample.ids[sample.first + 1 :], np.int64))
        start += len(sample.ids) - 1
    return np.concatenate(rows), np.concatenate(targets)


def run_layers(runner: LayerwiseRunner, samples: Sequence[Sample]) -> None:
    """Take all samples through a model up to the final norm."""
    runner.begin([sample.ids[:-1] for sample in samples])
    for layer in runner.layers():
        layer.run()
    runner.finish()


def compare_models(
    base: LayerwiseRunner, other: LayerwiseRunner, samples: Sequence[Sample], *, on_progress: Progress | None = None
) -> Divergence:
    """Return how far ``other`` is from ``base`` on every row that counts.

    Raises:
        ConfigError: the models have vocabularies of different sizes.
        LlmrunError: what ``LayerwiseRunner`` raises.
    """
    if base.hparams.n_vocab != other.hparams.n_vocab:
        raise ConfigError(
            f"{other.source.path}: {other.hparams.n_vocab} tokens, {base.hparams.n_vocab} in {base.source.path}:"
            " these are not two files of one model"
        )
    for runner in (base, other):
        run_layers(runner, samples)
    rows, targets = scored_rows(samples)
    pairs = PairRows(targets, base.n_thread)
    blocks = _vocabulary_blocks((base, other))
    for n_done, (start, stop) in enumerate(blocks):
        step = _rows_per_block(stop - start, 2, len(rows))
        make_base, make_other = (runner.logits_maker(start, stop, step) for runner in (base, other))
        for i in range(0, len(rows), step):
            some = rows[i : i + step]
            pairs.add(i, start, make_base(base.gather(some)), make_other(other.gather(some)))
        if on_progress:
            on_progress("comparing", n_done + 1, len(blocks))
    for runner in (base, other):
        runner.weights.drop()
    return pairs.result()


def compare_file(
    file: LogitsFile, model: LayerwiseRunner, samples: Sequence[Sample], *, on_progress: Progress | None = None
) -> Divergence:
    """Return how far a model is from a file's log-probabilities; samples are the file's chunks (``samples_of``).

    Raises:
        ConfigError: the model has another number of tokens.
        LlmrunError: what ``LayerwiseRunner`` and ``LogitsFile`` raise.
    """
    if file.n_vocab != model.hparams.n_vocab:
        raise ConfigError(f"{file.path}: made with {file.n_vocab} tokens, the model has {model.hparams.n_vocab}")
    run_layers(model, samples)
    rows, targets = scored_rows(samples)
    pairs = FileRows(targets, model.n_thread)
    blocks = _vocabulary_blocks((model,))
    for n_done, (start, stop) in enumerate(blocks):
        step = _rows_per_block(stop - start, 2, len(rows))
        make = model.logits_maker(start, stop, step)
        for i in range(0, len(rows), step):
            some = rows[i : i + step]
            pairs.add(i, start, file.log_p(i, i + len(some), start, stop), make(model.gather(some)))
        if on_progress:
            on_progress("comparing", n_done + 1, len(blocks))
    model.weights.drop()
    return pairs.result()


def write_logits(path: Path, model: LayerwiseRunner, chunks: Sequence[Sequence[int]], tokenizer: _Tokenizer) -> None:
    """Write a model's log-probabilities as llama-perplexity does, for its ``--kl-divergence``.

    Args:
        path: the file.
        model: whose.
        chunks: token ids as they stand in the text, all of one length.
        tokenizer: the model's.

    Raises:
        LlmrunError: the file cannot be written, or what ``LayerwiseRunner`` raises.
    """
    samples = samples_of(chunks, tokenizer)
    with LogitsWriter(path, np.array(chunks, np.int32), model.hparams.n_vocab) as writer:
        run_layers(model, samples)
        for _, logits in model.logits(scored_rows(samples)[0]):
            writer.add(logits)
        writer.finish()


def _vocabulary_blocks(runners: Sequence[LayerwiseRunner]) -> list[tuple[int, int]]:
    """Return ranges of the vocabulary whose output weights take 32 MB for all the models together."""
    return min((runner.vocabulary_blocks(len(runners)) for runner in runners), key=lambda blocks: blocks[0][1])


def _rows_per_block(n_column: int, n_model: int, n_row: int) -> int:
    return max(1, min(PASS_ROWS, n_row, BLOCK_BYTES // (4 * n_column * n_model)))
