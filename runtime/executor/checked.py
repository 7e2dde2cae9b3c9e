"""The checked interpreter: runs a program with the NumPy twins, one operation at a time.

It is the reference for the threaded executor, which must give the same bits in every buffer. With
``is_exact`` false activations stay f32 in front of quantised weights: the model as its file describes
it, without the error of int8 activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...quant.unpack import unpack
from ..batch import Batch
from ..kernels import reference as twin
from ..kernels.layout import DEFAULT_KV_TYPE, PAGE_SLOTS
from ..key_balance import factors_of
from ..program import Buffer, Op, Program, Rope
from ..weights import WeightSource, look_up
from .plan import RECORDS

F32 = NDArray[np.float32]


class CheckedExecutor:
    """Runs one program for one sequence at a time, keeping its keys and values as plain arrays.

    Args:
        program: lowered, fused or not.
        weights: delivers what the program names.
        n_slot: slots of the sequence.
        is_exact: quantise activations as the kernels do.
        kv_type: how keys and values are kept.
    """

    def __init__(
        self,
        program: Program,
        weights: WeightSource,
        n_slot: int,
        *,
        is_exact: bool = True,
        kv_type: str = DEFAULT_KV_TYPE,
    ) -> None:
        self.program, self._weights, self._is_exact, self._kv_type = program, weights, is_exact, kv_type
        self.buffers: dict[Buffer, Any] = {}
        self._n_slot = n_slot
        self._keys: dict[int, F32] = {}
        self._values: dict[int, F32] = {}
        self._batch: Batch

    def run(self, batch: Batch) -> None:
        """Run one pass; ``buffers`` then holds every buffer's value, ``output`` the named ones."""
        self._batch = batch
        self.buffers.clear()
        for op in self.program.ops if batch.n_out else self.program.ops[: self.program.n_op_body]:
            self._run_op(op)

    def _run_op(self, op: Op) -> None:
        result = RULES[op.kind](self, op)
        for buffer in op.writes:
            self.buffers[buffer] = self._quantized(result, buffer) if buffer.kind in RECORDS else result

    def _numbers(self, op: Op) -> Any:
        """Return the numbers of the batch's rows that an operation works on."""
        return self._batch.out_rows if op.writes[0].rows == "out" else np.arange(self._batch.n_tok)

    def output(self, name: str) -> F32:
        """Return a named output: [n_out, n_col]."""
        result: F32 = self.buffers[self.program.outputs[name]]
        return result

    # ---- one method per kind of operation ----------------------------------------------------

    def embed(self, op: Op) -> F32:
        """Look up token embeddings, or take given vectors."""
        ids, vectors = self._batch.token_ids, self._batch.vectors
        result = look_up(self._weights, op.weights[0], np.maximum(ids, 0))
        return result if vectors is None else np.where(ids[:, None] < 0, vectors, result)

    def scale(self, op: Op) -> F32:
        """Multiply by a number."""
        result: F32 = np.float32(op.attributes["factor"]) * self.buffers[op.reads[0]]
        return result

    def rms_norm(self, op: Op) -> F32:
        """Normalise groups of columns."""
        x = self.buffers[op.reads[0]]
        groups = x.reshape(len(x), op.attributes["n_group"], -1)
        return twin.rms_norm(groups, self._weights.values(op.weights[0]), op.attributes["eps"]).reshape(x.shape)

    def quantize(self, op: Op) -> F32:
        """Turn rows into int8 activations: ``_run_op`` does, as the buffer says."""
        result: F32 = self.buffers[op.reads[0]]
        return result

    def _quantized(self, x: F32, buffer: Buffer) -> _Rows:
        if not self._is_exact:
            return _Rows(x, ())
        first = twin.quantize(x)
        return _Rows(x, (first,) if RECORDS[buffer.kind] == 1 else (first, twin.quantize(twin.rest(x, first))))

    def norm_quantize(self, op: Op) -> F32:
        """Normalise and quantise."""
        weight = self._weights.values(op.weights[0])
        return twin.rms_norm(self.buffers[op.reads[0]], weight, op.attributes["eps"])

    def matmul(self, op: Op) -> F32:
        """Multiply by a matrix, with the epilogues that fusion put there."""
        y = self._product(op, 0)
        if "activation" in op.attributes:
            y = twin.ACTIVATIONS[op.attributes["activation"]](y) * self._product(op, 1)
        if op.attributes.get("bias"):
            y = y + self._weights.values(op.weights[1])[: y.shape[1]]
        if op.attributes.get("residual"):
            y = self.buffers[op.reads[1]] + y
        return y

    def _product(self, op: Op, index: int) -> F32:
        packed, x = self._weights.packed(op.weights[index]), self.buffers[op.reads[0]]
        if not isinstance(x, _Rows):
            return twin.matmul(packed, x)
        if not x.quantized:
            result: F32 = (x.values.astype(np.float64) @ unpack(packed).T.astype(np.float64)).astype(np.float32)
            return result
        y, *rest = (twin.matmul(packed, part) for part in x.quantized)
        return y + rest[0] if rest else y

    def add(self, op: Op) -> F32:
        """Add two buffers."""
        result: F32 = self.buffers[op.reads[0]] + self.buffers[op.reads[1]]
        return result

    def concat(self, op: Op) -> F32:
        """Put the rows of two buffers side by side."""
        return np.concatenate([self.buffers[b] for b in op.reads], axis=1)

    def add_bias(self, op: Op) -> F32:
        """Add a vector to every row."""
        x = self.buffers[op.reads[0]]
        result: F32 = x + self._weights.values(op.weights[0])[: x.shape[1]]
        return result

    def glu(self, op: Op) -> F32:
        """Return activation(gate) * up."""
        gate, up = (self.buffers[b] for b in op.reads)
        result: F32 = twin.ACTIVATIONS[op.attributes["activation"]](gate) * up
        return result

    def softcap(self, op: Op) -> F32:
        """Return cap * tanh(x / cap)."""
        return twin.softcap(self.buffers[op.reads[0]], op.attributes["cap"])

    def select(self, op: Op) -> F32:
        """Keep the rows whose outputs are wanted."""
        result: F32 = self.buffers[op.reads[0]][self._batch.out_rows]
        return result

    def rope_table(self, op: Op) -> Any:
        """Return cosines and sines of every row's position, side by side."""
        rope: Rope = op.attributes["rope"]
        tables = twin.rope_table(self._batch.rows[self._numbers(op), 3], np.array(rope.frequencies), rope.factor)
        return np.concatenate(tables, axis=1)

    def rope(self, op: Op) -> F32:
        """Rotate every head."""
        x, table = (self.buffers[b] for b in op.reads)
        rope: Rope = op.attributes["rope"]
        heads = x.reshape(len(x), op.attributes["n_head"], -1)
        cosines, sines = table[:, : rope.n_pair], table[:, rope.n_pair :]
        return twin.rope(heads, cosines, sines, is_neox=rope.is_neox).reshape(x.shape)

    def kv_store(self, op: Op) -> F32:
        """Keep keys (rotated first where fusion put that here) and values; they are rounded where they are read."""
        layer = op.attributes["layer"]
        if "rope" in op.attributes:
            rotation = {"rope": op.attributes["rope"], "n_head": op.attributes["n_head_kv"]}
            rope = Op("rope", (op.reads[0], op.reads[2]), (op.reads[0],), (), rotation)
            self.buffers[op.reads[0]] = self.rope(rope)
        for store, buffer in ((self._keys, op.reads[0]), (self._values, op.reads[1])):
            x = self.buffers[buffer]
            if layer not in store:
                store[layer] = np.zeros((self._n_slot, x.shape[1]), np.float32)
            store[layer][self._batch.rows[:, 2]] = x
        keys: F32 = self.buffers[op.reads[0]]
        return keys

    def attention(self, op: Op) -> F32:
        """Attend row by row, key head by key head."""
        a, q = op.attributes, self.buffers[op.reads[0]]
        n_head, n_head_kv = a["n_head"], a["n_head_kv"]
        heads = q.reshape(len(q), n_head_kv, n_head // n_head_kv, -1)
        result = np.empty_like(heads)
        factors = factors_of(op, self._weights, heads.shape[3])
        for i, number in enumerate(self._numbers(op)):
            row = self._batch.rows[number]
            slots = np.arange(row[5])
            if row[7]:
                slots = np.concatenate([slots, self._batch.ancestors(number)])
            start = max(int(row[4]), len(slots) - a["window"]) if a["window"] else int(row[4])
            for h in range(n_head_kv):
                columns = slice(h * heads.shape[3], (h + 1) * heads.shape[3])
                keys = twin.kept(self._keys[a["layer"]][slots, columns], self._kv_type, is_key=True, factors=factors[h])
                values = twin.kept(self._values[a["layer"]][slots, columns], self._kv_type, is_key=False)
                result[i, h] = twin.attention_row(
                    heads[i, h], keys, values, start, a["scale"], softcap_=a["softcap"], factors=factors[h]
                )
        rows: F32 = result.reshape(q.shape)
        return rows


class _Rows:
    """The value of a quantised buffer: the rows, and their quantised parts, none where activations stay f32."""

    def __init__(self, values: F32, quantized: tuple[twin.Activations, ...]) -> None:
        self.values, self.quantized = values, quantized
        self.shape = values.shape


RULES: dict[str, Callable[[CheckedExecutor, Op], Any]] = {
    kind: getattr(CheckedExecutor, kind)
    for kind in (
        "embed", "scale", "rms_norm", "quantize", "norm_quantize", "matmul", "add", "add_bias", "concat", "glu",
        "softcap", "select", "rope_table", "rope", "kv_store", "attention",
    )
}  # fmt: skip
assert PAGE_SLOTS == twin.PAGE_SLOTS
