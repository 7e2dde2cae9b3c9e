"""The weights of a Hugging Face checkpoint folder: one safetensors file or shards with an index, never pickle.

``safetensors.py`` reads one file; ``hf_config.py`` the JSON files of the same folder.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from .byte_file import ByteFile
from .errors import FormatError, quote
from .safetensors import SafeTensor, elements, read_header
from .strict_json import read_json

SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
MAX_SHARDS = 1 << 10
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HfCheckpoint:
    """Tensors of a folder, nothing of them read yet.

    Attributes:
        path: the folder.
        tensors: by name.
        n_bytes: size of all files together.
    """

    path: Path
    tensors: dict[str, SafeTensor]
    n_bytes: int

    def __init__(self, path: Path, files: list[ByteFile], tensors: dict[str, SafeTensor]) -> None:
        self.path = path
        self.tensors = tensors
        self.n_bytes = sum(file.size for file in files)
        self._files = files

    @classmethod
    def open(cls, folder: Path, *, use_mmap: bool = True) -> HfCheckpoint:
        """Open all files of a checkpoint and check their headers and that they belong together.

        Raises:
            FormatError: there are no safetensors, a shard is missing or superfluous, or a header is damaged.
        """
        names, weight_map = _file_names(folder)
        tensors: dict[str, SafeTensor] = {}
        files: list[ByteFile] = []
        with ExitStack() as on_error:
            for index, name in enumerate(names):
                if not (folder / name).exists():
                    raise FormatError(f"{folder / name}: missing, one of {len(names)} shards of the checkpoint")
                file = ByteFile.open(folder / name, use_mmap=use_mmap)
                on_error.callback(file.close)
                files.append(file)
                for tensor in read_header(file, index):
                    if tensor.name in tensors:
                        other = names[tensors[tensor.name].file]
                        raise FormatError(f"{folder / name}: tensor {quote(tensor.name)} is in {other} too")
                    if weight_map is not None and weight_map.get(tensor.name) != name:
                        raise FormatError(f"{folder / name}: tensor {quote(tensor.name)} is not in {INDEX_NAME}")
                    tensors[tensor.name] = tensor
            if weight_map is not None and len(weight_map) > len(tensors):
                lost = next(name for name in weight_map if name not in tensors)
                raise FormatError(f"{folder / weight_map[lost]}: tensor {quote(lost)} of {INDEX_NAME} is missing")
            on_error.pop_all()
        return cls(folder, files, tensors)

    def where(self, name: str) -> str:
        """Return file and tensor for a message."""
        return f"{self._files[self.tensors[name].file].path}: tensor {quote(name)}"

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return rows of a tensor with its storage type, see ``safetensors.elements``.

        Raises:
            FormatError: the file cannot be read any more.
        """
        tensor = self.tensors[name]
        n_row = tensor.shape[0] if tensor.shape else 1
        return elements(self._files[tensor.file], tensor, start, n_row if stop is None else stop)

    def release(self, name: str) -> None:
        """Drop a tensor's resident pages; they come back from the file when touched."""
        tensor = self.tensors[name]
        self._files[tensor.file].release(tensor.offset, tensor.n_bytes)

    def check_unchanged(self) -> None:
        """Check that no file has changed since ``open``.

        Raises:
            FormatError: a file has another size or modification time.
        """
        for file in self._files:
            file.check_unchanged()

    def close(self) -> None:
        """Close all files. Arrays that ``rows`` returned stay valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _file_names(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Return the files of the checkpoint in order, and the index's tensor -> file if there is one."""
    try:
        present = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise FormatError(f"{folder}: cannot be read: {error.strerror}") from None
    if INDEX_NAME in present:
        weight_map = _read_index(folder / INDEX_NAME)
        names = sorted(set(weight_map.values()))
        _refuse_extra_shards(folder, present, names)
        return names, weight_map
    if SINGLE_NAME in present:
        return [SINGLE_NAME], None
    shards = [name for name in present if _SHARD.fullmatch(name)]
    if shards:
        return _shards_without_index(folder, shards), None
    raise FormatError(_why_nothing(folder, present))


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: has no weight_map")
    for tensor, name in weight_map.items():
        is_plain = isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
        if not is_plain or "\0" in name or "\\" in name:
            shown = quote(name) if isinstance(name, str) else type(name).__name__
            raise FormatError(f"{path}: tensor {quote(tensor)} is said to be in {shown}, expected a .safetensors file")
    n_shard = len(set(weight_map.values()))
    if n_shard > MAX_SHARDS:
        raise FormatError(f"{path}: names {n_shard} files, expected at most {MAX_SHARDS}")
    return weight_map


def _refuse_extra_shards(folder: Path, present: list[str], names: list[str]) -> None:
    stems = {match["stem"] for name in names if (match := _SHARD.fullmatch(name))}
    for name in present:
        match = _SHARD.fullmatch(name)
        if match and match["stem"] in stems and name not in names:
            raise FormatError(
                f"{folder / name}: a shard that {INDEX_NAME} does not name. Remove what is not of this model"
            )


def _shards_without_index(folder: Path, shards: list[str]) -> list[str]:
    first = _SHARD.fullmatch(shards[0])
    assert first is not None
    count = int(first["count"])
    if not 1 <= count <= MAX_SHARDS:
        raise FormatError(f"{folder / shards[0]}: one of {count} shards, expected 1 to {MAX_SHARDS}")
    names = [f"{first['stem']}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    extra = [name for name in shards if name not in names]
    if extra:
        raise FormatError(
            f"{folder}: {shards[0]} and {extra[0]} belong to different models, and there is no {INDEX_NAME}"
        )
    return names


def _why_nothing(folder: Path, present: list[str]) -> str:
    pickles = [name for name in present if name.lower().endswith(PICKLE_SUFFIXES)]
    if pickles:
        return why_no_pickle(f"{folder}: has weights only as pickle ({pickles[0]})")
    if "adapter_config.json" in present:
        return f"{folder}: is an adapter (LoRA), not a model. Merge it into its base model first"
    if any(name.endswith(".gguf") for name in present):
        return f"{folder}: holds GGUF files, not a Hugging Face checkpoint. Give the GGUF file itself"
    return f"{folder}: has no {SINGLE_NAME} and no {INDEX_NAME}. Expected a Hugging Face checkpoint folder"


def why_no_pickle(what: str) -> str:
    """Return why a pickle is refused, and the way to convert it, behind what was found."""
    return (
        f"{what}, which can run code when it is read. Convert it once, if you trust it:"
        " AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) of transformers writes safetensors"
    )
