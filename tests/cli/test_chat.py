"""``llmrun chat`` from a pipe, whole transcripts: each line is a turn, answers on standard output."""

import json

import pytest

from llmrun.cli.chat_loop import RAW_MAX_TOKENS

HEAD = "<|im_start|>assistant\n"


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def test_each_line_is_a_turn_until_the_input_ends(cli, engine, model):
    engine.replies = ["Hello!", "4"]
    result = cli("chat", model, stdin="Hi\n\nWhat is 2+2?")
    assert (result.code, result.out) == (0, "Hello!\n4\n")
    assert engine.prompts[1] == turn("user", "Hi") + turn("assistant", "Hello!") + turn("user", "What is 2+2?") + HEAD
    assert result.lines[0] == f"seed {engine.params[0].seed}"
    assert "context" in result.lines[-1]


def test_one_session_serves_all_turns(cli, engine, model):
    engine.replies = ["a", "b"]
    result = cli("chat", model, "-s", "1", stdin="x\ny\n")
    assert "cached" not in result.lines[1]
    assert "cached" in result.lines[2]


def test_first_turn_from_the_command_line(cli, engine, model):
    engine.replies = ["a", "b"]
    result = cli("chat", model, "-p", "first", "-sys", "Be brief.", stdin="second\n")
    assert result.out == "a\nb\n"
    assert engine.prompts[0] == turn("system", "Be brief.") + turn("user", "first") + HEAD


def test_regen_takes_the_next_sample_of_the_same_question(cli, engine, model):
    engine.replies = ["one", "two", "three", "four"]
    cli("chat", model, stdin="x\n/regen\n/regen\ny\n")
    assert [params.sample for params in engine.params] == [0, 1, 2, 0]
    assert engine.prompts[0] == engine.prompts[1] == engine.prompts[2]
    assert engine.prompts[3] == turn("user", "x") + turn("assistant", "three") + turn("user", "y") + HEAD


def test_regen_at_temperature_0_says_that_nothing_changes(cli, engine, model):
    engine.replies = ["one", "one", "two"]
    result = cli("chat", model, "--temp", "0", stdin="x\n/regen\ny\n")
    assert [i for i, line in enumerate(result.lines) if line.startswith("at temperature 0")] == [3]


def test_undo_and_clear(cli, engine, model):
    engine.replies = ["A", "B", "C", "D"]
    result = cli("chat", model, stdin="a\nb\n/undo\nc\n/clear\nd\n")
    assert engine.prompts[2] == turn("user", "a") + turn("assistant", "A") + turn("user", "c") + HEAD
    assert engine.prompts[3] == turn("user", "d") + HEAD
    assert "dropped the last turn; 1 turn left" in result.lines
    assert "the conversation is empty" in result.lines


def test_system_prompt_is_set_and_removed(cli, engine, model):
    engine.replies = ["a", "b"]
    cli("chat", model, stdin="/system Be brief.\nx\n/system -\n/clear\ny\n")
    assert engine.prompts == [turn("system", "Be brief.") + turn("user", "x") + HEAD, turn("user", "y") + HEAD]


def test_set_changes_the_next_answer(cli, engine, model):
    engine.replies = ["a", "b"]
    result = cli(
        "chat",
        model,
        stdin="x\n/set temp 0\n/set seed 9\n/set max-tokens 1\n/set stop \\n\n/set samplers top_k;min_p\ny\n",
    )
    params = engine.params[1]
    assert (params.sampler.temperature, params.seed, params.max_tokens, params.stop) == (0, 9, 1, ("\n",))
    assert params.sampler.samplers == ("top_k", "min_p")
    assert result.code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temp hot", "error: temperature: expected a number, got 'hot'"),
        ("/set nonsense 1", "error: /set nonsense: no such setting, expected one of seed, predict, stop, temperature"),
        ("/set seed -4", "error: /set seed: expected a whole number from 0"),
        ("/set temp", "error: /set temperature: expected a value"),
        ("/frobnicate", "error: there is no command /frobnicate. /help lists them"),
        ("/regen", "error: there is no answer yet"),
        ("/undo", "error: there is no turn to drop"),
        ("/load", "error: /load: expected a file name"),
        ("/show nothing", "error: /show nothing: expected one of model"),
    ],
)
def test_a_wrong_command_is_one_line_and_the_chat_goes_on(cli, engine, model, line, message):
    engine.replies = ["still here"]
    result = cli("chat", model, stdin=f"{line}\nhello\n")
    assert [text for text in result.lines if text.startswith(message)]
    assert result.out == "still here\n"
    assert result.code == 1  # a script learns that something went wrong


