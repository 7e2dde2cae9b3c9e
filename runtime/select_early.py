"""Rewriting a program: rows whose outputs nobody wants leave it as soon as nothing more is needed of them.

A model's program keeps all rows up to its ``select``. Of the last layer, however, only keys and values of all of them
are needed: its queries, attention and feed-forward move behind ``select``, to the wanted rows, and with it to the end
of the program, which a pass without outputs skips. No row's numbers depend on what other rows are worked on, so the
bits stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..formats.record import replace
from .program import Buffer, Op, Program

STAYS = frozenset({"embed", "rope_table", "kv_store"})
MADE_AGAIN = frozenset({"rms_norm", "rope_table"})  # of the wanted rows, instead of selecting from the result for all


def select_early(program: Program) -> Program:
    """Return a plain program (neither lowered nor fused) with everything on the wanted rows alone that can be.

    Outputs, and what is made into one in front of ``select``, stay as they are.
    """
    at = next((i for i, op in enumerate(program.ops) if op.kind == "select"), None)
    if at is None:
        return program
    body, select, tail = program.ops[:at], program.ops[at], program.ops[at + 1 :]
    moved = _moved(body, set(program.outputs.values()))
    stays = [i for i in range(at) if i not in moved]
    written = _last_writers(body, stays)
    own = {b for i in moved for b in body[i].writes}  # of what moves
    wanted = {select.reads[0]: select.writes[0]}  # the rows of a buffer whose outputs are wanted
    ops = [body[i] for i in stays] + ([] if select.reads[0] in own else [select])

    def rows_of(buffer: Buffer) -> Buffer:
        if buffer not in wanted:
            wanted[buffer] = Buffer(f"{buffer.name}.out", buffer.n_col, "out", buffer.kind)
            if buffer not in own:
                ops.append(_of_wanted(buffer))
        return wanted[buffer]

    def _of_wanted(buffer: Buffer) -> Op:
        i = written.get(buffer, -1)  # -1: an input of the program
        maker = body[i] if i >= 0 else None
        if maker is not None and maker.kind in MADE_AGAIN and all(written.get(b, -1) < i for b in maker.reads):
            return replace(maker, reads=tuple(map(rows_of, maker.reads)), writes=(wanted[buffer],))
        return Op("select", (buffer,), (wanted[buffer],))

    for i in sorted(moved):
        reads, writes = (tuple(map(rows_of, buffers)) for buffers in (body[i].reads, body[i].writes))
        ops.append(replace(body[i], reads=reads, writes=writes))
    return replace(program, ops=ops + tail)


def _moved(ops: Sequence[Op], outputs: set[Buffer]) -> set[int]:
    """Return which operations can move: what stays neither touches what they write nor changes what they read."""
    moved = {i for i, op in enumerate(ops) if op.kind not in STAYS and not outputs & set(op.writes)}
    while True:
        stays = [i for i in range(len(ops)) if i not in moved]
        touched, written = {b for i in stays for b in (*ops[i].reads, *ops[i].writes)}, _last_writers(ops, stays)
        fewer = {
            i
            for i in moved
            if not touched & set(ops[i].writes) and all(written.get(b, -1) < i for b in ops[i].reads)
        }  # fmt: skip
        if fewer == moved:
            return moved
        moved = fewer


def _last_writers(ops: Sequence[Op], places: Sequence[int]) -> dict[Buffer, int]:
    """Return where each buffer is written last, by the operations in some places."""
    return {b: i for i in places for b in ops[i].writes}
