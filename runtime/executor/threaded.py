"""The threaded executor: a program bound to memory as operation records, run by a team.

Binding happens once: buffers get their places in one arena, weights are packed, every operation becomes
a record of addresses and numbers. A pass then is one call into compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import ConfigError
from ...formats.ggml_types import BLOCK, GgmlType
from ..batch import Batch
from ..kernels.kernel_set import KernelSet
from ..kernels.layout import (
    BARRIER_WORD,
    BATCH_STOP,
    DEFAULT_KV_TYPE,
    MAX_EMBD_HEAD,
    MAX_SHARED,
    N_OUT,
    N_TOK,
    NEAR_ZEN,
    RECORD_WORDS,
    ROW_LANES,
    SEGMENT_PAGES,
    state_bytes,
)  # fmt: skip
from ..key_balance import factors_of, query_factors
from ..kv_cache import KvPages
from ..program import Buffer, Op, Program, Rope, Weight
from ..simd.isa import zen_generation
from ..weights import WeightSource
from .plan import RECORDS, plan, row_bytes
from .team import Team, aligned_array

ACTIVATIONS = {"silu": 1, "gelu": 2}
MANY_GROUPS = 16  # more than one in so many row groups are many
MIN_SHARERS = 4  # threads that there is room for at least


def kernel_of(op: Op, kv_type: str = DEFAULT_KV_TYPE) -> str:
    """Return the name of the kernel that runs an operation, with a KV cache of some type."""
    if op.kind == "embed":
        return f"embed_{op.weights[0].file_type.lower()}"
    if op.kind == "matmul":
        return f"matmul_{op.weights[0].packed.lower()}"
    if op.kind in ("kv_store", "attention"):
        return f"{op.kind}_{kv_type}"
    return "add" if op.kind == "add_bias" else op.kind


def kernels_of(program: Program, kv_type: str = DEFAULT_KV_TYPE) -> set[str]:
    """Return the names of all kernels that a program needs."""
    return {kernel_of(op, kv_type) for op in program.ops}


def f32_bits(value: float) -> int:
    """Return a number's f32 bits as an integer."""
    return int(np.float32(value).view(np.uint32))


