"""What passes cost, measured beside plain steps on a machine that changes, and what is kept of it between runs."""

import math

import pytest

from llmrun.runtime.speculation.costs import StepCosts
from llmrun.runtime.speculation.speed_file import SpeedFile


def test_prices_between_and_beyond_what_was_measured():
    costs = StepCosts()
    assert not costs.is_known
    costs.learn(1, 0.1)
    assert 1 < costs(8) < 2  # hope
    costs.learn(8, 0.38)
    for _ in range(9):
        costs.learn(4, 0.22)
    assert costs.plain_s == pytest.approx(0.1)
    assert costs(1) == 1
    assert costs(6) == pytest.approx(3, rel=0.05)
    assert costs(16) == pytest.approx(7, rel=0.05)
    assert costs.widest == 8


def test_a_further_row_is_priced_by_the_cheapest_way():
    """Where four rows are as cheap as three, going on from two is."""
    costs = StepCosts({2: 1.2, 3: 2.0, 4: 1.6, 8: 3.2}, 0.1)
    assert costs.further(2, 17) == pytest.approx(0.2, rel=0.2)


def test_rows_beyond_what_was_measured_are_not_free():
    """The last width was slow to measure: wider ones are not cheaper than it, and going on from it costs something."""
    costs = StepCosts({2: 1.1, 4: 1.2, 8: 2.0, 16: 5.5}, 0.1)
    assert costs(20) > costs(16) > costs(8)
    assert costs.further(8, 64) > 0.05
    assert costs.further(16, 16) == math.inf


def test_one_bad_moment_does_not_rule_a_width_out():
    costs = StepCosts()
    costs.learn(1, 0.1)
    costs.learn(2, 0.12)
    costs.learn(4, 2.0)
    assert costs(4) < 12
    for _ in range(5):
        costs.learn(4, 0.16)
    assert costs(4) == pytest.approx(1.6, rel=0.25)


def test_one_bad_moment_is_not_the_price_of_a_width_that_another_run_measured():
    costs = StepCosts({2: 1.05, 4: 1.1, 8: 1.5}, 0.1)
    costs.learn(1, 0.1)
    prices = [costs.learn(4, 0.3)[0] for _ in range(4)]
    assert prices[0] < 1.2
    assert prices[2:] == pytest.approx([3.0, 3.0])  # the file is wrong


def test_passes_are_held_against_the_plain_steps_around_them():
    """Four times the load from one moment to the next: the prices stay, and a plain step is due at once."""
    costs = StepCosts()
    for _ in range(20):
        costs.learn(1, 0.1)
        costs.learn(4, 0.2)
    for _ in range(2):
        assert not costs.is_due
        costs.learn(4, 0.8)
    assert costs.is_due
    for _ in range(20):
        costs.learn(1, 0.4)
        costs.learn(4, 0.8)
    assert costs(4) == pytest.approx(2, rel=0.05)
    assert costs.plain_s == pytest.approx(0.4)


def test_plain_steps_are_measured_now_and_then_and_less_often_where_nothing_changes():
    costs, gaps, n = StepCosts(), [], 0
    costs.learn(1, 0.01)
    for _ in range(400):
        if costs.is_due:
            gaps.append(n)
            costs.learn(1, 0.01)
            n = 0
        else:
            costs.learn(4, 0.02)
            n += 1
    assert gaps[:4] == [8, 16, 32, 64]
    assert set(gaps[4:]) == {64}


def test_speeds_are_kept(tmp_path):
    path = tmp_path / "speeds" / "x.json"
    costs = StepCosts()
    costs.learn(1, 0.1)
    costs.learn(4, 0.2)
    SpeedFile(path).write(costs)
    read = SpeedFile(path).read()
    assert (read.ratios(), read.plain_s) == ({4: 2.0}, 0.1)
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'{"plain_s": 1}', b'{"plain_s": 1, "ratios": 3}',
        b'{"plain_s": 1, "ratios": {"a": 1}}', b'{"plain_s": 1, "ratios": {"2": "x"}}',
        b'{"plain_s": 1, "ratios": {"2": NaN}}', b'{"plain_s": -1, "ratios": {"2": 1}}',
        b'{"plain_s": 1, "ratios": {"1": 1}}', b'{"plain_s": 1e999, "ratios": {"2": 1}}',
        b'{"plain_s": 1, "ratios": {"2": [1]}}', b"[" * 100_000, b"\xff\xfe",
        b'{"plain_s": 0.1, "ratios": {"99999999": 2}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_no_file(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    file = SpeedFile(path)
    assert not file.read().is_known
    costs = StepCosts()
    costs.learn(1, 0.1)
    costs.learn(2, 0.1)
    file.write(costs)
    assert file.read().ratios() == {2: 1.0}


def test_a_folder_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    costs = StepCosts()
    costs.learn(1, 0.1)
    costs.learn(2, 0.1)
    SpeedFile(tmp_path / "file" / "x.json").write(costs)
    SpeedFile(None).write(costs)
    assert not SpeedFile(None).read().is_known
