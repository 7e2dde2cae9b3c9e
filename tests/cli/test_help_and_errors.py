"""docs/cli.md says what the commands say; ``--help`` is quick."""

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "chat",
    "run",
    "inspect",
    "tokenize",
    "detokenize",
    "pull",
    "list",
    "rm",
    "doctor",
    "draft",
    "quantize",
    "imatrix",
    "bench",
    "bench compare",
    "eval perplexity",
    "eval kld",
    "eval compare",
]


def load_script():
    spec = util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_up_to_date():
    expected = load_script().page()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == expected, "run `make docs`"


def test_page_names_every_command():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [line.removeprefix("## llmrun ") for line in page.splitlines() if line.startswith("## ")] == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_every_command(cli, command):
    result = cli(*command.split(), "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: llmrun {command}".rstrip())
    assert result.err == ""


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from llmrun.cli.app import main; main(['chat', '--help']);"
        "heavy = {'numpy', 'numba', 'llvmlite', 'rich', 'prompt_toolkit', 'jinja2', 'tokenizers', 'huggingface_hub'};"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="needs the processor time of children")
def test_help_is_quick():
    """Processor time, best of ten at most: what other programs on the processor's core do must not count."""
    import resource

    times: list[float] = []
    while len(times) < 10 and min(times, default=1.0) >= 0.3:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "llmrun", "--help"], capture_output=True, check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], None),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run"], "Missing argument 'MODEL'"),
        (["run", "m", "-p", "x", "--temp", "-1"], "--temp"),
        (["run", "m", "-p", "x", "-n", "many"], "--predict"),
        (["run", "m", "-p", "x", "-f", "y"], "exclude each other"),
        (["run", "m", "-p", "x", "--logprobs", "3"], "needs --json"),
        (["run", "m", "-p", "x", "--parse-special"], "needs --raw"),
        (["rm"], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage_exits_2(cli, args, message):
    result = cli(*args)
    assert result.code == 2
    assert result.out == "" or message is None
    assert message is None or message in result.err


def test_nothing_to_read_is_wrong_usage(cli, engine, model):
    result = cli("run", model, tty=True)
    assert result.code == 2
    assert "nothing to read" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--chat-template-kwargs", "{"], "--chat-template-kwargs: not JSON"),
        (["--chat-template-kwargs", "[1]"], "expected a JSON object"),
        (["--chat-template-kwargs", '{"messages": 1}'], "messages cannot be set this way"),
        (["-l", "x"], "logit_bias: expected TOKEN_ID+BIAS"),
        (["--samplers", "magic"], "samplers: no sampler 'magic'"),
        (["--sampler-seq", "z"], "no sampler 'z'"),
        (["--samplers", "top_k", "--sampler-seq", "k"], "exclude each other"),
        (["-f", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["-f", "/"], "/: Is a directory"),
        (["-p", ""], "the prompt is empty"),
        (["-p", "\udcff"], "-p/--prompt: not UTF-8 text"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exits_1(cli, engine, model, args, message):
    args = args if "-p" in args or "-f" in args else [*args, "-p", "x"]
    result = cli("run", model, *args, *(["--raw"] if args[:2] == ["-p", ""] else []))
    assert (result.code, result.out) == (1, "")
    assert len(result.lines) == 1
    assert result.lines[0].startswith("error: ")
    assert message in result.lines[0]


def test_error_line_cannot_draw(cli):
    result = cli("run", "\x1b[2J[red]x\u202e", "-p", "x", tty=True)
    assert result.code == 1
    assert r"\x1b[2J[red]x\u202e: no such file" in result.err


def test_closed_pipe_is_silent(tmp_path):
    env = {**os.environ, "LLMRUN_MODELS": str(tmp_path)}
    command = f'"{sys.executable}" -m llmrun list | true; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", f"sleep 0; {command}"], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def entry_command(args, shell_part):
    code = f"import sys; sys.argv[1:] = {args!r}; from llmrun.cli.entry import entry; entry()"
    return ["bash", "-c", f'exec "$0" -c "$1" {shell_part}', sys.executable, code]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["list"], ["--help"]])
def test_a_full_disk_is_one_line(tmp_path, args):
    env = {**os.environ, "LLMRUN_MODELS": str(tmp_path)}
    done = subprocess.run(
        entry_command(args, ">/dev/full"), capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_closed_standard_streams(tmp_path):
    """The null device takes their places: nothing that is opened later gets their numbers."""
    env = {**os.environ, "LLMRUN_MODELS": str(tmp_path)}
    for args, code in ((["list"], 0), (["run", "nothere"], 1)):
        command = entry_command(args, "<&- >&- 2>&-")
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_usage_lines_are_those_of_the_page(cli):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in ("run", "chat", "detokenize", "quantize"):
        usage = cli(command, "--help").out.splitlines()[0].removeprefix("Usage: ")
        assert f"\n    {usage}\n" in page
