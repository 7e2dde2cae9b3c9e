"""Run ``llmrun`` as its users do: a process of its own, its output taken as it is."""

import os
import subprocess
import sys

N_PREDICT = 48


def llmrun(*arguments, isa=None):
    """Run the command; return its standard output without the newline that ends it."""
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.pop("LLMRUN_ISA", None)
    if isa:
        environment["LLMRUN_ISA"] = isa
    result = subprocess.run(
        [sys.executable, "-m", "llmrun", *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().removesuffix("\n")


def answer(path, transcript, *options, isa=None):
    """Return what the model says to a transcript's prompt."""
    raw = [] if transcript["chat"] else ["--raw"]
    fixed = ["--temp", "0", "-n", N_PREDICT, "-c", "2048", "-p", transcript["prompt"]]
    return llmrun("run", path, *raw, *fixed, *options, isa=isa)
