"""How well a small model would draft for another one here: what it costs, how often it is right, what it gains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats.record import Record, field
from ..kv_cache import KvSequence
from ..speculation.loop import verify
from ..speculation.opening import open_draft
from ..speculation.settings import SpeculationSettings
from ..speculation.source import Draft
from ..texts import DraftPrompt, draft_prompts
from .drafts import measure_drafts, warm_up
from .statistics import quantile

if TYPE_CHECKING:
    from ..engine import Engine

PROMPTS = ("code-cache", "chat-trip")  # one where small models guess well, one where they do not
N_GEN = 64
N_STEP = 9  # single steps that are timed
MODE = SpeculationSettings(mode="draft")


class Candidate(Record, kw_only=True, frozen=False):
    """What was measured of one draft."""

    path: Path
    packed_bytes: int
    is_same_vocabulary: bool
    n_shared: int  # tokens that it can draft
    step_price: float = 0.0  # of a draft step, in steps of the target
    acceptance: dict[str, float] = field(default_factory=dict)  # by kind of prompt
    speedup: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Mean speed-up over the prompts."""
        return sum(self.speedup.values()) / len(self.speedup) if self.speedup else 0.0


def choice_prompts() -> list[DraftPrompt]:
    """Return the prompts that candidates are measured on."""
    return [p for p in draft_prompts() if f"{p.kind}-{p.name}" in PROMPTS]


def measure_candidate(
    engine: Engine, path: Path, prompts: Sequence[DraftPrompt], on_step: Callable[[], None] | None = None
) -> Candidate:
    """Open a draft beside an engine that has none, measure it and close it again.

    Raises:
        LlmrunError: the file is no model that llmrun runs, or it does not fit into memory.
    """
    draft = open_draft(path, engine)
    try:
        candidate = Candidate(
            path=path,
            packed_bytes=draft.packed_bytes,
            is_same_vocabulary=draft.is_same_vocabulary,
            n_shared=draft.n_shared,
            step_price=_step_price(engine, draft),
        )
        engine.draft = draft
        costs, _ = engine.pass_costs()
        costs.forget_others()  # those of another draft
        warm_up(engine, MODE)
        for prompt in prompts:
            result = measure_drafts(engine, prompt, MODE, n_gen=N_GEN, n_round=1)
            candidate.acceptance[prompt.kind] = result.stats.sources["draft"].acceptance
            candidate.speedup[prompt.kind] = result.speedup
            if on_step is not None:
                on_step()
        return candidate
    finally:
        engine.draft = None
        draft.close()


def _step_price(engine: Engine, draft: Draft) -> float:
    """Return the median ratio of a draft's step and the target's, taken in turn."""
    own = KvSequence(engine.pages, engine.n_ctx)
    ratios = []
    try:
        for i in range(N_STEP + 1):
            times = [time.perf_counter()]
            verify(engine, [(own, [0])])
            times.append(time.perf_counter())
            draft.step()
            times.append(time.perf_counter())
            if i:  # the first touches what was never touched
                ratios.append((times[2] - times[1]) / (times[1] - times[0]))
    finally:
        own.close()
    return quantile(ratios, 0.5)
