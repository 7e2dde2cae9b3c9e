"""The controller on simulated machines: it finds what pays, follows changes, and never loses more than 3 %."""

import pytest

from llmrun.runtime.speculation.costs import PassCosts, SpeedFile

from .simulation import Machine

# Seconds of a pass of n rows: nearly free rows, dear rows, and a machine on which nothing can be saved.
WIDE = lambda n: 0.05 * (1 + 0.08 * (n - 1))  # noqa: E731
NARROW = lambda n: 0.05 * (1 + 0.4 * (n - 1))  # noqa: E731
FLAT = lambda n: 0.05 * n  # noqa: E731
MACHINES = pytest.mark.parametrize("pass_s", [WIDE, NARROW, FLAT], ids=["wide", "narrow", "flat"])


def always(chance):
    return lambda at: chance


@MACHINES
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5])
def test_bad_copies_cost_nothing(monkeypatch, pass_s, is_known, chance):
    machine = Machine(monkeypatch, pass_s, {n: pass_s(n) for n in (1, 2, 4, 8, 16)} if is_known else None)
    spent, plain, *_ = machine.generate([machine.source("ngram", always(chance), is_free=True)], 200)
    assert spent <= 1.03 * plain


@MACHINES
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("guess_s", [0.005, 0.014, 0.05])
@pytest.mark.parametrize("n_token", [200, 1000])
def test_a_bad_draft_model_costs_at_most_three_percent(monkeypatch, pass_s, is_known, chance, guess_s, n_token):
    """What it takes to read the prompt included."""
    machine = Machine(monkeypatch, pass_s, {n: pass_s(n) for n in (1, 2, 4, 8, 16)} if is_known else None)
    draft = machine.source("draft", always(chance), is_free=False, guess_s=guess_s, start_s=0.1)
    spent, plain, *_ = machine.generate([draft], n_token)
    assert spent <= 1.03 * plain


@pytest.mark.parametrize(("pass_s", "chance"), [(WIDE, 0.95), (WIDE, 0.8), (NARROW, 0.95), (NARROW, 0.8)])
def test_copies_are_verified_at_nearly_the_best_length(monkeypatch, pass_s, chance):
    machine = Machine(monkeypatch, pass_s)
    spent, plain, *_ = machine.generate([machine.source("ngram", always(chance), is_free=True)], 2000)
    best = max((1 + sum(chance**i for i in range(1, k + 1))) * pass_s(1) / pass_s(1 + k) for k in range(17))
    assert plain / spent > 0.9 * best


@pytest.mark.parametrize("chance", [0.9, 0.75])
def test_a_good_draft_model_is_used_at_nearly_the_best_length(monkeypatch, chance):
    machine, guess_s = Machine(monkeypatch, WIDE), 0.28 * WIDE(1)
    draft = machine.source("draft", always(chance), is_free=False, guess_s=guess_s)
    spent, plain, *_ = machine.generate([draft], 2000)
    best = max((1 + sum(chance**i for i in range(1, k + 1))) * WIDE(1) / (WIDE(1 + k) + k * guess_s) for k in range(17))
    assert plain / spent > 0.9 * best


