"""A program bound to memory whose operations run one at a time, as any worker of a team of any size.

No threads take part: a kernel is called for worker 0, 1, … in turn, or for one of them alone.
"""

import ctypes

import numpy as np

from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.executor.threaded import ThreadedExecutor
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.program import ProgramBuilder, Weight

from .memory_weights import MemoryWeights

KERNEL = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
POISON = 0xA5


def builder(n_col):
    """Return a program builder and the buffer [n_tok, n_col] that its operations start from."""
    b = ProgramBuilder()
    return b, b.embed(Weight("token_embd.weight", 1, n_col, "F32"))


def plain_rows(n_tok, n_out=None):
    """Return a batch of consecutive tokens from slot 0 on; the last ``n_out`` have outputs."""
    table = np.arange(-(-n_tok // 64), dtype=np.int64)
    first = n_tok - (n_tok if n_out is None else n_out)
    return Batch(
        [
            Row(token_id=-1, page_table=table, slot=i, position=i, visible_stop=i + 1, has_output=i >= first)
            for i in range(n_tok)
        ]
    )


class Bound:
    """A lowered program in memory.

    Args:
        machine: the session's machine.
        target_name: which kernels.
        program: lowered, fused or not; starts with ``embed``.
        weights: what it names.
        n_tok: most rows of a pass.
        pages: the KV cache, where the program has one.
    """

    def __init__(self, machine, target_name, program, weights, *, n_tok, pages=None):
        self.program = program
        embed = program.ops[0].weights[0]
        if isinstance(weights, MemoryWeights) and not weights.has(embed.name):
            weights.add_floats(embed.name, np.zeros((embed.n_out, embed.n_in)))
        self.executor = ThreadedExecutor(
            program,
            weights,
            pages or KvPages(1, 1, 16, 64),
            machine.kernels(target_name),
            None,
            n_tok=n_tok,
            n_out=n_tok,
        )

    def poison(self):
        """Fill all buffers with one byte."""
        self.executor._arena.view(np.uint8)[:] = POISON

    def arena(self):
        """Return a copy of all buffers' memory."""
        return self.executor._arena.view(np.uint8).copy()

    def put(self, buffer, values):
        """Write the rows of a buffer, padding included: what lies there must not matter."""
        self.executor.view(buffer, len(values))[:] = values

    def get(self, buffer, n_row):
        """Return a copy of a buffer's rows."""
        return self.executor.view(buffer, n_row).copy()

    def run_op(self, kind, batch, *, n_worker=1, workers=None):
        """Run the only operation of a kind, as all workers of a team in turn or as some of them."""
        (index,) = [i for i, op in enumerate(self.program.ops) if op.kind == kind]
        self.run_index(index, batch, n_worker=n_worker, workers=workers)

    def run_index(self, index, batch, *, n_worker=1, workers=None):
        """Run an operation by its place."""
        record = self.executor._records[index]
        kernel = KERNEL(int(record[0]))
        for worker in range(n_worker) if workers is None else workers:
            kernel(int(record.ctypes.data), int(batch.record.ctypes.data), worker, n_worker)
