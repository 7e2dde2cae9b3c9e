"""A 64-bit Arm Python with llmrun in it, to be run under qemu: ``python arm_root.py FOLDER OBJECTS``.

Debian's arm64 Python and its libraries are fetched with apt into a folder (nothing is installed, and apt's
own state is not touched), NumPy, llvmlite and what else the engine imports as arm64 wheels with pip. The
package itself is copied as a wheel would install it, with objects that ``make objects`` built: nothing is
compiled under qemu, and Numba is not there.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("cli", "formats", "quant", "runtime")
# What a forward pass imports; versions are those of the Python that runs this, so that both sides are alike.
DISTRIBUTIONS = (
    "numpy",
    "llvmlite",
    "gguf",
    "tokenizers",
    "psutil",
    "jinja2",
    "platformdirs",
    "sentencepiece",
    "protobuf",
)
TAGS = (
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
    "manylinux_2_26_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_28_aarch64",
)


def fetch_python(folder):
    """Fetch and unpack Debian's Python for arm64; return its path."""
    root, state = folder / "root", folder / "apt"
    if not list(root.glob("usr/bin/python3.*")):
        for name in ("lists/partial", "archives/partial"):
            (state / name).mkdir(parents=True, exist_ok=True)
        (state / "status").write_text("")  # nothing is installed: all dependencies are fetched
        options = {
            "APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Install-Recommends": "0",
            "APT::Sandbox::User": "root", "Dir::State::Lists": state / "lists", "Dir::State::status": state / "status",
            "Dir::Cache::archives": state / "archives", "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
            "Debug::NoLocking": "1",
        }  # fmt: skip
        apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "install", "-y", "--download-only", "python3", "libstdc++6"], check=True)
        for package in sorted((state / "archives").glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, root], check=True)
        shutil.rmtree(state)
    return sorted(root.glob("usr/bin/python3.[0-9]*[0-9]"))[0]


def fetch_wheels(folder, python):
    """Install arm64 wheels for that Python beside it."""
    site, list_path = folder / "site", folder / "site.txt"
    wanted = [f"{name}=={version(name)}" for name in DISTRIBUTIONS]
    number = python.name.removeprefix("python")
    contents = "\n".join([number, *wanted])
    if not list_path.exists() or list_path.read_text() != contents:
        shutil.rmtree(site, ignore_errors=True)
        platforms = [f"--platform={tag}" for tag in TAGS]
        python_with_pip = sys.executable if find_spec("pip") else "python3"  # Debian's environments may lack it
        pip = [python_with_pip, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        command = [*pip, "--target", site, *platforms, f"--python-version={number}", "--only-binary=:all:", *wanted]
        subprocess.run(command, check=True)
        list_path.write_text(contents)
    return site


def copy_package(folder, objects):
    """Copy llmrun as it lies after an installation, with objects."""
    package = folder / "package" / "llmrun"
    shutil.rmtree(package, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    package.mkdir(parents=True)
    for path in (REPOSITORY / "llmrun").glob("*.py"):
        shutil.copy(path, package)
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, package / name, ignore=ignore)
    shutil.copytree(objects, package / "runtime" / "objects")


class ArmPython:
    """Runs Python scripts under qemu in a folder that ``main`` has filled."""

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self.python = next(iter(sorted(self.folder.glob("root/usr/bin/python3.[0-9]*[0-9]"))), None)

    def run(self, *args, cpu="max", environment=None):
        """Run Python and return what it printed."""
        root = self.folder / "root"
        path = os.pathsep.join(str(self.folder / name) for name in ("package", "site"))
        keep = {key: os.environ[key] for key in ("TMPDIR", "LANG") if key in os.environ}
        result = subprocess.run(
            ["qemu-aarch64-static", "-L", root, "-cpu", cpu, self.python, *args],
            env={
                **keep,
                "PYTHONHOME": str(root / "usr"),
                "PYTHONPATH": path,
                "PYTHONDONTWRITEBYTECODE": "1",
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout


def main():
    folder, objects = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    fetch_wheels(folder, fetch_python(folder))
    copy_package(folder, objects)


if __name__ == "__main__":
    main()
