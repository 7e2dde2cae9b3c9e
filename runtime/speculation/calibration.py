"""The first look at a machine: what passes of a few widths and the draft's steps take, in a fraction of a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ...formats.errors import LlmrunError
from ..kv_cache import KvSequence
from .costs import StepCosts
from .loop import verify

if TYPE_CHECKING:
    from ..engine import Engine

WIDTHS = (1, 1, 2, 1, 4, 1, 8, 16, 1)  # a plain step before and after each, that load cannot pretend anything
BUDGET_S = 0.5
N_STEP = 3  # of the draft: one that was disturbed does not count among so many


def calibrate(engine: Engine, costs: StepCosts) -> list[float]:
    """Measure passes unless they are known from another run; return what some steps of the engine's draft took.

    Where no page of a KV cache is free nothing is measured.
    """
    if not costs.is_known:
        _measure_passes(engine, costs)
    if engine.draft is None:
        return []
    seconds = []
    try:
        for _ in range(1 + N_STEP):
            started = time.perf_counter()
            engine.draft.step()
            seconds.append(time.perf_counter() - started)
    except LlmrunError:
        return []
    return seconds[1:]  # without the one that touches first


def _measure_passes(engine: Engine, costs: StepCosts) -> None:
    """Measure passes, narrow ones first, as long as the budget lasts; the others are measured when they are used."""
    sequence = KvSequence(engine.pages, engine.n_ctx)
    started = time.perf_counter()
    most = min(max(WIDTHS), engine.executor.n_tok, engine.executor.n_out, engine.n_ctx)
    # Touched before: what the system takes to give memory is no part of a pass.
    room = np.full((most, engine.info.n_vocab), 0.0, np.float32)
    engine.executor.output("logits", most).fill(0.0)
    try:
        verify(engine, [(sequence, [0])], room)  # untimed: what is touched first
        for n_row in WIDTHS:
            if n_row > most:
                continue
            sequence.rollback(0)
            before = time.perf_counter()
            verify(engine, [(sequence, [0] * n_row)], room)
            costs.learn(n_row, time.perf_counter() - before)
            if time.perf_counter() - started > BUDGET_S:
                break
    except LlmrunError:
        return
    finally:
        sequence.close()
