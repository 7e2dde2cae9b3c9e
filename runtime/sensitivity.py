"""How much each matrix loses by each type, measured on a text: what ``quant/budget.py`` chooses by.

Of every matrix one type is tried in the running model: the shift of the layer's output, as a part of the output's
own size, says how much a relative error of this matrix hurts. Other types follow from their error of the matrix's
outputs (weighted by its inputs' mean squares) in proportion. Shifts are roughly proportional to the divergence of the
whole model; ``scaled`` turns them into it after one assignment was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.ggml_types import BLOCK, GgmlType, row_bytes
from ..quant.budget import Option
from ..quant.checkpoint import SourceTensor
from ..quant.dequantize import dequantize
from ..quant.floats import F32
from ..quant.quantize import quantize
from ..quant.scale_search import ScaleSearch
from .layerwise.runner import PASS_ROWS, Layer, LayerwiseRunner

TRIED = GgmlType.Q4_0  # any width that can be quantised holds its blocks
SAMPLE_ROWS = 256  # of a matrix, for its error with each type
PROBED_CHUNKS = 2  # that are run with every matrix


class Sensitivity:
    """Measures one model.

    Args:
        runner: with float activations.
        types: to choose from; those whose blocks do not fit a matrix's width are left out there.
        search: for scales.
        n_thread: threads.
    """

    def __init__(
        self, runner: LayerwiseRunner, types: Sequence[GgmlType], *, search: ScaleSearch, n_thread: int
    ) -> None:
        self._runner, self._types, self._search, self._n_thread = runner, list(types), search, n_thread

    def measure(self, chunks: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, list[Option]]:
        """Return the options of each matrix of ``names``, measured on chunks of token ids.

        Raises:
            LlmrunError: what ``LayerwiseRunner`` raises.
        """
        result: dict[str, list[Option]] = {}
        wanted = set(names)
        with ThreadPoolExecutor(self._n_thread) as pool:
            self._runner.begin(chunks)
            for layer in self._runner.layers():
                self._layer(layer, wanted, min(PROBED_CHUNKS, len(chunks)), result, pool)
                layer.run()
            self._runner.finish()
            self._rest(wanted, result, pool)
        return {name: result[name] for name in names if name in result}

    def _layer(
        self, layer: Layer, wanted: set[str], n_chunk: int, result: dict[str, list[Option]], pool: Executor
    ) -> None:
        importance: dict[str, F32] = {}
        outputs: dict[int, F32] = {}

        def look(names: tuple[str, ...], x: NDArray[Any]) -> None:
            squares = np.square(x).mean(axis=0)
            for name in names:
                importance[name] = importance[name] + squares if name in importance else squares

        def keep(row: int, y: F32) -> None:
            outputs[row] = y.copy()

        layer.run(on_input=look, on_output=keep, advance=False, n_chunk=n_chunk)
        for name in (n for group in layer.inputs for n in group if n in wanted):
            tensor = self._runner.source.tensors[name]
            values = tensor.read_rows(0, tensor.n_rows)
            shifts: list[float] = []

            def compare(row: int, y: F32, shifts: list[float] = shifts) -> None:
                size = np.square(outputs[row]).sum(axis=1)
                shifts.extend((np.square(y - outputs[row]).sum(axis=1) / np.maximum(size, 1e-30)).tolist())

            tried = dequantize(TRIED, quantize(values, TRIED, importance[name], search=self._search))
            layer.run(replaced={name: tried}, on_output=compare, advance=False, n_chunk=n_chunk)
            result[name] = self._options(tensor, values, importance[name], float(np.mean(shifts)), pool)

    def _rest(self, wanted: set[str], result: dict[str, list[Option]], pool: Executor) -> None:
        """Measure the output matrix by the relative error of its outputs, and embeddings by their own."""
        source, hidden = self._runner.source, self._runner.hidden
        output = "output.weight" if "output.weight" in source.tensors else "token_embd.weight"
        squares = np.zeros(hidden.n_col)
        for start in range(0, hidden.n_row, PASS_ROWS):
            squares += np.square(hidden.read(start, min(start + PASS_ROWS, hidden.n_row))).sum(axis=0)
        for name in dict.fromkeys((output, "token_embd.weight")):
            if name not in wanted:
                continue
            tensor = source.tensors[name]
            weights = (squares if name == output else np.ones(hidden.n_col)).astype(np.float32)
            rows = _sample(tensor)
            tried = dequantize(TRIED, quantize(rows, TRIED, weights, search=self._search))
            shift = float((np.square(tried - rows) @ weights).sum() / (np.square(rows) @ weights).sum())
            result[name] = self._options(tensor, rows, weights, shift, pool)
            if tensor.release:
                tensor.release()

    def _options(
        self, tensor: SourceTensor, values: F32, importance: F32, shift: float, pool: Executor
    ) -> list[Option]:
        """Return a matrix's options; ``shift`` is its loss with ``TRIED``."""
        rows = np.ascontiguousarray(values[:: max(1, len(values) // SAMPLE_ROWS)][:SAMPLE_ROWS])
        types = [t for t in self._types if tensor.n_in % BLOCK[t][0] == 0]

        def error(kind: GgmlType) -> float:
            difference = dequantize(kind, quantize(rows, kind, importance, search=self._search)) - rows
            return float((np.square(difference) @ importance).sum(dtype=np.float64))

        errors = list(pool.map(error, [TRIED, *types]))
        unit = shift / errors[0] if errors[0] > 0 else 0.0
        return [
            Option(t, tensor.n_rows * row_bytes(t, tensor.n_in), unit * e)
            for t, e in zip(types, errors[1:], strict=True)
        ]


def _sample(tensor: SourceTensor) -> F32:
    """Return up to ``4 * SAMPLE_ROWS`` rows in runs, spread over a matrix too large to be read whole."""
    n = min(tensor.n_rows, 4 * SAMPLE_ROWS)
    starts = np.linspace(0, tensor.n_rows - n // 16, 16).astype(int) if n >= 16 else [0]
    length = n // 16 if n >= 16 else n
    return np.concatenate([tensor.read_rows(int(a), int(a) + length) for a in starts])


def scaled(options: Mapping[str, Sequence[Option]], predicted: float, measured: float) -> dict[str, list[Option]]:
    """Return options whose losses add up to divergences.

    Args:
        options: as ``Sensitivity.measure`` returns them.
        predicted: loss of an assignment by these options.
        measured: divergence of the model quantised so.
    """
    factor = measured / predicted if predicted > 0 else 1.0
    return {name: [replace(o, loss=o.loss * factor) for o in of_matrix] for name, of_matrix in options.items()}
