"""Quantise a model layer by layer with what its matrices are multiplied with: AWQ, GPTQ, or both.

Each layer sees the rows as the quantised layers before it left them. Its inputs' second moments are gathered, channels
are scaled (``quant/channel_scales.py``), matrices are quantised, with error feedback (``quant/feedback.py``) or
without, and the rows pass through the result. Only one layer is in memory; finished blocks go to a ``BlockStore``, and
a run that finds layers there already passes its rows through them and goes on. The result is a checkpoint whose tensors
have their final type already: it is written like any other (``calibrated_plan.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import CapacityError, ConfigError
from ..formats.ggml_types import GgmlType, row_bytes
from ..formats.record import Record, replace
from ..quant.channel_scales import apply_scales, choose_scales, folds_of_layer
from ..quant.checkpoint import SourceTensor
from ..quant.dequantize import dequantize
from ..quant.feedback import HAS_FEEDBACK, quantize_with_feedback
from ..quant.file_types import layer_of
from ..quant.floats import F32, U8
from ..quant.hessian import Hessian, factor
from ..quant.quantize import quantize
from ..quant.scale_search import ScaleSearch
from .block_store import BlockStore, KeptTensor
from .layerwise.runner import PASS_ROWS, Layer, LayerwiseRunner
from .memory import OVERHEAD_BYTES, available_bytes, gigabytes

Warn = Callable[[str], None]
Progress = Callable[[str, int, int], None]
ROW_STEP = 4096  # rows of a matrix outside of layers that are quantised at a time
REST_WORK = 1.0  # what is outside of layers, in layers: for the time left


class Method(Record):
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


class _Shares(Record):
    """How much of a layer's time each part takes, about: for the time left.

    In passes of the rows through a layer (SmolLM2-135M, 24 chunks of 512, 2-vCPU EPYC, 2026-11).
    """

    gather: float
    scale: float
    quantize: float
    advance: float

    @classmethod
    def of(cls, method: Method) -> _Shares:
        gather = 3.0 if method.has_scales or method.has_feedback else 1.1
        parts = (gather, 0.6 if method.has_scales else 0.0, 1.0 if method.has_feedback else 0.1, 1.0)
        return cls(*(part / sum(parts) for part in parts))


class CalibratedTensors:
    """The tensors of a model, quantised; ``tensors`` is complete after ``run``.

    Args:
        runner: the model; with float activations.
        types: what each matrix becomes, by name; a tensor that is not named stays as it is.
        method: a key of ``METHODS``.
        search: for scales.
        n_thread: threads.
        store: where finished tensors go; what an earlier run has left there is not made again.
        on_warning: called with a line where a matrix cannot be quantised as asked for and is quantised plainly.
        on_progress: called as (what, done, total).

    Raises:
        ConfigError: there is no such method.
        CapacityError: memory is too small for the second moments of the widest input.
    """

    def __init__(
        self,
        runner: LayerwiseRunner,
        types: Mapping[str, GgmlType],
        method: str,
        *,
        search: ScaleSearch,
        n_thread: int,
        store: BlockStore,
        on_warning: Warn | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(f"method {method!r}, expected one of {', '.join(METHODS)}")
        self._runner, self._types, self._method, self._search = runner, types, METHODS[method], search
        self._n_thread, self._on_warning, self._on_progress = n_thread, on_warning, on_progress
        self._store, self._shares = store, _Shares.of(self._method)
        # What is to be done, in layers: of those that an earlier run has finished, only the rows' way through.
        self._work = [self._shares.advance if self._kept(i) else 1.0 for i in range(runner.n_layer)] + [REST_WORK]
        self.tensors: dict[str, SourceTensor] = dict(runner.source.tensors)
        self._check_memory()

    def _check_memory(self) -> None:
        needed, free = peak_bytes(self.tensors, self._method) + OVERHEAD_BYTES, available_bytes()
        if needed > free:
            raise CapacityError(
                f"{self._runner.source.path}: this method needs {gigabytes(needed)}, {gigabytes(free)} free"
            )

    def run(self, chunks: Sequence[Sequence[int]]) -> None:
        """Quantise the model with the rows of some chunks of token ids.

        Raises:
            FormatError: an activation becomes infinite or NaN, or a weight is too large for its type.
            LlmrunError: what ``LayerwiseRunner.begin`` raises.
        """
        with _Threads(self._n_thread) as pool:
            self._runner.begin(chunks)
            for layer in self._runner.layers():
                if (kept := self._kept(layer.index)) is not None:
                    self._go_through(layer, kept)
                else:
                    self._run_layer(layer, pool)
                    self._store.commit(f"layer {layer.index}")
            self._runner.finish(lambda _: self._report(self._runner.n_layer, 0.0, "final norm"))
            if (kept := self._store.finished.get("rest")) is not None:
                for tensor in kept:
                    self._adopt(tensor)
            else:
                self._run_rest(pool)
                self._store.commit("rest")

    def _kept(self, index: int) -> list[KeptTensor] | None:
        """Return the tensors of a layer that an earlier run has finished."""
        return self._store.finished.get(f"layer {index}")

    def _report(self, index: int, share: float, what: str = "") -> None:
        """Say that ``share`` of a layer is done; ``index`` behind the last one: of what is outside of layers."""
        if self._on_progress:
            done = sum(self._work[:index]) + share * self._work[index]
            what = what or f"layer {index + 1} of {self._runner.n_layer}"
            self._on_progress(what, int(1000 * done), int(1000 * sum(self._work)))

    def _go_through(self, layer: Layer, kept: Sequence[KeptTensor]) -> None:
        """Pass the rows through a layer that an earlier run has finished."""
        values = {}
        for tensor in kept:
            self._adopt(tensor)
            values[tensor.name] = dequantize(tensor.ggml_type, tensor.raw()).reshape(self.tensors[tensor.name].shape)
        layer.run(replaced=values, on_rows=lambda share: self._report(layer.index, share))

    def _run_layer(self, layer: Layer, pool: Executor) -> None:
        shares = self._shares
        hessians = _gather(layer, pool, self._method, lambda share: self._report(layer.index, shares.gather * share))
        prefix = f"blk.{layer.index}."
        originals = {name: _read(t) for name, t in self._runner.source.tensors.items() if name.startswith(prefix)}
        values = dict(originals)
        if self._method.has_scales:
            by_name = {name: h for h in hessians for name in h.names}
            self._scale(
                layer.index,
                values,
                by_name,
                pool,
                lambda done: self._report(layer.index, shares.gather + shares.scale * done),
            )
        done, n_all = shares.gather + shares.scale, sum(v.size for v in values.values())
        results: dict[str, F32] = {}
        for hessian in hessians:
            importance = hessian.diagonal.copy()
            names = [name for name in hessian.names if name in self._types]
            factored = self._factor(hessian, names, pool)
            for name in names:
                results[name] = self._quantize(name, values[name], importance, factored, pool)
                done += shares.quantize * values[name].size / n_all
                self._report(layer.index, done)
        for name, value in values.items():
            if name not in results and value is not originals[name]:  # a scaled vector, or a matrix that stays
                self._keep(name, GgmlType.F32, value.reshape(-1, value.shape[-1]).view(np.uint8))
                results[name] = value
        layer.run(replaced=results, on_rows=lambda share: self._report(layer.index, 1 - shares.advance * (1 - share)))

    def _scale(
        self,
        index: int,
        values: dict[str, F32],
        hessians: Mapping[str, Hessian],
        pool: Executor,
        on_done: Callable[[float], None],
    ) -> None:
        hp = self._runner.hparams
        shapes = {name: value.shape for name, value in values.items()}

        def quantized(name: str, rows: F32, importance: F32) -> F32:
            kind = self._types.get(name, GgmlType.F32)
            return dequantize(kind, quantize(rows, kind, importance, search=self._search))

        folds = folds_of_layer(index, shapes, hp.n_head, hp.n_head_kv, hp.n_embd_head)
        for i, fold in enumerate(folds):
            hessian = hessians[fold.consumers[0]]
            scales = choose_scales(fold, values, hessian, quantized, pool)
            if scales is not None:
                apply_scales(fold, scales, values, hessian)
            on_done((i + 1) / len(folds))

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
        self._adopt(self._store.append(name, kind, blocks))

    def _adopt(self, kept: KeptTensor) -> None:
        kind, raw = kept.ggml_type, kept.raw

        def rows(start: int, stop: int) -> F32:
            return dequantize(kind, raw()[start:stop])

        self.tensors[kept.name] = replace(self.tensors[kept.name], ggml_type=kind, rows=rows, raw=raw, release=None)

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
            self._report(self._runner.n_layer, start / tensor.n_rows, tensor.name)
        self._keep(tensor.name, kind, blocks)
        if tensor.release:
            tensor.release()


def peak_bytes(tensors: Mapping[str, SourceTensor], method: Method) -> int:
    """Return about how much memory a method takes: a layer as floats, packed and scaled, and second moments."""
    layers: dict[int, int] = {}
    for tensor in tensors.values():
        layers[layer_of(tensor.name)] = layers.get(layer_of(tensor.name), 0) + 4 * tensor.n_weights
    layers.pop(-1, None)
    widest = max((t.n_in for t in tensors.values() if layer_of(t.name) >= 0), default=0)
    needs_moments = method.has_scales or method.has_feedback
    return 3 * max(layers.values(), default=0) + (2 * 4 * widest * widest if needs_moments else 0)


def _gather(layer: Layer, pool: Executor, method: Method, on_rows: Callable[[float], None]) -> list[Hessian]:
    """Return the second moments of each distinct input of a layer, finished."""
    found: dict[tuple[str, ...], Hessian] = {}
    is_whole = method.has_scales or method.has_feedback

    def add(names: tuple[str, ...], x: NDArray[Any]) -> None:
        if names not in found:
            found[names] = Hessian(names, x.shape[1], is_whole=is_whole)
        found[names].add(x, pool)

    layer.run(on_input=add, advance=False, on_rows=on_rows)
    for hessian in found.values():
        hessian.finish()
    return list(found.values())


class _Threads(ThreadPoolExecutor):
    """Threads; on the way out, work that has not begun is dropped."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


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
