"""How much each matrix loses by each type, measured on a text: what ``quant/budget.py`` chooses by.

Of every matrix one type is tried by itself: the rows that its layer then gives are taken through all later layers as
they are in the source, beside the untouched rows, and what is compared is the model's prediction (the mean divergence
of the next token). Other types follow from their error of the matrix's outputs (weighted by its inputs' mean squares)
in proportion. The output matrix, which has nothing behind it, is tried with every type. Layers are loaded once, each
passed by all rows that were made before it.

Divergences of matrices tried one by one are added by the budget. How far the sum is from the divergence of the model
with all of them tried at once is measured as well, and all losses are multiplied with that factor.

What was found up to a layer, and the rows of all tries, are kept in a ``SensitivityJournal``: a run that was killed
goes on from there, and finds the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.ggml_types import BLOCK, GgmlType, row_bytes
from ..formats.record import Record, replace
from ..quant.budget import Option
from ..quant.checkpoint import SourceTensor
from ..quant.dequantize import dequantize
from ..quant.file_types import layer_of
from ..quant.floats import F32
from ..quant.hessian import LARGEST_ROW, Hessian
from ..quant.quantize import quantize
from ..quant.scale_search import ScaleSearch
from .divergence import PairRows
from .layerwise.runner import Layer, LayerwiseRunner
from .sensitivity_journal import Progress, SensitivityJournal

TRIED = GgmlType.Q4_1  # any width that can be quantised holds its blocks
SAMPLE_ROWS = 256  # of a matrix, for its error with each type
SCORE_STEP = 2  # every second row of a chunk counts, from a quarter of its length on
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
WHOLE = ""  # name of the rows for which all matrices are tried at once

GROUP = 32  # tries that are compared together, and then kept
SAVE_SECONDS = 15.0  # what a run that is killed loses at most, beside the layer that it is in
TRY_PASSES = 8  # what one matrix costs in its own layer, in passes of the text through a layer: for the time left
ENDING = "predictions"

OnProgress = Callable[[str, int, int], None]


class Sensitivities(Record):
    """What was found.

    Attributes:
        options: of each matrix; losses are divergences, nats.
        added: divergences of all matrices with ``TRIED``, added up.
        together: divergence of the model with all of them at once; losses were multiplied with the quotient.
    """

    options: dict[str, list[Option]]
    added: float
    together: float


class _Tried(Record):
    """Rows with one matrix tried: where they begin, and the type of the output matrix that belongs to them."""

    name: str
    first_row: int
    output_type: GgmlType | None = None


class Sensitivity:
    """Measures one model.

    Args:
        runner: with float activations.
        types: to choose from; those whose blocks do not fit a matrix's width are left out there.
        search: for scales.
        n_thread: threads.
        on_progress: called as (what, done, total).
    """

    def __init__(
        self,
        runner: LayerwiseRunner,
        types: Sequence[GgmlType],
        *,
        search: ScaleSearch,
        n_thread: int,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._runner, self._types, self._search, self._n_thread = runner, list(types), search, n_thread
        self._on_progress = on_progress
        tensors = runner.source.tensors
        self._output = OUTPUT if OUTPUT in tensors else EMBEDDING
        in_layers = [t.n_weights for t in tensors.values() if layer_of(t.name) >= 0 and len(t.shape) > 1]
        self._n_of_layer = len(in_layers) / runner.n_layer
        share = tensors[self._output].n_weights * runner.n_layer / sum(in_layers)
        self._prediction_passes = (len(in_layers) + 3 + len(types)) * share / SCORE_STEP

    def measure(
        self,
        chunks: Sequence[Sequence[int]],
        names: Sequence[str],
        journal: SensitivityJournal | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> Sensitivities:
        """Return the options of each matrix of ``names``, measured on chunks of token ids.

        Args:
            chunks: of token ids.
            names: of matrices.
            journal: where an earlier run ended, and where this one keeps what it has; it is not removed.
            save_seconds: that may pass before what was found is kept.

        Raises:
            CapacityError: the disk is full.
            LlmrunError: what ``LayerwiseRunner`` raises.
        """
        runner, wanted = self._runner, set(names)
        saved = time.monotonic()
        with ThreadPoolExecutor(self._n_thread) as pool:
            state = self._begin(chunks, wanted, journal, pool)
            for layer in runner.layers():
                self._layer(layer, chunks, wanted, state, pool)
                state.n_layer = layer.index + 1
                if journal and time.monotonic() - saved >= save_seconds:
                    journal.save(state, runner.hidden)
                    saved = time.monotonic()
            if not state.is_finished:
                self._report(ENDING, *self._done(runner.n_layer, 0, 0.0))
                runner.finish(_quiet)
                state.is_finished = True
                if journal:
                    journal.save(state, runner.hidden)
            tried = [_Tried(name, row, GgmlType[kind] if kind else None) for name, row, kind in state.tried]
            tried += self._output_types() if self._output in wanted else []
            divergences = self._divergences(chunks, tried, state, journal, pool)
        return self._losses(names, divergences, state.errors)

    def _begin(
        self, chunks: Sequence[Sequence[int]], wanted: set[str], journal: SensitivityJournal | None, pool: Executor
    ) -> Progress:
        """Return how far an earlier run came, the runner's rows as it left them; or what is known before layer 1."""
        runner, state = self._runner, journal.load() if journal else None
        runner.begin(chunks)
        if journal and state is not None:
            n_times = 1 + max(row for _, row, _ in state.tried) // sum(map(len, chunks))
            runner.restore([*chunks] * n_times, journal.rows(), state.n_layer, is_finished=state.is_finished)
            return state
        state = Progress()
        rows = runner.hidden.read(0, runner.hidden.n_row)
        if EMBEDDING in wanted:
            tensor = runner.source.tensors[EMBEDDING]
            self._keep(state, EMBEDDING, self._errors(tensor, _sample(tensor), [], pool))
            rows = np.concatenate([self._embed(chunk) for chunk in chunks])
            state.tried.append((EMBEDDING, runner.extend(chunks, rows), ""))
        kind = TRIED.name if self._output in wanted else ""
        state.tried.append((WHOLE, runner.extend(chunks, rows), kind))
        return state

    @staticmethod
    def _keep(state: Progress, name: str, errors: Mapping[GgmlType, float]) -> None:
        state.errors[name] = {kind.name: error for kind, error in errors.items()}

    def _report(self, what: str, done: int, total: int) -> None:
        if self._on_progress:
            self._on_progress(what, done, total)

    def _embed(self, chunk: Sequence[int]) -> F32:
        """Return the rows of a chunk by tried embeddings."""
        tensor = self._runner.source.tensors[EMBEDDING]
        unique, inverse = np.unique(np.array(chunk), return_inverse=True)
        values = np.concatenate([tensor.read_rows(i, i + 1) for i in unique.tolist()])
        return self._runner.embed(chunk, self._quantized(values, TRIED, None)[inverse])

    def _layer(
        self, layer: Layer, chunks: Sequence[Sequence[int]], wanted: set[str], state: Progress, pool: Executor
    ) -> None:
        """Try each matrix of a layer, and take all rows through it."""
        n = len(chunks)
        first_row = next(row for name, row, _ in state.tried if name == WHOLE)
        start = n * (first_row // sum(map(len, chunks)))
        moments: dict[tuple[str, ...], list[Hessian]] = {}

        def look(names: tuple[str, ...], x: NDArray[Any]) -> None:
            if names not in moments:
                moments[names] = [
                    Hessian(names, x.shape[1], is_whole=False, largest_row=n) for n in (np.inf, LARGEST_ROW)
                ]
            for moment in moments[names]:
                moment.add(x, pool)

        what = f"layer {layer.index + 1} of {self._runner.n_layer}"
        layer.run(on_input=look, advance=False, chunks=slice(0, n), on_rows=_quiet)
        importance = {name: [m.diagonal for m in pair] for group, pair in moments.items() for name in group}
        names = [name for group in layer.inputs for name in group if name in wanted]
        values, results = {}, {}
        for i, name in enumerate(names):
            self._report(what, *self._done(layer.index, i, 0.0))
            tensor = self._runner.source.tensors[name]
            original = tensor.read_rows(0, tensor.n_rows)
            self._keep(state, name, self._errors(tensor, _spread(original), importance[name], pool))
            values[name] = self._quantized(original, TRIED, importance[name][1], pool)
            results[name] = _outputs(layer, {name: values[name]}, slice(0, n))
        of_whole = _outputs(layer, values, slice(start, start + n))
        tried = len(names)

        def passed(share: float) -> None:
            self._report(what, *self._done(layer.index, tried, share))

        layer.run(on_rows=passed)
        self._runner.hidden.write(first_row, of_whole)
        state.tried += [(name, self._runner.extend(chunks, rows), "") for name, rows in results.items()]

    def _done(self, layer: int, n_tried: int, share: float) -> tuple[int, int]:
        """Return how much is done, and all, in passes of the text through a layer.

        Args:
            layer: that is worked on.
            n_tried: its matrices that were tried.
            share: of the rows of earlier layers' tries that have passed it.
        """
        n = self._n_of_layer
        before = layer * (TRY_PASSES * n + 2) + n * layer * (layer - 1) // 2
        now = TRY_PASSES * n_tried + share * n * layer
        layers = self._runner.n_layer
        all_ = layers * (TRY_PASSES * n + 2) + n * layers * (layers - 1) // 2 + self._prediction_passes
        return int(before + now), int(all_)

    def _output_types(self) -> list[_Tried]:
        tensor = self._runner.source.tensors[self._output]
        return [_Tried(self._output, 0, kind) for kind in self._fitting(tensor)]

    def _divergences(
        self,
        chunks: Sequence[Sequence[int]],
        tried: Sequence[_Tried],
        state: Progress,
        journal: SensitivityJournal | None,
        pool: Executor,
    ) -> list[tuple[_Tried, float]]:
        """Return the mean divergence of every try from the untouched rows."""
        found = {int(i): float(value) for line in state.found for i, value in line["divergences"]}
        left = [i for i in range(len(tried)) if i not in found]
        before, all_ = self._done(self._runner.n_layer, 0, 0.0)
        for start in range(0, len(left), GROUP):
            group = left[start : start + GROUP]

            def passed(share: float, n: int = len(group), n_found: int = len(found)) -> None:
                done = (n_found + share * n) / len(tried)
                self._report(ENDING, before + int((all_ - before) * done), all_)

            means = self._divergences_of([tried[i] for i in group], chunks, pool, passed)
            found |= dict(zip(group, means, strict=True))
            if journal:
                journal.add({"divergences": list(zip(group, means, strict=True))})
        return [(one, max(found[i], 0.0)) for i, one in enumerate(tried)]

    def _divergences_of(
        self,
        tried: Sequence[_Tried],
        chunks: Sequence[Sequence[int]],
        pool: Executor,
        on_part: Callable[[float], None],
    ) -> list[float]:
        runner, counted = self._runner, _scored(chunks)
        n = len(counted)
        tensor = runner.source.tensors[self._output]
        squares = np.square(runner.hidden.read(0, sum(map(len, chunks)))).sum(axis=0)
        pairs = PairRows(np.zeros(n * len(tried), np.int64), self._n_thread)
        blocks = runner.vocabulary_blocks()
        kinds = sorted({t.output_type for t in tried if t.output_type is not None})
        for i, (start, stop) in enumerate(blocks):
            on_part(i / len(blocks))
            make = runner.logits_maker(start, stop, n)
            base = make(runner.gather(counted)).copy()
            for j, one in enumerate(tried):
                if one.output_type is None:
                    pairs.add(j * n, start, base, make(runner.gather(counted + one.first_row)))
            for kind in kinds:
                values = self._quantized(tensor.read_rows(start, stop), kind, squares, pool)
                make = runner.logits_maker(start, stop, n, values)
                for j, one in enumerate(tried):
                    if one.output_type is kind:
                        pairs.add(j * n, start, base, make(runner.gather(counted + one.first_row)))
        runner.weights.drop()
        means = pairs.result().kld.reshape(len(tried), n).mean(axis=1)
        return [float(mean) for mean in means]

    def _losses(
        self,
        names: Sequence[str],
        divergences: Sequence[tuple[_Tried, float]],
        errors: Mapping[str, Mapping[str, float]],
    ) -> Sensitivities:
        together = next(value for one, value in divergences if one.name == WHOLE)
        losses: dict[str, dict[GgmlType, float]] = {}
        for one, value in divergences:
            if one.name == WHOLE:
                continue
            of_matrix = losses.setdefault(one.name, {})
            if one.output_type is not None:
                of_matrix[one.output_type] = of_matrix.get(one.output_type, 0.0) + value
                continue
            for kind, error in errors[one.name].items():  # of tied embeddings: beside their loss as output matrix
                of_matrix[GgmlType[kind]] = of_matrix.get(GgmlType[kind], 0.0) + value * error
        added = sum(losses[name][TRIED] for name in names)
        factor = together / added if added > 0 and together > 0 else 1.0
        tensors = self._runner.source.tensors
        options = {
            name: [
                Option(t, tensors[name].n_rows * row_bytes(t, tensors[name].n_in), factor * losses[name][t])
                for t in self._fitting(tensors[name]) if t in self._types
            ]
            for name in names
        }  # fmt: skip
        return Sensitivities(options, added, together)

    def _fitting(self, tensor: SourceTensor) -> list[GgmlType]:
        return [t for t in dict.fromkeys((*self._types, TRIED)) if tensor.n_in % BLOCK[t][0] == 0]

    def _errors(
        self, tensor: SourceTensor, rows: F32, importances: Sequence[F32], pool: Executor
    ) -> dict[GgmlType, float]:
        """Return the error of a matrix's outputs with each type, by that with ``TRIED``."""
        weights = np.stack(importances or [np.ones(tensor.n_in, np.float32)], axis=1)  # [n_in, n]

        def error(kind: GgmlType) -> NDArray[np.float64]:
            difference = self._quantized(rows, kind, importances[-1] if importances else None) - rows
            found: NDArray[np.float64] = (np.square(difference) @ weights).sum(axis=0, dtype=np.float64)
            return np.maximum(found, 1e-300)

        types = self._fitting(tensor)
        errors = dict(zip(types, pool.map(error, types), strict=True))
        return {kind: float((found / errors[TRIED]).max()) for kind, found in errors.items()}

    def _quantized(self, values: F32, kind: GgmlType, importance: F32 | None, pool: Executor | None = None) -> F32:
        """Return what a type makes of rows."""

        def rows(start: int, stop: int) -> F32:
            return dequantize(kind, quantize(values[start:stop], kind, importance, search=self._search))

        if pool is None:
            return rows(0, len(values))
        jobs = [pool.submit(rows, start, start + SAMPLE_ROWS) for start in range(0, len(values), SAMPLE_ROWS)]
        return np.concatenate([job.result() for job in jobs])


def _quiet(_: float) -> None:
    """Say nothing of single passes."""


def _outputs(layer: Layer, replaced: Mapping[str, F32], chunks: slice) -> F32:
    """Return what a layer gives with other weights, f32 [n, n_embd]."""
    parts: list[F32] = []
    layer.run(
        replaced=replaced, on_output=lambda _, y: parts.append(y.copy()), advance=False, chunks=chunks, on_rows=_quiet
    )
    return np.concatenate(parts)


def _scored(chunks: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return the numbers of the rows whose predictions are compared."""
    found, first = [], 0
    for chunk in chunks:
        found.append(np.arange(first + len(chunk) // 4, first + len(chunk), SCORE_STEP))
        first += len(chunk)
    return np.concatenate(found)


def _spread(values: F32) -> F32:
    return np.ascontiguousarray(values[:: max(1, len(values) // SAMPLE_ROWS)][:SAMPLE_ROWS])


def _sample(tensor: SourceTensor) -> F32:
    """Return up to ``4 * SAMPLE_ROWS`` rows in runs, spread over a matrix too large to be read whole."""
    n = min(tensor.n_rows, 4 * SAMPLE_ROWS)
    starts = np.linspace(0, tensor.n_rows - n // 16, 16).astype(int) if n >= 16 else [0]
    length = n // 16 if n >= 16 else n
    return np.concatenate([tensor.read_rows(int(a), int(a) + length) for a in starts])


def scaled(options: Mapping[str, Sequence[Option]], factor: float) -> dict[str, list[Option]]:
    """Return options with all losses multiplied."""
    return {name: [replace(o, loss=o.loss * factor) for o in of_matrix] for name, of_matrix in options.items()}
