"""Opening a file that drafts, whatever it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...formats.gguf import GgufFile
from ..models.eagle3 import is_head
from .draft_model import DraftModel
from .draft_weights import Progress
from .head_model import HeadModel
from .source import Draft

if TYPE_CHECKING:
    from ..engine import Engine


def open_draft(path: Path, target: Engine, *, use_mmap: bool = True, on_progress: Progress | None = None) -> Draft:
    """Open a draft for a target, which must stay open as long.

    Raises:
        LlmrunError: the file cannot draft for this target, or it does not fit into memory.
    """
    with GgufFile.open(path, use_mmap=use_mmap) as file:
        kind: type[DraftModel | HeadModel] = HeadModel if is_head(file.metadata) else DraftModel
    return kind.open(path, target, use_mmap=use_mmap, on_progress=on_progress)
