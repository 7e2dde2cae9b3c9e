"""Activations to int8: the record of every token and 32 columns, byte for byte."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.runtime.fuse import fuse, lower
from llmrun.runtime.kernels import reference as twin

from ..machine import TARGET_NAMES, WHOLE_TARGETS, rng_for
from ..memory_weights import MemoryWeights
from ..one_op import Bound, builder, plain_rows
from .blocks import activations

EPS = 1e-5


def records(x):
    """Return the activation records of a twin's result, u8 [n_byte], as ``simd/tile.py`` lays them out."""
    n_tok, n_block = x.scale.shape
    fields = np.zeros((n_tok, n_block, 64), np.uint8)
    fields[..., :32] = x.q.astype(np.int8).view(np.uint8)

    def put(offset, values):
        fields[..., offset : offset + 4] = values[..., None].view(np.uint8).reshape(n_tok, n_block, 4)

    with np.errstate(all="ignore"):
        put(32, x.scale)
        for offset, start, stop in ((36, 0, 32), (40, 0, 16), (44, 16, 32)):
            put(offset, -x.q[..., start:stop].sum(axis=2).astype(np.int32))
            put(offset + 12, x.scaled_sum(start, stop))
    groups = [fields[i : i + 16].transpose(1, 0, 2).reshape(-1) for i in range(0, n_tok, 16)]
    return np.concatenate(groups)


def interleaved(first, second):
    """Return the rows of two results in turn, as buffers of kind "q8x2" hold them."""

    def rows(a, b):
        return np.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

    return twin.Activations(rows(first.q, second.q), rows(first.scale, second.scale))


def bind(machine, target_name, n_col, has_norm, n_tok, *, is_head=False):
    weights = MemoryWeights()
    b, x = builder(n_col)
    w = weights.add_matrix("w", GgmlType.Q8_0, np.zeros((1, n_col // 32 * 34), np.uint8))
    norm = weights.add_vector("norm", rng_for("norm", n_col).normal(size=n_col))
    if is_head:
        x = b.select(x)
    b.output("y", b.matmul(b.rms_norm(x, norm, EPS) if has_norm else x, w))
    program = fuse(lower(b.build(1)))
    (buffer,) = [op.writes[0] for op in program.ops if "quantize" in op.kind]
    return Bound(machine, target_name, program, weights, n_tok=n_tok), x, buffer, weights.values(norm)[:n_col]


@pytest.mark.parametrize("target_name", TARGET_NAMES)
@pytest.mark.parametrize("n_col", [32, 96, 576])
def test_quantize(machine, target_name, n_col):
    x = activations(rng_for("quantize", n_col), 33, n_col)
    x[6, :32] = np.linspace(-127, 127, 32, dtype=np.float32)  # steps between quants, ties among them
    x[7] = np.float32(0.5)
    x[8] = np.where(np.arange(n_col) % 2, np.float32(-3.4e38), np.float32(1e-45))
    bound, buffer, y, _ = bind(machine, target_name, n_col, False, 33)
    for n_tok in (1, 2, 15, 16, 17, 33):
        want = records(twin.quantize(x[:n_tok]))
        for n_worker in (1, 2, 3, 8):
            bound.poison()
            bound.put(buffer, x[:n_tok])
            bound.run_op("quantize", plain_rows(n_tok), n_worker=n_worker)
            assert np.array_equal(bound.get(y, n_tok), want), (n_tok, n_worker)


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("n_col", [32, 96, 576])
def test_norm_quantize(machine, target_name, n_col):
    x = rng_for("norm", n_col).normal(size=(33, n_col)).astype(np.float32)
    x[1], x[2] = 0, x[2] * np.float32(1e17)
    bound, buffer, y, weight = bind(machine, target_name, n_col, True, 33)
    for n_tok in (1, 17, 33):
        want = records(twin.quantize(twin.rms_norm(x[:n_tok], weight, EPS)))
        for n_worker in (1, 2, 5):
            bound.poison()
            bound.put(buffer, x[:n_tok])
            bound.run_op("norm_quantize", plain_rows(n_tok), n_worker=n_worker)
            assert np.array_equal(bound.get(y, n_tok), want), (n_tok, n_worker)


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("has_norm", [False, True])
def test_two_records_in_front_of_the_output_matrix(machine, target_name, has_norm):
    x = activations(rng_for("two records"), 33, 96)
    bound, buffer, y, weight = bind(machine, target_name, 96, has_norm, 33, is_head=True)
    assert y.kind == "q8x2"
    for n_tok in (1, 7, 8, 9, 33):
        rows = twin.rms_norm(x[:n_tok], weight, EPS) if has_norm else x[:n_tok]
        first = twin.quantize(rows)
        want = records(interleaved(first, twin.quantize(twin.rest(rows, first))))
        for n_worker in (1, 3):
            bound.poison()
            bound.put(buffer, x[:n_tok])
            bound.run_op("norm_quantize" if has_norm else "quantize", plain_rows(n_tok), n_worker=n_worker)
            assert np.array_equal(bound.get(y, n_tok), want), (n_tok, n_worker)


def test_two_records_hold_fifteen_bits():
    x = rng_for("fifteen bits").normal(size=(50, 320)).astype(np.float32)
    first = twin.quantize(x)
    second = twin.quantize(twin.rest(x, first))
    both = sum(part.q * part.scale[..., None].astype(np.float64) for part in (first, second))
    blocks = x.reshape(both.shape)
    # The rest is at most half a step, and the scale at most half a step in 127 off; half of its own 127th is left.
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    assert (np.abs(both - blocks) <= step * (0.5 + 0.5) / 127).all()


def test_a_quant_is_at_most_half_a_step_off():
    x = rng_for("half a step").normal(size=(50, 320)).astype(np.float32)
    quantized = twin.quantize(x)
    blocks = x.reshape(quantized.q.shape).astype(np.float64)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    # Half a step, and the roundings of 127 / max and of the product (at most 127 steps of 2**-24 each).
    assert (np.abs(quantized.q * step - blocks) <= step * (0.5 + 2 * 127 * 2.0**-24)).all()
    assert np.abs(quantized.q).max() == 127


def test_the_scale_has_the_least_squared_error():
    x = rng_for("least squares").normal(size=(50, 320)).astype(np.float32)
    quantized = twin.quantize(x)
    blocks = x.reshape(quantized.q.shape).astype(np.float64)

    def error(scale):
        return ((quantized.q * scale - blocks) ** 2).sum(axis=2)

    best = quantized.scale[..., None].astype(np.float64)
    for factor in (0.999, 0.9999, 1.0001, 1.001):
        assert (error(best) < error(best * factor)).all()
    plain = error(np.abs(blocks).max(axis=2, keepdims=True) / 127).sum()
    assert 0.95 < error(best).sum() / plain < 0.985  # about 31 / 32


@pytest.mark.parametrize("value", [1e-45, 1e-39, 2.0**-121, 2.0**-93])
def test_a_tiny_block_is_zero(value):
    """127 / max|x| overflows below 127 / 3.4e38; above 2**-93 no product of a block is rounded to -0."""
    quantized = twin.quantize(np.full((1, 32), value, np.float32))
    assert not quantized.q.any()
    assert twin.quantize(np.full((1, 32), 2.0**-92, np.float32)).q.all()
