"""Write ``docs/cli.md`` from the commands themselves: the same texts that ``--help`` shows.

    python docs/make_cli.py            print the page
    python docs/make_cli.py --write    write it beside this script (`make docs`)

A test compares the page with the commands, so it cannot fall behind them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from llmrun.cli.commands import app, bare_name, usage_name
from llmrun.cli.slash import COMMANDS

PAGE = Path(__file__).with_name("cli.md")

HEAD = """\
# Command line

<!-- Written by docs/make_cli.py from the commands' own help. Change the help, then run `make docs`. -->

Answers go to standard output, everything else to standard error. Names and defaults of options are those
of llama.cpp where it has them. Exit codes: 0; 1 for an error, told in one line; 2 for wrong usage; 130 after
Ctrl-C.

MODEL is the path of a GGUF file (of a split model: of its first file), a name that `llmrun list` shows, or
`user/repo[:QUANT]` on the Hugging Face hub. What is not on this machine yet is downloaded, and said so.

| variable | meaning |
|---|---|
| `LLMRUN_MODELS` | folder for downloaded models |
| `LLMRUN_ISA` | instruction set to use; `llmrun doctor` lists those that this CPU runs |
| `LLMRUN_CACHE` | folder for compiled kernels |
| `LLMRUN_THREADS` | compute threads where `-t` does not say |
| `NO_COLOR` | no colour, no bold, no dim text |
| `PIP_INDEX_URL`, `UV_INDEX_URL`, pip's configuration files | the package index that the default model comes from |
| `HF_TOKEN`, `HF_ENDPOINT` | read by `huggingface_hub` |
"""

SLASH_HEAD = """
# In the chat

A line that begins with a slash is a command; a space in front sends it as text. After a final backslash, or within
triple quotes, Enter begins a new line.

| command | meaning |
|---|---|
"""


def page() -> str:
    """Return the whole page."""
    root: Any = typer.main.get_command(app)
    sections = "".join(part for path, command in commands(root, "llmrun") for part in section_of(path, command))
    slashes = [(f"/{name} {command.arguments}".strip(), command.help) for name, command in COMMANDS.items()]
    return HEAD + sections + SLASH_HEAD + "".join(f"| `{cell(name)}` | {cell(text)} |\n" for name, text in slashes)


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with its full name."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    if command.invoke_without_command and path != "llmrun":
        yield path, command
    for name, child in command.commands.items():
        yield from commands(child, f"{path} {name}")


def section_of(path: str, command: Any) -> Iterator[str]:
    """Yield the parts of one command's section."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    words = [usage_name(p) for p in arguments]
    yield f"\n## {path}\n\n    {' '.join([path, '[OPTIONS]', *words])}\n\n{inspect.cleandoc(command.help or '')}\n"
    yield "\n| option | meaning | default |\n|---|---|---|\n"
    for parameter in [*arguments, *options]:
        yield f"| {spelling_of(parameter)} | {cell(parameter.help or '')} | {default_of(parameter)} |\n"
    yield "| `-h`, `--help` | Show this message and exit. |  |\n"


def spelling_of(parameter: Any) -> str:
    """Return every way in which a parameter can be written."""
    if parameter.param_type_name == "argument":
        return f"`{cell(bare_name(parameter))}`"
    names = [*parameter.opts, *parameter.secondary_opts]
    value = f" {parameter.metavar}" if parameter.metavar else ""
    return ", ".join(f"`{cell(name)}`" for name in [*names[:-1], names[-1] + value])


def default_of(parameter: Any) -> str:
    """Return a parameter's default, empty where there is none or where it says nothing."""
    value = parameter.default
    if isinstance(value, bool):
        return f"`{parameter.opts[0]}`" if value and parameter.secondary_opts else ""
    return f"`{value}`" if isinstance(value, int | float | str) else ""


def cell(text: str) -> str:
    """Return text as a table's cell takes it."""
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
