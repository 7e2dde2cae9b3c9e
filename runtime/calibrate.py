"""Measure the importance matrix of a model on a text, as ``llama-imatrix`` does.

Every chunk is a sequence of its own; all of its rows count. With float activations, and with matrices as the file
has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.imatrix import Imatrix
from .layerwise.runner import PASS_ROWS, LayerwiseRunner

OUTPUT = "output.weight"


def measure_imatrix(
    runner: LayerwiseRunner, chunks: Sequence[Sequence[int]], *, dataset: str = "", has_output: bool = False
) -> Imatrix:
    """Return the importance of the input columns of every matrix.

    Args:
        runner: the model.
        chunks: token ids that the model is fed with (BOS put in), all of one length.
        dataset: name of the text, kept in the result.
        has_output: measure the output matrix too.

    Raises:
        FormatError: an activation is infinite or NaN.
        LlmrunError: what ``LayerwiseRunner`` raises.
    """
    result = Imatrix(chunk_size=len(chunks[0]), datasets=[dataset] if dataset else [])

    def collect(names: tuple[str, ...], x: NDArray[Any]) -> None:
        sums = np.einsum("ij,ij->j", x, x, dtype=np.float64)
        for name in names:
            result.add_sums(name, sums, len(x))

    runner.begin(chunks)
    for layer in runner.layers():
        layer.run(on_input=collect)
    if has_output:
        runner.finish()
        for start in range(0, runner.hidden.n_row, PASS_ROWS):
            collect((OUTPUT,), runner.hidden.read(start, min(start + PASS_ROWS, runner.hidden.n_row)))
    return result
