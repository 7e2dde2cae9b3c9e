"""The chat in a terminal: interruption, thinking, editing. The terminal itself is replaced by streams."""

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llmrun.cli import line_input
from llmrun.formats.record import replace


@pytest.fixture
def typed(monkeypatch):
    """Let a test give the lines that are typed; an exception is raised in its place."""

    def give(*lines):
        queue = [*lines, EOFError()]

        def read():
            line = queue.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(line_input, "terminal_reader", lambda notice: read)

    return give


def test_header_answer_and_last_line(cli, engine, model, typed):
    engine.replies = ["Hello \x1b[2Jthere"]
    typed("Hi")
    result = cli("chat", model, "-s", "1", tty=True)
    assert result.code == 0
    plain = result.out
    assert "Tiny" in plain
    assert "llama · Q4_0 · 135M parameters · 98.4 MB in the file, 95.0 MB in memory" in plain
    assert "context 2048 tokens · 2 threads · avx2" in plain
    assert "Hello [2Jthere\n" in plain  # the escape character itself is gone
    assert "decode" in plain.splitlines()[-2]


def test_first_interrupt_keeps_the_answer_second_leaves(cli, engine, model, typed):
    engine.replies = [["par", "tial", KeyboardInterrupt()], "B"]
    typed("a", KeyboardInterrupt(), "b")
    result = cli("chat", model, tty=True)
    assert "partial" in result.out
    assert "· stopped" in result.out
    assert result.code == 130
    assert len(engine.prompts) == 1


def test_a_stopped_answer_is_part_of_the_conversation(cli, engine, model, typed):
    engine.replies = [["par", "tial", KeyboardInterrupt()], "B"]
    typed("a", "b")
    assert cli("chat", model, tty=True).code == 0
    assert "assistant\npartial<|im_end|>" in engine.prompts[1]


def test_an_interrupt_that_comes_too_late_does_not_leave(cli, engine, model, typed):
    engine.replies = ["A", "B"]
    typed("a", KeyboardInterrupt(), "b", KeyboardInterrupt(), KeyboardInterrupt(), "c")
    result = cli("chat", model, tty=True)
    assert result.out.count("Ctrl-C again or Ctrl-D leaves") == 2
    assert (result.code, len(engine.prompts)) == (130, 2)


def test_interrupt_before_the_answer_drops_the_question(cli, engine, model, typed):
    engine.replies = [KeyboardInterrupt(), "B"]
    typed("a", "b")
    result = cli("chat", model, tty=True)
    assert "the question is not kept" in result.out
    assert engine.prompts[1] == "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"


def test_interrupted_regen_keeps_the_old_answer(cli, engine, model, typed):
    engine.replies = ["A", KeyboardInterrupt(), "C", "B"]
    typed("a", "/regen", "/regen", "b")
    cli("chat", model, tty=True)
    assert [params.sample for params in engine.params] == [0, 1, 1, 0]
    assert "assistant\nC<|im_end|>" in engine.prompts[3]


def test_thinking_is_dim(cli, engine, model, typed, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    engine.template.tail = "<think>\n"
    engine.replies = [["hm", "</th", "ink>", "Yes"]]
    typed("a")
    result = cli("chat", model, tty=True)
    assert "\x1b[2mhm\x1b[0m\x1b[2m</think>\x1b[0mYes" in result.out


def test_no_colour_when_asked(cli, engine, model, typed, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    engine.replies = ["ok"]
    typed("a", "/frobnicate")
    assert "\x1b[31m" not in cli("chat", model, tty=True).out


def test_model_name_cannot_draw(cli, engine, model, typed):
    engine.info = replace(engine.info, name="\x1b]0;owned\x07[red]x[/red]\u202e")
    typed()
    result = cli("chat", model, tty=True)
    assert r"\x1b]0;owned\x07[red]x[/red]\u202e" in result.out


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("one\\\rtwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', "one\ntwo"),
        ("\x1b[200~one\ntwo\x1b[201~\r", "one\ntwo"),  # a paste of two lines is one message
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("typed ahead\n", "typed ahead"),
        ("wrong\x03right\r", "right"),  # Ctrl-C clears what is typed
    ],
)
def test_keys(keys, text):
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        assert line_input.terminal_reader(lambda text: None)() == text


@pytest.mark.parametrize(("keys", "error"), [("\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_keys_that_leave(keys, error):
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        with pytest.raises(error):
            line_input.terminal_reader(lambda text: None)()


def test_history_outlives_the_program_and_is_private():
    for line in ("first", "second"):
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(f"{line}\r")
            line_input.terminal_reader(lambda text: None)()
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("\x1b[A\x1b[A\r")
        assert line_input.terminal_reader(lambda text: None)() == "first"
    assert line_input.history_file().stat().st_mode & 0o077 == 0


def test_history_that_cannot_be_kept_is_said_and_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file where the folder should be")
    notices = []
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("hello\r")
        assert line_input.terminal_reader(notices.append)() == "hello"
    assert len(notices) == 1
