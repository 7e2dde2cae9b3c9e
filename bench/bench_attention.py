"""Speed of the attention kernel on one core: query heads of one or many rows over a context.

    python bench/bench_attention.py [--heads 14,2,64] [--depths 512,8192] [--rows 1,512] [--isa avx2]

A multiply and an add count as two operations: 4 x columns of a head for each query head and slot. Times are the
shortest of many calls, so that a busy machine disturbs little.
"""

import argparse
import itertools
import os
import time

import numpy as np

from llmrun.runtime.batch import Batch
from llmrun.runtime.kernels.kernel_set import KernelSet
from llmrun.runtime.kernels.layout import KV_TYPES, PAGE_SLOTS, RECORD_WORDS
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.simd.isa import choose_target


class Job:
    """Attention of ``n_row`` rows that follow ``depth`` slots, callable."""

    def __init__(self, kernels, kv_type, heads, depth, n_row):
        n_head, n_head_kv, width = heads
        rng = np.random.default_rng(0)
        pages = KvPages(1, n_head_kv, width, depth + n_row, kv_type)
        k, v = rng.normal(size=(2, pages.n_page * PAGE_SLOTS, n_head_kv * width)).astype(np.float32)
        table = rng.permutation(pages.n_page).astype(np.int64)
        self.batch = Batch.of_tokens(table, depth, [0] * n_row, [])
        store = Batch.of_tokens(table, 0, [0] * len(k), [])
        step = 4 * n_head_kv * width
        record = np.zeros(RECORD_WORDS, np.int64)
        addresses = pages.keys.ctypes.data, pages.values.ctypes.data, pages.page_stride
        record[2:11] = n_head_kv, width, k.ctypes.data, step, v.ctypes.data, step, *addresses
        factors = np.ones((2, n_head_kv, width), np.float32)
        factors[1] /= 32  # of queries: the rotation of q8_0
        record[15] = factors[0].ctypes.data
        kernels.function(f"kv_store_{kv_type}", 4)(record.ctypes.data, store.record.ctypes.data, 0, 1)
        self.q = rng.normal(size=(n_row, n_head * width)).astype(np.float32)
        self.y = np.empty_like(self.q)
        self.record = np.zeros(RECORD_WORDS, np.int64)
        step = 4 * n_head * width
        self.record[2:15] = (
            n_head, n_head_kv, width, self.q.ctypes.data, step, self.y.ctypes.data, step, *addresses,
            int(np.float32(width**-0.5).view(np.uint32)), 0, 0,
        )  # fmt: skip
        self.record[20] = factors[1].ctypes.data
        seen = n_row * depth + n_row * (n_row + 1) // 2
        self.n_op = 4 * width * n_head * seen
        self.n_byte = KvPages.slot_bytes(1, n_head_kv, width, kv_type) * (depth + n_row)
        self.kernel, self.keep = kernels.function(f"attention_{kv_type}", 4), (kernels, pages, table, factors)

    def __call__(self):
        self.kernel(self.record.ctypes.data, self.batch.record.ctypes.data, 0, 1)

    def best_s(self, seconds):
        """Return the shortest time of a call."""
        self()
        best, end = np.inf, time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            self()
            best = min(best, time.perf_counter() - start)
        return best


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--heads", type=numbers, default=[14, 2, 64], help="query heads, key heads, columns of a head")
    parser.add_argument("--depths", type=numbers, default=[0, 512, 2048, 8192])
    parser.add_argument("--rows", type=numbers, default=[16, 1])
    parser.add_argument("--types", type=lambda text: text.split(","), default=list(KV_TYPES))
    parser.add_argument("--isa")
    parser.add_argument("--seconds", type=float, default=1.0, help="of samples, for each number")
    args = parser.parse_args()
    if args.isa:
        os.environ["LLMRUN_ISA"] = args.isa
    target = choose_target()
    kernels = KernelSet([f"{name}_{t}" for t in args.types for name in ("attention", "kv_store")], target)
    print(f"{target.name}, one core, heads {args.heads}")
    print(f"{'type':8}{'rows':>6}{'depth':>8}{'ms':>10}{'Gop/s':>9}{'GB/s':>8}")
    for kv_type, n_row, depth in itertools.product(args.types, args.rows, args.depths):
        job = Job(kernels, kv_type, args.heads, depth, n_row)
        seconds = job.best_s(args.seconds)
        gops, gbs = job.n_op / seconds / 1e9, job.n_byte / seconds / 1e9
        print(f"{kv_type:8}{n_row:6}{depth:8}{1e3 * seconds:10.3f}{gops:9.1f}{gbs:8.1f}", flush=True)


if __name__ == "__main__":
    main()