class ThreadedExecutor:
    """Runs one program.

    Args:
        program: lowered, fused or not.
        weights: delivers what the program names.
        pages: the KV cache.
        kernels: loaded kernels (``kernels_of(program, pages.kv_type)``).
        team: the threads.
        n_tok: largest number of rows of a pass.
        n_out: largest number of outputs of a pass.
    """

    def __init__(
        self,
        program: Program,
        weights: WeightSource,
        pages: KvPages,
        kernels: KernelSet,
        team: Team,
        *,
        n_tok: int,
        n_out: int,
    ) -> None:
        self.program, self.n_tok, self.n_out = program, n_tok, n_out
        self._weights, self._pages, self._kernels, self._team = weights, pages, kernels, team
        self._plan = plan(program, n_tok, n_out)
        self._arena = aligned_array(self._plan.n_bytes // 8 + 8)
        self._keep: list[Any] = []
        self._vectors: dict[str, int] = {}
        n_state = 2 * max(MIN_SHARERS, team.n_thread if team else 0) * (pages.n_page // SEGMENT_PAGES + 1)
        self._states = np.empty(n_state * state_bytes(pages.n_embd_head) + 64, np.uint8)  # touched where it is used
        self._n_state = n_state
        self._counters = aligned_array(MAX_SHARED)
        self._embed = next((op for op in program.ops if op.kind == "embed"), None)
        self._n_op = len(program.ops)
        self._records = aligned_array(self._n_op * RECORD_WORDS).reshape(self._n_op, RECORD_WORDS)
        for record, op, has_barrier in zip(self._records, program.ops, self._plan.has_barrier, strict=True):
            words = BINDERS[op.kind](self, op)
            record[0] = kernels.address(kernel_of(op, pages.kv_type))
            rows = op.writes[0].rows if op.writes else "tok"
            record[1] = N_OUT if rows == "out" else N_TOK
            record[2 : 2 + len(words)] = words
            record[BARRIER_WORD] = has_barrier
        # Without wanted outputs the tail of the program has nothing to do.
        self._n_op_body = program.n_op_body

    def with_program(self, program: Program, n_row: int | None = None) -> ThreadedExecutor:
        """Return an executor of another form of the same program, what it needs is there; perhaps for fewer rows."""
        n_tok, n_out = (n if n_row is None else min(n, n_row) for n in (self.n_tok, self.n_out))
        return ThreadedExecutor(
            program, self._weights, self._pages, self._kernels, self._team, n_tok=n_tok, n_out=n_out
        )

    @property
    def weights(self) -> WeightSource:
        """What the program's weights are taken from."""
        return self._weights

    @property
    def arena_bytes(self) -> int:
        """Bytes of all intermediate results."""
        return self._plan.n_bytes

    @property
    def n_barrier(self) -> int:
        """Barriers of a pass."""
        return sum(map(bool, self._plan.has_barrier))

    def run(self, batch: Batch, *, is_long: bool = False, n_left_out: int = 0) -> None:
        """Run one pass, perhaps without the last operations; the outputs are then in ``output``."""
        if batch.n_tok > self.n_tok or batch.n_out > self.n_out:
            raise ValueError(f"batch of {batch.n_tok} rows, {batch.n_out} outputs; room for {self.n_tok}, {self.n_out}")
        if self._embed is not None:
            self._check_tokens(self._embed, batch)
        batch.record[BATCH_STOP // 8] = self._team.stop_address
        n_op = self._n_op - n_left_out if batch.n_out else self._n_op_body
        try:
            self._team.run(int(self._records.ctypes.data), n_op, int(batch.record.ctypes.data), is_long=is_long)
        except BaseException:
            self._counters[:] = 0  # a pass that is given up leaves parts of attention uncounted
            raise

    def run_row_groups(self, batch: Batch, groups: NDArray[np.int64]) -> None:
        """Run the last operation, a plain matmul, for some of its matrix's row groups alone, behind a pass.

        Each is a single thread's work; where they are many, all are run.
        """
        packed = self._weights.packed(self.program.ops[-1].weights[0])
        if len(groups) * MANY_GROUPS > packed.n_rowgroup:
            self._team.run(int(self._records[-1:].ctypes.data), 1, int(batch.record.ctypes.data))
            return
        records = aligned_array(len(groups) * RECORD_WORDS).reshape(len(groups), RECORD_WORDS)
        records[:] = self._records[-1]
        records[:, 2] = 1  # words as ``kernels/matmul.py`` has them
        for word, part in enumerate(packed.format.parts, 4):
            records[:, word] += groups * packed.parts[part.name].strides[0]
        records[:, 14] += groups * 4 * ROW_LANES
        records[:-1, BARRIER_WORD], records[-1, BARRIER_WORD] = 0, 1  # a pass ends for all at once
        self._team.run(int(records.ctypes.data), len(groups), int(batch.record.ctypes.data))

    def _check_tokens(self, embed: Op, batch: Batch) -> None:
        """Check the token ids, and put given vectors in place."""
        is_given, n_vocab = batch.token_ids < 0, embed.weights[0].n_out
        if batch.token_ids.max(initial=0) >= n_vocab or (batch.vectors is None and is_given.any()):
            raise ValueError(f"token ids of 0 to {n_vocab - 1} expected, got {batch.token_ids}")
        if batch.vectors is not None:
            self.view(embed.writes[0], batch.n_tok)[is_given] = batch.vectors[is_given]

    def output(self, name: str, n_row: int) -> NDArray[np.float32]:
        """Return a named output, a view that the next pass overwrites: [n_row, n_col]."""
        return self.view(self.program.outputs[name], n_row)

    def view(self, buffer: Buffer, n_row: int) -> NDArray[Any]:
        """Return rows of a buffer: f32 [n_row, n_col], or the raw bytes of records."""
        start, step = self._plan.offsets[buffer], row_bytes(buffer)
        raw: NDArray[Any] = self._arena.view(np.uint8)[start : start + n_row * step]
        if buffer.kind != "f32":
            return raw
        rows: NDArray[Any] = raw.view(np.float32).reshape(n_row, step // 4)
        return rows[:, : buffer.n_col]

    # ---- addresses --------------------------------------------------------------------------

    def at(self, buffer: Buffer) -> int:
        """Return the address of a buffer."""
        return int(self._arena.ctypes.data) + self._plan.offsets[buffer]

    def vector(self, weight: Weight) -> int:
        """Return the address of a weight vector."""
        if weight.name not in self._vectors:
            values = self._weights.values(weight)
            self._keep.append(values)
            self._vectors[weight.name] = int(values.ctypes.data)
        return self._vectors[weight.name]

    def table(self, weight: Weight) -> NDArray[np.uint8]:
        """Return a matrix as the file has it."""
        return self._weights.table(weight)

    def parts(self, weight: Weight) -> list[int]:
        """Return the addresses of a packed matrix's parts, four words."""
        packed = self._weights.packed(weight)
        self._keep.append(packed)
        addresses = [int(packed.parts[part.name].ctypes.data) for part in packed.format.parts]
        return [*addresses, 0, 0, 0][:4]

    def array(self, values: NDArray[Any]) -> int:
        """Keep an array and return its address."""
        self._keep.append(values)
        return int(values.ctypes.data)

    def page_addresses(self, layer: int) -> tuple[int, int, int]:
        """Return (keys, values, bytes from a page to the next) of a layer."""
        pages = self._pages
        return int(pages.keys[layer].ctypes.data), int(pages.values[layer].ctypes.data), pages.page_stride

    def factors(self, op: Op, n_embd_head: int) -> int:
        """Return the address of what ``kv_store`` multiplies keys by, or ``attention`` queries; 0 where nothing is."""
        if self._pages.kv_type == "f16":
            return 0
        factors = factors_of(op, self._weights, n_embd_head)
        return self.array(query_factors(factors) if op.kind == "attention" else factors)

    def shared_room(self) -> tuple[int, int, int, int]:
        """Return what attention shares its work through: room for states, their number and bytes, counters."""
        address = int(self._states.ctypes.data)
        return address + -address % 64, self._n_state, state_bytes(self._pages.n_embd_head), self.array(self._counters)


# ---- records: the words after the kernel's address and the row count, as each kernel lists them -----


def _bind_embed(e: ThreadedExecutor, op: Op) -> list[int]:
    w, y = op.weights[0], op.writes[0]
    table = e.table(w)
    n_block = w.n_in // BLOCK[GgmlType[w.file_type]][0]
    return [n_block, e.array(table), table.shape[1], e.at(y), row_bytes(y), w.n_in, row_bytes(y) // 4]


def _records(e: ThreadedExecutor, op: Op) -> int:
    """Return the address of the activation records that an operation writes beside its f32 rows, or 0."""
    return e.at(op.writes[1]) if op.attributes.get("quantize") else 0


def _bind_matmul(e: ThreadedExecutor, op: Op) -> list[int]:
    w, x, y = op.weights[0], op.reads[0], op.writes[0]
    is_float = x.kind == "f32"
    activation = ACTIVATIONS[op.attributes["activation"]] if "activation" in op.attributes else 0
    second = e.parts(op.weights[1]) if activation else [0, 0, 0, 0]
    bias = e.vector(op.weights[1]) if op.attributes.get("bias") else 0
    residual = e.at(op.reads[1]) if op.attributes.get("residual") else 0
    return [
        -(-w.n_out // 16), w.n_in if is_float else w.n_in // 32, *e.parts(w), *second,
        e.at(x), row_bytes(x), e.at(y), row_bytes(y), bias, residual, activation, _records(e, op),
        RECORDS.get(x.kind, 1), int(zen_generation() >= NEAR_ZEN),
    ]  # fmt: skip


def _bind_quantize(e: ThreadedExecutor, op: Op) -> list[int]:
    x, y = op.reads[0], op.writes[0]
    return [x.n_col // 32, e.at(x), row_bytes(x), e.at(y), RECORDS[y.kind]]


def _bind_norm_quantize(e: ThreadedExecutor, op: Op) -> list[int]:
    x = op.reads[0]
    return [*_bind_quantize(e, op), e.vector(op.weights[0]), f32_bits(op.attributes["eps"]), x.n_col]


def _bind_rms_norm(e: ThreadedExecutor, op: Op) -> list[int]:
    x, y, n_group = op.reads[0], op.writes[0], op.attributes["n_group"]
    weight, eps = e.vector(op.weights[0]), f32_bits(op.attributes["eps"])
    return [x.n_col // n_group, n_group, e.at(x), row_bytes(x), e.at(y), row_bytes(y), weight, eps]


def _bind_add(e: ThreadedExecutor, op: Op) -> list[int]:
    x, y = op.reads[0], op.writes[0]
    other = [e.vector(op.weights[0]), 0] if op.kind == "add_bias" else [e.at(op.reads[1]), row_bytes(op.reads[1])]
    return [x.n_col, e.at(x), row_bytes(x), *other, e.at(y), row_bytes(y)]


def _bind_concat(e: ThreadedExecutor, op: Op) -> list[int]:
    first, second, y = *op.reads, op.writes[0]
    parts = [word for x in (first, second) for word in (x.n_col, e.at(x), row_bytes(x))]
    return [*parts, e.at(y), row_bytes(y)]


def _bind_glu(e: ThreadedExecutor, op: Op) -> list[int]:
    gate, up, y = op.reads[0], op.reads[1], op.writes[0]
    return [
        gate.n_col, e.at(gate), row_bytes(gate), e.at(up), row_bytes(up), e.at(y), row_bytes(y),
        ACTIVATIONS[op.attributes["activation"]],
    ]  # fmt: skip


def _bind_in_place(e: ThreadedExecutor, op: Op) -> list[int]:
    x = op.reads[0]
    number = op.attributes["cap"] if op.kind == "softcap" else op.attributes["factor"]
    return [x.n_col, e.at(x), row_bytes(x), f32_bits(number)]


def _bind_select(e: ThreadedExecutor, op: Op) -> list[int]:
    x, y = op.reads[0], op.writes[0]
    return [x.n_col, e.at(x), row_bytes(x), e.at(y), row_bytes(y)]


def _bind_rope_table(e: ThreadedExecutor, op: Op) -> list[int]:
    rope: Rope = op.attributes["rope"]
    table = op.writes[0]
    factor = int(np.float64(rope.factor).view(np.int64))
    return [rope.n_pair, e.array(np.array(rope.frequencies, np.float64)), e.at(table), row_bytes(table), factor]


def _bind_rope(e: ThreadedExecutor, op: Op) -> list[int]:
    x, table = op.reads
    rope: Rope = op.attributes["rope"]
    n_head = op.attributes["n_head"]
    return [
        n_head, x.n_col // n_head, rope.n_pair, e.at(x), row_bytes(x), e.at(table), row_bytes(table), int(rope.is_neox),
    ]  # fmt: skip


def _bind_kv_store(e: ThreadedExecutor, op: Op) -> list[int]:
    k, v = op.reads[:2]
    n_head_kv = op.attributes["n_head_kv"]
    rotation = [0, 0, 0, 0]
    if "rope" in op.attributes:
        rope, table = op.attributes["rope"], op.reads[2]
        rotation = [rope.n_pair, e.at(table), row_bytes(table), int(rope.is_neox)]
    pages = e.page_addresses(op.attributes["layer"])
    n_embd_head = k.n_col // n_head_kv
    return [
        n_head_kv, n_embd_head, e.at(k), row_bytes(k), e.at(v), row_bytes(v), *pages, *rotation,
        e.factors(op, n_embd_head),
    ]  # fmt: skip


def _bind_attention(e: ThreadedExecutor, op: Op) -> list[int]:
    q, y, a = op.reads[0], op.writes[0], op.attributes
    n_embd_head = q.n_col // a["n_head"]
    if n_embd_head % 16 or n_embd_head > MAX_EMBD_HEAD:
        raise ConfigError(
            f"heads of {n_embd_head} columns are not supported: expected a multiple of 16, at most {MAX_EMBD_HEAD}"
        )
    return [
        a["n_head"], a["n_head_kv"], n_embd_head, e.at(q), row_bytes(q), e.at(y), row_bytes(y),
        *e.page_addresses(a["layer"]), f32_bits(a["scale"]), f32_bits(a["softcap"]), a["window"],
        _records(e, op), *e.shared_room(), e.factors(op, n_embd_head),
    ]  # fmt: skip


BINDERS: dict[str, Callable[[ThreadedExecutor, Op], list[int]]] = {
    "embed": _bind_embed,
    "matmul": _bind_matmul,
    "quantize": _bind_quantize,
    "norm_quantize": _bind_norm_quantize,
    "rms_norm": _bind_rms_norm,
    "add": _bind_add,
    "add_bias": _bind_add,
    "concat": _bind_concat,
    "glu": _bind_glu,
    "softcap": _bind_in_place,
    "scale": _bind_in_place,
    "select": _bind_select,
    "rope_table": _bind_rope_table,
    "rope": _bind_rope,
    "kv_store": _bind_kv_store,
    "attention": _bind_attention,
}
