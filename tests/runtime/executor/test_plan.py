"""The memory plan against a slow, independent check: live buffers never overlap, every conflict has a barrier."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.runtime.executor.plan import plan, row_bytes
from llmrun.runtime.fuse import fuse
from llmrun.runtime.program import Buffer, Op, Program, Weight

from ...tiny_models import MODELS


def n_bytes(buffer, n_tok, n_out):
    return (n_out if buffer.rows == "out" else n_tok) * row_bytes(buffer)


def check(program, n_tok, n_out):
    """Assert everything that a plan promises, pair by pair."""
    result = plan(program, n_tok, n_out)
    ops = program.ops
    span = {b: range(o, o + n_bytes(b, n_tok, n_out)) for b, o in result.offsets.items()}
    assert set(span) == set(program.buffers())
    first = {b: min(i for i, op in enumerate(ops) if b in op.reads + op.writes) for b in span}
    last = {b: max(i for i, op in enumerate(ops) if b in op.reads + op.writes) for b in span}
    last |= {b: len(ops) for b in program.outputs.values()}
    for buffer, place in span.items():
        assert place.start % 64 == 0
        assert place.start >= 0
        assert place.stop <= result.n_bytes
        for other, other_place in span.items():
            if other is not buffer and max(first[buffer], first[other]) <= min(last[buffer], last[other]):
                assert max(place.start, other_place.start) >= min(place.stop, other_place.stop), (buffer, other)
    touched = [(memory(op, span, False), memory(op, span, True)) for op in ops]
    for j, later in enumerate(touched):
        for i, earlier in enumerate(touched[:j]):
            if not any(result.has_barrier[i:j]):
                assert not conflict(earlier, later), f"no barrier between {i}: {ops[i]} and {j}: {ops[j]}"
    if ops:
        assert result.has_barrier[-1]
    for i, op in enumerate(ops):
        if op.kind == "select" and i:
            assert result.has_barrier[i - 1], "a pass without outputs ends here: every worker must be done"
    return result


def memory(op, span, is_written):
    """Return what an operation touches: (name of a memory, range of bytes)."""
    touched = [("arena", span[b]) for b in (op.writes if is_written else op.reads)]
    if op.kind == "kv_store" and is_written:
        touched.append((f"pages of layer {op.attributes['layer']}", range(1)))
    if op.kind == "attention" and not is_written:
        touched.append((f"pages of layer {op.attributes['layer']}", range(1)))
    return touched


def conflict(earlier, later):
    """Whether one of two operations, each as (what it reads, what it writes), writes what the other touches."""
    (reads, writes), (later_reads, later_writes) = earlier, later
    return any(
        a == b and max(x.start, y.start) < min(x.stop, y.stop)
        for one, other in ((writes, later_reads + later_writes), (reads, later_writes))
        for a, x in one
        for b, y in other
    )


@st.composite
def programs(draw):
    """Random operations: fresh results, results in place, several results, pages; outputs among them."""
    buffers = [Buffer("x", 16)]
    ops = [Op("embed", (), (buffers[0],), (Weight("w", 1, 16, "F32"),))]
    for i in range(draw(st.integers(0, 12))):
        pick = st.sampled_from(buffers)
        reads = tuple(draw(st.lists(pick, min_size=1, max_size=3, unique_by=id)))
        kind = draw(st.sampled_from(["new", "new", "new", "in place", "two", "kv_store", "attention"]))
        attributes = {"layer": draw(st.integers(0, 1))} if kind in ("kv_store", "attention") else {}
        if kind == "in place":
            writes = (reads[0],)
        elif kind == "kv_store":
            writes = ()
        else:
            widths = [32 * draw(st.integers(1, 9)) for _ in range(2 if kind == "two" else 1)]
            kinds = [draw(st.sampled_from(["f32", "q8", "rope"])) for _ in widths]
            rows = draw(st.sampled_from(["tok", "tok", "out"]))
            writes = tuple(Buffer(f"b{i}", w, rows, k) for w, k in zip(widths, kinds, strict=True))
        buffers += [b for b in writes if b not in buffers]
        ops.append(Op(kind, reads, writes, (), attributes))
    used = [b for op in ops for b in (*op.reads, *op.writes)]
    outputs = draw(st.lists(st.sampled_from(used), max_size=2, unique_by=id))
    return Program(ops, {f"out{i}": b for i, b in enumerate(outputs)}, 2)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(programs(), st.integers(1, 40), st.integers(1, 40))
def test_random_programs(program, n_tok, n_out):
    check(program, n_tok, n_out)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "gemma2_27b"])
@pytest.mark.parametrize("is_fused", [False, True])
def test_programs_of_models(make_runner, name, is_fused):
    for ggml_type in ("F32", "Q8_0"):
        program = make_runner((name, ggml_type), is_fused=False).program
        check(fuse(program) if is_fused else program, 64, 3)


def test_memory_is_used_again(make_runner):
    """Seven layers need hardly more room than the largest operations of one."""
    program = make_runner(("gemma3", "Q8_0")).program
    result = check(program, 64, 64)
    total = sum(n_bytes(b, 64, 64) for b in program.buffers())
    assert result.n_bytes < total / 4


def test_a_missing_barrier_is_found():
    """The check itself: a plan without barriers does not pass."""
    x, y, z = (Buffer(n, 16) for n in "xyz")
    program = Program([Op("embed", (), (x,)), Op("a", (x,), (y,)), Op("b", (y,), (z,))], {"out": z}, 1)
    span = {b: range(i * 64, i * 64 + 64) for i, b in enumerate((x, y, z))}
    touched = [(memory(op, span, False), memory(op, span, True)) for op in program.ops]
    assert conflict(touched[1], touched[2])
    assert not conflict(touched[0], touched[2])
    assert plan(program, 1, 1).has_barrier[1]


def test_rows_of_kernels_are_padded_to_vectors():
    assert [row_bytes(Buffer("x", n)) for n in (1, 16, 17)] == [64, 64, 128]
    assert row_bytes(Buffer("x", 96, kind="q8")) == 3 * 64
    assert row_bytes(Buffer("x", 96, kind="q8x2")) == 6 * 64
    assert row_bytes(Buffer("x", 2 * 17, kind="rope")) == 2 * 128
