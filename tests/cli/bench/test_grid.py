"""What the options ask for: numbers, ranges, the cross product and its order, and what is refused."""

import pytest

from llmrun.cli.bench.grid import models, numbers, pairs
from llmrun.cli.bench.options import TestOptions as Options
from llmrun.cli.bench.plan import make_plan
from llmrun.cli.declare import UsageError


@pytest.mark.parametrize(
    ("texts", "want"),
    [
        (None, []),
        (["512"], [512]),
        (["1,2,4", "8"], [1, 2, 4, 8]),
        (["1-4"], [1, 2, 3, 4]),
        (["16-64+16"], [16, 32, 48, 64]),
        (["1-9*2"], [1, 2, 4, 8]),
        (["0,128"], [0, 128]),
        (["2-5+2,7"], [2, 4, 7]),
    ],
)
def test_numbers(texts, want):
    assert numbers(texts, "-p") == want


@pytest.mark.parametrize("text", ["", "x", "1,,2", "-5", "1-", "5-1", "1-5+0", "1-5*1", "0-5*2", "1-5/2", "1" * 10])
def test_other_than_numbers_is_refused(text):
    with pytest.raises(UsageError):
        numbers([text], "-p")


def test_a_range_of_millions_is_refused_before_it_is_built():
    with pytest.raises(UsageError, match="more than 10000 values"):
        numbers(["1-999999999"], "-p")


def test_a_number_that_is_too_large_is_called_so():
    with pytest.raises(UsageError, match="'1000000000' is above 999999999"):
        numbers(["1000000000"], "-p")


def test_models_are_lists_too_and_a_file_may_have_a_comma_in_its_name(tmp_path):
    file = tmp_path / "a,b.gguf"
    file.touch()
    assert models(["x.gguf,user/repo:Q4_0", str(file)], "-m") == ["x.gguf", "user/repo:Q4_0", str(file)]


@pytest.mark.parametrize("texts", [None, [], [""], ["x.gguf,"]])
def test_no_model_is_refused(texts):
    with pytest.raises(UsageError, match="model"):
        models(texts, "-m")


def test_pairs():
    assert pairs(["512,128", "4,0"], "-pg") == [(512, 128), (4, 0)]
    with pytest.raises(UsageError):
        pairs(["512"], "-pg")


def plan(**options):
    return make_plan(Options(model=["a.gguf"], threads=["2"], **options))


def names(**options):
    return [test.name for test in plan(**options).tests]


def test_defaults_are_those_of_llama_bench():
    made = plan()
    assert [t.name for t in made.tests] == ["pp512", "tg128"]
    assert (made.settings[0].n_batch, made.settings[0].n_ubatch, made.settings[0].type_k) == (2048, 512, "f16")
    assert made.extra == []


def test_tests_come_in_the_order_of_llama_bench():
    assert names(n_prompt=["8,16"], n_gen=["4"], pg=["8,4"], n_depth=["0,32"]) == [
        "pp8", "pp16", "tg4", "pp8+tg4", "pp8 @ d32", "pp16 @ d32", "tg4 @ d32", "pp8+tg4 @ d32",
    ]  # fmt: skip


def test_a_zero_leaves_a_kind_of_test_out():
    assert names(n_prompt=["0"]) == ["tg128"]
    with pytest.raises(UsageError, match="no test is left"):
        plan(n_prompt=["0"], n_gen=["0"])


def test_no_more_threads_than_processors_are_named(monkeypatch):
    monkeypatch.setattr("llmrun.runtime.threads.n_processor", lambda: 2)
    assert [s.n_threads for s in make_plan(Options(model=["a"], threads=["1,2,8"])).settings] == [1, 2]


def test_settings_are_a_cross_product(monkeypatch):
    monkeypatch.setattr("llmrun.runtime.threads.n_processor", lambda: 2)
    made = make_plan(Options(model=["a", "b"], batch_size=["64,128"], threads=["1-2"]))
    assert [(s.model, s.n_batch, s.n_threads) for s in made.settings] == [
        (m, b, t) for m in "ab" for b in (64, 128) for t in (1, 2)
    ]
    assert made.extra == ["n_batch"]


def test_keys_and_values_have_one_type():
    def types(**options):
        return [s.type_k for s in make_plan(Options(model=["a"], threads=["1"], **options)).settings]

    assert types() == ["f16"]
    assert types(cache_type_k=["f16,q8_0"]) == ["f16", "q8_0"]
    assert types(cache_type_v=["q8_0"]) == ["q8_0"]
    assert types(cache_type_k=["q8_0"], cache_type_v=["q8_0"]) == ["q8_0"]


def test_batched_tests_replace_the_default_ones_and_join_those_asked_for():
    assert names(npl=["1,4"], npp=["32"], ntg=["8"]) == ["tg8 @ d32", "tg8 x4 @ d32"]
    assert names(npl=["2"], n_prompt=["16"], n_gen=["0"]) == ["pp16", "tg128 x2 @ d128"]


@pytest.mark.parametrize(
    "options",
    [
        {"cache_type_k": ["q3_x"]},
        {"cache_type_k": ["q8_0"], "cache_type_v": ["f16"]},
        {"cache_type_v": ["q4_0"]},
        {"flash_attn": ["off"]},
        {"flash_attn": ["0"]},
        {"n_gpu_layers": ["99"]},
        {"mmap": ["2"]},
        {"npp": ["16"]},
        {"pps": True},
        {"threads": ["0"]},
        {"n_prompt": ["1-200"], "n_depth": ["1-200"]},
    ],
)
def test_what_the_engine_has_not_got_is_refused(options):
    with pytest.raises(UsageError):
        make_plan(Options(**({"model": ["a"], "threads": ["2"]} | options)))
