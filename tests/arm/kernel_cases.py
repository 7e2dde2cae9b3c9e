"""Every kernel on one awkward shape: the same inputs for every target and every machine.

    python kernel_cases.py make INPUTS            draw the inputs (on one machine: math libraries differ)
    python kernel_cases.py run INPUTS TARGET OUT  run all kernels of a target, keep what each operation wrote

Runs natively and under qemu; needs NumPy, llvmlite and objects, not Numba.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))  # for tests.*; an installed llmrun comes first

from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.narrow import narrow
from llmrun.quant.pack import pack_rows
from llmrun.quant.pack_format import allocate
from llmrun.quant.quantize import SHAPES
from llmrun.quant.scale_search import NumpySearch
from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.executor.team import Team
from llmrun.runtime.executor.threaded import kernel_of
from llmrun.runtime.fuse import fuse, lower
from llmrun.runtime.kernels.kernel_set import LOOP_KERNELS, KernelSet
from llmrun.runtime.kernels.layout import BATCH_WORDS
from llmrun.runtime.kernels.probe_records import PROBE_RECORDS, probe_dot_record, probe_read_record
from llmrun.runtime.kernels.registry import EMBED_FORMATS, MATMUL_FORMATS, NARROW_FORMATS, PACK_FORMATS, kernel_names
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.packing import Piece, pack_by_kernels
from llmrun.runtime.program import ProgramBuilder, Rope, Weight
from llmrun.runtime.scale_search import CompiledSearch
from llmrun.runtime.simd.isa import TARGETS
from llmrun.runtime.speculation.narrowing import narrow_by_kernels
from tests.quant.hard_rows import hard_rows
from tests.runtime.kernels.blocks import activations, blocks
from tests.runtime.memory_weights import MemoryWeights
from tests.runtime.one_op import Bound

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
SEARCH_SHAPES = {
    "search_offset": SHAPES[GgmlType.Q4_K], "search_symmetric": SHAPES[GgmlType.Q6_K],
    "search_iq4": SHAPES[GgmlType.IQ4_XS],
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
    for name in EMBED_FORMATS:  # any bits at all
        n_weight, n_byte = BLOCK[GgmlType[name]]
        n_block = 2 if n_weight > 1 else 33
        inputs[f"table.{name}"] = rng.integers(0, 256, (N_VOCAB, n_block * n_byte), dtype=np.uint8)
    inputs["search.x"] = hard_rows(rng, 512)
    inputs["search.w"] = np.exp(rng.normal(size=512)).astype(np.float32)
    inputs["matrix.token_embd"] = ordinary_blocks(rng, "Q8_0", N_VOCAB, N_EMBD)
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
                token_id=-1 if i % 4 == 3 else i,
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
    table = weights.add_matrix("token_embd.weight", "Q8_0", inputs["matrix.token_embd"])
    frequencies = tuple(float(f) for f in inputs["frequencies"])
    neox, plain = (
        Rope(n_pair=N_PAIR, frequencies=frequencies, factor=1.19, is_neox=is_neox) for is_neox in (True, False)
    )
    b = ProgramBuilder()
    x = b.embed(table, 1.5)
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


class Table(MemoryWeights):
    """One table of embeddings, of any type that a file can hold."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def has(self, name):
        return True

    def table(self, weight):
        return self.blocks


