"""What each matrix loses by each type, on a tiny model."""

import numpy as np
import pytest

from llmrun.formats.ggml_types import GgmlType
from llmrun.quant.budget import Budget
from llmrun.quant.dequantize import dequantize
from llmrun.quant.quantize import quantize
from llmrun.quant.scale_search import NumpySearch
from llmrun.runtime.layerwise.runner import LayerwiseRunner
from llmrun.runtime.layerwise.source import open_gguf
from llmrun.runtime.sensitivity import Sensitivity, scaled
from llmrun.runtime.sensitivity_journal import SensitivityJournal

from ..models.off_grid import move_off_grid
from .machine import token_ids

TYPES = (GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q8_0, GgmlType.Q4_K)
CHUNKS = [token_ids(str(i), 48) for i in range(3)]
SCORED = np.concatenate([48 * i + np.arange(12, 48, 2) for i in range(3)])


@pytest.fixture(scope="module")
def opened(tiny_path, tmp_path_factory):
    """Return a function (model, threads, tensors that are Q4_1) -> runner."""
    folder = tmp_path_factory.mktemp("sensitivity")
    stack = []

    def opened(name, n_thread=2, changed=()):
        path = folder / f"{name}.gguf"
        if not path.exists():
            move_off_grid(tiny_path(name), path)
        stack.append(open_gguf(path))
        source = stack[-1].__enter__()
        for key in changed:
            tensor = source.tensors[key]
            values = tensor.read_rows(0, tensor.n_rows)
            new = dequantize(GgmlType.Q4_1, quantize(values, GgmlType.Q4_1))
            source.tensors[key] = type(tensor)(key, tensor.shape, GgmlType.F32, lambda a, b, new=new: new[a:b])
        stack.append(LayerwiseRunner(source, n_ctx=48, n_threads=n_thread, folder=folder))
        return stack[-1]

    yield opened
    for context in reversed(stack):
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def measured(opened):
    """Return a function (model, threads) -> names, sensitivities of all matrices."""

    def measured(name, n_thread=2):
        runner = opened(name, n_thread)
        names = [n for n, t in runner.source.tensors.items() if len(t.shape) == 2]
        return names, Sensitivity(runner, TYPES, search=NumpySearch(), n_thread=n_thread).measure(CHUNKS, names)

    return measured


def divergence(base, other):
    """Return the mean divergence of one runner's predictions from another's on the rows that count."""
    log_p = []
    for runner in (base, other):
        runner.begin(CHUNKS)
        for layer in runner.layers():
            layer.run()
        runner.finish()
        logits = np.concatenate([block.copy() for _, block in runner.logits(SCORED)]).astype(np.float64)
        log_p.append(logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)))
        log_p[-1] -= logits.max(1, keepdims=True)
    p, q = log_p
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_every_matrix_has_options_and_more_bits_lose_less(name, measured):
    names, found = measured(name)
    assert list(found.options) == names
    for name, of_matrix in found.options.items():
        assert [o.ggml_type for o in of_matrix] == list(TYPES[:3]), name  # rows are no whole blocks of 256
        q4, q5, q8 = (o.loss for o in of_matrix)
        assert q4 > 1.5 * q5 > 15 * q8 > 0, name  # a bit is a factor of 4 in squares, less the search's luck


@pytest.mark.parametrize(("name", "matrix"), [("qwen2", "blk.1.ffn_down.weight"), ("gemma3", "token_embd.weight")])
def test_a_loss_is_the_divergence_of_the_model_with_that_matrix_quantised(name, matrix, measured, opened):
    """Roughly: the importance that the measurement knows changes the rounding a little."""
    _, found = measured(name)
    expected = divergence(opened(name), opened(name, changed=[matrix]))
    loss = found.options[matrix][0].loss * found.added / found.together
    assert loss == pytest.approx(expected, rel=0.5)


