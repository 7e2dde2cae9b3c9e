"""The first look at a machine measures what is not known, and is repeated for nothing."""

import pytest

from llmrun.runtime.engine import Engine
from llmrun.runtime.kv_cache import KvSequence
from llmrun.runtime.speculation import calibration
from llmrun.runtime.speculation.calibration import N_STEP, calibrate
from llmrun.runtime.speculation.costs import StepCosts
from llmrun.runtime.speculation.draft_model import DraftModel


def test_passes_are_measured_once(target):
    costs = StepCosts()
    assert calibrate(target, costs) == []  # there is no draft
    assert costs.is_known
    assert costs.widest == 16
    before = costs.ratios()
    calibrate(target, costs)
    assert costs.ratios() == before


def test_steps_of_the_draft_are_measured(machine, tiny_path, monkeypatch):
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=64, n_threads=1, draft=tiny_path("llama", "Q4_0")) as engine:
        known = StepCosts({2: 1.1}, 0.01)
        seconds = calibrate(engine, known)
        assert len(seconds) == N_STEP
        assert all(0 < s < 1 for s in seconds)
        assert known.ratios() == {2: pytest.approx(1.1)}
        held = KvSequence(engine.draft.pages, engine.draft.n_ctx)
        held.append(engine.draft.n_ctx)
        assert len(calibrate(engine, known)) == N_STEP  # a page is left for it
        held.close()
        monkeypatch.setattr(DraftModel, "step", _no_page)
        assert calibrate(engine, known) == []


def _no_page(draft):
    raise calibration.LlmrunError("no page is free")