class Runner:
    """Runs programs with the kernels of one target, operation by operation, and keeps what each wrote."""

    def __init__(self, inputs, target_name):
        self.inputs, self.target_name = inputs, target_name
        self.kernel_set = KernelSet(kernel_names(), TARGETS[target_name])
        self.team = Team(self.kernel_set, 3)
        self.results = {}
        self.used = set(LOOP_KERNELS)

    def kernels(self, _target_name):
        return self.kernel_set

    def pages(self, kv_type):
        pages = KvPages(1, N_HEAD_KV, N_EMBD_HEAD, 64 * 10, kv_type)
        for stored, halves in zip((pages.keys, pages.values), self.inputs["kv"], strict=True):
            values = halves.reshape(10, -1)
            if kv_type == "f16":
                stored[0] = values
            else:  # bytes, then their scales
                quants = np.clip(40 * values, -127, 127).astype(np.int8).view(np.uint8)
                stored[0] = np.concatenate([quants, values[:, : 2 * 64].view(np.uint8)], axis=1)
        return pages

    def run(self, what, program, weights, batch, x=None, *, kv_type="f16"):
        """Run a program step by step as two workers in turn; ``x`` is for rows without a token."""
        pages = self.pages(kv_type)
        bound = Bound(self, self.target_name, program, weights, n_tok=N_TOK, pages=pages)
        bound.poison()  # the same padding everywhere
        if x is not None:
            bound.put(program.ops[0].writes[0], x)
        for i, op in enumerate(program.ops):
            bound.run_index(i, batch, n_worker=2)
            kernel = kernel_of(op, kv_type)
            self.used.add(kernel)
            for buffer in op.writes:
                n_row = batch.n_out if buffer.rows == "out" else batch.n_tok
                self.results[f"{what}/{i}.{kernel}"] = bound.get(buffer, n_row)
            if op.kind == "kv_store":
                self.results[f"{what}/{i}.{kernel}"] = np.stack([pages.keys, pages.values])
        return bound

    def run_embed(self, name):
        """Look up rows of random bits."""
        table = self.inputs[f"table.{name}"]
        n_weight, n_byte = BLOCK[GgmlType[name]]
        n_col = table.shape[1] // n_byte * n_weight
        b = ProgramBuilder()
        b.output("x", b.embed(Weight("token_embd.weight", N_VOCAB, n_col, "F32", source=name)))
        self.run(f"embed {name}", b.build(1), Table(table), plain_batch(range(N_TOK)))

    def run_pack(self, name):
        """Pack a matrix of random bits, but for its scales, and hold it against NumPy's."""
        n_weight, n_byte = BLOCK[GgmlType[name]]
        n_block = self.inputs[f"w.{name}"].shape[1] // n_byte
        n_block -= n_block % 8 if n_weight == 1 else 0
        data = np.ascontiguousarray(self.inputs[f"w.{name}"][:, : n_block * n_byte]).reshape(-1)
        data = np.where(data & 0x44 == 0x44, data & 0xBB, data)  # no float has an exponent of ones
        got, want = (allocate("w", GgmlType[name], N_VOCAB, n_block * n_weight) for _ in range(2))
        self.used.add(f"pack_{name.lower()}")
        weight = Weight("w", N_VOCAB, n_block * n_weight, name)
        pack_by_kernels([Piece(weight, got, data, 0, got.n_rowgroup, slice(0))], self.kernel_set, self.team)
        pack_rows(want, data, 0, want.n_rowgroup)
        for part, values in want.parts.items():
            assert np.array_equal(got.parts[part].view(np.uint8), values.view(np.uint8)), (name, part)

    def run_narrow(self, name):
        """Make a matrix smaller, rows of extreme content among it, and hold it against NumPy's."""
        x = self.inputs["search.x"]
        x = np.ascontiguousarray(x[np.abs(x).max(axis=1) < 6e4])
        got, want = (allocate("w", GgmlType[name], *x.shape, kind) for kind in (GgmlType.F32, None))
        self.used.add(f"narrow_{name.lower()}")
        data = x.view(np.uint8).reshape(-1)
        piece = Piece(Weight("w", *x.shape, name, source="F32"), got, data, 0, got.n_rowgroup, slice(0))
        narrow_by_kernels(piece, self.kernel_set, self.team)
        pack_rows(want, narrow(GgmlType.F32, data, GgmlType[name]), 0, want.n_rowgroup)
        for part, values in want.parts.items():
            assert np.array_equal(got.parts[part].view(np.uint8), values.view(np.uint8)), (name, part)

    def run_searches(self):
        """Quantise with each search, rows of extreme content among them, and hold it against NumPy's."""
        search, plain = CompiledSearch(kernels=self.kernel_set), NumpySearch()
        for kernel, shape in SEARCH_SHAPES.items():
            self.used.add(kernel)
            method = "offset" if kernel == "search_offset" else "symmetric"
            x, w = self.inputs["search.x"], self.inputs["search.w"]
            got, want = getattr(search, method)(x, w, shape), getattr(plain, method)(x, w, shape)
            for part in ("d", "m", "scales", "lows", "q"):
                assert np.array_equal(getattr(got, part), getattr(want, part)), (kernel, part)

    def run_matmul(self, name):
        """Multiply by one format, extreme blocks among the rows."""
        weights = MemoryWeights()
        matrix = weights.add_matrix("w", name, self.inputs[f"w.{name}"])
        x = self.inputs[f"x.{name}"]
        b = ProgramBuilder()
        b.output("y", b.matmul(b.embed(Weight("token_embd.weight", 1, x.shape[1], "F32")), matrix))
        self.run(name, fuse(lower(b.build(1))), weights, plain_batch([-1] * N_TOK), x)

    def run_concat(self):
        """Put rows beside themselves."""
        b = ProgramBuilder()
        x = b.embed(Weight("token_embd.weight", 1, N_EMBD, "F32"))
        b.output("y", b.concat(x, x))
        self.run("concat", b.build(1), MemoryWeights(), plain_batch([-1] * N_TOK), self.inputs["x"])

    def run_layer(self, what, program, weights, kv_type):
        """Run the program with every operation, and again as a whole by a team of threads."""
        batch = rows(self.inputs)
        bound = self.run(what, program, weights, batch, self.inputs["x"], kv_type=kv_type)
        bound.poison()
        bound.executor._team = self.team
        bound.executor.run(batch)
        self.results[f"{what}/team"] = bound.executor.output("y", batch.n_out).copy()

    def run_all(self):
        for name in EMBED_FORMATS:
            self.run_embed(name)
        for name in MATMUL_FORMATS:
            self.run_matmul(name)
        for name in PACK_FORMATS:
            self.run_pack(name)
        for name in NARROW_FORMATS:
            self.run_narrow(name)
        self.run_searches()
        self.run_concat()
        program, weights = layer_program(self.inputs)
        plain = lower(program)
        for what, version, kv_type in (("plain", plain, "f16"), ("fused", fuse(plain), "f16"), ("q8", plain, "q8_0")):
            self.run_layer(what, version, weights, kv_type)
        rng = np.random.default_rng(11)
        self.results["probe_read"] = run_probe_read(self.kernel_set, self.inputs["x"].ravel()[: 64 * 46], 3)
        # Width by width: targets have tiles of different sizes, and sums over all tokens are the same.
        dots = run_probe_dot(self.kernel_set, TARGETS[self.target_name], *probe_inputs(rng), 2)
        self.results["probe_dot"] = dots.sum(axis=0)
        self.used |= {"probe_read", "probe_dot"}
        self.team.close()
        assert self.used == set(kernel_names()), self.used ^ set(kernel_names())


