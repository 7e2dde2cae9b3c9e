"""A kernel is compiled again when something that it is made of changes, and only then."""

import ast
import sys

import pytest

from llmrun.runtime.kernels.registry import build_kernel, kernel_names
from llmrun.runtime.simd import source_hash
from llmrun.runtime.simd.isa import TARGETS
from llmrun.runtime.simd.source_hash import KERNELS, all_kernels_hash, module_hash, module_of, sources

MODULES = sorted({module_of(kernel) for kernel in kernel_names()})


def imported(path):
    """Return the llmrun modules that one source file imports, as paths, and the names of other packages."""
    found, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            candidates = [base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)]
            found |= {candidate for candidate in candidates if candidate.is_file()}
    return found, others


@pytest.mark.parametrize("module", [*MODULES, "registry"])
def test_sources_are_all_that_a_module_imports(module):
    files, packages = sources(KERNELS / f"{module}.py"), set()
    for path in files:
        found, others = imported(path)
        assert found <= set(files)
        packages |= others - sys.stdlib_module_names
    # NumPy only rounds constants; of the others' versions there is a hash in the names of cache folders.
    assert packages <= {"numba", "llvmlite", "gguf", "numpy"}


def test_modules_named_at_run_time_are_sources():
    names = {path.name for path in sources(KERNELS / "embed.py")}
    assert {"twin_k_quants.py", "twin_iq_quants.py", "iq_grids.py"} <= names


def test_kernels_are_of_the_module_that_is_said():
    """One kernel of each: building all takes a minute."""
    for module in MODULES:
        kernel = next(name for name in kernel_names() if module_of(name) == module)
        build_kernel(kernel, TARGETS["x86-v2"])
        assert (KERNELS / f"{module}.py").is_file()
    for name in kernel_names():
        assert (KERNELS / f"{module_of(name)}.py").is_file(), name


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two kernels, of which only the first imports ``shared``; every hash is worked out anew."""
    monkeypatch.setattr(source_hash, "KERNELS", tmp_path / "kernels")
    for name, text in (
        ("simd/vector.py", "x = 1\n"),
        ("simd/tile.py", "from .vector import x\n"),
        ("kernels/shared.py", "y = 2\n"),
        ("kernels/rope.py", "from ..simd.tile import (\n    x,\n)\n\n\ndef late():\n    from . import shared\n"),
        ("kernels/embed.py", "from ..simd import vector  # a folder\n"),
        ("kernels/registry.py", "from . import embed, rope\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def hashes():
        for cached in (sources, module_hash, source_hash._text):
            cached.cache_clear()
        return module_hash("rope"), module_hash("embed"), all_kernels_hash()

    yield tmp_path, hashes
    monkeypatch.undo()
    hashes()


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("kernels/shared.py", (True, False, True)),
        ("kernels/rope.py", (True, False, True)),
        ("simd/vector.py", (True, True, True)),
        ("simd/tile.py", (True, False, True)),
        ("kernels/registry.py", (False, False, True)),
    ],
)
def test_a_change_reaches_what_imports_it(tree, file, changes):
    folder, hashes = tree
    before = hashes()
    assert hashes() == before
    with (folder / file).open("a") as edited:
        edited.write("# another line\n")
    assert tuple(a != b for a, b in zip(before, hashes(), strict=True)) == changes


def test_without_sources_there_is_a_hash_too(tree):
    folder, hashes = tree
    for path in folder.rglob("*.py"):
        path.unlink()
    assert len(set(hashes())) == 3
