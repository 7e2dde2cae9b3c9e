"""The two screens of a chat: one for a terminal, drawn with Rich, and one for pipes."""

from __future__ import annotations

import sys
from typing import Any

from .text import escaped, has_colour, printable, styled


class PlainScreen:
    """Answers on standard output, everything else on standard error, nothing drawn."""

    def notice(self, text: str) -> None:
        """Show a remark."""
        self._note(text)

    def error(self, text: str) -> None:
        """Show what went wrong."""
        self._note(f"error: {text}", "red")

    def rows(self, rows: list[tuple[str, str]]) -> None:
        """Show names and values, a line each."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"{escaped(name):{width}}  {escaped(value)}", file=sys.stderr)

    def piece(self, text: str, *, is_thinking: bool) -> None:  # noqa: ARG002  # the tags are in the text
        """Show the next piece of an answer."""
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def end_answer(self) -> None:
        """Finish the answer's last line."""
        sys.stdout.write("\n")
        sys.stdout.flush()

    def stats(self, line: str) -> None:
        """Show the line about an answer's speed."""
        self._note(line)

    @staticmethod
    def _note(text: str, style: str = "dim") -> None:
        print(styled(escaped(text), style, sys.stderr), file=sys.stderr, flush=True)


class TerminalScreen:
    """A terminal. Only bold, dim and red are used: they can be read on dark and on light backgrounds."""

    def __init__(self) -> None:
        from rich.console import Console  # here: a pipe does not need it

        system: Any = "auto" if has_colour(sys.stdout) else None  # Rich itself keeps bold and dim under NO_COLOR
        self._console = Console(color_system=system, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._ends_line = True

    def header(self, title: str, lines: list[str]) -> None:
        """Show what is being talked to."""
        self._console.out(escaped(title), style="bold", highlight=False)
        for line in lines:
            self.notice(line)

    def notice(self, text: str) -> None:
        """Show a remark, dim."""
        self._console.out(escaped(text), style="dim", highlight=False)

    def error(self, text: str) -> None:
        """Show what went wrong, red."""
        self._console.out(f"error: {escaped(text)}", style="red", highlight=False)

    def rows(self, rows: list[tuple[str, str]]) -> None:
        """Show names and values in two columns; a value keeps its lines."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            lines = value.split("\n")
            table.add_row(Text(escaped(name)), Text("\n".join(map(escaped, lines))))
        self._console.print(table)

    def piece(self, text: str, *, is_thinking: bool) -> None:
        """Show the next piece of an answer; thinking is dim."""
        text = printable(text)
        if text:
            self._console.out(text, style="dim" if is_thinking else None, end="", highlight=False)
            self._console.file.flush()
            self._ends_line = text.endswith("\n")

    def end_answer(self) -> None:
        """Finish the answer's last line."""
        if not self._ends_line:
            self._console.out("", highlight=False)
        self._ends_line = True

    def stats(self, line: str) -> None:
        """Show the line about an answer's speed, dim, and leave a gap."""
        self._console.out(escaped(line), style="dim", highlight=False)
        self._console.out("", highlight=False)
