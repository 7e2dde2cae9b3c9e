"""Heads that do not fit their model, or are damaged: one line each, and the text stays the same."""

import os

import numpy as np
import pytest

from llmrun.formats.errors import FormatError, LlmrunError
from llmrun.runtime.engine import Engine
from llmrun.runtime.speculation.opening import open_draft
from llmrun.runtime.speculation.settings import SpeculationSettings

from ...tiny_heads import HEADS, TinyHead, write_head
from ..machine import rng_for
from .drafters import FixedPlanner
from .test_heads import PROMPT, AffordingSource, opened, params

WRONG = np.arange(90, dtype=np.int64)
REFUSALS = [
    ("plain", {"eagle3.target_hidden_size": 96}, {}, "for models 96 wide, "),
    (
        "plain",
        {},
        {"fc.weight": np.zeros((64, 288), np.float32)},
        "'fc.weight' has shape [64, 288], expected [64, 192]",
    ),
    ("plain", {"eagle3.target_hidden_size": None}, {}, "target_hidden_size"),
    ("plain", {"eagle3.target_layers": [0, 1, 4]}, {}, "looks at layers [0, 1, 4], "),
    ("plain", {"eagle3.target_layers": [0, 1]}, {}, "target_layers is [0, 1], expected 3 layers' numbers"),
    ("plain", {"eagle3.target_layers": [-1, 0, 1]}, {}, "target_layers is [-1, 0, 1]"),
    ("plain", {"eagle3.target_layers": None}, {}, "target_layers"),
    ("plain", {"eagle3.block_count": 2}, {}, "block_count is 2, expected 1 in a draft head"),
    ("plain", {"eagle3.norm_before_fc": True}, {}, "'enc.output_norm.weight' is missing"),
    ("fc", {"eagle3.norm_before_fc": False}, {}, "'enc.output_norm.weight' is not part of a eagle3 model"),
    ("plain", {}, {"fc.weight": None}, "'fc.weight' is missing"),
    ("plain", {}, {"blk.0.attn_norm_2.weight": None}, "'blk.0.attn_norm_2.weight' is missing"),
    ("plain", {}, {"blk.0.attn_q.weight": np.zeros((64, 64), np.float32)}, "expected [64, 128]"),
    ("plain", {}, {"blk.1.attn_q.weight": np.zeros((64, 128), np.float32)}, "'blk.1.attn_q.weight' is not part of"),
    ("plain", {}, {"fc.weight": np.full((64, 192), np.nan, np.float32)}, "'fc.weight' holds"),
    ("plain", {"tokenizer.ggml.tokens": [f"t{i}" for i in range(301)]}, {}, "for another vocabulary than that of"),
    ("d2t", {}, {"d2t": WRONG.astype(np.int32)}, "'d2t' is I32 [90], expected I64"),
    ("d2t", {}, {"d2t": WRONG * 4}, "'d2t' holds no distinct token ids of 0 to 300"),
    ("d2t", {}, {"d2t": WRONG - 1}, "'d2t' holds no distinct token ids"),
    ("d2t", {}, {"d2t": WRONG // 2}, "'d2t' holds no distinct token ids"),
    ("d2t", {}, {"d2t": np.arange(302, dtype=np.int64)}, "expected I64 with at most 301 token ids"),
    ("d2t", {}, {"d2t": np.arange(80, dtype=np.int64)}, "'output.weight' has shape [90, 64], expected [80, 64]"),
    ("d2t", {}, {"output.weight": None}, "'output.weight' is missing, and the target's has shape [301, 64]"),
]


@pytest.mark.parametrize(("name", "changes", "replaced", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_a_head_that_does_not_fit_is_one_line(target, tmp_path, name, changes, replaced, message):
    path = write_head(tmp_path / "head.gguf", HEADS[name], changes=changes, replaced=replaced)
    with pytest.raises(FormatError) as caught:
        open_draft(path, target)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert target.hidden is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (TinyHead(target="qwen2_yarn"), "for models 96 wide, "),
        (TinyHead(n_embd=96), "is missing, and the target's has shape [301, 64], expected [301, 96]"),
    ],
    ids=["target", "shared"],
)
def test_a_head_for_a_model_of_another_width(target, tmp_path, shape, message):
    path = write_head(tmp_path / "head.gguf", shape)
    with pytest.raises(FormatError) as caught:
        open_draft(path, target)
    assert message in str(caught.value)


def test_damaged_heads_are_refused_or_change_nothing(target, head_path, tmp_path):
    """Single bytes of the header that say something else."""
    data, want, n_refused = head_path("own", "Q8_0").read_bytes(), None, 0
    n_header = data.index(b"blk.0.ffn_down.weight") + 60
    rng, path = rng_for("damage"), tmp_path / "head.gguf"
    start = data.index(b"eagle3.context_length")
    places = [*range(start, data.index(b"tokenizer.ggml.model"))]  # numbers, then names and shapes of tensors
    places += range(data.index(b"output_norm.weight") - 400, n_header)
    for place in rng.choice(places, 150, replace=False).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            head = open_draft(path, target)
        except LlmrunError:
            n_refused += target.hidden is None
            continue
        session = target.session()
        source = head.source(session._sequence)
        session._controller = FixedPlanner(source, [3])
        drafting = params(max_tokens=6, speculation=SpeculationSettings())
        got = [t.token_id for t in session.generate(PROMPT, drafting)]
        want = want or got
        assert got == want
        session.close()
        head.close()
    assert n_refused > 50


def test_a_head_is_no_model(head_path):
    with pytest.raises(FormatError, match="a draft head, not a model: give it beside its model, with --draft"):
        Engine.open(head_path("plain"), n_ctx=64)


@pytest.mark.parametrize("cut", ["target", "head"])
def test_a_mapped_file_that_is_cut_is_an_error(tiny_path, head_path, tmp_path, cut):
    sources = {"target": tiny_path("llama", "Q8_0"), "head": head_path("plain")}
    paths = {name: tmp_path / f"{name}.gguf" for name in sources}
    for name, path in paths.items():
        path.write_bytes(sources[name].read_bytes())
    with Engine.open(paths["target"], n_ctx=64, n_threads=1, draft=paths["head"]) as engine:
        engine.draft.step()
        os.truncate(paths[cut], 100)
        with pytest.raises(LlmrunError, match="changed while it was open"):
            engine.draft.step()
        assert engine.draft.pages.n_page == len(engine.draft.pages._free)


def test_a_head_that_says_nan_drafts_nothing(target, tmp_path):
    """Finite weights whose products are not: there is no draft, and the text is the same."""
    huge = {"output_norm.weight": np.full(64, 3e38, np.float32)}
    path = write_head(tmp_path / "head.gguf", HEADS["plain"], replaced=huge)
    with opened(path, target) as head:
        session = target.session()
        want = [t.token_id for t in session.generate(PROMPT, params(max_tokens=8))]
        rows = target.hidden.follow(session._sequence)
        planner = session._controller = FixedPlanner(AffordingSource(head, rows, target.lock), [3])
        drafting = params(max_tokens=8, speculation=SpeculationSettings())
        assert [t.token_id for t in session.generate(PROMPT, drafting)] == want
        assert planner.n_row == [1] * 7
        session.close()
