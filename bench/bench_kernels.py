"""Speed of the matmul kernels: cache-resident tiles, and streaming from memory.

    python bench/bench_kernels.py [--formats Q4_0,Q4_K] [--isa avx2] [--threads 2] [--stream 24]

A multiply and an add count as two operations. Times are the shortest of many short samples, so that a busy machine
disturbs little. What a bus gives changes within minutes: ``--stream`` reads by turns with the roofline's probe and says
which share of it each type reached, as quartiles of the turns' ratios.
"""

import argparse
import os
import time

import numpy as np

from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.pack import pack
from llmrun.runtime.executor.team import Team, aligned_array
from llmrun.runtime.kernels.kernel_set import KernelSet
from llmrun.runtime.kernels.layout import BARRIER_WORD, BATCH_WORDS, NEAR_ZEN, RECORD_WORDS, TOKEN_GROUP
from llmrun.runtime.kernels.registry import MATMUL_FORMATS
from llmrun.runtime.measure.kernel_speed import without_denormals
from llmrun.runtime.measure.roofline import read_pass
from llmrun.runtime.simd.isa import choose_target, zen_generation
from llmrun.runtime.simd.tile import RECORD_BYTES as X_BYTES

N_RUN = 32  # of one sample
STREAM_BYTES = 800e6  # beyond the largest third cache of a laptop or server


def aligned(n_byte):
    raw = np.zeros(n_byte + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + n_byte]


class Job:
    """One matmul of random weights, run ``N_RUN`` times by a team in one call out of Python."""

    def __init__(self, kernels, team, name, n_row, n_col, n_tok, *, n_run=N_RUN):
        rng = np.random.default_rng(0)
        ggml_type = GgmlType[name]
        n_weight, n_byte = BLOCK[ggml_type]
        data = rng.integers(0, 100, n_row * n_col // n_weight * n_byte, dtype=np.uint8)
        self.packed = pack("w", ggml_type, (n_row, n_col), data)
        without_denormals(self.packed)
        is_float = name in ("F16", "BF16", "F32")
        groups = -(-n_tok // TOKEN_GROUP) * TOKEN_GROUP
        self.x = aligned(groups * n_col * 4)
        self.x.view(np.float32)[:] = 0.5  # floats neither denormal nor huge: those take a core hundreds of cycles
        if not is_float:
            self.x.reshape(-1, X_BYTES)[:, :32] = rng.integers(0, 255, (self.x.size // X_BYTES, 32))
        self.y = aligned(n_tok * n_row * 4)
        batch, self.records = aligned_array(BATCH_WORDS), aligned_array(n_run * RECORD_WORDS).reshape(n_run, -1)
        batch[0] = n_tok
        parts = [self.packed.parts[p.name].ctypes.data for p in self.packed.format.parts]
        record = np.zeros(RECORD_WORDS, np.int64)
        record[0] = kernels.address(f"matmul_{name.lower()}")
        record[2:4] = n_row // 16, n_col if is_float else n_col // 32
        record[4 : 4 + len(parts)] = parts
        record[12:16] = self.x.ctypes.data, n_col * 4, self.y.ctypes.data, n_row * 4
        record[20:22] = 1, int(zen_generation() >= NEAR_ZEN)
        self.records[:] = record
        self.records[-1, BARRIER_WORD] = 1
        self.batch, self.team = batch, team
        self.n_op = 2 * n_row * n_col * n_tok
        self.n_byte = self.packed.n_bytes
        self.call = int(self.records.ctypes.data), n_run, int(batch.ctypes.data)

    def sample_s(self):
        """Return the time of one run, from one sample."""
        start = time.perf_counter()
        self.team.run(*self.call)
        return (time.perf_counter() - start) / len(self.records)

    def best_s(self, seconds=0.2):
        """Return the shortest time of a run: many short samples, which neighbours seldom disturb."""
        self.sample_s()
        best, end = self.sample_s(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, self.sample_s())
        return best


def stream(kernels, team, names, n_col, n_turn):
    """Print each type's speed from memory for one token beside the probe's, by turns of all types."""
    jobs = []
    for name in names:
        n_weight, n_byte = BLOCK[GgmlType[name]]
        n_row = int(STREAM_BYTES / n_byte * n_weight / n_col)
        jobs.append(Job(kernels, team, name, n_row // 32 * 32, n_col, 1, n_run=1))
    probe_bytes, read = read_pass(kernels, team)
    rates = np.empty((n_turn + 1, len(jobs), 2))  # GB/s of the kernel, of the probes before and after it
    for turn in rates:
        before = probe_bytes / read()
        for i, job in enumerate(jobs):
            rate = job.n_byte / job.sample_s()
            after = probe_bytes / read()
            turn[i] = rate / 1e9, (before + after) / 2e9
            before = after
    rates = rates[1:]  # the first turn only warms up
    print(f"{'type':8}{'GB/s':>8}{'probe':>8}   share of it: quartiles")
    for i, name in enumerate(names):
        kernel, probe = np.median(rates[:, i], axis=0)
        low, middle, high = np.quantile(rates[:, i, 0] / rates[:, i, 1], (0.25, 0.5, 0.75))
        print(f"{name:8}{kernel:8.1f}{probe:8.1f}   {low:.3f} / {middle:.3f} / {high:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", default=",".join(MATMUL_FORMATS))
    parser.add_argument("--isa")
    parser.add_argument("--stream", type=int, metavar="TURNS", help="one token, weights from memory, beside the probe")
    parser.add_argument("--widths", default="16,8,4,3,2,1", help="tokens per call")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--cols", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="of samples, for each number")
    args = parser.parse_args()
    if args.isa:
        os.environ["LLMRUN_ISA"] = args.isa
    target = choose_target()
    names = args.formats.split(",")
    kernels = KernelSet([f"matmul_{n.lower()}" for n in names] + ["probe_read"], target)
    team = Team(kernels, args.threads)
    if args.stream:
        print(f"{target.name}, threads: {args.threads}")
        stream(kernels, team, names, args.cols, args.stream)
        team.close()
        return
    print(f"{target.name}, threads: {args.threads}; Gop/s by tokens")
    widths = [int(w) for w in args.widths.split(",")]
    print(f"{'type':8}" + "".join(f"{f'T={w}':>9}" for w in widths) + f"{f'T={widths[-1]} GB/s':>10}")
    for name in names:
        row = f"{name:8}"
        for n_tok in widths:
            job = Job(kernels, team, name, args.rows, args.cols, n_tok)
            seconds = job.best_s(args.seconds)
            row += f"{job.n_op / seconds / 1e9:9.1f}"
        row += f"{job.n_byte / seconds / 1e9:10.1f}"
        print(row, flush=True)
    team.close()


if __name__ == "__main__":
    main()
