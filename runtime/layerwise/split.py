"""Cut a program into segments that hand over one buffer of rows: embedding, layers, final norm, logits.

A layer starts at the first operation with a weight ``blk.N.…``; the tail starts at ``select``. Between two segments
only one buffer may live (the residual stream); tables of rotations are made again wherever they are read.
"""

from __future__ import annotations

import re

from ...formats.record import Record, replace
from ..program import Buffer, Op, Program

_LAYER = re.compile(r"blk\.(\d+)\.")
CAPTURED = "input {}"  # name of an output that a matmul reads


class Segment(Record):
    """A part of a program that runs by itself.

    Attributes:
        name: "embedding", "layer 3", "norm", "logits".
        ops: plain operations; those on the KV cache use layer 0 of a cache that is this segment's.
        input: rows that the segment before left; None for the embedding.
        output: rows that it leaves.
    """

    name: str
    ops: tuple[Op, ...]
    input: Buffer | None
    output: Buffer

    def program(self, *, has_captures: bool = False) -> Program:
        """Return it as a program with output "y"; with captures, every matmul's input is an output too."""
        outputs = {"y": self.output}
        if has_captures:
            outputs |= {CAPTURED.format(i): buffer for i, buffer in enumerate(self.matmul_inputs())}
        return Program(list(self.ops), outputs, 1, () if self.input is None else (self.input,))

    def matmul_inputs(self) -> dict[Buffer, tuple[str, ...]]:
        """Return what matrices are multiplied with, and the names of the tensors that are, in program order."""
        found: dict[Buffer, tuple[str, ...]] = {}
        for op in self.ops:
            if op.kind == "matmul":
                name, names = op.weights[0].name, found.get(op.reads[0], ())
                found[op.reads[0]] = names if name in names else (*names, name)
        return found


def split(program: Program) -> list[Segment]:
    """Return the segments of a plain program (neither lowered nor fused): embedding, each layer, norm, logits.

    Raises:
        ValueError: more than one buffer lives between two segments (a bug of the model file or of this rule).
    """
    groups: dict[str, list[Op]] = {"embedding": []}
    tables = {op.writes[0]: op for op in program.ops if op.kind == "rope_table"}
    current = "embedding"
    for op in program.ops:
        layer = next((m[1] for w in op.weights if (m := _LAYER.match(w.name))), None)
        if op.kind == "select":
            current = "norm"
        elif current == "norm" and op.kind == "matmul":
            current = "logits"
        elif layer is not None:
            current = f"layer {layer}"
        if op.kind != "rope_table":
            groups.setdefault(current, []).append(_on_layer_0(op))
    return [_segment(name, ops, tables, program) for name, ops in groups.items()]


def _on_layer_0(op: Op) -> Op:
    return replace(op, attributes={**op.attributes, "layer": 0}) if "layer" in op.attributes else op


def _segment(name: str, ops: list[Op], tables: dict[Buffer, Op], program: Program) -> Segment:
    reads = dict.fromkeys(b for op in ops for b in op.reads)
    needed = [table for buffer, table in tables.items() if buffer in reads]
    written: set[Buffer] = set()
    inputs: dict[Buffer, None] = {}
    for op in ops:
        inputs |= dict.fromkeys(b for b in op.reads if b not in written and b not in tables)
        written.update(op.writes)
    if len(inputs) > 1:
        raise ValueError(f"{name} reads {[b.name for b in inputs]} of what came before, expected one buffer")
    output = program.outputs["logits"] if name == "logits" else ops[-1].writes[0]
    return Segment(name, (*needed, *ops), next(iter(inputs), None), output)


def rows_of_output(segment: Segment, start: int, stop: int) -> Segment:
    """Return the last segment for a range of the vocabulary."""
    ops, output = [], segment.output
    renamed: dict[Buffer, Buffer] = {}
    for op in segment.ops:
        reads = tuple(renamed.get(b, b) for b in op.reads)
        if op.kind == "matmul":
            w = op.weights[0]
            output = renamed[op.writes[0]] = replace(op.writes[0], n_col=stop - start)
            op = replace(op, weights=(replace(w, n_out=stop - start, row_start=w.row_start + start),))
        ops.append(replace(op, reads=reads, writes=tuple(renamed.get(b, b) for b in op.writes)))
    return replace(segment, ops=tuple(ops), output=output)
