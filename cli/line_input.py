"""Where the lines of a chat come from: a terminal with history and editing, or a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.errors import ConfigError
from .render.text import has_colour
from .slash import COMMANDS
from .text_input import decode

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

MAX_LINE_BYTES = 16 << 20
QUOTES = '"""'


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input, each a turn, without their ends.

    Raises:
        ConfigError: a line is not UTF-8, or longer than 16 MiB.
    """
    number = 0
    while line := sys.stdin.buffer.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ConfigError(f"standard input: line {number} is longer than {MAX_LINE_BYTES >> 20} MiB")
        yield decode(line, f"standard input, line {number}").rstrip("\r\n")


def wants_more(text: str) -> bool:
    """Return whether Enter continues the text: it ends with a backslash, or triple quotes are still open."""
    return text.endswith("\\") or (text.startswith(QUOTES) and QUOTES not in text[len(QUOTES) :])


def finished(text: str) -> str:
    """Return the text as it is sent: without the triple quotes around it."""
    if text.startswith(QUOTES):
        return text.removeprefix(QUOTES).rstrip().removesuffix(QUOTES).strip("\n")
    return text


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Keep what is typed meanwhile out of the answer on the screen; the next prompt shows it."""
    try:
        import termios

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    except (ImportError, OSError, termios.error):  # Windows, or no terminal after all
        yield
        return
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def terminal_reader(notice: Callable[[str], None]) -> Callable[[], str]:
    """Return a function that asks for the next line; its history outlives the program.

    The function raises ``EOFError`` for Ctrl-D and ``KeyboardInterrupt`` for Ctrl-C on an empty line.

    Args:
        notice: shows a remark, such as that the history cannot be kept.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import FormattedText

    commands = WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
    session: PromptSession[str] = PromptSession(
        history=_history(notice),
        key_bindings=_keys(),
        multiline=True,
        completer=commands,
        complete_while_typing=False,
        prompt_continuation=FormattedText([("", "  ")]),
    )
    label = FormattedText([("bold" if has_colour(sys.stdout) else "", "> ")])
    return lambda: finished(session.prompt(label))


def history_file() -> Path:
    """Return where the lines that were typed are kept."""
    from platformdirs import user_data_path

    return user_data_path("llmrun", appauthor=False) / "chat_history"


def _history(notice: Callable[[str], None]) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))  # what one asks is private
    except OSError as error:
        notice(f"{path}: {error.strerror}; the lines typed here will not be remembered")
        return InMemoryHistory()
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # what Enter becomes when it is typed while an answer is still running
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
            return
        if wants_more(buffer.text) and buffer.cursor_position == len(buffer.text):
            if buffer.text.endswith("\\"):
                buffer.delete_before_cursor(1)
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:exiting")

    return keys
