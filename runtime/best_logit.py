"""The largest logit of each row, with the bits that it has among all, for about half of the output matrix's work.

The output matrix reads two records of activations a token, the second for what the first leaves over, and a logit is
``fl(first + second)``: the sums over the columns of ``weight * first record`` and of ``weight * second record``. By
Cauchy and Schwarz the second is at most the length of the weights' row times that of the second record, which is a
hundredth of the first's. So a pass with first records alone says which logits may be the largest, a few of 150,000; the
rows of the matrix that they come from are then multiplied in full.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..formats.ggml_types import GgmlType
from ..formats.record import replace
from ..quant.pack_format import PackedTensor
from .batch import Batch
from .executor.plan import X_RECORD_BYTES
from .executor.threaded import ThreadedExecutor
from .kernels.layout import ROW_LANES, TOKEN_GROUP
from .program import Buffer, Op, Program
from .simd.isa import Target

F32 = NDArray[np.float32]

MOST_ROWS = 16  # of a pass; more are those of a prompt
SLICE_GROUPS = 256  # row groups of the matrix, whose scales are looked at together
# What rounding may add: to sums of products and to lengths less than a thousandth, to a logit a part in 2**24 of it.
SUM_SLACK, LOGIT_SLACK = 1.001, 1e-6
LEAST_WEIGHTS = 10**8  # of an output matrix; looking through the logits takes longer than a smaller one's products


def with_first_records(program: Program) -> Program | None:
    """Return a program that ends with the output matrix twice: of first records alone, then as it was.

    None where the logits are not what a matrix that reads two records gives.
    """
    if len(program.ops) < 2:
        return None
    *body, quantize, matmul = program.ops
    is_wanted = matmul.kind == "matmul" and matmul.writes == (program.outputs.get("logits"),) and not matmul.attributes
    if not is_wanted or matmul.reads[0].kind != "q8x2" or quantize.writes != matmul.reads:
        return None
    both = matmul.reads[0]
    first = Buffer(f"{both.name}.first", both.n_col, both.rows, "q8")
    ops: list[Op] = [
        *body, replace(quantize, writes=(first,)), quantize, replace(matmul, reads=(first,)), matmul,
    ]  # fmt: skip
    return replace(program, ops=ops)


def longest_rows(packed: PackedTensor, start: int, stop: int) -> F32:
    """Return what the rows of some row groups are no longer than, f32 [n]: every quant as large as it can be."""
    d = packed.parts["d"][start:stop].astype(np.float64)  # [groups, blocks, 16]
    if packed.format.ggml_type is GgmlType.Q8_0:
        squares = 32 * 128.0**2 * d**2
    else:  # Q6_K: sixteen scales of 16 columns each, quants -32 to 31
        scales = packed.parts["s8"][start:stop].astype(np.int32)
        squares = 16 * 32.0**2 * d**2 * np.einsum("gbsr,gbsr->gbr", scales, scales)
    return np.asarray(np.sqrt(squares.sum(axis=1)) * SUM_SLACK, np.float32).reshape(-1)


def least_rows(program: Program, target: Target) -> int | None:
    """Return from how many rows on that is quicker; None where it never is, or cannot be done.

    It is where multiplying takes longer than reading. AVX2 multiplies four columns of Q6_K, and six of Q8_0, more
    slowly than memory delivers them; other instruction sets are several times as quick (bench/LOG.md).
    """
    changed = with_first_records(program)
    if changed is None:
        return None
    weight = changed.ops[-1].weights[0]
    if weight.packed not in ("Q6_K", "Q8_0") or weight.n_out * weight.n_in < LEAST_WEIGHTS:
        return None
    if target.dot not in ("avx2", "ssse3"):
        return 5
    return 3 if weight.packed == "Q8_0" else 2


class BestLogit:
    """Runs passes of at most ``MOST_ROWS`` rows, of each of which only the largest logit is wanted.

    Args:
        whole: the executor of a program for which ``least_rows`` is a number. To prepare takes some 80 ms.
    """

    def __init__(self, whole: ThreadedExecutor) -> None:
        program = with_first_records(whole.program)
        if program is None:
            raise ValueError("the program's logits are not what a matrix that reads two records gives")
        self._executor = whole.with_program(program, MOST_ROWS)
        packed = whole.weights.packed(program.ops[-1].weights[0])
        starts = range(0, packed.n_rowgroup, SLICE_GROUPS)
        # Of the matrix's rows, at most.
        self._lengths = np.concatenate([longest_rows(packed, start, start + SLICE_GROUPS) for start in starts])
        self._longest = float(self._lengths.max())

    def run(self, batch: Batch) -> F32:
        """Run a pass all of whose rows are wanted.

        Returns:
            Rows f32 [n_row, n_vocab] whose largest logit is exact, the others only smaller than it (of equal ones the
            first is exact, and none before it as large). A view that the next pass overwrites.
        """
        self._executor.run(batch, n_left_out=1)
        rows = self._executor.output("logits", batch.n_out)
        rests = self._rest_lengths(batch.n_out)
        found = [self._may_be_largest(row, rest) for row, rest in zip(rows, rests, strict=True)]
        groups = np.unique(np.concatenate(found) // ROW_LANES)
        if len(groups):
            self._executor.run_row_groups(batch, groups)
        return rows

    def _may_be_largest(self, row: F32, rest: float) -> NDArray[np.int64]:
        """Return which logits may be the largest, from the first sums [n_vocab] and the second record's length.

        None where a first sum is no number: nor is the row.
        """
        top = float(row.max())
        if not np.isfinite(top):
            return np.zeros(0, np.int64)
        slack = LOGIT_SLACK * (abs(top) + self._longest * rest)
        index = np.flatnonzero(row >= np.float32(top - 2 * (self._longest * rest + slack)))
        near, room = row[index].astype(np.float64), self._lengths[index].astype(np.float64) * rest + slack
        found: NDArray[np.int64] = index[near + room >= (near - room).max()]
        return found

    def _rest_lengths(self, n_row: int) -> list[float]:
        """Return the length of each row's second record, rounded up."""
        both = self._executor.program.ops[-1].reads[0]
        raw, n_block, lengths = self._executor.view(both, n_row).reshape(-1), both.n_col // 32, list[float]()
        for start in range(0, 2 * n_row, TOKEN_GROUP):  # groups of columns, two for each row
            width = min(TOKEN_GROUP, 2 * n_row - start)
            first = X_RECORD_BYTES * start * n_block
            # Records as ``simd/tile.py`` has them: 32 quants, then their scale.
            group = raw[first : first + X_RECORD_BYTES * n_block * width].reshape(n_block, width, X_RECORD_BYTES)
            second = group[:, 1::2]  # [n_block, rows, bytes]
            scales = np.ascontiguousarray(second[..., 32:36]).view(np.float32)[..., 0].astype(np.float64)
            quants = second[..., :32].view(np.int8).astype(np.float64)
            squares = (scales**2 * (quants**2).sum(axis=-1)).sum(axis=0)
            lengths += (np.sqrt(squares) * SUM_SLACK).tolist()
        return lengths