def test_a_change_of_the_text_is_noticed_within_tens_of_tokens(monkeypatch):
    """Right for 200 tokens, wrong for 200, right again."""
    machine = Machine(monkeypatch, NARROW)
    source = machine.source("ngram", lambda at: 0.0 if 200 <= at < 400 else 0.97, is_free=True)
    _, _, passes, _ = machine.generate([source], 600)
    at, tokens_by_phase, passes_by_phase = 0, [0, 0, 0], [0, 0, 0]
    for n in passes:
        # The tens of tokens after a change are not looked at.
        if at % 200 >= 40:
            phase = min(at // 200, 2)
            tokens_by_phase[phase] += n
            passes_by_phase[phase] += 1
        at += n
    first, second, third = (t / p for t, p in zip(tokens_by_phase, passes_by_phase, strict=True))
    assert first > 3
    assert second < 1.1
    assert third > 3


def test_a_draft_model_that_becomes_right_is_found(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    draft = machine.source(
        "draft", lambda at: 0.0 if at < 300 else 0.95, is_free=False, guess_s=0.2 * WIDE(1), start_s=0.05
    )
    _, _, passes, _ = machine.generate([draft], 900)
    assert sum(passes[-20:]) > 30


def test_the_better_source_is_chosen(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    copies = machine.source("ngram", lambda at: 0.0 if at < 200 else 0.98, is_free=True)
    draft = machine.source("draft", always(0.85), is_free=False, guess_s=0.25 * WIDE(1))
    _, _, _, stats = machine.generate([copies, draft], 400)
    assert stats.sources["draft"].n_accepted > 100
    assert stats.sources["ngram"].n_accepted > 120


@pytest.mark.parametrize(("mode", "used"), [("ngram", "ngram"), ("draft", "draft")])
def test_only_the_chosen_source_is_asked(monkeypatch, mode, used):
    machine = Machine(monkeypatch, WIDE)
    sources = [
        machine.source("ngram", always(0.9), is_free=True),
        machine.source("draft", always(0.9), is_free=False, guess_s=0.01),
    ]
    _, _, _, stats = machine.generate(sources, 100, mode=mode)
    assert list(stats.sources) == [used]
    assert [source.n_guess > 0 for source in sources] == [source.name == used for source in sources]


def test_limits_of_a_draft(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    source = machine.source("ngram", always(1.0), is_free=True)
    _, _, passes, _ = machine.generate([source], 200, draft_max=3)
    assert max(passes) == 4
    _, _, passes, _ = machine.generate([source], 200, draft_max=0)
    assert set(passes) == {1}
    _, _, passes, stats = machine.generate([source], 300, draft_min=5)
    assert set(passes) <= {1, *range(6, 18)}
    assert stats.sources["ngram"].n_pass > 0


def test_numbers(monkeypatch):
    machine = Machine(monkeypatch, WIDE)
    spent, plain, passes, stats = machine.generate([machine.source("ngram", always(0.9), is_free=True)], 500)
    source = stats.sources["ngram"]
    assert stats.n_token == sum(passes)
    assert stats.n_pass == len(passes)
    assert stats.spent_s == pytest.approx(spent)
    assert stats.speedup == pytest.approx(plain / spent, rel=0.01)
    assert source.n_accepted == sum(passes) - len(passes)
    assert sum(source.accepted_at) == source.n_accepted
    assert 0.85 < source.accepted_at[0] / source.drafted_at[0] < 0.95


# ---- costs ----------------------------------------------------------------------------------------------


def test_costs_between_and_beyond_what_was_measured():
    costs = PassCosts()
    assert not costs.is_known
    costs.learn(1, 0.1)
    assert 0.1 < costs(8) < 0.2  # hope
    costs.learn(8, 0.38)
    for _ in range(9):
        costs.learn(4, 0.22)
    assert costs(1) == pytest.approx(0.1)
    assert costs(6) == pytest.approx(0.3, rel=0.05)
    assert costs(16) == pytest.approx(0.7, rel=0.05)
    assert costs.widest == 8


def test_one_bad_moment_does_not_rule_a_width_out():
    costs = PassCosts()
    costs.learn(1, 0.1)
    costs.learn(2, 0.12)
    costs.learn(4, 2.0)
    assert costs(4) < 1.2
    costs.learn(4, 0.16)
    assert costs(4) == pytest.approx(0.16, rel=0.01)


def test_a_slower_machine_is_noticed_at_every_width():
    costs = PassCosts()
    for _ in range(10):
        costs.learn(1, 0.1)
        costs.learn(4, 0.2)
    for _ in range(30):
        costs.learn(4, 0.4)
    assert costs(4) == pytest.approx(0.4, rel=0.1)
    assert costs(1) > 0.12


def test_speeds_are_kept(tmp_path):
    path = tmp_path / "speeds" / "x.json"
    costs = PassCosts()
    costs.learn(1, 0.1)
    costs.learn(4, 0.2)
    SpeedFile(path).write(costs)
    assert SpeedFile(path).read() == {1: 0.1, 4: 0.2}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'{"pass_s": 3}', b'{"pass_s": {"a": 1}}', b'{"pass_s": {"1": "x"}}',
        b'{"pass_s": {"1": NaN}}', b'{"pass_s": {"1": -1}}', b'{"pass_s": {"2": 0.1}}', b'{"pass_s": {"1": 1e999}}',
        b'{"pass_s": {"1": [1]}}', b"[" * 100_000, b"\xff\xfe", b'{"pass_s": {"1": 0.1, "99999999": 0.1}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_no_file(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    file = SpeedFile(path)
    assert file.read() == {}
    costs = PassCosts()
    costs.learn(1, 0.1)
    file.write(costs)
    assert file.read() == {1: 0.1}


def test_a_folder_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    costs = PassCosts()
    costs.learn(1, 0.1)
    SpeedFile(tmp_path / "file" / "x.json").write(costs)
    SpeedFile(None).write(costs)
    assert SpeedFile(None).read() == {}
