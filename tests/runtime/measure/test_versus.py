"""Two engines in turn: llmrun's worker on a tiny model, and a peer of a few lines."""

import sys

import pytest

from llmrun.formats.errors import ConfigError
from llmrun.runtime.measure.bench_row import BenchTest
from llmrun.runtime.measure.versus import OWN_COMMAND, Comparison, Worker, compare

PEER = """
import hashlib, json, pathlib, sys
settings = json.loads(sys.stdin.readline())
digest = hashlib.sha256(pathlib.Path(settings["path"]).read_bytes()).hexdigest()
print(json.dumps({"engine": "fake", "version": "fake 1", "system_info": "none", "sha256": digest}), flush=True)
for line in sys.stdin:
    test = json.loads(line)
    if test["n_gen"] == 13:
        sys.exit(7)
    print(json.dumps({"total_ns": 1000000 * (test["n_prompt"] + test["n_gen"]), "step_ns": []}), flush=True)
"""
TESTS = [BenchTest(n_prompt=8), BenchTest(n_gen=3, n_depth=5)]


@pytest.fixture
def settings(tiny_path):
    path = str(tiny_path("gemma3", "Q8_0"))
    sizes = {"n_ctx": 128, "n_batch": 64, "n_ubatch": 16, "n_threads": 1}
    return {"path": path, **sizes, "n_ctx_seq": 128, "n_seq": 1, "type_k": "q8_0", "flash_attn": "auto"}


def peer(settings, program=PEER):
    return Worker((sys.executable, "-c", program), settings)


def test_rounds_and_ratios(settings):
    seen = []
    with Worker(OWN_COMMAND, settings) as own, peer(settings) as other:
        assert own.about["engine"] == "llmrun"
        assert len(own.about["sha256"]) == 64
        results = compare(own, other, TESTS, 9, on_progress=lambda what, i, n: seen.append((what, i, n)))
    assert [len(r.own_ns) for r in results] == [len(r.peer_ns) for r in results] == [9, 9]
    assert seen[0] == ("warm-up", 0, 20)
    assert seen[-1] == ("round 9/9", 19, 20)
    assert results[0].peer_ns == [8_000_000] * 9
    assert results[1].peer_ns == [3_000_000] * 9
    assert [r.is_decode for r in results] == [False, True]
    assert results[0].ratios.n == 9


def test_a_ratio_is_of_one_round():
    result = Comparison(BenchTest(n_gen=1), own_ns=[10, 100, 1000], peer_ns=[20, 200, 3000])
    assert (result.ratios.lower, result.ratios.median, result.ratios.upper) == (2, 2, 2.5)


class Bandwidth:
    """Answers 1, 2, 3 … bytes per second."""

    def __init__(self):
        self.n = 0

    def bytes_s(self):
        self.n += 1
        return float(self.n)


def test_the_bandwidth_of_the_rounds(settings):
    with peer(settings) as one, peer(settings) as two:
        prompt, decode = compare(one, two, TESTS, 9, probe=Bandwidth())
    assert prompt.bandwidth is None
    assert decode.read_rates == [float(n) for n in range(1, 19)]  # before each side, not for the warm-up
    assert decode.bandwidth == 9.5


def test_too_few_rounds(settings):
    with peer(settings) as one, peer(settings) as two, pytest.raises(ValueError, match="at least 9"):
        compare(one, two, TESTS, 8)


def test_different_files_are_refused(settings):
    with peer(settings) as one, peer(settings) as two:
        one.about["sha256"] = "0" * 64
        with pytest.raises(ConfigError, match="different files"):
            compare(one, two, TESTS, 9)


def test_a_peer_that_ends_is_one_line(settings):
    with peer(settings) as one, peer(settings) as two, pytest.raises(ConfigError, match="ended with 7"):
        compare(one, two, [BenchTest(n_gen=13)], 9)


def test_a_peer_that_is_not_installed_says_how_to_get_it(settings):
    program = 'import json; print(json.dumps({"error": "llama-cpp-python is not installed there", "is_missing": True}))'
    with pytest.raises(ConfigError, match=r"llmrun\[peers\]"):
        peer(settings, program)


@pytest.mark.parametrize("program", ["print('no JSON')", "print('[1]')", "print('[' * 100_000)"])
def test_a_program_that_is_no_python_with_a_peer_is_one_line(settings, program):
    with pytest.raises(ConfigError, match="expected JSON") as caught:
        peer(settings, program)
    assert "--peer-python" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_python_that_does_not_exist(settings):
    with pytest.raises(ConfigError, match="cannot be started"):
        Worker(("/no/such/python",), settings)


def test_llmruns_own_errors_come_through(settings):
    with pytest.raises(ConfigError, match=r"context .*; try smaller -p, -n, -pg, -d or -npl"):
        Worker(OWN_COMMAND, settings | {"n_ctx": 1 << 40})
