"""What some of a model's layers are given, kept row by row: what heads that draft for the model look at.

A pass computes these rows in any case. Their buffers merely are not used again within it (outputs of the program), and
what lies in them afterwards is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .batch import Batch
from .executor.threaded import ThreadedExecutor
from .kv_cache import KvSequence
from .program import Buffer, Program

F32 = NDArray[np.float32]

N_ROW = 1024  # of a sequence, that are kept: the last ones


def layer_input(program: Program, layer: int) -> Buffer:
    """Return the buffer that a layer of a plain program is given; number ``n_layer``: what the final norm is given.

    Raises:
        ValueError: the layer does not begin with a norm of the residual stream, or the buffer is changed later.
    """
    prefix = f"blk.{layer}."
    index, op = next(
        (i, op)
        for i, op in enumerate(program.ops)
        if (op.kind == "select" if layer == program.n_layer else any(w.name.startswith(prefix) for w in op.weights))
    )
    buffer = op.reads[0]
    if op.kind not in ("rms_norm", "select") or any(buffer in o.writes for o in program.ops[index:]):
        raise ValueError(f"layer {layer} begins with {op}, expected a norm of rows that stay as they are")
    return buffer


class HiddenRows:
    """The last rows of one sequence.

    Attributes:
        start: first slot whose row is kept.
        stop: behind the last one. Rows of slots that were rolled back stay until others come in their place.
    """

    def __init__(self, n_col: int) -> None:
        self._rows = np.empty((N_ROW, n_col), np.float32)  # takes room only where it is written
        self.start = self.stop = 0

    def put(self, slot: int, parts: Sequence[F32]) -> None:
        """Keep the rows of consecutive slots, given as columns side by side: f32 [n, n_col of the part] each."""
        n = len(parts[0])
        places = np.arange(slot + max(0, n - N_ROW), slot + n) % N_ROW
        column = 0
        for part in parts:
            self._rows[places, column : column + part.shape[1]] = part[n - len(places) :]
            column += part.shape[1]
        if not self.start <= slot <= self.stop:  # rows between are not known
            self.start = slot
        self.stop = slot + n
        self.start = max(self.start, self.stop - N_ROW)

    def get(self, start: int, stop: int) -> F32:
        """Return a copy of the rows of some slots, all of them kept: f32 [n, n_col]."""
        if not self.start <= start <= stop <= self.stop:
            raise ValueError(f"rows {start} to {stop} wanted, {self.start} to {self.stop} are kept")
        rows: F32 = self._rows[np.arange(start, stop) % N_ROW]
        return rows


class HiddenStates:
    """Keeps what layers are given of the sequences that it follows.

    Args:
        program: of the model, as its file has it.
        layers: by number; their rows lie side by side, in this order.
    """

    def __init__(self, program: Program, layers: Sequence[int]) -> None:
        self.outputs = {f"input of layer {layer}": layer_input(program, layer) for layer in layers}
        self._names = [f"input of layer {layer}" for layer in layers]
        self._n_col = sum(self.outputs[name].n_col for name in self._names)
        self._followed: WeakKeyDictionary[KvSequence, HiddenRows] = WeakKeyDictionary()

    def follow(self, sequence: KvSequence) -> HiddenRows:
        """Return where a sequence's rows are kept, from now on."""
        if sequence not in self._followed:
            self._followed[sequence] = HiddenRows(self._n_col)
        return self._followed[sequence]

    def keep(self, executor: ThreadedExecutor, batch: Batch) -> None:
        """Keep the rows of a pass that the executor has just run."""
        parts = [executor.output(name, batch.n_tok) for name in self._names]
        for sequence, kept in self._followed.items():
            rows = np.flatnonzero(batch.rows[:, 1] == sequence.page_table.ctypes.data)
            if rows.size:
                kept.put(int(batch.rows[rows[0], 2]), [part[rows[0] : rows[-1] + 1] for part in parts])
