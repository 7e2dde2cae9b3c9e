"""A forward pass as data: operations over named buffers and weights.

A model appends plain operations with ``ProgramBuilder``; ``fuse.py`` rewrites them; ``executor/``
runs them. Nothing here computes.

Buffers are rows of f32, one row per token of the pass (``rows="tok"``) or per wanted output
(``rows="out"``). Operations say what they read and write; an operation that changes a buffer in place
lists it as both.
"""

from __future__ import annotations

from typing import Any

from ..formats.record import Record, field


class Buffer(Record, eq=False):
    """Rows of one intermediate result. Identity, not name, is what makes two buffers the same."""

    name: str
    n_col: int
    rows: str = "tok"  # "tok" or "out"
    kind: str = "f32"  # "f32", "q8" (activation records), "q8x2" (two of each) or "rope" (cosines and sines)


class Weight(Record):
    """A tensor of the file, or some of its rows: a matrix ``[n_out, n_in]``, or a vector ``[n_in]`` (``n_out`` 0)."""

    name: str
    n_out: int
    n_in: int
    packed: str  # packed format of a matrix ("Q4_K"), "F32" for a vector
    row_start: int = 0  # first row of the tensor
    source: str = ""  # GGML type in the file, where it is not ``packed``

    @property
    def file_type(self) -> str:
        """GGML type of the tensor in the file."""
        return self.source or self.packed


class Rope(Record, kw_only=True):
    """One way of rotating: pairs, their frequencies (radians per position), attention factor, pairing."""

    n_pair: int
    frequencies: tuple[float, ...]
    factor: float = 1.0
    is_neox: bool = False

    def pairs(self) -> tuple[slice, slice]:
        """Return the columns of a head that come first in a pair, and those that come second."""
        if self.is_neox:
            return slice(0, self.n_pair), slice(self.n_pair, 2 * self.n_pair)
        return slice(0, 2 * self.n_pair, 2), slice(1, 2 * self.n_pair, 2)


class Biases(Record):
    """What was added to all keys and queries of a layer before they were rotated; says which columns are large."""

    k: Weight
    q: Weight
    rope: Rope

    @property
    def weights(self) -> tuple[Weight, Weight]:
        """The weights of an operation that looks at them."""
        return self.k, self.q


