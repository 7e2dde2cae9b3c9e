"""Every matmul kernel of every target gives the bits of its NumPy twin, for any shape and any content."""

from functools import cache

import numpy as np
import pytest

from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.runtime.executor import threaded
from llmrun.runtime.fuse import FLOAT_FORMATS, fuse, lower
from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.kernels.matmul_tiles import NEAR_TILES
from llmrun.runtime.kernels.registry import MATMUL_FORMATS
from llmrun.runtime.weights import look_up

from ..bits import assert_same_bits
from ..machine import TARGET_NAMES, names_for, rng_for
from ..memory_weights import MemoryWeights
from ..one_op import Bound, builder, plain_rows
from .blocks import activations, blocks

N_TOK = 33
SHAPES_32 = ((1, 32), (15, 64), (16, 96), (17, 576), (161, 32), (192, 160))
SHAPES_256 = ((1, 256), (15, 512), (17, 768), (192, 256))
SHAPES_FLOAT = ((1, 1), (15, 7), (17, 576), (192, 33))
PAIRS = [(t, f) for t in TARGET_NAMES for f in MATMUL_FORMATS if f"matmul_{f.lower()}" in names_for(t)]


def shapes(name):
    return {1: SHAPES_FLOAT, 32: SHAPES_32, 256: SHAPES_256}[BLOCK[GgmlType[name]][0]]


@cache
def case(name, n_row, n_col):
    """Return (weights, matrix, activations [N_TOK, n_col], their product [N_TOK, n_row])."""
    rng = rng_for(name, n_row, n_col)
    weights = MemoryWeights()
    w = weights.add_matrix("w", name, blocks(rng, name, n_row, n_col))
    x = activations(rng, N_TOK, n_col)
    return weights, w, x, product(weights, w, x)


def product(weights, w, x):
    return twin.matmul(weights.packed(w), x if w.packed in FLOAT_FORMATS else twin.quantize(x))


def bind(machine, target_name, weights, w, epilogue=None, *, n_tok=N_TOK):
    """Return (bound program, input buffer, output buffer); ``epilogue(b, x, y)`` appends what follows the product."""
    b, x = builder(w.n_in)
    y = b.matmul(x, w)
    b.output("y", epilogue(b, x, y) if epilogue else y)
    program = fuse(lower(b.build(1)))
    return Bound(machine, target_name, program, weights, n_tok=n_tok), x, program.outputs["y"]


def run(bound, buffer, x, *, n_worker=1, workers=None):
    """Write the input and run ``quantize`` (as one worker) and ``matmul`` (as some workers)."""
    batch = plain_rows(len(x))
    bound.poison()
    bound.put(buffer, x)
    if any(op.kind == "quantize" for op in bound.program.ops):
        bound.run_op("quantize", batch)
    before = bound.arena()
    bound.run_op("matmul", batch, n_worker=n_worker, workers=workers)
    return before


@pytest.mark.parametrize(("target_name", "name"), PAIRS)
def test_equals_the_twin_for_every_number_of_tokens(machine, target_name, name):
    for n_row, n_col in shapes(name):
        weights, w, x, want = case(name, n_row, n_col)
        bound, buffer, y = bind(machine, target_name, weights, w)
        for n_tok in (*range(1, 18), N_TOK):
            run(bound, buffer, x[:n_tok])
            assert_same_bits(bound.get(y, n_tok), want[:n_tok], f"{n_row} x {n_col}, {n_tok} tokens")


@pytest.mark.parametrize("generation", [0, 3, 4])
@pytest.mark.parametrize(("target_name", "name"), [p for p in PAIRS if p[1] in NEAR_TILES])
def test_where_weights_are_asked_for_changes_nothing(machine, monkeypatch, target_name, name, generation):
    monkeypatch.setattr(threaded, "zen_generation", lambda: generation)
    weights, w, x, want = case(name, *shapes(name)[-1])
    bound, buffer, y = bind(machine, target_name, weights, w)
    for n_tok in (1, 2, 3):
        run(bound, buffer, x[:n_tok])
        assert_same_bits(bound.get(y, n_tok), want[:n_tok], f"{n_tok} tokens")


