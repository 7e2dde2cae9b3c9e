"""Norms, additions, gated activations, soft caps and the choice of output rows: the bits of their twins."""

import numpy as np
import pytest

from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.kernels import reference as twin

from ..bits import assert_same_bits
from ..machine import WHOLE_TARGETS, rng_for
from ..memory_weights import MemoryWeights
from ..one_op import Bound, builder, plain_rows

N_TOK = 7
N_WORKERS = (1, 2, 3, 5, 16)
SPECIAL = np.array(
    [
        0,
        -0.0,
        1,
        -1,
        1e-45,
        -1e-45,
        1e-38,
        3e38,
        -3e38,
        np.inf,
        -np.inf,
        np.nan,
        88,
        89,
        -87.3,
        -87.4,
        -88,
        0.5,
        43.9,
        -44.1,
    ],
    np.float32,
)


def values(name, n_col):
    """Return f32 [N_TOK, n_col], special values among ordinary ones."""
    rng = rng_for(name, n_col)
    x = (rng.normal(size=(N_TOK, n_col)) * rng.choice([0.1, 1, 30], (N_TOK, n_col))).astype(np.float32)
    x[1, : min(n_col, len(SPECIAL))] = SPECIAL[:n_col]
    x[2, : min(n_col, len(SPECIAL))] = SPECIAL[:n_col]
    return x


def check(bound, kind, inputs, output, want, n_tok=N_TOK):
    """Run an operation as teams of several sizes and compare."""
    batch = plain_rows(n_tok)
    for n_worker in N_WORKERS:
        bound.poison()
        for buffer, rows in inputs:
            bound.put(buffer, rows[:n_tok])
        bound.run_op(kind, batch, n_worker=n_worker)
        assert_same_bits(bound.get(output, n_tok), want[:n_tok], f"{kind}, {n_worker} workers")


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize(("width", "n_group"), [(16, 1), (64, 1), (576, 1), (32, 3), (128, 2), (16, 9)])
def test_rms_norm(machine, target_name, width, n_group):
    n_col = width * n_group
    x = rng_for("rms_norm", n_col).normal(size=(N_TOK, n_col)).astype(np.float32)
    x[1], x[2], x[3] = 0, x[2] * np.float32(1e-30), x[3] * np.float32(1e17)
    weights = MemoryWeights()
    w = weights.add_vector("norm", rng_for("weight", width).normal(size=width))
    b, buffer = builder(n_col)
    y = b.rms_norm(buffer, w, 1e-6, n_group)
    b.output("y", y)
    bound = Bound(machine, target_name, b.build(1), weights, n_tok=N_TOK)
    groups = x.reshape(N_TOK, n_group, width)
    want = twin.rms_norm(groups, weights.values(w), 1e-6).reshape(N_TOK, n_col)
    check(bound, "rms_norm", [(buffer, x)], y, want)


def test_rms_norm_twin_against_float64():
    """16 chains of n / 16 roundings each for the mean, then six more operations, half an ulp each."""
    rng = rng_for("rms_norm", "float64")
    x, weight, n = rng.normal(size=(40, 576)).astype(np.float32), rng.normal(size=576).astype(np.float32), 576
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide * wide).mean(axis=1, keepdims=True) + 1e-5) * weight
    error = np.abs(twin.rms_norm(x, weight, 1e-5) - exact) / np.abs(exact)
    assert error.max() <= (n / 16 / 2 + 4 / 2 + 6) * 2.0**-24


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("n_col", [1, 16, 33, 576])
def test_add(machine, target_name, n_col):
    x, other = values("x", n_col), values("other", n_col)
    b, buffer = builder(n_col)
    second = b._new("second", n_col)
    y = b.add(buffer, second)
    b.output("y", y)
    bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=N_TOK)
    with np.errstate(all="ignore"):
        check(bound, "add", [(buffer, x), (second, other)], y, x + other)


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("n_col", [1, 33, 576])
def test_add_bias(machine, target_name, n_col):
    x, weights = values("x", n_col), MemoryWeights()
    bias = weights.add_vector("bias", values("bias", n_col)[0])
    b, buffer = builder(n_col)
    y = b._append("add_bias", (buffer,), b._new("y", n_col), bias)
    b.output("y", y)
    bound = Bound(machine, target_name, b.build(1), weights, n_tok=N_TOK)
    with np.errstate(all="ignore"):
        check(bound, "add_bias", [(buffer, x)], y, x + weights.values(bias)[:n_col])


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("n_col", [1, 33, 576])
def test_glu(machine, target_name, activation, n_col):
    gate, up = values("gate", n_col), values("up", n_col)
    b, buffer = builder(n_col)
    second = b._new("second", n_col)
    y = b.glu(buffer, second, activation)
    b.output("y", y)
    bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=N_TOK)
    with np.errstate(all="ignore"):
        check(bound, "glu", [(buffer, gate), (second, up)], y, twin.ACTIVATIONS[activation](gate) * up)


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("n_col", [1, 33, 576])
@pytest.mark.parametrize("number", [30.0, 5.0, 0.1])
def test_softcap_and_scale(machine, target_name, n_col, number):
    x = values("x", n_col)
    for kind in ("softcap", "scale"):
        b, buffer = builder(n_col)
        b.output("y", getattr(b, kind)(buffer, number))
        bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=N_TOK)
        with np.errstate(all="ignore"):
            want = twin.softcap(x, number) if kind == "softcap" else np.float32(number) * x
            check(bound, kind, [(buffer, x)], buffer, want)


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize(("n_first", "n_second"), [(16, 1), (16, 33), (576, 64), (32, 576)])
def test_concat(machine, target_name, n_first, n_second):
    x, other = values("x", n_first), values("other", n_second)
    b, buffer = builder(n_first)
    second = b._new("second", n_second)
    y = b.concat(buffer, second)
    b.output("y", y)
    bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=N_TOK)
    check(bound, "concat", [(buffer, x), (second, other)], y, np.concatenate([x, other], axis=1))