def plain_batch(token_ids):
    table = np.zeros(1, np.int64)
    return Batch([Row(token_id=i, page_table=table, slot=0, position=0, visible_stop=1) for i in token_ids])


def probe_inputs(rng):
    """Return (weights u8 [16, 32] of 4 bits, quants i8 [64, 32]): extreme values among them."""
    weights, quants = (
        rng.integers(0, 16, (16, 32), np.uint8),
        rng.integers(-127, 128, (PROBE_RECORDS, 32)).astype(np.int8),
    )
    weights[0], quants[0], quants[1] = 15, 127, -127
    return weights, quants


def run_probe_read(kernels, data, n_worker):
    """Return f32 [n_worker, 16], the results of reading ``data`` twice over."""
    data = copied(data)
    results = aligned(64 * n_worker).view(np.float32)
    run_probe(kernels, "probe_read", probe_read_record(data, results, n_pass=2), n_worker)
    return results.reshape(n_worker, 16).copy()


def run_probe_dot(kernels, target, weights, quants, n_pass):
    """Return i32 [width, 16], the results of one worker."""
    columns = weights.T.reshape(8, 4, 16).transpose(0, 2, 1).reshape(8, 64)  # vector k: columns 4k..4k+3 of each row
    packed = copied(columns[0::2] | columns[1::2] << 4)
    records = aligned(64 * len(quants)).view(np.int8).reshape(-1, 64)
    records[:, :32] = quants
    width = target.column_widths[0]
    results = aligned(64 * width).view(np.int32)
    run_probe(kernels, "probe_dot", probe_dot_record(packed, records, results, width=width, n_pass=n_pass), 1)
    return results.reshape(-1, 16).copy()


def run_probe(kernels, name, record, n_worker):
    batch = np.zeros(BATCH_WORDS, np.int64)
    for worker in range(n_worker):
        kernels.function(name, 4)(record.ctypes.data, batch.ctypes.data, worker, n_worker)


def aligned(n_byte):
    raw = np.zeros(n_byte + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:n_byte]


def copied(values):
    result = aligned(values.nbytes)
    result[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return result


def main():
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        runner = Runner(dict(np.load(sys.argv[2])), sys.argv[3])
        runner.run_all()
        np.savez(sys.argv[4], **runner.results)


if __name__ == "__main__":
    main()
