"""``llmrun run --temp 0`` says the same, letter by letter, on every instruction set and with any number of threads."""

import json
from pathlib import Path

import pytest

from llmrun.runtime.simd.isa import supported_targets

from .llmrun_process import answer
from .models import MODELS, model_path

TRANSCRIPTS = json.loads((Path(__file__).parent / "transcripts.json").read_text(encoding="utf-8"))
ISAS = [target.name for target in supported_targets()]
ALL = [
    pytest.param(name, transcript, id=f"{name}-{i}")
    for name, model in TRANSCRIPTS.items()
    for i, transcript in enumerate(model["transcripts"])
]
FIRST = {name: model["transcripts"][0] for name, model in TRANSCRIPTS.items()}
LONG = max(TRANSCRIPTS["smollm2"]["transcripts"], key=lambda transcript: len(transcript["prompt"]))

pytestmark = pytest.mark.models


def test_are_of_these_models():
    assert {name: (model["file"], model["sha256"]) for name, model in TRANSCRIPTS.items()} == MODELS


@pytest.mark.parametrize(("name", "transcript"), ALL)
def test_answer_is_reproduced(name, transcript):
    assert answer(model_path(name), transcript) == transcript["text"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_thread", [1, 2, 3])
def test_same_answer_on_every_isa_with_any_threads(isa, n_thread):
    assert answer(model_path("smollm2"), LONG, "-t", n_thread, isa=isa) == LONG["text"]


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("name", ["gemma3", "qwen05", "qwen15"])
def test_same_answer_of_other_formats_on_every_isa(name, isa):
    assert answer(model_path(name), FIRST[name], isa=isa) == FIRST[name]["text"]


@pytest.mark.parametrize("n_ubatch", [7, 64, 512])
def test_same_answer_however_the_prompt_is_cut(n_ubatch):
    assert answer(model_path("smollm2"), LONG, "-ub", n_ubatch) == LONG["text"]
