"""The targets that this machine runs, their kernels and teams of threads, each made once.

Every kernel is built for every target, except for ``avx-vnni`` where there is AVX-512 too: it shares all
but the byte dot product with ``avx2``, so only ``DOT_KERNELS`` are built (``pytest --slow`` builds all).
"""

import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock

from llmrun.runtime.executor.team import Team
from llmrun.runtime.kernels.kernel_set import KernelSet
from llmrun.runtime.kernels.registry import kernel_names
from llmrun.runtime.simd.isa import TARGETS, supported_targets

TARGET_NAMES = tuple(t.name for t in supported_targets())
# One kernel for each way in which a dot product is used: 4 bits with an offset, signed bytes, table, halves of a group.
DOT_KERNELS = frozenset({"matmul_q4_0", "matmul_q8_0", "matmul_iq4_nl", "matmul_q6_k", "quantize", "embed_f32"})
IS_SLOW = "--slow" in sys.argv
PARTIAL = frozenset() if IS_SLOW else frozenset({"avx-vnni"}) - {TARGET_NAMES[0]}
# Look-ups of these types are built for every target, of the others for the best one: they are plain scalar code.
EMBED_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
# All but the partial ones: these run whole models.
WHOLE_TARGETS = tuple(t for t in TARGET_NAMES if t not in PARTIAL)
BEST = TARGET_NAMES[0]


def names_for(target_name):
    """Return the kernels that ordinary test runs build for a target."""
    names = kernel_names()
    if target_name in PARTIAL:
        return [n for n in names if n in DOT_KERNELS]
    if target_name == BEST or IS_SLOW:
        return names
    return [n for n in names if not n.startswith("embed_") or n.removeprefix("embed_").upper() in EMBED_TYPES]


class Machine:
    """Kernels and teams by target."""

    def __init__(self):
        self._teams = {}

    @cache  # noqa: B019 (one per session)
    def kernels(self, target_name, names=None):
        """Return the loaded kernels of a target; of several test processes, one compiles what is missing."""
        with FileLock(Path(os.environ["LLMRUN_CACHE"]) / f"{target_name}.lock"):
            return KernelSet(names or names_for(target_name), TARGETS[target_name])

    def team(self, target_name=BEST, n_thread=1):
        """Return a team; it is kept until the session ends."""
        key = target_name, n_thread
        if key not in self._teams:
            self._teams[key] = Team(self.kernels(target_name), n_thread)
        return self._teams[key]

    def close(self):
        for team in self._teams.values():
            team.close()


def rng_for(*parts):
    """Return a random generator that depends on these words and numbers alone."""
    return np.random.default_rng([*str(parts).encode()])


def token_ids(name, n_tok):
    """Return random ids of ordinary tokens."""
    return rng_for("ids", name).integers(0, 297, n_tok).tolist()
