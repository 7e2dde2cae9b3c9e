"""Rotary embedding: the table of cosines and sines, and the rotation of heads in place."""

import numpy as np
import pytest

from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.program import Rope

from ..bits import assert_same_bits
from ..machine import WHOLE_TARGETS, rng_for
from ..memory_weights import MemoryWeights
from ..one_op import Bound, builder

POSITIONS = np.array([0, 1, 2, 3, 17, 63, 64, 511, 4095, 40_960, 131_071, 1_048_575, 9_999_999])


def make_rope(n_pair, *, is_neox=True, theta=10_000.0, factor=1.0):
    frequencies = tuple(float(theta ** (-i / n_pair)) for i in range(n_pair))
    return Rope(n_pair=n_pair, frequencies=frequencies, factor=factor, is_neox=is_neox)


def batch_at(positions):
    table = np.zeros(1, np.int64)
    return Batch([Row(token_id=-1, page_table=table, slot=0, position=int(p), visible_stop=1) for p in positions])


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("n_pair", [1, 8, 16, 20, 48, 128])
def test_table(machine, target_name, n_pair):
    rope = make_rope(n_pair, factor=1.1902)
    b, x = builder(2 * n_pair)
    b.rope(x, 1, rope)
    b.output("y", x)
    bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=len(POSITIONS))
    (table,) = [op.writes[0] for op in bound.program.ops if op.kind == "rope_table"]
    want = twin.rope_table(POSITIONS, np.array(rope.frequencies), rope.factor)
    for n_worker in (1, 3, 20):
        bound.poison()
        bound.run_op("rope_table", batch_at(POSITIONS), n_worker=n_worker)
        raw = bound.get(table, len(POSITIONS)).view(np.float32).reshape(len(POSITIONS), 2, -1)[:, :, :n_pair]
        assert_same_bits(raw[:, 0], want[0])
        assert_same_bits(raw[:, 1], want[1])


def test_table_twin_is_rounded_correctly_nearly_always():
    """In f64 sine and cosine are good to 1e-15: f32 sees half an ulp, 3e-8, and the rounding of the angle."""
    frequencies = np.array(make_rope(64).frequencies)
    angle = POSITIONS[:, None].astype(np.longdouble) * frequencies.astype(np.longdouble)
    cosines, sines = twin.rope_table(POSITIONS, frequencies, 1.0)
    # The product position * frequency is rounded to f64: up to 1e7 * 2**-53.
    bound = 2.0**-25 + 1e-15 + POSITIONS[:, None] * 2.0**-53
    assert (np.abs(cosines - np.cos(angle)) <= bound).all()
    assert (np.abs(sines - np.sin(angle)) <= bound).all()


@pytest.mark.parametrize("target_name", WHOLE_TARGETS)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(
    ("n_embd_head", "n_pair"),
    [(16, 8), (16, 6), (64, 32), (64, 1), (80, 16), (96, 48), (128, 64), (128, 20), (256, 128)],
)
def test_rotation_of_whole_and_partial_heads(machine, target_name, is_neox, n_embd_head, n_pair):
    n_tok, n_head = 5, 3
    rope = make_rope(n_pair, is_neox=is_neox)
    x = rng_for(n_embd_head, n_pair).normal(size=(n_tok, n_head * n_embd_head)).astype(np.float32)
    b, buffer = builder(n_head * n_embd_head)
    b.rope(buffer, n_head, rope)
    b.output("y", buffer)
    bound = Bound(machine, target_name, b.build(1), MemoryWeights(), n_tok=n_tok)
    positions = POSITIONS[3 : 3 + n_tok]
    tables = twin.rope_table(positions, np.array(rope.frequencies), rope.factor)
    want = twin.rope(x.reshape(n_tok, n_head, -1), *tables, is_neox=is_neox).reshape(x.shape)
    for n_worker in (1, 2, 4):
        bound.poison()
        bound.put(buffer, x)
        bound.run_op("rope_table", batch_at(positions))
        bound.run_op("rope", batch_at(positions), n_worker=n_worker)
        assert_same_bits(bound.get(buffer, n_tok), want)


def test_rotation_twin_turns_pairs():
    """As complex numbers, with each pair's angle; columns beyond the pairs stay."""
    x = rng_for("turn").normal(size=(4, 2, 20)).astype(np.float32)
    rope = make_rope(8)
    angle = np.arange(4)[:, None] * np.array(rope.frequencies)
    turn = np.exp(1j * angle)[:, None]
    tables = twin.rope_table(np.arange(4), np.array(rope.frequencies), 1.0)
    for is_neox, first, second in ((True, slice(0, 8), slice(8, 16)), (False, slice(0, 16, 2), slice(1, 16, 2))):
        got = twin.rope(x, *tables, is_neox=is_neox)
        want = (x[..., first] + 1j * x[..., second]) * turn
        assert np.abs(got[..., first] - want.real).max() < 1e-6
        assert np.abs(got[..., second] - want.imag).max() < 1e-6
        assert_same_bits(got[..., 16:], x[..., 16:])
