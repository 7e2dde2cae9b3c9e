"""Speed of the matmul kernels on one core: cache-resident tiles, and streaming from memory.

    python bench/bench_kernels.py [--formats Q4_0,Q4_K] [--isa avx2] [--stream]

A multiply and an add count as two operations. Times are the shortest of many samples of a millisecond, so that a
busy machine disturbs little.
"""

import argparse
import os
import time

import numpy as np

from llmrun.formats.ggml_types import BLOCK, GgmlType
from llmrun.quant.pack import pack
from llmrun.runtime.kernels.kernel_set import KernelSet
from llmrun.runtime.kernels.layout import BATCH_WORDS, RECORD_WORDS
from llmrun.runtime.kernels.registry import MATMUL_FORMATS
from llmrun.runtime.simd.isa import choose_target
from llmrun.runtime.simd.tile import RECORD_BYTES


def aligned(n_byte):
    raw = np.zeros(n_byte + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + n_byte]


class Job:
    """One matmul of random weights, callable."""

    def __init__(self, kernel, name, n_row, n_col, n_tok, seed=0):
        rng = np.random.default_rng(seed)
        ggml_type = GgmlType[name]
        n_weight, n_byte = BLOCK[ggml_type]
        data = rng.integers(0, 100, n_row * n_col // n_weight * n_byte, dtype=np.uint8)
        self.packed = pack("w", ggml_type, (n_row, n_col), data)
        is_float = name in ("F16", "BF16", "F32")
        groups = -(-n_tok // 16) * 16
        self.x = aligned(groups * n_col * 4)
        self.x.view(np.float32)[:] = 0.5  # floats neither denormal nor huge: those take a core hundreds of cycles
        if not is_float:
            self.x.reshape(-1, RECORD_BYTES)[:, :32] = rng.integers(0, 255, (self.x.size // RECORD_BYTES, 32))
        self.y = aligned(n_tok * n_row * 4)
        self.batch = np.zeros(BATCH_WORDS, np.int64)
        self.batch[0] = n_tok
        self.record = np.zeros(RECORD_WORDS, np.int64)
        parts = [self.packed.parts[p.name].ctypes.data for p in self.packed.format.parts]
        self.record[2:4] = n_row // 16, n_col if is_float else n_col // 32
        self.record[4 : 4 + len(parts)] = parts
        self.record[20] = 1
        self.record[12:16] = self.x.ctypes.data, n_col * 4, self.y.ctypes.data, n_row * 4
        self.n_op = 2 * n_row * n_col * n_tok
        self.n_byte = self.packed.n_bytes
        self.kernel = kernel

    def __call__(self):
        self.kernel(self.record.ctypes.data, self.batch.ctypes.data, 0, 1)

    def best_s(self, seconds=0.2):
        """Return the shortest time of a call: many samples of about a millisecond, which neighbours seldom disturb."""
        self()
        n, one = 1, 0.0
        while one < 0.0007:
            n *= 2
            one = self._time(n)
        best, end = one / n, time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, self._time(n) / n)
        return best

    def _time(self, n):
        start = time.perf_counter()
        for _ in range(n):
            self()
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", default=",".join(MATMUL_FORMATS))
    parser.add_argument("--isa")
    parser.add_argument("--stream", action="store_true", help="weights of 256 MB, one token: GB/s")
    parser.add_argument("--widths", default="16,8,4,3,2,1", help="tokens per call")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--cols", type=int, default=1536)
    parser.add_argument("--seconds", type=float, default=0.2, help="of samples, for each number")
    args = parser.parse_args()
    if args.isa:
        os.environ["LLMRUN_ISA"] = args.isa
    target = choose_target()
    names = args.formats.split(",")
    kernels = KernelSet([f"matmul_{n.lower()}" for n in names], target)
    print(f"{target.name}, one core; Gop/s by tokens per tile" + (", GB/s from memory" if args.stream else ""))
    widths = [int(w) for w in args.widths.split(",")]
    print(
        f"{'type':8}"
        + "".join(f"{f'T={w}':>9}" for w in widths)
        + f"{f'T={widths[-1]} GB/s':>10}"
        + ("  stream GB/s" if args.stream else "")
    )
    for name in names:
        kernel = kernels.function(f"matmul_{name.lower()}", 4)
        row = f"{name:8}"
        for n_tok in widths:
            job = Job(kernel, name, args.rows, args.cols, n_tok)
            seconds = job.best_s(args.seconds)
            row += f"{job.n_op / seconds / 1e9:9.1f}"
        row += f"{job.n_byte / seconds / 1e9:10.1f}"
        if args.stream:
            n_col = 1536
            n_row = int(256e6 / (BLOCK[GgmlType[name]][1] / BLOCK[GgmlType[name]][0]) / n_col) // 16 * 16
            job = Job(kernel, name, n_row, n_col, 1)
            row += f"{job.n_byte / job.best_s(1.0) / 1e9:13.1f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
