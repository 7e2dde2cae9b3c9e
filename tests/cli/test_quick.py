"""The quick reader takes ordinary command lines, reads them as Typer does, and leaves everything else to Typer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmrun.cli import commands
from llmrun.cli.app import main
from llmrun.cli.command_table import COMMANDS
from llmrun.cli.quick import quick_read

from .damaged_models import writer

ROOT = Path(__file__).parents[2]

ORDINARY = [
    "run m -p Hi",
    "run m.gguf --prompt=Hi -n 1 --temp 0 -t 2 -c 4096 -ub 7",
    "run -p - m --json --logprobs 3 --seed -1",
    "run m -f /tmp/x --no-mmap --mmap --no-mmap",
    "run m -p x -p y --predict=-1 --max-tokens 5",
    "run m -p x --stop a -r b --reverse-prompt=c=d -l 5+1 -l 6-inf",
    "run m -p x --top-p .5 --min-p 1e-3 --temperature 1. --dry-base +2 --typical 1",
    "run m -p x -s 18446744 --top-nsigma -1 --presence-penalty -0.5",
    "run m -p x --chat-template-kwargs {} -sys S --ignore-eos --raw",
    "run m -p -n -n 3",
    "run m --file=",
    "chat",
    "chat m --dry-sequence-breaker none --samplers top_k;min_p",
    "chat --xtc-probability 0.5 some/repo:Q4_K_M --ctx-size 0 -p x",
    "inspect m --tensors --program --json",
    "tokenize m",
    "tokenize m text --ids --no-bos",
    "tokenize --override-pre gpt-2 m -",
    "detokenize m 1 2 3 --special",
    "detokenize m",
    "pull name",
    "list",
    "list --json",
    "rm name",
    "doctor --json",
    "eval perplexity m -f x -c 512 --chunks 4 --per-token",
]

DOUBTFUL = [
    "",
    "--help",
    "--version",
    "frobnicate",
    "eval",
    "eval nothing",
    "run",
    "run --help",
    "run -h",
    "run m extra",
    "run m -p",
    "run m -n4",
    "run m -n x",
    "run m -n 1.5",
    "run m -n 1_0",
    "run m -n -2",
    "run m -t -1",
    "run m --temp nan",
    "run m --temp inf",
    "run m --temp 1e999",
    "run m --top-p 2",
    "run m --top-k 99999999999999999999",
    "run m --logprobs 1001",
    "run m --raw=yes",
    "run m --pro x",
    "run m --no-json",
    "run m -- -p",
    "run m -x",
    "chat a b",
    "detokenize",
    "eval perplexity m",
]


@pytest.fixture
def typer_values(monkeypatch):
    """Return what Typer calls a command with, None when it calls none."""

    def read(args):
        seen = []
        monkeypatch.setattr(commands, "call", lambda command, values: seen.append((command, values)))
        try:
            commands.app(args=args, prog_name="llmrun", standalone_mode=False)
        except Exception:
            return None
        return seen[0] if seen else None

    return read


@pytest.mark.parametrize("line", ORDINARY)
def test_reads_as_typer_does(typer_values, line):
    args = line.split()
    quick = quick_read(args)
    assert quick is not None
    command, values = typer_values(args)
    assert quick[0] is command
    assert {name: value or None for name, value in quick[1].items()} == {n: v or None for n, v in values.items()}
    types = {name: type(value) for name, value in values.items() if value}
    assert {name: type(value) for name, value in quick[1].items() if value} == types


@pytest.mark.parametrize("line", DOUBTFUL)
def test_leaves_doubtful_lines_to_typer(line):
    assert quick_read(line.split()) is None


def test_takes_any_text_as_a_value(typer_values):
    args = ["run", "m", "-p", "--help \udcff\n", "--system-prompt=", "-f", "a\tb"]
    quick = quick_read(args)
    assert quick is not None
    assert quick[1] == typer_values(args)[1]
    assert quick_read(["run", "m", "-f", "a\0b"]) is None


def test_every_command_is_known():
    assert {" ".join(key.split()) for key in COMMANDS} == set(COMMANDS)
    for words in COMMANDS:
        assert quick_read([*words.split(), "--no-such-option"]) is None


def test_an_ordinary_line_does_without_typer():
    code = (
        "import sys; from llmrun.cli.app import main; code = main(['tokenize', '/nonexistent', 'x']);"
        "heavy = {'typer', 'click', 'pydantic', 'rich', 'prompt_toolkit', 'jinja2', 'huggingface_hub', 'gguf'};"
        "print(code, sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "1 []"


@pytest.mark.parametrize(("args", "code"), [(["list"], 0), (["tokenize", "/nonexistent", "x"], 1), (["run"], 2)])
def test_the_console_script_ends_with_everything_written(tmp_path, args, code):
    script = f"import sys; sys.argv = ['llmrun', *{args!r}]; from llmrun.cli.entry import entry; entry()"
    env = {**os.environ, "LLMRUN_MODELS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, env=env
    )
    assert done.returncode == code
    assert ("not here: llmrun pull" in done.stdout) == (code == 0)
    assert bool(done.stderr) == (code != 0)


def test_an_answer_needs_no_more_than_it_needs(tmp_path):
    writer()(tmp_path / "m.gguf")
    assert main(["run", str(tmp_path / "m.gguf"), "-p", "x", "-n", "1"]) == 0  # from here on its kernels are compiled
    code = (
        "import sys; from llmrun.cli.app import main; code = main(['run', sys.argv[1], '-p', 'x', '-n', '1']);"
        "heavy = {'typer', 'click', 'pydantic', 'rich', 'prompt_toolkit', 'huggingface_hub', 'gguf', 'numba',"
        " 'sentencepiece', 'tokenizers'};"
        "print(code, sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "0 []"
