"""The progress bar: only on terminals, only when something takes long, readable on every background."""

import io
import re
import sys

import pytest

from llmrun.cli.render.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Return a terminal that is standard error now; no fixture, because pytest sets the stream before each test."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return sys.stderr


@pytest.mark.parametrize("options", [{}, {"in_bytes": True, "has_time_left": True}])
def test_colours_can_be_read_on_light_and_dark_backgrounds(monkeypatch, options):
    screen = terminal(monkeypatch)
    with ProgressBar("loading [m]\x1b[2J", delay_s=3600, **options) as bar:
        bar._show()
        for done in (1, 5, 9):
            bar("loading [m]\x1b[2J", done, 10)
    drawn = screen.getvalue()
    assert r"loading [m]\x1b[2J" in drawn
    codes = {int(code) for codes in re.findall("\x1b\\[([0-9;]+)m", drawn) for code in codes.split(";")[:1]}
    assert codes <= {0, 2, 38}  # dim and the bar's own colours: none of the terminal's palette, such as yellow


def test_nothing_is_drawn_where_it_is_quick_or_no_terminal(monkeypatch):
    screen = terminal(monkeypatch)
    with ProgressBar("loading", delay_s=3600) as bar:
        bar("loading", 1, 2)
    assert screen.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with ProgressBar("loading", delay_s=0) as bar:
        bar("loading", 1, 2)
    assert sys.stderr.getvalue() == ""
