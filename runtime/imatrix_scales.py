"""Channel scales chosen by an importance matrix alone: ``llmrun quantize --method awq --imatrix FILE``.

No text is run. The error of the outputs is taken as if columns of the input were independent, which is what an
importance matrix knows. Only some rows of each matrix are read here; the others are scaled while the file is written,
so that memory stays as small as without scales.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..formats.errors import ConfigError
from ..formats.meta_value import MetaValue
from ..formats.record import replace
from ..quant.channel_scales import SAMPLE_ROWS, Fold, choose_scales, folds_of_layer
from ..quant.checkpoint import SourceTensor
from ..quant.dequantize import dequantize
from ..quant.floats import F32
from ..quant.hessian import Hessian
from ..quant.quantize import quantize
from ..quant.quantize_plan import FLOATS, PlannedTensor, QuantizePlan
from ..quant.scale_search import ScaleSearch
from .layerwise.source import described
from .layerwise.weights import LayerWeights
from .models import build_model

Progress = Callable[[str, int, int], None]


def with_channel_scales(
    plan: QuantizePlan, *, search: ScaleSearch, n_thread: int, on_progress: Progress | None = None
) -> QuantizePlan:
    """Return a plan of a model that computes the same, whose channels are scaled so that its types lose less.

    Args:
        plan: with an importance matrix.
        search: for scales of blocks.
        n_thread: threads.
        on_progress: called as (what, done, total).

    Raises:
        ConfigError: the plan has no importance matrix.
        FormatError: the architecture is not known, the source cannot be read, or the importance matrix is another
            model's.
    """
    imatrix = plan.options.imatrix
    if imatrix is None:
        raise ConfigError("channels cannot be scaled without an importance matrix")
    with described(plan.checkpoint) as source:
        hp = build_model(source.metadata, LayerWeights(source, is_float=True, n_thread=n_thread), None).hparams
    planned = {t.source.name: t for t in plan.tensors}
    shapes = {name: t.source.shape for name, t in planned.items()}
    columns: dict[str, F32] = {}
    rows: dict[str, F32] = {}
    with ThreadPoolExecutor(n_thread) as pool:
        for layer in range(hp.n_layer):
            if on_progress:
                on_progress(f"layer {layer + 1} of {hp.n_layer}", layer, hp.n_layer)
            for fold in folds_of_layer(layer, shapes, hp.n_head, hp.n_head_kv, hp.n_embd_head):
                name = fold.consumers[0]
                importance = imatrix.importance(name, planned[name].source.n_in)
                if importance is None or not _is_free(fold, planned):
                    continue
                samples = {name: _sample(planned[name].source) for name in fold.consumers}

                def quantized(name: str, rows: F32, importance: F32) -> F32:
                    kind = planned[name].ggml_type
                    return dequantize(kind, quantize(rows, kind, importance, search=search))

                moments = Hessian.of_columns(fold.consumers, importance)
                scales = choose_scales(fold, samples, moments, quantized, pool)
                if scales is not None:
                    columns |= dict.fromkeys(fold.consumers, fold.spread(scales))
                    rows |= _of_rows(fold, scales, planned)
    tensors = [
        replace(t, source=_scaled(t.source, columns.get(t.source.name), rows.get(t.source.name))) for t in plan.tensors
    ]
    return replace(
        plan,
        options=replace(plan.options, imatrix=imatrix.of_divided_inputs(columns)),
        tensors=tensors,
        extra={**plan.extra, "llmrun.quantize.method": MetaValue.text("awq")},
    )


def _is_free(fold: Fold, planned: Mapping[str, PlannedTensor]) -> bool:
    """Return whether all matrices of a fold are quantised: floats and blocks that are copied stay as they are."""
    tensors = [planned[name] for name in (fold.producer, *fold.consumers)]
    return not any(t.is_copied or t.ggml_type in FLOATS for t in tensors if len(t.source.shape) > 1)


def _sample(tensor: SourceTensor) -> F32:
    step = max(1, tensor.n_rows // SAMPLE_ROWS)
    wanted = range(0, tensor.n_rows, step)[:SAMPLE_ROWS]
    sample = np.concatenate([tensor.read_rows(i, i + 1) for i in wanted])
    if tensor.release is not None:
        tensor.release()
    return sample


def _of_rows(fold: Fold, scales: F32, planned: Mapping[str, PlannedTensor]) -> dict[str, F32]:
    """Return what rows of the producer and its bias (of vectors: elements) are divided by, f32 [n] by name."""
    found = {}
    for name in {fold.producer, re.sub("weight$", "bias", fold.producer)} & planned.keys():
        shape = planned[name].source.shape
        found[name] = np.ones(shape[0], np.float32)
        found[name][fold.row_start : fold.row_start + len(scales)] = scales
    return found


def _scaled(tensor: SourceTensor, columns: F32 | None, divisors: F32 | None) -> SourceTensor:
    """Return a tensor whose columns are multiplied and whose rows are divided when they are read."""
    if columns is None and divisors is None:
        return tensor
    factors = np.ones(tensor.n_in, np.float32) if columns is None else columns

    def rows(start: int, stop: int) -> F32:
        values: F32 = tensor.read_rows(start, stop) * factors
        if divisors is not None:
            values /= divisors if len(tensor.shape) == 1 else divisors[start:stop, None]
        return values

    return replace(tensor, rows=rows, raw=None)
