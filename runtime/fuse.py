"""Rewriting a program: activations quantised where weights are, then operations joined.

``prepare`` makes a model's program into what is run: ``select_early.py``, then both of these. ``lower`` makes it
runnable (quantised matrices get quantised activations); ``fuse`` joins neighbours so that fewer passes over memory and
fewer barriers are needed. Both forms give the same bits, by test. Model files never do any of this by hand.
"""

from __future__ import annotations

from collections import Counter

from ..formats.record import replace
from .program import Buffer, Op, Program
from .select_early import select_early

FLOAT_FORMATS = frozenset({"F16", "BF16", "F32"})


def prepare(program: Program, *, is_fused: bool = True) -> Program:
    """Return a model's program as it is run: on no more rows than needed, lowered, and fused if wanted."""
    lowered = lower(select_early(program))
    return fuse(lowered) if is_fused else lowered


def lower(program: Program) -> Program:
    """Insert a ``quantize`` before the first matmul that reads a buffer with quantised weights.

    The output matrix, whose error reaches the logits as it is, gets activations of twice the bits.
    """
    ops: list[Op] = []
    quantized: dict[Buffer, Buffer] = {}
    outputs = set(program.outputs.values())
    for op in program.ops:
        if op.kind == "matmul" and op.weights[0].packed not in FLOAT_FORMATS:
            x = op.reads[0]
            if x not in quantized:
                kind = "q8x2" if x.rows == "out" and op.writes[0] in outputs else "q8"
                quantized[x] = Buffer(f"{x.name}.{kind}", x.n_col, x.rows, kind)
                ops.append(Op("quantize", (x,), (quantized[x],)))
            op = Op(op.kind, (quantized[x],), op.writes, op.weights, op.attributes)
        ops.append(op)
        for written in op.writes:
            quantized.pop(written, None)
    return replace(program, ops=ops)


def fuse(program: Program) -> Program:
    """Return a lowered program with neighbours joined."""
    ops = list(program.ops)
    steps = (
        _norm_and_quantize, _matmul_and_bias, _gate_and_up, _matmul_and_residual, _rope_and_store, _result_and_quantize,
    )  # fmt: skip
    for step in steps:
        ops = step(ops, {*program.outputs.values(), *program.inputs})
    return replace(program, ops=ops)


def _readers(ops: list[Op]) -> Counter[Buffer]:
    return Counter(b for op in ops for b in op.reads)


def _writers(ops: list[Op]) -> dict[Buffer, int]:
    """Return the position of each buffer's last writer."""
    return {b: i for i, op in enumerate(ops) for b in op.writes}


def _is_private(buffer: Buffer, readers: Counter[Buffer], outputs: set[Buffer]) -> bool:
    return readers[buffer] == 1 and buffer not in outputs


def _are_unchanged(buffers: tuple[Buffer, ...], ops: list[Op]) -> bool:
    """Whether no operation writes any of the buffers: one that reads them may move past these."""
    return not any(b in op.writes for op in ops for b in buffers)


def _norm_and_quantize(ops: list[Op], outputs: set[Buffer]) -> list[Op]:
    readers, writers, result, dropped = _readers(ops), _writers(ops), list(ops), set()
    for i, op in enumerate(ops):
        if op.kind != "quantize" or not _is_private(op.reads[0], readers, outputs):
            continue
        at = writers[op.reads[0]]
        norm = ops[at]
        if norm.kind == "rms_norm" and norm.attributes["n_group"] == 1 and _are_unchanged(norm.reads, ops[at:i]):
            attributes = {"eps": norm.attributes["eps"]}
            result[i] = Op("norm_quantize", norm.reads, op.writes, norm.weights, attributes)
            dropped.add(at)
    return [op for i, op in enumerate(result) if i not in dropped]