def test_losses_add_up_to_the_divergence_of_all_at_once(measured):
    _, found = measured("qwen2")
    assert sum(of_matrix[0].loss for of_matrix in found.options.values()) == pytest.approx(found.together, rel=1e-6)
    assert 0.5 < found.together / found.added < 2


def test_no_figure_depends_on_threads(measured):
    assert measured("qwen2", 1) == measured("qwen2", 3)


class Killed(Exception):  # noqa: N818 (no error)
    pass


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_measurement_that_was_killed_goes_on_and_finds_the_same(step, opened, measured, tmp_path, monkeypatch):
    names, expected = measured("gemma3")
    monkeypatch.setattr("llmrun.runtime.sensitivity.GROUP", 5)
    journal, n_report, reports = SensitivityJournal(tmp_path / "j", "key"), 0, []

    def measure(on_progress):
        sensitivity = Sensitivity(opened("gemma3"), TYPES, search=NumpySearch(), n_thread=2, on_progress=on_progress)
        return sensitivity.measure(CHUNKS, names, journal, save_seconds=0)

    measure(lambda what, done, total: reports.append((what, done, total)))
    journal.remove()

    def kill(*_):
        nonlocal n_report
        n_report += 1
        if n_report == len(reports) * step // 9:
            raise Killed

    with pytest.raises(Killed):
        measure(kill)
    n_report, left = len(reports), []
    assert measure(lambda what, done, total: left.append((what, done, total))) == expected
    assert len(left) < len(reports)


def test_progress_never_goes_back_and_ends_near_the_end(opened):
    reports = []
    runner = opened("qwen2")
    names = [n for n, t in runner.source.tensors.items() if len(t.shape) == 2]
    progress = lambda what, done, total: reports.append((done, total))  # noqa: E731
    Sensitivity(runner, TYPES, search=NumpySearch(), n_thread=2, on_progress=progress).measure(CHUNKS, names)
    done = [done for done, _ in reports]
    assert done == sorted(done)
    assert len({total for _, total in reports}) == 1
    assert done[0] <= 1
    assert done[-1] <= reports[0][1]


@pytest.mark.parametrize("damage", ["key", "rows", "cut", "torn line"])
def test_a_damaged_journal_is_not_believed(damage, tmp_path):
    from llmrun.runtime.layerwise.hidden import HiddenStates
    from llmrun.runtime.sensitivity_journal import Progress

    hidden = HiddenStates(5, 3, tmp_path)
    hidden.write(0, np.arange(15, dtype=np.float32).reshape(5, 3))
    journal = SensitivityJournal(tmp_path / "j", "key")
    assert journal.load() is None
    kept = Progress(2, False, [("a", 1, "")], {"a": {"Q8_0": 0.5}})
    journal.save(kept, hidden)
    journal.add({"divergences": [[0, 0.25]]})
    assert journal.load() == Progress(2, False, kept.tried, kept.errors, [{"divergences": [[0, 0.25]]}])
    assert np.array_equal(np.concatenate(list(journal.rows())), hidden.read(0, 5))
    hidden.close()
    data = bytearray((tmp_path / "j").read_bytes())
    if damage == "key":
        journal = SensitivityJournal(tmp_path / "j", "another")
    elif damage == "rows":
        data[-60] ^= 1
    elif damage == "cut":
        del data[-50:]
    else:
        data += b'{"divergences'
    (tmp_path / "j").write_bytes(data)
    if damage != "torn line":
        assert journal.load() is None
        return
    assert len(journal.load().found) == 1
    journal.add({"divergences": [[1, 0.5]]})
    assert [line["divergences"][0][0] for line in journal.load().found] == [0, 1]


def test_losses_can_be_multiplied(measured):
    _, found = measured("qwen2")
    best = Budget(found.options).within(1e9)
    assert Budget(scaled(found.options, 3.0)).within(1e9).loss == pytest.approx(3 * best.loss)