def test_concat_takes_whole_vectors_first():
    b, buffer = builder(33)
    with pytest.raises(ValueError, match="33 columns cannot come first"):
        b.concat(buffer, buffer)


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
def test_select_keeps_the_wanted_rows(machine, target_name):
    n_tok, n_col, wanted = 9, 33, (0, 3, 4, 8)
    x = rng_for("select").normal(size=(n_tok, n_col)).astype(np.float32)
    b, buffer = builder(n_col)
    y = b.select(buffer)
    b.output("y", y)
    bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=n_tok)
    table = np.zeros(1, np.int64)
    rows = [
        Row(token_id=-1, page_table=table, slot=i, position=i, visible_stop=i + 1, has_output=i in wanted)
        for i in range(n_tok)
    ]
    for n_worker in N_WORKERS:
        bound.poison()
        bound.put(buffer, x)
        bound.run_op("select", Batch(rows), n_worker=n_worker)
        assert_same_bits(bound.get(y, len(wanted)), x[list(wanted)])


def test_operations_on_output_rows_count_outputs(machine):
    """After ``select`` an operation works on as many rows as there are outputs, not tokens."""
    n_col = 16
    b, buffer = builder(n_col)
    y = b.scale(b.select(buffer), 2.0)
    b.output("y", y)
    bound = Bound(machine, WHOLE_TARGETS[0], b.build(1), MemoryWeights(), n_tok=8)
    bound.poison()
    bound.put(y, np.ones((8, n_col), np.float32))
    bound.run_op("scale", plain_rows(8, n_out=3))
    assert_same_bits(bound.get(y, 8), np.repeat(np.float32([2, 1]), [3, 5])[:, None].repeat(n_col, 1))


ACTIVATION_RANGE = np.linspace(-90, 90, 200_001, dtype=np.float32)


def test_exp_twin():
    """At most 2 ulp of e**x where that is a normal number; 0 below, clamped above."""
    x = ACTIVATION_RANGE[(twin.EXP_MIN <= ACTIVATION_RANGE) & (ACTIVATION_RANGE <= twin.EXP_MAX)]
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(twin.exp(x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    special = twin.exp(np.array([0, -0.0, -np.inf, np.inf, -88, -1e30, 89, 1e30], np.float32))
    top = twin.exp(np.array([twin.EXP_MAX]))[0]
    assert_same_bits(special, np.array([1, 1, 0, top, 0, 0, top, top], np.float32))


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_activation_twins_against_float64(name):
    x = ACTIVATION_RANGE.astype(np.float64)
    argument = x if name == "silu" else 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    exact = x / (1 + np.exp(-argument.clip(-700, 700)))
    error = np.abs(twin.ACTIVATIONS[name](ACTIVATION_RANGE) - exact)
    # exp's argument is rounded up to three times (gelu), each worth |argument| * 2**-24; the rest is a few ulp.
    # exp is clamped at 88: what is left there is |x| * e**-88.
    bound = np.abs(exact) * 2.0**-24 * (8 + 5 * np.minimum(np.abs(argument), 88)) + np.abs(x) * 1e-38
    assert (error <= bound).all(), ACTIVATION_RANGE[(error - bound).argmax()]


def test_softcap_twin_against_float64():
    x = ACTIVATION_RANGE.astype(np.float64)
    error = np.abs(twin.softcap(ACTIVATION_RANGE, 30.0) - 30 * np.tanh(x / 30))
    # The error that vector_math.tanh states, and the roundings of x / cap and of the product.
    assert error.max() <= 30 * (2e-7 + 2 * 2.0**-24)
