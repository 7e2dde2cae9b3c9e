"""Rewriting a program: keys and values of a text that is only read, without the upper layers.

Of tokens whose logits nobody wants, a pass leaves keys and values behind. Those of the upper layers are made of what
the lower ones give, as if the upper ones added nothing. They are not a model's own, but near: a draft model, which may
be wrong, reads a text so in two thirds of the time (bench/LOG.md). Source of the idea: SwiftKV, Qiao et al., arXiv
2410.03960, where models are trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..formats.record import replace
from .program import Buffer, Op, Program


def skim(program: Program, n_whole: int) -> Program:
    """Return a plain program without outputs that stores keys and values of all layers.

    Args:
        program: plain (neither lowered nor fused), of layers that add to what passes through them.
        n_whole: layers that are run whole, fewer than all.
    """
    ops = program.ops
    stores = {op.attributes["layer"]: i for i, op in enumerate(ops) if op.kind == "kv_store"}
    x = _entering(ops, stores[n_whole])
    kept = ops[: 1 + max(i for i in range(stores[n_whole]) if x in ops[i].writes)]
    are_there = set(map(id, kept))
    for layer in range(n_whole, program.n_layer):
        entering = _entering(ops, stores[layer])
        for op in _leading_to(ops, stores[layer], entering):
            if id(op) not in are_there:  # layers share tables of rotations
                are_there.add(id(op))
                kept.append(replace(op, reads=tuple(x if b is entering else b for b in op.reads)))
    return replace(program, ops=kept, outputs={})


def _entering(ops: Sequence[Op], store: int) -> Buffer:
    """Return what passes by a layer's attention, which is added to it, by where the layer's keys are stored."""
    return next(op for op in ops[store:] if op.kind == "add").reads[0]


def _leading_to(ops: Sequence[Op], at: int, start: Buffer) -> list[Op]:
    """Return an operation and all before it that what it reads depends on, except what ``start`` depends on."""
    found, wanted = [ops[at]], set(ops[at].reads)
    for op in reversed(ops[:at]):
        if start not in op.writes and wanted.intersection(op.writes):
            found.append(op)
            wanted.update(op.reads)
    return found[::-1]
