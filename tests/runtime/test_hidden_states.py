"""Rows that layers are given, kept beside a pass: the right ones, and the pass the same in every bit."""

import numpy as np
import pytest

from llmrun.runtime.batch import Batch
from llmrun.runtime.engine import Engine
from llmrun.runtime.executor.checked import CheckedExecutor
from llmrun.runtime.hidden_states import N_ROW, HiddenRows, HiddenStates, layer_input
from llmrun.runtime.kv_cache import KvSequence
from llmrun.runtime.layerwise.split import split
from llmrun.runtime.sampling.settings import SamplerSettings
from llmrun.runtime.session import GenerationParams
from llmrun.runtime.speculation.loop import verify

from .bits import assert_same_bits
from .machine import BEST, rng_for, token_ids

MODELS = (
    ("llama", "Q4_0"), ("qwen2", "Q8_0"), ("qwen3", "F16"), ("gemma2", "Q8_0"), ("gemma3", "Q4_0"), ("phi3", "F32"),
)  # fmt: skip


def rows_of(name, n, n_col=3):
    return rng_for(name).normal(size=(n, n_col)).astype(np.float32)


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_a_layer_is_given_what_the_one_before_left(make_runner, model):
    """Against the cutting of programs into layers, which finds the same buffers another way."""
    runner = make_runner(model)
    segments = split(runner.model.program)
    inputs = [segment.input for segment in segments[1:-1]]  # of every layer, and of the final norm
    assert [layer_input(runner.model.program, i) for i in range(len(inputs))] == inputs


@pytest.mark.parametrize("model", MODELS, ids="-".join)
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("is_last_watched", [False, True])
def test_a_watched_pass_has_the_same_bits(machine, tiny_path, model, is_fused, is_last_watched):
    machine.kernels(BEST)
    ids = token_ids(model, 40)
    with Engine.open(tiny_path(*model), n_ctx=128, n_threads=2, n_ubatch=16, is_fused=is_fused) as engine:
        plain = engine.executor
        n_layer = engine.info.n_layer
        want = np.concatenate([block.copy() for block in engine.logits(ids, 0)])
        layers = (n_layer if is_last_watched else n_layer - 1, 0, 1)
        engine.watch(layers)
        assert engine.executor is not plain
        if not is_last_watched:
            assert str(engine.executor.program).startswith(str(plain.program))  # nothing but further outputs
        sequence = KvSequence(engine.pages, engine.n_ctx)
        kept = engine.hidden.follow(sequence)
        got = []
        for start, stop in ((0, 16), (16, 17), (17, 33), (33, 40)):
            n_row = engine.run_tokens(sequence, ids[start:stop], range(stop - start))
            got.append(engine.executor.output("logits", n_row).copy())
        assert_same_bits(np.concatenate(got), want)
        checked = CheckedExecutor(engine.executor.program, engine.executor.weights, len(ids))
        checked.run(Batch.of_tokens(np.arange(2), 0, ids, [len(ids) - 1]))
        states = [checked.buffers[layer_input(engine._model_program, layer)] for layer in layers]
        assert_same_bits(kept.get(0, 40), np.concatenate(states, axis=1))
        sequence.close()
        engine.watch(())
        assert engine.hidden is None
        assert engine.executor.program == plain.program
        assert_same_bits(np.concatenate([block.copy() for block in engine.logits(ids, 0)]), want)


def test_an_engine_that_is_not_watched_keeps_nothing(machine, tiny_path, monkeypatch):
    machine.kernels(BEST)
    monkeypatch.setattr(HiddenStates, "__init__", lambda *_: pytest.fail("nobody asked"))
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=64, n_threads=1) as engine:
        assert set(engine.executor.program.outputs) == {"logits"}
        session = engine.session()
        settings = GenerationParams(sampler=SamplerSettings(), seed=1, max_tokens=4, ignore_eos=True)
        assert sum(t.token_id >= 0 for t in session.generate([1, 2, 3], settings)) == 4


def test_rows_of_several_sequences_in_one_pass(machine, tiny_path):
    machine.kernels(BEST)
    with Engine.open(tiny_path("llama", "Q8_0"), n_ctx=256, n_threads=1, n_ubatch=16) as engine:
        engine.watch((1, 2))
        sequences = [KvSequence(engine.pages, engine.n_ctx) for _ in range(3)]
        kept = [engine.hidden.follow(sequence) for sequence in sequences[:2]]
        chains = [token_ids(i, 5) for i in range(3)]
        verify(engine, list(zip(sequences, chains, strict=True)))
        for sequence, rows, ids in zip(sequences, kept, chains, strict=False):
            together = rows.get(0, 5)
            sequence.rollback(0)
            verify(engine, [(sequence, ids)])
            assert_same_bits(rows.get(0, 5), together)
            assert engine.hidden.follow(sequence) is rows
        for sequence in sequences:
            sequence.close()
        del sequence, sequences
        assert not len(engine.hidden._followed)  # nobody has to say that a conversation is over


def test_the_last_rows_are_kept():
    kept, x = HiddenRows(5), rows_of("last", N_ROW + 300, 5)
    for start, stop in ((0, 100), (100, 101), (101, N_ROW + 300)):
        kept.put(start, [x[start:stop, :2], x[start:stop, 2:]])
    assert (kept.start, kept.stop) == (300, N_ROW + 300)
    assert_same_bits(kept.get(300, N_ROW + 300), x[300:])
    with pytest.raises(ValueError, match="rows 299 to 310 wanted"):
        kept.get(299, 310)


def test_more_rows_than_are_kept_at_once():
    kept, x = HiddenRows(3), rows_of("more", 2 * N_ROW + 7)
    kept.put(5, [x])
    assert (kept.start, kept.stop) == (N_ROW + 12, 2 * N_ROW + 12)
    assert_same_bits(kept.get(kept.start, kept.stop), x[-N_ROW:])


def test_rows_of_another_text_take_the_place_of_the_old():
    kept, x, other = HiddenRows(3), rows_of("old", 30), rows_of("new", 4)
    kept.put(0, [x])
    kept.put(20, [other])  # after a rollback to 20
    assert (kept.start, kept.stop) == (0, 24)
    assert_same_bits(kept.get(18, 24), np.concatenate([x[18:20], other]))


def test_rows_after_a_gap_stand_alone():
    kept, x = HiddenRows(3), rows_of("gap", 8)
    kept.put(0, [x])
    kept.put(12, [x])
    assert (kept.start, kept.stop) == (12, 20)
