"""A program that only reads leaves the keys and values that it would if the upper layers added nothing."""

import numpy as np
import pytest

from llmrun.formats.record import replace
from llmrun.runtime.batch import Batch
from llmrun.runtime.fuse import prepare
from llmrun.runtime.program import Op
from llmrun.runtime.skim import skim

from .bits import assert_same_bits
from .executor.test_same_bits import plain_rows
from .machine import token_ids

MODELS = (
    ("llama", "Q4_0"), ("qwen2", "Q8_0"), ("qwen3", "F16"), ("gemma2", "Q8_0"), ("gemma3", "Q4_0"), ("phi3", "F32"),
)  # fmt: skip


def adding_nothing(program, n_whole):
    """Return the program with all that layers from ``n_whole`` on add multiplied by zero."""
    ops, n_store = [], 0
    for op in program.ops:
        n_store += op.kind == "kv_store"
        added = op.reads[-1] if op.kind == "add" else None
        if added is not None and n_store > n_whole:
            ops.append(Op("scale", (added,), (added,), (), {"factor": 0.0}))
        ops.append(op)
    return replace(program, ops=ops)


@pytest.mark.parametrize("model", MODELS, ids="-".join)
@pytest.mark.parametrize("is_fused", [False, True])
def test_upper_layers_get_what_the_lower_ones_give(make_runner, model, is_fused):
    runner = make_runner(model, n_thread=2)
    plain, ids = runner.model.program, token_ids("skim", 70)
    for n_whole in range(plain.n_layer):
        stored = []
        for program in (adding_nothing(plain, n_whole), skim(plain, n_whole)):
            for array in (*runner.pages.keys, *runner.pages.values):
                array[:] = 0
            executor, sequence = runner.executor.with_program(prepare(program, is_fused=is_fused)), runner.sequence()
            for start, stop in ((0, 40), (40, 70)):
                sequence.append(stop - start)
                executor.run(Batch(plain_rows(sequence, start, ids[start:stop], has_output=False)))
            stored.append([np.array(array) for array in (*runner.pages.keys, *runner.pages.values)])
            sequence.close()
        assert all(array.any() for array in stored[1])
        for want, got in zip(*stored, strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_the_upper_layers_are_left_out(make_runner, model):
    plain = make_runner(model).model.program
    program = skim(plain, 1)
    used = {w.name for op in program.ops if op.kind == "matmul" for w in op.weights}
    assert not any(op.writes and op.writes[0].rows == "out" for op in program.ops)
    assert {name.split(".")[2] for name in used if not name.startswith("blk.0.")} <= {"attn_k", "attn_v", "attn_qkv"}
    n_table = sum(op.kind == "rope_table" for op in plain.ops)
    assert sum(op.kind == "rope_table" for op in program.ops) == n_table
