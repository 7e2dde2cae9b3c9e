"""The dependency direction: formats <- quant <- runtime <- cli, and the packaging that goes with it."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "formats": set(),
    "quant": {"formats"},
    "runtime": {"formats", "quant"},
    "cli": {"formats", "quant", "runtime"},
}


def imported_packages(path):
    """Return the llmrun packages that one source file imports, relatively or not."""
    depth = len(path.relative_to(ROOT).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found.update({node.module.split(".")[0]} if node.module else {a.name for a in node.names})
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmrun."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("llmrun."))
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_downwards(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = (imported_packages(path) & set(MAY_IMPORT)) - MAY_IMPORT[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_pyproject_lists_every_package():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {"llmrun"}
    for package in MAY_IMPORT:
        folders = (p.parent.relative_to(ROOT) for p in (ROOT / package).rglob("__init__.py"))
        on_disk |= {"llmrun." + ".".join(folder.parts) for folder in folders}
    assert set(table["packages"]) == on_disk


def test_links_for_static_tools_are_there():
    for package in MAY_IMPORT:
        assert (ROOT / "llmrun" / package / "__init__.py").samefile(ROOT / package / "__init__.py")
