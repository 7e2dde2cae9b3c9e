"""Damaged and hostile model files, from the command line: one line, exit code 1, at once, with flat memory."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..formats.damage import damaged_ggufs, damaged_splits
from . import damaged_models

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 2.0  # of processor time; a second on a free core, which a busy neighbour on the same core can double
MAX_GROWTH_KB = 24 << 10  # of the process's peak; the 10 MB templates and Jinja2's own code need most of it

FILES = dict(damaged_ggufs())
SPLITS = {name: (files, opened) for name, files, opened in damaged_splits()}
MODELS = {
    name: (said, write)
    for cases in (damaged_models.tensor_cases, damaged_models.weight_cases, damaged_models.hparam_cases)
    for name, said, write in cases()
}
VOCABULARIES = {name: (said, write) for name, said, write in damaged_models.vocabulary_cases()}
TEMPLATES = {name: (said, write) for name, said, write in damaged_models.template_cases()}
HARMLESS = {name: write for name, _, write in damaged_models.harmless_cases()}


def peak_kb():
    """Return the largest memory that this process has had."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """Pay once for imports and compiled kernels, which are not what is measured here."""
    from llmrun.cli.app import main

    path = tmp_path_factory.mktemp("warm") / "sound.gguf"
    damaged_models.writer()(path)
    assert main(["run", str(path), "-p", "x", "-n", "1"]) == 0


@pytest.fixture
def bounded(cli):
    """Run a command line within the bounds of time and memory."""

    def run(*args):
        started, before_kb = time.process_time(), peak_kb()
        result = cli(*args)
        assert time.process_time() - started < MAX_SECONDS
        assert peak_kb() - before_kb < MAX_GROWTH_KB
        return result

    return run


def assert_refused(result, folder):
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert result.lines[0].startswith("error: ")
    assert str(folder) in result.lines[0]
    assert result.lines[0].isprintable()


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_one_line(bounded, tmp_path, name):
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(FILES[name])
    for command in (["run", path, "-p", "x", "-n", "4"], ["inspect", path], ["tokenize", path, "x"]):
        assert_refused(bounded(*command), tmp_path)


@pytest.mark.parametrize("name", SPLITS)
def test_damaged_split_is_one_line(bounded, tmp_path, name):
    files, opened = SPLITS[name]
    for file_name, data in files.items():
        (tmp_path / file_name).write_bytes(data)
    path = tmp_path / opened
    for command in (["run", path, "-p", "x", "-n", "4"], ["inspect", path], ["tokenize", path, "x"]):
        assert_refused(bounded(*command), tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_damaged_model_is_one_line(bounded, tmp_path, name):
    path, (said, write) = tmp_path / "m.gguf", MODELS[name]
    write(path)
    result = bounded("run", path, "-p", "x", "-n", "4")
    assert_refused(result, path)
    assert said in result.err
    shown = bounded("inspect", path, "--tensors")
    assert (shown.code, shown.err) == (0, "")
    assert bounded("tokenize", path, "x").code == 0
    listed = bounded("inspect", path, "--program")
    if listed.code:
        assert_refused(listed, path)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_damaged_vocabulary_is_one_line(bounded, tmp_path, name):
    path, (said, write) = tmp_path / "m.gguf", VOCABULARIES[name]
    write(path)
    for command in (["run", path, "-p", "x", "-n", "4"], ["tokenize", path, "x"]):
        result = bounded(*command)
        assert_refused(result, path)
        assert said in result.err
    shown = bounded("inspect", path)
    if shown.code:
        assert_refused(shown, path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_bad_template_is_one_line(bounded, tmp_path, name):
    path, (said, write) = tmp_path / "m.gguf", TEMPLATES[name]
    write(path)
    result = bounded("run", path, "-p", "x", "-n", "4")
    assert_refused(result, path)
    assert said in result.err
    assert bounded("run", path, "--raw", "-p", "x", "-n", "4").code == 0
    assert bounded("inspect", path).code == 0
    assert bounded("tokenize", path, "x").code == 0


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_model_runs(cli, tmp_path, name):
    path = tmp_path / "m.gguf"
    HARMLESS[name](path)
    assert cli("run", path, "-p", "x", "-n", "4").code == 0


@pytest.mark.parametrize("name", ["key-count-2^64-1", "strings-in-a-circle", "nested-array-100000-deep"])
def test_damaged_file_in_a_process_of_its_own(tmp_path, name):
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(FILES[name])
    for command in (["run", str(path), "-p", "x"], ["inspect", str(path)], ["tokenize", str(path), "x"]):
        done = subprocess.run(
            [sys.executable, "-m", "llmrun", *command], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert str(path) in done.stderr


@pytest.mark.parametrize("name", ["scales-nan-output.weight", "template-endless-loop", "bos--1"])
def test_damaged_model_in_a_process_of_its_own(tmp_path, name):
    path = tmp_path / "m.gguf"
    (MODELS | TEMPLATES | VOCABULARIES)[name][1](path)
    done = subprocess.run(
        [sys.executable, "-m", "llmrun", "run", str(path), "-p", "x"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert str(path) in done.stderr


def test_there_are_enough_cases():
    assert len(FILES) + len(SPLITS) + len(MODELS) + len(VOCABULARIES) + len(TEMPLATES) > 400
