"""The memory that Python and kernels share: operation records, batch records, row records.

Every kernel has one signature: ``kernel(record, batch, worker, n_worker)``, four int64. ``record`` is
the address of the operation's ``RECORD_WORDS`` int64: word 0 is the kernel's own address, word 1 the
offset inside the batch record of the number of rows to work on (``N_TOK`` or ``N_OUT``; ``ROWS`` further are
these rows' records), the rest is the kernel's own (each kernel's module lists it). Offsets below are in bytes.
"""

from __future__ import annotations

RECORD_WORDS = 32
RECORD_BYTES = 8 * RECORD_WORDS
BARRIER_WORD = RECORD_WORDS - 1  # 1: all workers wait for each other after this operation

# Batch record: what this forward pass works on.
N_TOK = 0  # rows of this pass
ROWS = 8  # address of N_TOK row records
N_OUT = 16  # rows whose outputs are wanted; at N_OUT + ROWS the address of copies of their row records
OUT_ROWS = 40  # address of N_OUT int64: their row numbers, ascending
BATCH_STOP = 32  # address of a word that is not 0 when the pass is to be given up, or 0
BATCH_WORDS = 8

# Row record: one token in one sequence.
ROW_TOKEN = 0  # token id, or -1 when the input is a given vector
ROW_PAGES = 8  # address of the sequence's page table (int64 page numbers)
ROW_SLOT = 16  # where this row's keys and values are kept in its sequence
ROW_POSITION = 24  # what rotary embedding sees
ROW_VISIBLE_START = 32  # attends to slots start <= slot < stop …
ROW_VISIBLE_STOP = 40
ROW_ANCESTORS = 48  # … and then to these slots (address of int64), in this order
ROW_N_ANCESTOR = 56
ROW_BYTES = 64

# Team header: what the threads of a team share. Words that several threads write have a cache line each.
HEADER_WORDS = 64
EPOCH = 0  # number of passes published
ARRIVED = 128  # barrier arrivals, ever rising
STOP = 256  # not 0: skip the remaining operations of this pass
PROGRAM = 384  # address of the operation records
N_OP = 392
BATCH = 400  # address of the batch record
N_WORKER = 408
BASE = 416  # ARRIVED when the pass was published
YIELD = 424  # address of a C function without arguments that gives up the processor
SPIN_BARRIER = 432  # pauses at a barrier before yielding
SPIN_IDLE = 440  # waits for the next pass before a worker returns to Python

ROW_LANES = 16  # output rows of a matmul tile; f32 rows of every buffer are padded to this
TOKEN_GROUP = 16  # tokens whose activation records lie side by side
NEAR_ZEN = 4  # generation of AMD's cores from which on matmuls of few tokens use near tiles (``matmul_tiles.py``)
# Types that kernels pack (``pack.py``); for IQ4_NL the one of Q4_0 does, which has the same fields.
PACK_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16")
PACK_SPECIAL = 10  # word of a packing's record that says whether it saw an infinite or NaN scale
FLOAT_COLUMNS = 8  # that they pack at once of types whose blocks are single weights
PAGE_SLOTS = 64  # slots of a KV page
# Bytes of one column of a key head in a page, keys or values alone, by the type of the cache (``kv_store.py``).
KV_HEAD_BYTES = {"f16": 2 * PAGE_SLOTS, "q8_0": PAGE_SLOTS + 2 * PAGE_SLOTS // 32}
KV_TYPES = tuple(KV_HEAD_BYTES)
DEFAULT_KV_TYPE = "f16"
MAX_EMBD_HEAD = 512  # columns of a head, which size attention's scratch
SEGMENT_PAGES = 8  # that attention goes over before it merges what they come to
MAX_COLUMN = 16  # rows and query heads that attention works on together
MAX_SHARED = 64  # tiles of attention whose segments are dealt out at the same time


def state_bytes(n_embd_head: int) -> int:
    """Return the bytes of a state of attention (``attention_tile.py``)."""
    return 2 * 4 * MAX_COLUMN + 4 * n_embd_head * MAX_COLUMN


def padded(n: int, multiple: int = ROW_LANES) -> int:
    """Return ``n`` rounded up to a multiple."""
    return -(-n // multiple) * multiple
