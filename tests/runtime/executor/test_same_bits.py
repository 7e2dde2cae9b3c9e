"""One text per seed: the same logits, bit for bit, however a sequence is computed."""

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.executor.checked import CheckedExecutor
from llmrun.runtime.executor.plan import RECORDS
from llmrun.runtime.fuse import fuse
from llmrun.runtime.weights import look_up

from ..bits import assert_same_bits
from ..kernels.test_quantize import interleaved, records
from ..machine import BEST, WHOLE_TARGETS, token_ids
from ..one_op import Bound
from ..runner import checked_logits

# Every architecture and every packed format at least once.
MODELS = (
    ("llama", "Q4_0"), ("llama", "F16"), ("llama_llama3", "Q8_0"), ("llama_yarn", "MXFP4"), ("mistral", "Q5_0"),
    ("qwen2", "Q4_1"), ("qwen3", "Q5_1"), ("gemma2", "BF16"), ("gemma3", "Q8_0"), ("phi3_longrope", "F32"),
    ("phi3_partial", "Q4_0"), ("llama_256", "Q2_K"), ("llama_256", "Q3_K"), ("llama_256", "Q4_K"),
    ("llama_256", "IQ4_XS"), ("llama_256", "IQ4_NL"), ("gemma3_256", "Q5_K"), ("gemma3_256", "Q6_K"),
)  # fmt: skip
FEW = (("qwen2", "Q4_1"), ("gemma2", "Q8_0"), ("phi3_partial", "F32"))


def ident(model):
    return "-".join(model) if isinstance(model, tuple) else None


def plain_rows(sequence, first, ids, *, has_output=True):
    """Return rows of consecutive tokens of a sequence that has room for them."""
    return [
        Row(
            token_id=token,
            page_table=sequence.page_table,
            slot=i,
            position=i,
            visible_stop=i + 1,
            has_output=has_output,
        )
        for i, token in enumerate(ids, first)
    ]


@pytest.mark.parametrize("model", MODELS, ids=ident)
def test_equals_the_checked_interpreter(make_runner, tiny_path, model):
    ids = token_ids(model, 13)
    want = checked_logits(tiny_path(*model), ids)
    assert want.std() > 0.1
    for target_name in WHOLE_TARGETS:
        for is_fused in (True, False):
            runner = make_runner(model, target_name, 2, is_fused=is_fused)
            assert_same_bits(runner.logits(ids), want, f"{target_name}, fused: {is_fused}")


@pytest.mark.parametrize("model", FEW, ids=ident)
def test_checked_interpreter_runs_fused_programs(tiny_path, model):
    ids = token_ids(model, 5)
    path = tiny_path(*model)
    assert_same_bits(checked_logits(path, ids, is_fused=True), checked_logits(path, ids))


@pytest.mark.parametrize("model", [("qwen2", "Q4_1"), ("gemma3", "Q8_0"), ("phi3_partial", "F16")], ids=ident)
@pytest.mark.parametrize("is_fused", [False, True])
def test_every_buffer_after_every_operation(machine, make_runner, model, is_fused):
    """Operation by operation, so that memory that is used again later is compared too."""
    runner = make_runner(model, is_fused=is_fused)
    ids = token_ids(model, 9)
    batch = Batch(plain_rows(runner.sequence(), 0, ids))
    checked = CheckedExecutor(runner.program, runner.weights, len(ids))
    checked._batch = batch
    bound = Bound(machine, BEST, runner.program, runner.weights, n_tok=len(ids), pages=runner.pages)
    for index, op in enumerate(runner.program.ops):
        checked._run_op(op)
        bound.run_index(index, batch, n_worker=5 if is_fused else 3)
        for buffer in op.writes:
            want = checked.buffers[buffer]
            if buffer.kind in RECORDS:
                parts = want.quantized
                both = parts[0] if len(parts) == 1 else interleaved(*parts)
                assert np.array_equal(bound.get(buffer, len(ids)), records(both)), str(op)
            elif buffer.kind == "f32" and "quantize" not in op.attributes:  # beside records f32 rows are scratch
                assert_same_bits(bound.get(buffer, len(ids)), want, str(op))


@pytest.mark.parametrize("model", [*FEW, ("gemma3_256", "Q6_K"), ("llama", "Q4_0")], ids=ident)
def test_threads_chunks_targets_and_fusion(make_runner, model):
    ids = token_ids(model, 150)
    want = make_runner(model, is_fused=False, n_tok=150).logits(ids)
    for target_name in WHOLE_TARGETS:
        for n_thread in (1, 2, 3) if target_name == BEST else (2,):
            runner = make_runner(model, target_name, n_thread, n_tok=150)
            for chunk in (1, 7, 64, None):
                got = runner.logits(ids, chunk=chunk)
                assert_same_bits(got, want, f"{target_name}, {n_thread} threads, chunks of {chunk}")


