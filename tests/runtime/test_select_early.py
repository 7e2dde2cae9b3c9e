"""Working on the wanted rows alone never changes one of them: random programs and models, in both interpreters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.formats.record import replace
from llmrun.runtime.batch import Batch
from llmrun.runtime.executor.checked import CheckedExecutor
from llmrun.runtime.executor.threaded import ThreadedExecutor
from llmrun.runtime.fuse import fuse, lower, prepare
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.program import Buffer, Op
from llmrun.runtime.select_early import select_early

from .bits import assert_same_bits
from .executor.test_same_bits import plain_rows
from .machine import BEST, token_ids
from .test_fuse import N_COL, N_HEAD, N_TOK, WEIGHTS
from .test_fuse import programs as bodies

MODELS = (
    ("llama", "Q4_0"), ("qwen2", "Q8_0"), ("qwen3", "F16"), ("gemma2", "Q8_0"), ("gemma3", "Q4_0"), ("phi3", "F32"),
)  # fmt: skip


@st.composite
def programs(draw):
    """A random forward pass that ends with rows that are wanted; perhaps all rows of something are, too."""
    body = draw(bodies())
    made = [b for op in body.ops for b in op.writes]
    x = draw(st.sampled_from(made[-3:]))
    wanted, late = Buffer("x_out", x.n_col, "out"), Buffer("late", x.n_col, "out")
    norm = Op("rms_norm", (wanted,), (late,), (WEIGHTS.vector("vector.0", N_COL),), {"eps": 1e-5, "n_group": 1})
    outputs = {"late": late}
    if draw(st.booleans()):
        outputs["all"] = draw(st.sampled_from([b for b in made if b.kind == "f32"]))
    return replace(body, ops=[*body.ops, Op("select", (x,), (wanted,)), norm], outputs=outputs)


def batch(out_rows):
    return Batch.of_tokens(np.zeros(1, np.int64), 0, [3, 7, 1], out_rows)


def checked(program, out_rows):
    executor = CheckedExecutor(program, WEIGHTS, N_TOK)
    executor.run(batch(out_rows))
    return {name: executor.output(name) for name in program.outputs}


SOME_ROWS = st.lists(st.integers(0, N_TOK - 1), min_size=1, unique=True).map(sorted)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(programs(), SOME_ROWS)
def test_random_programs(program, out_rows):
    with np.errstate(all="ignore"):
        want = checked(lower(program), out_rows)
        for is_fused in (False, True):
            got = checked(prepare(program, is_fused=is_fused), out_rows)
            for name in program.outputs:
                assert_same_bits(got[name], want[name], name)


def test_random_programs_with_threads(machine):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(programs(), SOME_ROWS, st.booleans())
    def check(program, out_rows, is_fused):
        with np.errstate(all="ignore"):
            want = checked(lower(program), out_rows)
        early = prepare(program, is_fused=is_fused)
        pages = KvPages(program.n_layer, N_HEAD, N_COL // N_HEAD, 64)
        kernels, team = machine.kernels(BEST), machine.team(BEST, 3)
        executor = ThreadedExecutor(early, WEIGHTS, pages, kernels, team, n_tok=N_TOK, n_out=N_TOK)
        executor.run(batch(out_rows))
        for name, buffer in early.outputs.items():
            assert_same_bits(executor.output(name, len(out_rows) if buffer.rows == "out" else N_TOK), want[name], name)

    check()


@pytest.mark.parametrize(("model", "kv_type"), [*((m, "f16") for m in MODELS), (("llama_256", "Q8_0"), "q8_0")])
@pytest.mark.parametrize("is_fused", [False, True])
def test_models(make_runner, model, is_fused, kv_type):
    """Any rows of passes over several sequences, after passes that nothing was wanted of."""
    runner = make_runner(model, n_thread=2, is_fused=is_fused, kv_type=kv_type)
    lowered = lower(runner.model.program)
    whole = runner.executor.with_program(fuse(lowered) if is_fused else lowered)
    assert whole.program.n_op_body > runner.executor.program.n_op_body
    ids = token_ids(model, 90)
    results = []
    for executor in (whole, runner.executor):
        first, second = runner.sequence(), runner.sequence()
        for sequence, n in ((first, 70), (second, 3)):
            sequence.append(n)
            executor.run(Batch(plain_rows(sequence, 0, ids[:n], has_output=False)))
        rows = []
        for sequence, start, stop in ((first, 70, 90), (second, 3, 10)):
            sequence.append(stop - start)
            rows += plain_rows(sequence, start, ids[start:stop], has_output=False)
        rows = [replace(row, has_output=i % 5 in (1, 2)) for i, row in enumerate(rows)]
        mixed = Batch(rows)
        executor.run(mixed)
        results.append(executor.output("logits", mixed.n_out).copy())
        first.close()
        second.close()
    assert_same_bits(*results)


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_only_keys_and_values_of_the_last_layer_are_made_of_all_rows(make_runner, model):
    runner = make_runner(model)
    program, last = runner.program, f"blk.{runner.model.hparams.n_layer - 1}."
    of_all = {w.name for op in program.ops for w in op.weights if w.n_out and op.writes[0].rows == "tok"}
    kept = {f"{last}{name}.weight" for name in ("attn_k", "attn_v", "attn_qkv")}
    assert {name for name in of_all if name.startswith(last)} <= kept
    body, tail = program.ops[: program.n_op_body], program.ops[program.n_op_body :]
    assert body[-1].kind == "kv_store"
    assert all(b.rows == "out" for op in tail for b in op.writes)
    assert sum(op.kind == "select" for op in tail) == 1


def test_nothing_moves_that_an_output_is_made_of(make_runner):
    plain = make_runner(("llama", "Q4_0")).model.program
    x = next(op for op in plain.ops if op.kind == "select").reads[0]
    watched = replace(plain, outputs={**plain.outputs, "x": x})
    assert select_early(watched).ops == watched.ops