@pytest.mark.parametrize(("target_name", "name"), PAIRS)
def test_a_worker_touches_only_its_rows(machine, target_name, name):
    n_row, n_col = shapes(name)[-1]
    weights, w, x, want = case(name, n_row, n_col)
    bound, buffer, y = bind(machine, target_name, weights, w)
    n_worker, n_tok = 5, 3
    start = bound.executor._plan.offsets[y]
    for worker in range(n_worker):
        before = run(bound, buffer, x[:n_tok], n_worker=n_worker, workers=[worker])
        first, last = (16 * (n_row // 16 * i // n_worker) for i in (worker, worker + 1))
        rows = bound.get(y, n_tok)
        assert_same_bits(rows[:, first:last], want[:n_tok, first:last])
        after = bound.arena()
        for memory in (before, after):
            memory[start : start + n_tok * 4 * n_row].reshape(n_tok, 4 * n_row)[:, 4 * first : 4 * last] = 0
        assert np.array_equal(after, before)


@pytest.mark.parametrize("target_name", TARGET_NAMES)
@pytest.mark.parametrize("n_worker", [2, 3, 4, 7, 13])
def test_any_number_of_workers_gives_the_same_bits(machine, target_name, n_worker):
    for name in ("Q4_0", "Q6_K"):
        weights, w, x, want = case(name, 192, shapes(name)[-1][1])
        bound, buffer, y = bind(machine, target_name, weights, w)
        run(bound, buffer, x[:17], n_worker=n_worker, workers=reversed(range(n_worker)))
        assert_same_bits(bound.get(y, 17), want[:17])


EPILOGUE_FORMATS = [p for p in PAIRS if p[1] in ("Q4_0", "Q8_0", "Q6_K", "F32")]


@pytest.mark.parametrize(("target_name", "name"), EPILOGUE_FORMATS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_residual", [False, True])
def test_bias_and_residual(machine, target_name, name, has_bias, has_residual):
    n_row = n_col = 256  # the residual is the input itself
    rng = rng_for(name, "epilogue")
    weights = MemoryWeights()
    w = weights.add_matrix("w", name, blocks(rng, name, n_row, n_col))
    bias = weights.add_vector("bias", rng.normal(size=n_row))
    x = activations(rng, 5, n_col)

    def epilogue(b, x, y):
        if has_bias:
            y = b._append("add_bias", (y,), b._new("biased", n_row), bias)
        return b.add(x, y) if has_residual else y

    bound, buffer, y = bind(machine, target_name, weights, w, epilogue, n_tok=5)
    kinds = [op.kind for op in bound.program.ops if op.kind not in ("embed", "quantize")]
    assert kinds == ["matmul"]  # all of it was fused
    run(bound, buffer, x)
    with np.errstate(all="ignore"):
        want = product(weights, w, x)
        want = want + weights.values(bias) if has_bias else want
        want = x + want if has_residual else want
    assert_same_bits(bound.get(y, 5), want)


@pytest.mark.parametrize(("target_name", "name"), EPILOGUE_FORMATS)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gate_and_up(machine, target_name, name, activation):
    n_row, n_col = 49, 256
    rng = rng_for(name, activation)
    weights = MemoryWeights()
    gate, up = (weights.add_matrix(n, name, blocks(rng, name, n_row, n_col)) for n in ("gate", "up"))
    x = activations(rng, 19, n_col)
    bound, buffer, y = bind(
        machine, target_name, weights, gate, lambda b, x, y: b.glu(y, b.matmul(x, up), activation), n_tok=19
    )
    assert [op.kind for op in bound.program.ops][-1] == "matmul"
    run(bound, buffer, x, n_worker=2)
    with np.errstate(all="ignore"):
        want = twin.ACTIVATIONS[activation](product(weights, gate, x)) * product(weights, up, x)
    assert_same_bits(bound.get(y, 19), want)


@pytest.mark.parametrize("name", MATMUL_FORMATS)
def test_the_twin_multiplies(name):
    """The twin against float64: each fused multiply-add of a chain rounds once, by at most 2**-24 of what it holds."""
    n_row, n_col = 17, 768 if BLOCK[GgmlType[name]][0] == 256 else 96
    rng = rng_for(name, "float64")
    weights = MemoryWeights()
    w = weights.add_matrix("w", name, blocks(rng, name, n_row, n_col))
    ordinary = [r for r in range(n_row) if r % 8 not in (4, 5)]
    x = rng.normal(size=(9, n_col)).astype(np.float32)
    packed = weights.packed(w)
    matrix = look_up(weights, w, np.array(ordinary)).astype(np.float64)
    if w.packed in FLOAT_FORMATS:
        got, exact = twin.matmul(packed, x), x.astype(np.float64)
    else:
        quantized = twin.quantize(x)
        got = twin.matmul(packed, quantized)
        exact = (quantized.q * quantized.scale[..., None].astype(np.float64)).reshape(x.shape)
    # Scales, minimums and their products are rounded too: four roundings a step. The sum of all magnitudes bounds what
    # a chain holds; the minimum is subtracted separately, so its part counts by itself.
    scale = (
        np.abs(exact) @ np.abs(matrix).T + np.abs(exact) @ np.abs(matrix).max(axis=1, keepdims=True).repeat(n_col, 1).T
    )
    bound = 4 * n_col * 2.0**-24 * scale
    error = np.abs(got[:, ordinary] - exact @ matrix.T)
    worst = np.unravel_index((error - bound).argmax(), error.shape)
    assert (error <= bound).all(), f"at {worst}: {error[worst]:g}, bound {bound[worst]:g}"