@pytest.mark.parametrize(
    ("model", "kv_type"),
    [
        (("llama", "Q8_0"), "f16"),
        (("gemma3", "Q8_0"), "f16"),
        (("gemma3", "Q8_0"), "q8_0"),
        (("qwen2_256", "Q4_K"), "q8_0"),
    ],
    ids=ident,
)
def test_context_of_several_segments(make_runner, model, kv_type):
    """More than 8 pages, so that attention merges segments; windows of 8 in the local layers."""
    ids = token_ids(model, 700)
    whole = make_runner(model, n_thread=2, n_ctx=1024, n_tok=700, kv_type=kv_type).logits(ids)
    for n_thread in (1, 3):
        parts = make_runner(model, n_thread=n_thread, n_ctx=1024, n_tok=700, kv_type=kv_type)
        sequence = parts.sequence()
        assert_same_bits(parts.extend(sequence, ids[:690], chunk=230), whole[:690])
        assert_same_bits(parts.extend(sequence, ids[690:], chunk=1), whole[690:])


@pytest.mark.parametrize("model", [("gemma3_256", "Q6_K"), ("qwen3", "Q5_1"), ("qwen2_256", "Q4_K")], ids=ident)
def test_quantised_keys_and_values(make_runner, tiny_path, model):
    """The twin's bits on every target, whatever the chunks; forked, rolled back, saved and restored as any other."""
    ids, other = token_ids(model, 70), token_ids("other", 20)
    want = checked_logits(tiny_path(*model), ids, kv_type="q8_0")
    for target_name in WHOLE_TARGETS:
        for is_fused in (True, False):
            runner = make_runner(model, target_name, 2, is_fused=is_fused, kv_type="q8_0")
            assert_same_bits(runner.logits(ids, chunk=9), want, f"{target_name}, fused: {is_fused}")
    runner = make_runner(model, kv_type="q8_0")
    sequence = runner.sequence()
    runner.extend(sequence, ids[:50])
    saved, fork = sequence.save(), sequence.fork()
    runner.extend(sequence, other)
    sequence.rollback(50)
    for again in (sequence, fork):
        assert_same_bits(runner.extend(again, ids[50:]), want[50:])
    fork.restore(saved)
    assert_same_bits(runner.extend(fork, ids[50:]), want[50:])
    plain = make_runner(model)
    assert 0 < np.abs(plain.logits(ids) - want).max() < 0.2 * want.std()
    with pytest.raises(ConfigError, match="saved keys and values are q8_0, this cache is f16"):
        plain.sequence().restore(saved)


def test_fifty_passes_with_more_threads_than_cores(make_runner):
    """A missing barrier shows as a difference sooner or later."""
    runner = make_runner(("qwen2", "Q4_1"), n_thread=3)
    ids = token_ids("races", 21)
    want = make_runner(("qwen2", "Q4_1")).logits(ids)
    for _ in range(50):
        assert_same_bits(runner.logits(ids, chunk=7), want)


@pytest.mark.slow
@pytest.mark.parametrize("n_thread", [2, 3, 4, 7])
@pytest.mark.parametrize("model", FEW, ids=ident)
def test_thousands_of_passes(make_runner, model, n_thread):
    runner, ids = make_runner(model, n_thread=n_thread), token_ids("races", 40)
    want = make_runner(model).logits(ids)
    for i in range(300):
        assert_same_bits(runner.logits(ids, chunk=1 + i % 9), want)


@pytest.mark.parametrize("model", FEW, ids=ident)
def test_batches_of_1_to_17_sequences(make_runner, model):
    """Decoding many sequences at once gives each the logits that it has alone."""
    width = 17
    runner = make_runner(model, n_thread=2, n_ctx=64 * width)
    sequences = [runner.sequence() for _ in range(width)]
    prompts = [token_ids(("prompt", i), 3 + i) for i in range(width)]
    alone = [runner.logits([*prompt, 40 + i])[-1] for i, prompt in enumerate(prompts)]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        runner.extend(sequence, prompt)
    for n in range(1, width + 1):
        rows = []
        for i in range(n):
            past = sequences[i].n_past
            sequences[i].append(1)
            rows += plain_rows(sequences[i], past, [40 + i])
        assert_same_bits(runner.run_rows(rows), np.stack(alone[:n]), f"width {n}")
        for sequence in sequences[:n]:
            sequence.rollback(sequence.n_past - 1)


def test_prompts_and_decode_steps_in_one_batch(make_runner):
    """Rows of several sequences in one pass, a prompt among them, outputs only where wanted."""
    runner = make_runner(("qwen3", "Q5_1"), n_thread=2)
    first, second = runner.sequence(), runner.sequence()
    one, two = token_ids("one", 20), token_ids("two", 9)
    want_one, want_two = runner.logits(one), runner.logits(two)
    runner.extend(first, one[:15])
    first.append(5)
    second.append(9)
    rows = [
        *plain_rows(first, 15, one[15:17]),
        *plain_rows(second, 0, two[:4], has_output=False),
        *plain_rows(first, 17, one[17:]),
        *plain_rows(second, 4, two[4:]),
    ]
    got = runner.run_rows(rows)
    assert_same_bits(got, np.concatenate([want_one[15:], want_two[4:]]))


