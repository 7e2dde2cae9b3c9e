"""Every error that llmrun shows to a user.

One family, caught in one place (``cli/app.py``) and printed as one line without a traceback.
Anything else that escapes is a bug in llmrun and keeps its traceback.

    LlmrunError
    ├── ConfigError      the user asked for something that is not possible
    ├── FormatError      a file does not hold what its format promises
    └── CapacityError    the machine has too little of something (memory, disk, context)

Message style: ``<where>: <what is wrong>[, expected <…>, got <…>][. <what to do>]``, lower case,
real values with units, no trailing period when it is one clause.
"""

from __future__ import annotations


class LlmrunError(Exception):
    """Base of every error that is the user's to solve; the message is one line."""

    def __str__(self) -> str:
        """Return the message on one line of printable text, whatever a file name or tensor name contains."""
        text = " ".join(super().__str__().split("\n"))
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigError(LlmrunError):
    """The command line, the environment or the settings ask for something impossible."""


class FormatError(LlmrunError):
    """A file is damaged, truncated, or holds something that this program cannot read."""


class CapacityError(LlmrunError):
    """The machine has too little memory, disk or context for what was asked.

    Args:
        problem: the message.
        advice: what to do, its last part; a command whose options are others gives its own.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem = problem


def quote(name: str | bytes) -> str:
    """Return a name from a file for use in a message: in quotes, printable, at most about 100 characters."""
    shown = repr(name[:100]).removeprefix("b")
    return shown if len(name) <= 100 else shown + "…"
