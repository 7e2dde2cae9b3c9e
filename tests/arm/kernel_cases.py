"""Every kernel on one awkward shape: the same inputs for every target and every machine.

    python kernel_cases.py make INPUTS            draw the inputs (on one machine: math libraries differ)
    python kernel_cases.py run INPUTS TARGET OUT  run all kernels of a target, keep what each operation wrote

Runs natively and under qemu; needs NumPy, llvmlite and objects, not Numba.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))  # for tests.*; an installed llmrun comes first

from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.executor.team import Team
from llmrun.runtime.executor.threaded import ThreadedExecutor, kernel_of
from llmrun.runtime.fuse import fuse, lower
from llmrun.runtime.kernels.kernel_set import LOOP_KERNELS, KernelSet
from llmrun.runtime.kernels.registry import MATMUL_FORMATS, kernel_names
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.program import ProgramBuilder, Rope, Weight
from llmrun.runtime.simd.isa import TARGETS
from tests.runtime.kernels.blocks import activations, blocks
from tests.runtime.memory_weights import MemoryWeights

N_TOK = 31  # 16 + 15 tokens: with 16 + 8 + 4 + 2 + 1, every width of a tile
N_EMBD, N_FF, N_VOCAB = 96, 224, 37
N_HEAD, N_HEAD_KV, N_EMBD_HEAD, N_PAIR = 7, 1, 64, 20  # 7 = 4 + 2 + 1 columns; 20 pairs are 16 and 4
FIRST_SLOT = 495  # rows cross a page and a segment of eight pages
N_OUT_ROWS = 5
N_COL = {"F16": 33, "BF16": 33, "F32": 33}
MATRICES = {
    "q": ("Q4_0", N_HEAD * N_EMBD_HEAD, N_EMBD), "k": ("Q8_0", N_EMBD_HEAD, N_EMBD), "v": ("Q5_1", N_EMBD_HEAD, N_EMBD),
    "o": ("IQ4_NL", N_EMBD, N_HEAD * N_EMBD_HEAD), "gate": ("Q4_1", N_FF, N_EMBD), "up": ("Q4_1", N_FF, N_EMBD),
    "down": ("Q5_0", N_EMBD, N_FF), "head": ("F16", N_VOCAB, N_EMBD),
}  # fmt: skip
VECTORS = {"norm": N_EMBD, "head_norm": N_EMBD_HEAD, "bias": N_HEAD * N_EMBD_HEAD}


def n_col_of(name):
    return N_COL.get(name, 512 if name.endswith(("_K", "_XS")) else 96)


def ordinary_blocks(rng, name, n_row, n_col):
    """Return eight times as many rows as wanted, less those of extreme content: nothing becomes infinite."""
    return np.ascontiguousarray(blocks(rng, name, 8 * n_row, n_col)[6::8])


def make(path):
    """Draw and keep all inputs."""
    rng = np.random.default_rng(7)
    inputs = {"x": rng.normal(size=(N_TOK, N_EMBD)).astype(np.float32)}
    for name in MATMUL_FORMATS:
        inputs[f"w.{name}"] = blocks(rng, name, N_VOCAB, n_col_of(name))
        inputs[f"x.{name}"] = activations(rng, N_TOK, n_col_of(name))
    for name, (kind, n_out, n_in) in MATRICES.items():
        inputs[f"matrix.{name}"] = ordinary_blocks(rng, kind, n_out, n_in)
    for name, n_col in VECTORS.items():
        inputs[f"vector.{name}"] = rng.normal(size=n_col).astype(np.float32)
    inputs["frequencies"] = 10_000.0 ** (-np.arange(N_PAIR) / N_PAIR)
    inputs["kv"] = rng.normal(size=(2, 64 * N_EMBD_HEAD * 10)).astype(np.float16)
    inputs["pages"] = rng.permutation(10).astype(np.int64)
    np.savez(path, **inputs)


def rows(inputs):
    """Return the batch: consecutive tokens, some of which see ancestors or start late."""
    table = inputs["pages"]
    result = []
    for i in range(N_TOK):
        slot = FIRST_SLOT + i
        ancestors = np.array([slot, 3, FIRST_SLOT + 1], np.int64) if i % 5 == 2 else None
        stop = FIRST_SLOT if ancestors is not None else slot + 1
        result.append(
            Row(
                token_id=-1,
                page_table=table,
                slot=slot,
                position=1000 * i + 7,
                visible_start=2 * (i % 3),
                visible_stop=stop,
                ancestors=ancestors,
                has_output=i >= N_TOK - N_OUT_ROWS,
            )
        )
    return Batch(result, inputs["x"])


def layer_program(inputs):
    """Return (program, weights) with every operation that a model can have."""
    weights, w = MemoryWeights(), {}
    for name, (kind, _, _) in MATRICES.items():
        w[name] = weights.add_matrix(name, kind, inputs[f"matrix.{name}"])
    for name in VECTORS:
        w[name] = weights.add_vector(f"blk.0.{name}", inputs[f"vector.{name}"])
    weights.add_floats("token_embd.weight", np.zeros((1, N_EMBD), np.float32))
    frequencies = tuple(float(f) for f in inputs["frequencies"])
    neox, plain = (
        Rope(n_pair=N_PAIR, frequencies=frequencies, factor=1.19, is_neox=is_neox) for is_neox in (True, False)
    )
    b = ProgramBuilder()
    x = b.embed(Weight("token_embd.weight", 1, N_EMBD, "F32"), 1.5)
    h = b.rms_norm(x, w["norm"], 1e-5)
    q, k, v = b.matmul(h, w["q"], w["bias"]), b.matmul(h, w["k"]), b.matmul(h, w["v"])
    q = b.rms_norm(q, w["head_norm"], 1e-6, N_HEAD)
    q, k = b.rope(q, N_HEAD, neox), b.rope(k, N_HEAD_KV, plain)
    b.kv_append(0, k, v, N_HEAD_KV)
    wide = b.attention(0, q, N_HEAD, N_HEAD_KV, 0.125)
    narrow = b.attention(0, q, N_HEAD, N_HEAD_KV, 0.125, softcap=5.0, window=70)
    x = b.add(x, b.matmul(b.add(wide, narrow), w["o"]))
    for activation in ("silu", "gelu"):
        h = b.rms_norm(x, w["norm"], 1e-5)
        x = b.add(x, b.matmul(b.glu(b.matmul(h, w["gate"]), b.matmul(h, w["up"]), activation), w["down"]))
    y = b.softcap(b.matmul(b.rms_norm(b.select(x), w["norm"], 1e-5), w["head"]), 30.0)
    b.output("y", y)
    return b.build(1), weights


class Runner:
    """Runs programs with the kernels of one target, operation by operation, and keeps what each wrote."""

    def __init__(self, inputs, target_name):
        self.inputs = inputs
        self.kernels = KernelSet(kernel_names(), TARGETS[target_name])
        self.team = Team(self.kernels, 3)
        self.results = {}
        self.used = set(LOOP_KERNELS)

    def pages(self):
        pages = KvPages(1, N_HEAD_KV, N_EMBD_HEAD, 64 * 10)
        for stored, values in zip((pages.keys, pages.values), self.inputs["kv"], strict=True):
            stored[:] = values.reshape(stored.shape)
        return pages

    def run(self, what, program, weights, x, batch):
        """Run a program step by step, and then as a whole by a team of threads."""
        pages = self.pages()
        executor = ThreadedExecutor(program, weights, pages, self.kernels, self.team, n_tok=N_TOK, n_out=N_TOK)
        kernel_type = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
        executor._arena.view(np.uint8)[:] = 0xA5  # the same padding everywhere
        first = next(op for op in program.ops if op.kind == "embed").writes[0]
        executor.view(first, N_TOK)[:] = x
        ops = [op for op in program.ops if op.kind != "embed"]
        for i, (op, record) in enumerate(zip(ops, executor._records, strict=True)):
            for worker in range(2):
                kernel_type(int(record[0]))(int(record.ctypes.data), int(batch.record.ctypes.data), worker, 2)
            self.used.add(kernel_of(op))
            for buffer in op.writes:
                n_row = batch.n_out if buffer.rows == "out" else N_TOK
                self.results[f"{what}/{i}.{kernel_of(op)}"] = executor.view(buffer, n_row).copy()
            if op.kind == "kv_store":
                self.results[f"{what}/{i}.kv_store"] = np.stack([pages.keys, pages.values])
        if batch.vectors is not None:
            executor.run(batch)
            for name in program.outputs:
                self.results[f"{what}/team.{name}"] = executor.output(name, batch.n_out).copy()

    def run_matmul(self, name):
        """Multiply by one format, extreme blocks among the rows."""
        weights = MemoryWeights()
        matrix = weights.add_matrix("w", name, self.inputs[f"w.{name}"])
        x = self.inputs[f"x.{name}"]
        weights.add_floats("token_embd.weight", np.zeros((1, x.shape[1]), np.float32))
        b = ProgramBuilder()
        b.output("y", b.matmul(b.embed(Weight("token_embd.weight", 1, x.shape[1], "F32")), matrix))
        batch = Batch(
            [Row(token_id=-1, page_table=np.zeros(1, np.int64), slot=0, position=0, visible_stop=1) for _ in x]
        )
        self.run(name, fuse(lower(b.build(1))), weights, x, batch)

    def run_all(self):
        for name in MATMUL_FORMATS:
            self.run_matmul(name)
        program, weights = layer_program(self.inputs)
        plain = lower(program)
        for what, version in (("plain", plain), ("fused", fuse(plain))):
            self.run(what, version, weights, self.inputs["x"], rows(self.inputs))
        self.team.close()
        assert self.used == set(kernel_names()), self.used ^ set(kernel_names())


def main():
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        runner = Runner(dict(np.load(sys.argv[2])), sys.argv[3])
        runner.run_all()
        np.savez(sys.argv[4], **runner.results)


if __name__ == "__main__":
    main()
