"""Quantise a model layer by layer with what its matrices are multiplied with: AWQ, GPTQ, or both.

Each layer sees the rows as the quantised layers before it left them. Its inputs' second moments are gathered, channels
are scaled (``quant/channel_scales.py``), matrices are quantised, with error feedback (``quant/feedback.py``) or
without, and the rows pass through the result. Only one layer is in memory; finished blocks go to a temporary file.
The result is a checkpoint whose tensors have their final type already: it is written like any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import CapacityError, ConfigError
from ..formats.ggml_types import GgmlType, row_bytes
from ..quant.channel_scales import apply_scales, choose_scales, folds_of_layer
from ..quant.checkpoint import SourceTensor
from ..quant.dequantize import dequantize
from ..quant.feedback import HAS_FEEDBACK, quantize_with_feedback
from ..quant.floats import F32, U8
from ..quant.hessian import Hessian, factor
from ..quant.quantize import quantize
from ..quant.scale_search import ScaleSearch
from .layerwise.runner import PASS_ROWS, Layer, LayerwiseRunner

Warn = Callable[[str], None]
ROW_STEP = 4096  # rows of a matrix outside of layers that are quantised at a time


@dataclass(frozen=True, slots=True)
class Method:
    """What is done with a layer.

    Attributes:
        has_scales: channels are scaled (AWQ).
        has_feedback: columns make good what earlier ones lost (GPTQ).
    """

    has_scales: bool
    has_feedback: bool


METHODS = {
    "imatrix": Method(has_scales=False, has_feedback=False),
    "awq": Method(has_scales=True, has_feedback=False),
    "gptq": Method(has_scales=False, has_feedback=True),
    "awq+gptq": Method(has_scales=True, has_feedback=True),
}


class _BlockFile:
    """Finished tensors in a temporary file without a name: nothing is left behind however a run ends."""

    def __init__(self, folder: Path | None) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise CapacityError(f"{folder or tempfile.gettempdir()}: no temporary file: {error.strerror}") from None

    def append(self, blocks: U8) -> Callable[[], U8]:
        """Keep blocks u8 [n_row, row_bytes]; return what reads them again."""
        try:
            start = self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(blocks).data)
            self._file.flush()
        except OSError as error:
            raise CapacityError(f"finished tensors cannot be kept: {error.strerror}") from None
        return lambda: np.memmap(self._file, np.uint8, "r", start, blocks.shape)

    def close(self) -> None:
        self._file.close()


class CalibratedTensors:
    """The tensors of a model, quantised; ``tensors`` is complete after ``run``.

    Args:
        runner: the model; with float activations.
        types: what each matrix becomes, by name; a tensor that is not named stays as it is.
        method: a key of ``METHODS``.
        search: for scales.
        n_thread: threads.
        folder: of the temporary file; None: the system's.
        on_warning: called with a line where a matrix cannot be quantised as asked for and is quantised plainly.

    Raises:
        ConfigError: there is no such method.
        CapacityError: no temporary file can be made.
    """

    def __init__(
        self,
        runner: LayerwiseRunner,
        types: Mapping[str, GgmlType],
        method: str,
        *,
        search: ScaleSearch,
        n_thread: int,
        folder: Path | None = None,
        on_warning: Warn | None = None,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(f"method {method!r}, expected one of {', '.join(METHODS)}")
        self._runner, self._types, self._method, self._search = runner, types, METHODS[method], search
        self._n_thread, self._on_warning = n_thread, on_warning
        self._file = _BlockFile(folder)
        self.tensors: dict[str, SourceTensor] = dict(runner.source.tensors)

    def run(self, chunks: Sequence[Sequence[int]]) -> None:
        """Quantise the model with the rows of some chunks of token ids.

        Raises:
            FormatError: an activation becomes infinite or NaN, or a weight is too large for its type.
            LlmrunError: what ``LayerwiseRunner.begin`` raises.
        """
        with ThreadPoolExecutor(self._n_thread) as pool:
            self._runner.begin(chunks)
            for layer in self._runner.layers():
                self._run_layer(layer, pool)
            self._runner.finish()
            self._run_rest(pool)

    def close(self) -> None:
        """Remove the temporary file; the tensors cannot be read any more."""
        self._file.close()

    def _run_layer(self, layer: Layer, pool: Executor) -> None:
        hessians = _gather(layer, pool)
        prefix = f"blk.{layer.index}."
        originals = {name: _read(t) for name, t in self._runner.source.tensors.items() if name.startswith(prefix)}
        values = dict(originals)
        if self._method.has_scales:
            self._scale(layer.index, values, {name: h for h in hessians for name in h.names})
        results: dict[str, F32] = {}
        for hessian in hessians:
            importance = hessian.diagonal.copy()
            names = [name for name in hessian.names if name in self._types]
            factored = self._factor(hessian, names, pool)
            for name in names:
                results[name] = self._quantize(name, values[name], importance, factored, pool)
        for name, value in values.items():
            if name not in results and value is not originals[name]:  # a scaled vector, or a matrix that stays
                self._keep(name, GgmlType.F32, value.reshape(-1, value.shape[-1]).view(np.uint8))
                results[name] = value
        layer.run(replaced=results)

    def _scale(self, index: int, values: dict[str, F32], hessians: Mapping[str, Hessian]) -> None:
        hp = self._runner.hparams
        shapes = {name: value.shape for name, value in values.items()}

        def quantized(name: str, rows: F32, importance: F32) -> F32:
            kind = self._types.get(name, GgmlType.F32)
            return dequantize(kind, quantize(rows, kind, importance, search=self._search))

        for fold in folds_of_layer(index, shapes, hp.n_head, hp.n_head_kv, hp.n_embd_head):
            hessian = hessians[fold.consumers[0]]
            scales = choose_scales(fold, values, hessian, quantized)
            if scales is not None:
                apply_scales(fold, scales, values, hessian)

    def _factor(self, hessian: Hessian, names: Sequence[str], pool: Executor) -> tuple[F32, F32] | None:
        if not self._method.has_feedback or not any(self._types[name] in HAS_FEEDBACK for name in names):
            return None
        factored = factor(hessian.sums, pool)
        if factored is None and self._on_warning:
            self._on_warning(f"{', '.join(names)}: inputs say too little for error feedback, quantised without it")
        return factored

    def _quantize(
        self, name: str, values: F32, importance: F32, factored: tuple[F32, F32] | None, pool: Executor
    ) -> F32:
        kind = self._types[name]
        if factored is not None and kind in HAS_FEEDBACK:
            blocks, _ = quantize_with_feedback(values, kind, factored, search=self._search, pool=pool)
        else:
            blocks = _quantize_rows(values, kind, importance, self._search, pool)
        self._keep(name, kind, blocks)
        return dequantize(kind, blocks)

    def _keep(self, name: str, kind: GgmlType, blocks: U8) -> None:
        raw = self._file.append(blocks)

        def rows(start: int, stop: int) -> F32:
            return dequantize(kind, raw()[start:stop])

        self.tensors[name] = replace(self.tensors[name], ggml_type=kind, rows=rows, raw=raw, release=None)

    def _run_rest(self, pool: Executor) -> None:
        """Quantise the output matrix with what it is multiplied with, and the embeddings."""
        source, hidden = self._runner.source, self._runner.hidden
        output = "output.weight" if "output.weight" in source.tensors else "token_embd.weight"
        sums = np.zeros(hidden.n_col)
        for start in range(0, hidden.n_row, PASS_ROWS):
            x = hidden.read(start, min(start + PASS_ROWS, hidden.n_row))
            sums += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        for name in dict.fromkeys((output, "token_embd.weight")):
            if name in self._types:
                importance = sums.astype(np.float32) if name == output else None
                self._stream(source.tensors[name], self._types[name], importance, pool)

    def _stream(self, tensor: SourceTensor, kind: GgmlType, importance: F32 | None, pool: Executor) -> None:
        blocks = np.empty((tensor.n_rows, row_bytes(kind, tensor.n_in)), np.uint8)
        for start in range(0, tensor.n_rows, ROW_STEP):
            values = tensor.read_rows(start, min(start + ROW_STEP, tensor.n_rows))
            blocks[start : start + len(values)] = _quantize_rows(values, kind, importance, self._search, pool)
        self._keep(tensor.name, kind, blocks)
        if tensor.release:
            tensor.release()


def _gather(layer: Layer, pool: Executor) -> list[Hessian]:
    """Return the second moments of each distinct input of a layer, finished."""
    found: dict[tuple[str, ...], Hessian] = {}

    def add(names: tuple[str, ...], x: NDArray[Any]) -> None:
        if names not in found:
            found[names] = Hessian(names, x.shape[1])
        found[names].add(x, pool)

    layer.run(on_input=add, advance=False)
    for hessian in found.values():
        hessian.finish()
    return list(found.values())


def _read(tensor: SourceTensor) -> F32:
    return tensor.read_rows(0, tensor.n_rows).reshape(tensor.shape)


def _quantize_rows(
    values: F32, kind: GgmlType, importance: F32 | None, search: ScaleSearch, pool: Executor, step: int = 256
) -> U8:
    """Quantise rows in pieces on several threads; a row's bytes do not depend on its piece."""
    jobs = [
        pool.submit(quantize, values[start : start + step], kind, importance, search=search)
        for start in range(0, len(values), step)
    ]
    return np.concatenate([job.result() for job in jobs])
