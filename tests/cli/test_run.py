"""``llmrun run`` from the arguments to the bytes on both streams."""

import json
import math

import pytest

from . import fake_engine


def test_answer_alone_is_on_stdout(cli, engine, model):
    engine.replies = ["The answer is 4."]
    result = cli("run", model, "-p", "What is 2+2?", "-s", "7")
    assert result.code == 0
    assert result.out == "The answer is 4.\n"
    assert engine.prompts == ["<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"]
    n_prompt = len(engine.prompt_ids[0])
    assert result.err == (
        f"prefill {10 * n_prompt:.1f} tok/s ({n_prompt}) · decode 93.8 tok/s (16)"
        f" · first token 0.20 s · context {n_prompt + 16}/2048\n"
    )


def test_random_seed_is_shown_and_differs(cli, engine, model):
    engine.replies = ["a", "b"]
    first, second = cli("run", model, "-p", "x"), cli("run", model, "-p", "x")
    assert first.lines[0] == f"seed {engine.params[0].seed}"
    assert engine.params[0].seed != engine.params[1].seed
    assert second.out == "b\n"


@pytest.mark.parametrize("args", [["-p", "-"], [], ["-f", "-"]])
def test_reads_standard_input(cli, engine, model, args):
    engine.replies = ["ok"]
    cli("run", model, *args, stdin="Grüße\nan alle\n")
    assert "user\nGrüße\nan alle<|im_end|>" in engine.prompts[0]