def _matmul_and_bias(ops: list[Op], outputs: set[Buffer]) -> list[Op]:
    readers, writers, result, dropped = _readers(ops), _writers(ops), list(ops), set()
    for i, op in enumerate(ops):
        if op.kind != "add_bias" or not _is_private(op.reads[0], readers, outputs):
            continue
        at = writers[op.reads[0]]
        matmul = ops[at]
        if matmul.kind == "matmul":
            attributes = {**matmul.attributes, "bias": True}
            result[at] = Op("matmul", matmul.reads, op.writes, (*matmul.weights, *op.weights), attributes)
            dropped.add(i)
    return [op for i, op in enumerate(result) if i not in dropped]


def _gate_and_up(ops: list[Op], outputs: set[Buffer]) -> list[Op]:
    readers, writers, result, dropped = _readers(ops), _writers(ops), list(ops), set()
    for i, op in enumerate(ops):
        if op.kind != "glu" or not all(_is_private(b, readers, outputs) for b in op.reads):
            continue
        first, second = (writers[b] for b in op.reads)
        gate, up = ops[first], ops[second]
        if (
            gate.kind == up.kind == "matmul"
            and gate.reads == up.reads
            and not gate.attributes
            and not up.attributes
            and gate.weights[0].packed == up.weights[0].packed
            and _are_unchanged(gate.reads, ops[min(first, second) : i])
        ):
            result[i] = Op("matmul", gate.reads, op.writes, (gate.weights[0], up.weights[0]), dict(op.attributes))
            dropped |= {first, second}
    return [op for i, op in enumerate(result) if i not in dropped]


def _matmul_and_residual(ops: list[Op], outputs: set[Buffer]) -> list[Op]:
    readers, writers, result, dropped = _readers(ops), _writers(ops), list(ops), set()
    for i, op in enumerate(ops):
        if op.kind != "add":
            continue
        residual, y = op.reads
        if not _is_private(y, readers, outputs) or writers.get(residual, -1) > writers[y]:
            continue
        at = writers[y]
        matmul = ops[at]
        if matmul.kind == "matmul" and "activation" not in matmul.attributes:
            attributes = {**matmul.attributes, "residual": True}
            result[at] = Op("matmul", (*matmul.reads, residual), op.writes, matmul.weights, attributes)
            dropped.add(i)
    return [op for i, op in enumerate(result) if i not in dropped]


def _rope_and_store(ops: list[Op], _outputs: set[Buffer]) -> list[Op]:
    """Rotate keys where they are stored."""
    result, dropped = list(ops), set()
    for i, op in enumerate(ops):
        if op.kind != "kv_store":
            continue
        k, v = op.reads
        at = max(j for j in range(i) if k in ops[j].writes)
        rope = ops[at]
        if rope.kind == "rope" and not any(k in other.reads for other in ops[at + 1 : i]):
            attributes = {**op.attributes, "rope": rope.attributes["rope"]}
            result[i] = Op("kv_store", (k, v, rope.reads[1]), (k,), op.weights, attributes)
            dropped.add(at)
    return [op for i, op in enumerate(result) if i not in dropped]


def _result_and_quantize(ops: list[Op], outputs: set[Buffer]) -> list[Op]:
    """Quantise what attention and the gated matmul give while it is at hand; the f32 rows stay as scratch."""
    readers, writers, result, dropped = _readers(ops), _writers(ops), list(ops), set()
    for i, op in enumerate(ops):
        if op.kind != "quantize" or op.writes[0].kind != "q8" or not _is_private(op.reads[0], readers, outputs):
            continue
        at = writers[op.reads[0]]
        maker = ops[at]
        whole_heads = maker.kind == "attention" and maker.writes[0].n_col // maker.attributes["n_head"] % 32 == 0
        if whole_heads or (maker.kind == "matmul" and "activation" in maker.attributes):
            attributes = {**maker.attributes, "quantize": True}
            result[at] = Op(maker.kind, maker.reads, (*maker.writes, *op.writes), maker.weights, attributes)
            dropped.add(i)
    return [op for i, op in enumerate(result) if i not in dropped]
