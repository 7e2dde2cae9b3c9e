"""Operation records of the probes (``probe.py`` lists their words); needs no Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..simd.isa import zen_generation
from .layout import RECORD_WORDS

RUN_BYTES = 256  # that probe_read takes at a time
PROBE_RECORDS = 64  # activation records of probe_dot: 4 kB, a multiple of every tile's width
RECORD_BYTES = 64
PREFETCH_BYTES = 2048  # ahead of what probe_read reads
OPS_PER_RECORD = 2 * 16 * 32  # a record against a group of 16 x 32 weights


def probe_read_record(data: NDArray[Any], results: NDArray[Any], *, n_pass: int) -> NDArray[np.int64]:
    """Return the record that reads ``data`` (whole runs), with room for 64 bytes per worker in ``results``."""
    record = np.zeros(RECORD_WORDS, np.int64)
    # A Zen core reads faster where it is left to find out by itself what comes next: a Zen 4 by 3 %, a Zen 3 by 15.
    ahead = 0 if zen_generation() else PREFETCH_BYTES
    record[2:7] = data.ctypes.data, data.nbytes // RUN_BYTES, results.ctypes.data, n_pass, ahead
    return record


def probe_dot_record(
    weights: NDArray[np.uint8], records: NDArray[Any], results: NDArray[Any], *, width: int, n_pass: int
) -> NDArray[np.int64]:
    """Return the record that multiplies a group of packed weights with all activation records, ``n_pass`` times."""
    record = np.zeros(RECORD_WORDS, np.int64)
    n_tile = records.nbytes // (RECORD_BYTES * width)
    record[2:7] = weights.ctypes.data, records.ctypes.data, results.ctypes.data, n_tile, n_pass
    return record