def test_reads_file_without_its_last_newline(cli, engine, model, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfline 1\nline 2\n")
    engine.replies = ["ok"]
    cli("run", model, "--raw", "-f", path)
    assert engine.prompts == ["line 1\nline 2"]


def test_raw_skips_template_and_special_tokens(cli, engine, model):
    engine.replies = [" there", " x"]
    cli("run", model, "--raw", "-p", "<|im_end|>hi")
    cli("run", model, "--raw", "--parse-special", "-p", "<|im_end|>hi")
    assert engine.prompt_ids == [list(b"<|im_end|>hi"), [257, *b"hi"]]


def test_model_without_template_is_continued_and_says_so(cli, engine, model):
    engine.template = None
    engine.replies = [" upon a time"]
    result = cli("run", model, "-p", "Once")
    assert engine.prompts == ["Once"]
    assert "no chat template" in result.lines[0]


@pytest.mark.parametrize("option", [("-sys", "Be brief."), ("--chat-template-kwargs", '{"enable_thinking": false}')])
def test_options_for_a_template_need_one(cli, engine, model, option):
    for args in (["run", model, "-p", "Once", "--raw"], ["run", model, "-p", "Once"], ["chat", model]):
        result = cli(*args, *option)
        assert (result.code, result.out, len(result.lines)) == (1, "", 1)
        assert result.err.endswith(" needs a chat template\n")
        engine.template = None


def test_json_object(cli, engine, model):
    engine.replies = ["né\x1b"]
    result = cli("run", model, "-p", "x", "--json", "-s", "5", "--logprobs", "2")
    record = json.loads(result.out)
    assert record["text"] == "né\x1b"
    assert record["token_ids"] == [ord("n"), 0xC3, 0x1B]
    assert (record["finish_reason"], record["seed"]) == ("stop", 5)
    assert record["logprobs"][0] == [{"token_id": 110, "logprob": -0.5}, {"token_id": 109, "logprob": -1.5}]
    assert record["timings"]["n_generated"] == 3
    assert record["timings"]["prefill_tps"] > 0
    assert result.err == ""


def test_json_tells_the_random_seed(cli, engine, model):
    engine.replies = ["a"]
    assert json.loads(cli("run", model, "-p", "x", "--json").out)["seed"] == engine.params[0].seed


def test_impossible_token_has_no_number_in_json(cli, engine, model, monkeypatch):
    engine.replies = ["a"]
    make = fake_engine.GeneratedToken
    monkeypatch.setattr(
        fake_engine, "GeneratedToken", lambda **values: make(**{**values, "logprobs": ((1, -math.inf),)})
    )
    record = json.loads(cli("run", model, "-p", "x", "--json", "--logprobs", "1").out, parse_constant=pytest.fail)
    assert record["logprobs"] == [[{"token_id": 1, "logprob": None}]]


def test_length_is_the_finish_reason_at_the_end_of_the_context(cli, engine, model):
    engine.replies = ["x" * 100]
    record = json.loads(cli("run", model, "-p", "hi", "--raw", "-c", "10", "--json").out)
    assert (record["finish_reason"], record["text"]) == ("length", "x" * 8)


def test_full_context_is_said(cli, engine, model):
    engine.replies = ["x" * 100]
    result = cli("run", model, "-p", "hi", "--raw", "-c", "10")
    assert (result.code, result.out) == (0, "x" * 8 + "\n")
    assert "stopped: the context of 10 tokens is full" in result.lines


def test_options_reach_the_engine(cli, engine, model):
    engine.replies = ["ok"]
    flags = "-n 5 -c 99 -t 3 -ub 64 --seed 11 --temp 0.1 --top-k 3 --top-p 0.5 --min-p 0.2 --typical 0.9 --top-nsigma 2"
    flags += " --xtc-probability 0.3 --xtc-threshold 0.2 --repeat-last-n 10 --repeat-penalty 1.1 --presence-penalty 0.4"
    flags += " --frequency-penalty 0.5 --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-penalty-last-n -1"
    flags += (
        " --dynatemp-range 0.2 --dynatemp-exp 1.5 -l 5+1.5 -l 6-inf --samplers top_k;temperature --ignore-eos --no-mmap"
    )
    flags += " --override-pre gpt-2 -r \\n -r END"
    result = cli("run", model, "-p", "x", *flags.split())
    assert result.code == 0, result.err
    params = engine.params[0]
    assert (params.max_tokens, params.seed, params.stop, params.ignore_eos) == (5, 11, ("\n", "END"), True)
    sampler = params.sampler
    assert (sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p) == (0.1, 3, 0.5, 0.2)
    assert (sampler.typical_p, sampler.top_n_sigma, sampler.xtc_probability, sampler.xtc_threshold) == (
        0.9,
        2,
        0.3,
        0.2,
    )
    assert (sampler.repeat_last_n, sampler.repeat_penalty) == (10, 1.1)
    assert (sampler.presence_penalty, sampler.frequency_penalty) == (0.4, 0.5)
    assert (sampler.dry_multiplier, sampler.dry_base, sampler.dry_allowed_length) == (0.8, 2, 3)
    assert sampler.dry_penalty_last_n == 2**31 - 1
    assert (sampler.dynatemp_range, sampler.dynatemp_exponent) == (0.2, 1.5)
    assert sampler.logit_bias == ((5, 1.5), (6, -math.inf))
    assert sampler.samplers == ("top_k", "temperature")
    assert {name: engine.opened[name] for name in ("n_ctx", "n_threads", "n_ubatch", "use_mmap", "tokenizer_pre")} == {
        "n_ctx": 99, "n_threads": 3, "n_ubatch": 64, "use_mmap": False, "tokenizer_pre": "gpt-2",
    }  # fmt: skip


def test_defaults_are_those_of_the_settings(cli, engine, model):
    from llmrun.runtime.sampling.settings import SamplerSettings

    engine.replies = ["ok"]
    cli("run", model, "-p", "x")
    assert engine.params[0].sampler == SamplerSettings()
    assert (engine.params[0].max_tokens, engine.params[0].stop) == (None, ())


def test_system_prompt_and_template_variables(cli, engine, model):
    engine.replies = ["ok"]
    cli("run", model, "-p", "hi", "-sys", "Be brief.", "--chat-template-kwargs", '{"enable_thinking": false}')
    assert engine.prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi")
    assert engine.template.kwargs == {"enable_thinking": False}


def test_control_characters_reach_pipes_but_not_terminals(cli, engine, model):
    reply = "a\x1b[31mb\x07\r\tc\x9b\n"
    engine.replies = [reply, reply]
    assert cli("run", model, "-p", "x").out == reply + "\n"
    shown = cli("run", model, "-p", "x", tty=True)
    assert shown.out == "a[31mb\tc\n\n"
    assert "\x1b[2mprefill" in shown.err


def test_no_colour_when_asked(cli, engine, model, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    engine.replies = ["ok"]
    assert "\x1b" not in cli("run", model, "-p", "x", tty=True).err


def test_notices_are_shown_escaped(cli, engine, model):
    engine.notices = ["context lowered to 99 \x1b[2J[bold]"]
    engine.replies = ["ok"]
    assert cli("run", model, "-p", "x").lines[0] == r"context lowered to 99 \x1b[2J[bold]"


def test_interrupt_ends_the_line_and_exits_130(cli, engine, model):
    engine.replies = [["par", "tial", KeyboardInterrupt()]]
    result = cli("run", model, "-p", "x")
    assert (result.code, result.out) == (130, "partial\n")
    assert "Traceback" not in result.err


def test_argument_in_a_locale_without_unicode(cli, engine, model):
    engine.replies = ["ok"]
    cli("run", model, "--raw", "-p", "hé".encode().decode("ascii", "surrogateescape"))
    assert engine.prompts == ["hé"]
