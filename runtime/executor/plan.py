"""Where buffers lie, and where barriers are needed: worked out from a program before it runs."""

from __future__ import annotations

from ...formats.record import Record
from ..kernels.layout import padded
from ..program import Buffer, Program

ALIGN = 64
X_RECORD_BYTES = 64  # an activation record: 32 columns of one token
RECORDS = {"q8": 1, "q8x2": 2}  # activation records of one token and 32 columns, by the kind of buffer


def row_bytes(buffer: Buffer) -> int:
    """Return the bytes between two rows of a buffer (of records for "q8" and "q8x2": bytes of one token)."""
    if buffer.kind in RECORDS:
        return RECORDS[buffer.kind] * buffer.n_col // 32 * X_RECORD_BYTES
    if buffer.kind == "rope":
        return 2 * 4 * padded(buffer.n_col // 2)
    return 4 * padded(buffer.n_col)


class Plan(Record):
    """Offsets of the buffers in one arena, its size, and which operations are followed by a barrier."""

    offsets: dict[Buffer, int]
    n_bytes: int
    has_barrier: tuple[bool, ...]


def plan(program: Program, n_tok: int, n_out: int) -> Plan:
    """Lay out the buffers for passes of at most ``n_tok`` rows with ``n_out`` outputs; reuse what is dead."""
    sizes = {b: padded((n_out if b.rows == "out" else n_tok) * row_bytes(b), ALIGN) for b in program.buffers()}
    offsets, n_bytes = _offsets(program, sizes)
    return Plan(offsets, n_bytes, _barriers(program, offsets, sizes))


def _offsets(program: Program, sizes: dict[Buffer, int]) -> tuple[dict[Buffer, int], int]:
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, op in enumerate(program.ops):
        for buffer in (*op.reads, *op.writes):
            first.setdefault(buffer, i)
            last[buffer] = i
    for buffer in program.inputs:
        first[buffer] = -1
    for buffer in program.outputs.values():
        last[buffer] = len(program.ops)
    offsets: dict[Buffer, int] = {}
    for buffer in sorted(sizes, key=lambda b: -sizes[b]):  # large ones first pack best
        taken = sorted(
            (offsets[o], offsets[o] + sizes[o])
            for o in offsets
            if first[o] <= last[buffer] and first[buffer] <= last[o]
        )
        position = 0
        for start, stop in taken:
            if start - position >= sizes[buffer]:
                break
            position = max(position, stop)
        offsets[buffer] = position
    return offsets, max((offsets[b] + sizes[b] for b in offsets), default=0)


def _barriers(program: Program, offsets: dict[Buffer, int], sizes: dict[Buffer, int]) -> tuple[bool, ...]:
    """Put a barrier between two operations that touch the same bytes, one of them writing, and where a pass may end."""
    ops = program.ops

    def spans(buffers: tuple[Buffer, ...]) -> set[tuple[int, int]]:
        return {(offsets[b], offsets[b] + sizes[b]) for b in buffers}

    def overlap(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> bool:
        return any(start < other_stop and other_start < stop for start, stop in a for other_start, other_stop in b)

    barriers = [False] * len(ops)
    read: set[tuple[int, int]] = set()
    written: set[tuple[int, int]] = set()
    for i, op in enumerate(ops):
        op_read, op_written = spans(op.reads), spans(op.writes)
        if op.kind in ("kv_store", "attention"):  # the layer's pages, as a span outside the arena
            pages = {(-2 - op.attributes["layer"], -1 - op.attributes["layer"])}
            op_read, op_written = (
                (op_read, op_written | pages) if op.kind == "kv_store" else (op_read | pages, op_written)
            )
        is_end = i == program.n_op_body and i > 0
        if is_end or overlap(written, op_read | op_written) or overlap(read, op_written):
            barriers[i - 1] = True
            read, written = set(), set()
        read |= op_read
        written |= op_written
    if ops:
        barriers[-1] = True  # the pass is over when every worker is done
    return tuple(barriers)
