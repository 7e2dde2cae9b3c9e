"""Rewriting never changes a result: random programs, plain and fused, in both interpreters."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrun.formats.ggml_types import GgmlType, row_bytes
from llmrun.runtime.batch import Batch
from llmrun.runtime.executor.checked import CheckedExecutor
from llmrun.runtime.executor.threaded import ThreadedExecutor
from llmrun.runtime.fuse import fuse, lower
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.program import ProgramBuilder, Rope

from .bits import assert_same_bits
from .machine import BEST, rng_for
from .memory_weights import MemoryWeights

N_COL, N_HEAD, N_TOK = 64, 2, 3
TYPES = ("Q8_0", "Q4_0", "F32")
ROPE = Rope(n_pair=16, frequencies=tuple(10_000 ** (-i / 16) for i in range(16)), is_neox=True)


def make_weights():
    rng, weights = rng_for("fuse"), MemoryWeights()
    weights.add_floats("token_embd.weight", rng.normal(size=(8, N_COL)))
    for name in TYPES:
        for i in range(2):
            if name == "F32":
                weights.add_floats(f"{name}.{i}", rng.normal(size=(N_COL, N_COL)) / 8)
                continue
            n_byte = row_bytes(GgmlType[name], 32)
            blocks = rng.integers(0, 256, (N_COL, 2, n_byte), dtype=np.uint8)
            blocks[..., :2] = np.full(1, 0.01, np.float16).view(np.uint8)
            weights.add_matrix(f"{name}.{i}", name, blocks.reshape(N_COL, -1))
    for i in range(2):
        weights.add_vector(f"vector.{i}", rng.normal(size=N_COL))
    return weights


WEIGHTS = make_weights()


@st.composite
def programs(draw):
    """A forward pass without a plan: any operation on any earlier result, in place or not, in any order."""
    b = ProgramBuilder()
    buffers = [b.embed(WEIGHTS.matrix("token_embd.weight", 8, N_COL))]

    def pick():
        return draw(st.sampled_from(buffers[-4:]))

    def change():
        """Perhaps change a buffer in place."""
        kind = draw(st.sampled_from(["scale", "softcap", "rope", "", "", ""]))
        if kind == "rope":
            b.rope(pick(), N_HEAD, ROPE)
        elif kind:
            getattr(b, kind)(pick(), 0.5)

    def matrix():
        return WEIGHTS.matrix(f"{draw(st.sampled_from(TYPES))}.{draw(st.integers(0, 1))}", N_COL, N_COL)

    def vector():
        return WEIGHTS.vector(f"vector.{draw(st.integers(0, 1))}", N_COL)

    layer = 0
    for _ in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["matmul", "norm", "gated", "residual", "add", "glu", "bias", "attention"]))
        x = pick()
        if kind == "matmul":
            buffers.append(b.matmul(x, matrix(), vector() if draw(st.booleans()) else None))
        elif kind == "norm":
            norm = b.rms_norm(x, vector(), 1e-5)
            change()
            buffers += [norm, b.matmul(norm, matrix())]
        elif kind == "gated":
            gate = b.matmul(x, matrix())
            change()
            up = b.matmul(x, matrix())
            change()
            buffers += [gate, b.glu(gate, up, draw(st.sampled_from(["silu", "gelu"])))]
        elif kind == "residual":
            y = b.matmul(x, matrix())
            change()
            buffers.append(b.add(pick(), y))
        elif kind == "add":
            buffers.append(b.add(x, pick()))
        elif kind == "glu":
            buffers.append(b.glu(x, pick(), "silu"))
        elif kind == "bias":
            buffers.append(b._append("add_bias", (x,), b._new("biased", N_COL), vector()))
        else:
            change()
            b.kv_append(layer, x, pick(), N_HEAD)
            change()
            buffers.append(b.attention(layer, pick(), N_HEAD, N_HEAD, 0.2))
            layer += 1
    for i, buffer in enumerate({id(x): x for x in (buffers[-1], pick())}.values()):
        b.output(f"out{i}", buffer)
    return b.build(max(1, layer))


def batch():
    return Batch.of_tokens(np.zeros(1, np.int64), 0, [3, 7, 1], range(N_TOK))


def checked(program):
    executor = CheckedExecutor(program, WEIGHTS, N_TOK)
    executor.run(batch())
    return {name: executor.output(name) for name in program.outputs}


@settings(max_examples=250, deadline=None, derandomize=True)
@given(programs())
def test_random_programs(program):
    """Lowering and fusing keep every output's bits."""
    with np.errstate(all="ignore"):
        plain = lower(program)
        want, got = checked(plain), checked(fuse(plain))
    for name in program.outputs:
        assert_same_bits(got[name], want[name], name)


def test_random_programs_with_threads(machine):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(programs(), st.booleans())
    def check(program, is_fused):
        program = fuse(lower(program)) if is_fused else lower(program)
        with np.errstate(all="ignore"):
            want = checked(program)
        pages = KvPages(program.n_layer, N_HEAD, N_COL // N_HEAD, 64)
        kernels, team = machine.kernels(BEST), machine.team(BEST, 3)
        executor = ThreadedExecutor(program, WEIGHTS, pages, kernels, team, n_tok=N_TOK, n_out=N_TOK)
        executor.run(batch())
        for name in program.outputs:
            assert_same_bits(executor.output(name, N_TOK), want[name], name)

    check()