def test_space_in_front_sends_a_slash_as_text(cli, engine, model):
    engine.replies = ["ok"]
    cli("chat", model, stdin=" /etc/passwd?\n")
    assert engine.prompts == [turn("user", "/etc/passwd?") + HEAD]


def test_help_show_and_bye(cli, engine, model):
    result = cli("chat", model, "-s", "3", stdin="/help\n/show\n/show template\n/bye\nnever asked\n")
    assert (result.code, result.out) == (0, "")
    for name in ("/help", "/system", "/regen", "/undo", "/clear", "/set", "/show", "/save", "/load", "/bye"):
        assert any(line.startswith(name) for line in result.lines)
    assert "98.4 MB in the file, 95.0 MB in memory" in result.err
    assert "{% for message in messages %}" in result.err


def test_save_and_load(cli, engine, model, tmp_path):
    engine.replies = ["A", "B"]
    path = tmp_path / "chat.json"
    cli("chat", model, "-sys", "S", stdin=f"a\n/save {path}\n")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["format"], record["version"], record["model"]) == ("llmrun-chat", 1, "Tiny")
    assert record["messages"] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "A"}]
    assert record["settings"]["temperature"] == "0.8"
    cli("chat", model, stdin=f"/load {path}\nb\n")
    assert (
        engine.prompts[1] == turn("system", "S") + turn("user", "a") + turn("assistant", "A") + turn("user", "b") + HEAD
    )


def test_full_context_refuses_the_turn_and_keeps_the_chat(cli, engine, model):
    engine.replies = ["A", "B"]
    result = cli("chat", model, "-c", "50", stdin=f"a\n{'long ' * 20}\n/undo\nb\n")
    refusal = next(line for line in result.lines if line.startswith("error:"))
    assert "the context has 50" in refusal
    assert "/undo drops the last turn, /clear all of them" in refusal
    assert result.out == "A\nB\n"
    assert engine.prompts[1] == turn("user", "b") + HEAD  # the refused question was never kept
    assert result.code == 1


def test_answer_that_fills_the_context_is_kept_and_explained(cli, engine, model):
    engine.replies = ["x" * 100]
    result = cli("chat", model, "-c", "40", stdin="a\n")
    assert 0 < len(result.out.strip()) < 100
    assert "the context of 40 tokens is full" in result.lines[-2]


def test_limit_of_tokens_is_explained(cli, engine, model):
    engine.replies = ["x" * 100]
    assert cli("chat", model, "-n", "4", stdin="a\n").lines[-2].startswith("stopped at the limit of 4 tokens")


def test_thinking_leaves_the_history_where_the_template_drops_it(cli, engine, model):
    engine.replies = ["<think>hm</think>Yes.", "No."]
    result = cli("chat", model, stdin="a\nb\n")
    assert result.out.startswith("<think>hm</think>Yes.\n")
    assert turn("assistant", "Yes.") in engine.prompts[1]


def test_model_without_template_is_continued(cli, engine, model):
    engine.template = None
    engine.replies = [" there was a king.", " He ruled."]
    result = cli("chat", model, stdin="Once\nThen\n")
    assert engine.prompts == ["Once", "Once there was a king.\nThen"]
    assert (
        result.lines[0]
        == f"no chat template: this model continues your text, at most {RAW_MAX_TOKENS} tokens a turn (-n)"
    )
    assert engine.params[0].max_tokens == RAW_MAX_TOKENS
    assert cli("chat", model, "-sys", "S", stdin="x").code == 1


def test_interrupt_in_a_pipe_ends_everything(cli, engine, model):
    engine.replies = [["par", KeyboardInterrupt()], "never"]
    result = cli("chat", model, stdin="a\nb\n")
    assert (result.code, result.out) == (130, "par\n")


def test_input_that_is_not_utf8(cli, engine, model):
    engine.replies = ["ok"]
    result = cli("chat", model, stdin=b"fine\n\xff\n")
    assert result.code == 1
    assert result.lines[-1] == "error: standard input, line 2: not UTF-8 text (byte 0xff at offset 0)"
