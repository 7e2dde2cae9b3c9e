"""The build step that puts compiled kernels into a wheel: ``pyproject.toml`` names it, setuptools loads it by path.

``LLMRUN_BUILD_OBJECTS`` says for which targets: ``host`` (the default: this machine's best, so that
``pip install .`` ends soon and the first start is quick), ``all`` (what is published), ``none``, or names
with commas. What a wheel lacks is compiled at first need. An editable install carries nothing: a checkout
compiles what it needs and notices edits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools.command.build_py import build_py


class BuildWithObjects(build_py):
    """Copy the packages, then compile kernels from the copy into ``llmrun/runtime/objects``."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            self._build_objects(Path(self.build_lib).resolve())

    def _build_objects(self, library: Path) -> None:
        folder = library / "llmrun" / "runtime" / "objects"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        targets = os.environ.get("LLMRUN_BUILD_OBJECTS")
        if targets == "none":
            return
        path = os.pathsep.join(p for p in (str(library), os.environ.get("PYTHONPATH", "")) if p)
        command = [
            sys.executable,
            "-m",
            "llmrun.runtime.simd.build_objects",
            str(folder),
            "--targets",
            targets or "host",
        ]
        try:
            environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
            # In the copy's folder: python -m looks for modules in the current one first.
            subprocess.run(command, check=True, cwd=library, env=environment)
        except (OSError, subprocess.SubprocessError):
            if targets:  # asked for by name
                raise
            shutil.rmtree(folder, ignore_errors=True)
            self.warn("kernels could not be compiled now; llmrun will compile them at first need")