def test_forks_share_the_past_and_go_their_own_ways(make_runner):
    runner = make_runner(("gemma2", "Q8_0"), n_thread=2, n_ctx=1024)
    past, left, right = token_ids("past", 100), token_ids("left", 40), token_ids("right", 40)
    want_left, want_right = runner.logits(past + left)[100:], runner.logits(past + right)[100:]
    first = runner.sequence()
    runner.extend(first, past)
    second = first.fork()
    assert_same_bits(runner.extend(second, right, chunk=3), want_right)
    assert_same_bits(runner.extend(first, left, chunk=7), want_left)
    second.rollback(100)
    assert_same_bits(runner.extend(second, left), want_left)
    first.close()
    third = second.fork()
    second.close()
    third.rollback(64)
    assert_same_bits(runner.extend(third, past[64:] + right)[36:], want_right)


def test_rolled_back_and_restored_sequences(make_runner):
    runner = make_runner(("phi3_partial", "F32"), n_ctx=512)
    ids = token_ids("rollback", 130)
    want = runner.logits(ids, chunk=64)
    sequence = runner.sequence()
    runner.extend(sequence, ids[:70] + token_ids("other", 50))
    sequence.rollback(70)
    state = sequence.save()
    assert_same_bits(runner.extend(sequence, ids[70:]), want[70:])
    for n_past in (129, 128, 65, 64, 63, 1, 0):
        sequence.rollback(n_past)
        assert_same_bits(runner.extend(sequence, ids[n_past:], chunk=50), want[n_past:])
        sequence.rollback(n_past)
        runner.extend(sequence, token_ids("other", 20))
        sequence.rollback(n_past)
    sequence.close()
    other = runner.sequence()
    runner.extend(other, token_ids("filler", 90))
    restored = runner.sequence()
    restored.restore(state)
    assert_same_bits(runner.extend(restored, ids[70:]), want[70:])


def test_a_tree_of_drafts(make_runner):
    """Every branch of a tree that is checked in one pass gives the logits of the plain text along it."""
    model = ("gemma3", "Q8_0")  # windows of 8 slots: branches go through them
    runner = make_runner(model, n_thread=2, n_ctx=512)
    past = token_ids("past", 66)
    tokens = token_ids("tree", 12)
    parents = (-1, 0, 1, -1, 3, 3, 5, 2, 6, 8, 0, 9)  # of every node
    sequence = runner.sequence()
    runner.extend(sequence, past)
    sequence.append(len(tokens))
    rows, paths = [], []
    for node, parent in enumerate(parents):
        path = [*(paths[parent] if parent >= 0 else []), node]
        paths.append(path)
        rows.append(
            Row(
                token_id=tokens[node],
                page_table=sequence.page_table,
                slot=len(past) + node,
                position=len(past) + len(path) - 1,
                visible_stop=len(past),
                ancestors=len(past) + np.array(path, np.int64),
                has_output=True,
            )
        )
    got = runner.run_rows(rows)
    for node, path in enumerate(paths):
        want = runner.logits(past + [tokens[i] for i in path])[-1]
        assert_same_bits(got[node], want, f"path {path}")


def test_given_vectors_are_rows_like_tokens(make_runner, tiny_path):
    """The embedding of a token, given as a vector, gives the logits of the token; in both interpreters."""
    runner = make_runner("llama")
    ids = token_ids("vectors", 10)
    want = runner.logits(ids)
    embed = runner.program.ops[0]
    vectors = look_up(runner.weights, embed.weights[0], np.array(ids))
    sequence = runner.sequence()
    sequence.append(len(ids))
    rows = plain_rows(sequence, 0, [t if i % 3 else -1 for i, t in enumerate(ids)])
    batch = Batch(rows, vectors)
    runner.executor.run(batch)
    assert_same_bits(runner.executor.output("logits", len(ids)), want)
    checked = CheckedExecutor(runner.program, runner.weights, len(ids))
    checked.run(batch)
    assert_same_bits(checked.output("logits"), want)


def test_a_pass_without_outputs_only_fills_the_cache(make_runner):
    runner = make_runner(("qwen2", "Q4_1"), n_thread=3)
    ids = token_ids("silent", 30)
    want = runner.logits(ids)[-1]
    for _ in range(20):
        sequence = runner.sequence()
        sequence.append(29)
        runner.executor.run(Batch.of_tokens(sequence.page_table, 0, ids[:29], []))
        assert_same_bits(runner.extend(sequence, ids[29:])[0], want)
        sequence.close()


def test_fused_programs_are_shorter_and_end_with_the_same_outputs(make_runner):
    plain = make_runner(("llama", "Q8_0"), is_fused=False).program
    fused = fuse(plain)
    kinds = {op.kind for op in fused.ops}
    assert len(fused.ops) < 0.75 * len(plain.ops)
    assert "norm_quantize" in kinds
    assert "glu" not in kinds
    assert "add" not in kinds
    assert fused.outputs == plain.outputs
