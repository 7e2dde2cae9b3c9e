"""Ctrl-C at any moment: the process ends at once with exit code 130, without a traceback and without leftovers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from .damaged_models import sound_tensors, writer

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 0.3
N_TRY = 4  # the quickest counts: another program may hold the processor
# A job that a script starts with & is born with interrupts ignored. An interrupt between "ready" and the program's own
# first statement, in these lines or where Python enters its functions, says nothing of it.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["llmrun", *sys.argv[1:]]
from llmrun.cli.entry import entry, run
try:
    print("ready", file=sys.stderr, flush=True)
    entry()
except KeyboardInterrupt as error:
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    if last is not error.__traceback__ and (
        code not in (entry.__code__, run.__code__) or last.tb_lineno != code.co_firstlineno
    ):
        raise
    sys.exit(130)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that has room for a million tokens, of two layers: of the last one a prompt needs next to nothing."""
    path = tmp_path_factory.mktemp("endless") / "m.gguf"
    tensors = sound_tensors()
    second = {name.replace("blk.0.", "blk.1."): values for name, values in tensors.items() if "blk.0." in name}
    writer({"llama.context_length": 1 << 20, "llama.block_count": 2}, second)(path)
    return path


class Run:
    """A command in a process of its own, past Python's own start."""

    def __init__(self, *args, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, args)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert self.process.stderr.readline() == b"ready\n"

    def interrupt(self):
        """Interrupt it; return the seconds until it was gone. It must end quietly."""
        started = time.perf_counter()
        self.process.send_signal(signal.SIGINT)
        try:
            _, err = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        seconds = time.perf_counter() - started
        assert self.process.returncode == 130, err.decode()
        assert b"Traceback" not in err
        assert b"rror" not in err
        return seconds


def generate_for_ever(path):
    return ["run", path, "-p", "x", "--ignore-eos", "--temp", "0", "-t", "2"]


@pytest.mark.parametrize("delay_ms", [0, 5, 15, 30, 60, 100, 150, 200, 300, 400])
def test_while_it_starts(endless, delay_ms):
    run = Run(*generate_for_ever(endless))
    time.sleep(delay_ms / 1000)
    run.interrupt()


INTERRUPT = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize("start", ["entry()", "runpy.run_module('llmrun', run_name='__main__')"])
@pytest.mark.parametrize(
    ("where", "then"),
    [
        (INTERRUPT, ""),  # as in the callback that importing a module ends with
        ("self.never_made", INTERRUPT),
        ("pass", "type('X', (), {'x': type('Y', (), {'__set_name__': lambda *_: " + INTERRUPT + "})()})"),
    ],
    ids=["lost", "half made", "of another name"],
)
def test_where_an_exception_does_not_arrive_as_it_is(start, where, then):
    code = f"""
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from llmrun.cli.entry import entry
import llmrun.cli.app

class Held:
    def __del__(self):
        {where}

def dispatch(args):
    held = Held()
    del held
    {then}
    time.sleep(10)

llmrun.cli.app._dispatch = dispatch
{start}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_while_it_generates(endless):
    seconds = []
    for _ in range(N_TRY):
        run = Run(*generate_for_ever(endless))
        assert run.process.stdout.read(20)
        seconds.append(run.interrupt())
    assert min(seconds) < MAX_SECONDS


def test_while_it_reads_a_long_prompt(endless, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("all the words of a long prompt " * 10_000)
    seconds = []
    for _ in range(N_TRY):
        run = Run("run", endless, "--raw", "-f", prompt, "-n", "1", "-t", "2")
        time.sleep(1)
        seconds.append(run.interrupt())
    assert min(seconds) < MAX_SECONDS


def test_while_it_tokenizes(endless, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("all the words of a very long text " * 100_000)
    seconds = []
    for _ in range(N_TRY):
        run = Run("tokenize", endless, "-f", text, "--ids")
        time.sleep(0.4)
        seconds.append(run.interrupt())
    assert min(seconds) < MAX_SECONDS


def test_while_it_compiles(endless, tmp_path):
    run = Run(*generate_for_ever(endless), LLMRUN_CACHE=str(tmp_path))
    children, deadline = [], time.monotonic() + 20
    while not children and time.monotonic() < deadline and run.process.poll() is None:
        children = psutil.Process(run.process.pid).children()
        time.sleep(0.01)
    if not children:
        run.process.kill()
        run.process.communicate()
        pytest.skip("this installation carries its kernels compiled")
    seconds = run.interrupt()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert seconds < 5 * MAX_SECONDS
