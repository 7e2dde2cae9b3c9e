"""Token embeddings are looked up in the file's own format: the bits of ``quant.dequantize``."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.dequantize import dequantize
from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.kernels.registry import EMBED_FORMATS
from llmrun.runtime.program import ProgramBuilder, Weight

from ..bits import assert_same_bits
from ..machine import BEST, WHOLE_TARGETS, names_for, rng_for
from ..memory_weights import MemoryWeights
from ..one_op import POISON, Bound

N_VOCAB = 37
PAIRS = [(t, f) for t in WHOLE_TARGETS for f in EMBED_FORMATS if f"embed_{f.lower()}" in names_for(t)]


class Table(MemoryWeights):
    """A table of random bytes, of any type that a file can hold."""

    def __init__(self, name, n_col):
        super().__init__()
        n_weight, n_byte = BLOCK[GgmlType[name]]
        self.bytes = rng_for("table", name).integers(0, 256, (N_VOCAB, n_col // n_weight * n_byte), dtype=np.uint8)
        self.weight = Weight("token_embd.weight", N_VOCAB, n_col, "F32", source=name)

    def has(self, name):
        return True

    def table(self, weight):
        return self.bytes


def batch_of(ids):
    pages = np.zeros(1, np.int64)
    return Batch([Row(token_id=i, page_table=pages, slot=0, position=0, visible_stop=1) for i in ids], np.zeros((1, 1)))


@pytest.mark.parametrize(("target_name", "name"), PAIRS)
def test_rows_of_every_type(machine, target_name, name):
    n_weight = BLOCK[GgmlType[name]][0]
    n_col = 2 * n_weight if n_weight > 1 else 48
    table, ids = Table(name, n_col), [0, N_VOCAB - 1, 5, 5, -1, 17, 3]
    b = ProgramBuilder()
    x = b.embed(table.weight)
    b.output("x", x)
    bound = Bound(machine, target_name, b.build(1), table, n_tok=len(ids))
    want = dequantize(GgmlType[name], table.bytes[ids])
    want[4] = np.full(4 * n_col, POISON, np.uint8).view(np.float32)  # a given vector: left as it is
    for n_worker in (1, 2, 3, 8):
        bound.poison()
        bound.run_op("embed", batch_of(ids), n_worker=n_worker)
        assert_same_bits(bound.get(x, len(ids)), want)


def test_padding_is_zero(machine):
    """Norms read whole vectors: what lies behind the columns counts."""
    table = Table("F32", 20)
    b = ProgramBuilder()
    x = b.embed(table.weight)
    b.output("x", x)
    bound = Bound(machine, BEST, b.build(1), table, n_tok=2)
    bound.poison()
    bound.run_op("embed", batch_of([3, 9]))
    start = bound.executor._plan.offsets[x]
    rows = bound.arena()[start : start + 2 * 128].view(np.float32).reshape(2, 32)
    assert not rows[:, 20:].any()