class Op(Record, frozen=False, eq=False):
    """One operation; ``attributes`` hold plain numbers that the kernels need."""

    kind: str
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    weights: tuple[Weight, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the operation as one readable line."""
        words = [f"%{b.name}" for b in self.reads] + [f"@{w.name}:{w.packed}" for w in self.weights]
        words += [
            f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in self.attributes.items()
            if not isinstance(v, Rope)
        ]
        target = ", ".join(f"%{b.name}[{b.rows} x {b.n_col} {b.kind}]" for b in self.writes)
        return f"{target + ' = ' if target else ''}{self.kind}({', '.join(words)})"


class Program(Record, frozen=False):
    """Operations in order, the named outputs, and buffers that the caller fills before a pass (parts of a model)."""

    ops: list[Op]
    outputs: dict[str, Buffer]
    n_layer: int
    inputs: tuple[Buffer, ...] = ()

    def __str__(self) -> str:
        """Return the listing that ``llmrun inspect --program`` prints."""
        lines = [f"{i:4d}  {op}" for i, op in enumerate(self.ops)]
        return "\n".join([*lines, *(f"output {name} = %{b.name}" for name, b in self.outputs.items())])

    @property
    def n_op_body(self) -> int:
        """Operations in front of the first that works on wanted outputs alone: all that a pass without outputs runs."""
        return next((i for i, op in enumerate(self.ops) if any(b.rows == "out" for b in op.writes)), len(self.ops))

    def buffers(self) -> list[Buffer]:
        """Return every buffer once, in the order of first use."""
        return list(dict.fromkeys(b for op in self.ops for b in (*op.reads, *op.writes)))

    def weights(self) -> list[Weight]:
        """Return every weight once, in the order of first use."""
        return list(dict.fromkeys(w for op in self.ops for w in op.weights))


class ProgramBuilder:
    """What a model's forward pass is written with; every method appends one plain operation."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.outputs: dict[str, Buffer] = {}
        self.inputs: list[Buffer] = []
        self._n_buffer: dict[str, int] = {}
        self._tables: dict[Rope, Buffer] = {}

    def build(self, n_layer: int) -> Program:
        """Return the finished program."""
        return Program(self.ops, self.outputs, n_layer, tuple(self.inputs))

    def _new(self, name: str, n_col: int, like: Buffer | None = None, kind: str = "f32") -> Buffer:
        n = self._n_buffer[name] = self._n_buffer.get(name, -1) + 1
        return Buffer(f"{name}.{n}" if n else name, n_col, like.rows if like else "tok", kind)

    def _append(
        self, kind: str, reads: tuple[Buffer, ...], write: Buffer, *weights: Weight, **attributes: Any
    ) -> Buffer:
        self.ops.append(Op(kind, reads, (write,), weights, attributes))
        return write

    def embed(self, w: Weight, scale: float = 1.0) -> Buffer:
        """Look up the rows' token ids, or take their given vectors: [n_tok, n_embd]."""
        x = self._append("embed", (), self._new("x", w.n_in), w)
        return x if scale == 1.0 else self.scale(x, scale)

    def scale(self, x: Buffer, factor: float) -> Buffer:
        """Multiply in place."""
        return self._append("scale", (x,), x, factor=factor)

    def rms_norm(self, x: Buffer, w: Weight, eps: float, n_group: int = 1) -> Buffer:
        """Normalise each of ``n_group`` equal parts of a row by its root mean square, times the weight."""
        return self._append("rms_norm", (x,), self._new("norm", x.n_col, x), w, eps=eps, n_group=n_group)

    def matmul(self, x: Buffer, w: Weight, bias: Weight | None = None) -> Buffer:
        """Return ``x @ w.T (+ bias)``: [n_tok, n_out]."""
        y = self._append("matmul", (x,), self._new(short_name(w), w.n_out, x), w)
        if bias is None:
            return y
        return self._append("add_bias", (y,), self._new(short_name(bias), w.n_out, y), bias)

    def add(self, x: Buffer, y: Buffer) -> Buffer:
        """Return ``x + y``."""
        return self._append("add", (x, y), self._new("x", x.n_col, x))

    def concat(self, x: Buffer, y: Buffer) -> Buffer:
        """Return the rows of ``x`` and ``y`` side by side; ``x`` has a multiple of 16 columns."""
        if x.n_col % 16:
            raise ValueError(f"a row of {x.n_col} columns cannot come first, expected a multiple of 16")
        return self._append("concat", (x, y), self._new("concat", x.n_col + y.n_col, x))

    def glu(self, gate: Buffer, up: Buffer, activation: str) -> Buffer:
        """Return ``activation(gate) * up``; the activation is "silu" or "gelu"."""
        return self._append("glu", (gate, up), self._new("ffn", gate.n_col, gate), activation=activation)

    def rope(self, x: Buffer, n_head: int, rope: Rope) -> Buffer:
        """Rotate each head in place."""
        if rope not in self._tables:
            table = self._new("rope_table", 2 * rope.n_pair, kind="rope")
            self._tables[rope] = self._append("rope_table", (), table, rope=rope)
        return self._append("rope", (x, self._tables[rope]), x, n_head=n_head, rope=rope)

    def kv_append(self, layer: int, k: Buffer, v: Buffer, n_head_kv: int, biases: Biases | None = None) -> None:
        """Keep keys and values of every row in its slot; before attention: a token attends to itself."""
        weights, attributes = _of_biases(biases)
        self.ops.append(Op("kv_store", (k, v), (), weights, {"layer": layer, "n_head_kv": n_head_kv, **attributes}))

    def attention(
        self, layer: int, q: Buffer, n_head: int, n_head_kv: int, scale: float, *, softcap: float = 0.0,
        window: int = 0, biases: Biases | None = None,
    ) -> Buffer:  # fmt: skip
        """Return attention over the visible slots: [n_tok, n_head * n_embd_head]; ``biases`` as for ``kv_append``."""
        weights, attributes = _of_biases(biases)
        return self._append(
            "attention", (q,), self._new("attn", q.n_col), *weights, layer=layer, n_head=n_head, n_head_kv=n_head_kv,
            scale=scale, softcap=softcap, window=window, **attributes,
        )  # fmt: skip

    def select(self, x: Buffer) -> Buffer:
        """Keep the rows whose outputs are wanted: [n_out, n_col]."""
        return self._append("select", (x,), Buffer("x_out", x.n_col, "out"))

    def softcap(self, x: Buffer, cap: float) -> Buffer:
        """Return ``cap * tanh(x / cap)``, in place."""
        return self._append("softcap", (x,), x, cap=cap)

    def input(self, name: str, n_col: int) -> Buffer:
        """Return rows that the caller fills before a pass: [n_tok, n_col]."""
        self.inputs.append(self._new(name, n_col))
        return self.inputs[-1]

    def output(self, name: str, x: Buffer) -> None:
        """Name a buffer that the caller reads after the pass."""
        self.outputs[name] = x


def _of_biases(biases: Biases | None) -> tuple[tuple[Weight, ...], dict[str, Any]]:
    """Return weights and attributes of an operation: ``pairs`` is the rotation that follows."""
    return ((), {}) if biases is None else (biases.weights, {"pairs": biases.rope})


def short_name(w: Weight) -> str:
    """Return a buffer name for a weight: ``blk.3.attn_q.weight`` -> ``attn_q``."""
    parts = w.name.removesuffix(".weight").split(".")
    return parts[-1] if parts[-1] != "bias" else f"{parts[-2]}_bias"
