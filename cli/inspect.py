"""``llmrun inspect``: what is in a model file. Nothing of the weights is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from ..formats.errors import LlmrunError
from .declare import Option
from .imports import import_numpy
from .model_ref import resolve
from .options import Model
from .render.text import count, escaped, size

if TYPE_CHECKING:
    from ..formats.gguf import GgufFile, TensorInfo
    from ..formats.metadata import Metadata
    from ..runtime.models.eagle3 import Head
    from ..runtime.speculation.head_weights import HeadWeights

MAX_SHOWN_TEXT = 100
MAX_SHOWN_ITEMS = 6


def inspect(
    model: Model,
    tensors: Annotated[bool, Option("--tensors", help="List every tensor.")] = False,
    program: Annotated[bool, Option("--program", help="List the operations of a forward pass.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model file holds: sizes, types, metadata, tensors, the program that runs it."""
    import_numpy()  # here: --help must not pay for it
    from ..formats.gguf import GgufFile

    with GgufFile.open(resolve(model)) as file:
        if as_json:
            print(json.dumps(_record(file, with_tensors=tensors, with_program=program), ensure_ascii=False, indent=2))
            return
        lines = _rows(_summary(file))
        keys = [k for k in file.metadata.keys() if not k.startswith("llmrun.quality.")]  # noqa: SIM118  # not a dict
        values = [(key, _shown(file.metadata, key)) for key in keys]
        lines += ["", *_rows(values)]
        if tensors:
            lines += ["", *map(_tensor_line, file.tensors.values())]
        if program:
            lines += ["", *map(escaped, _program_lines(file))]
    print("\n".join(lines))  # all or nothing: what is wrong is one line


def _summary(file: GgufFile) -> list[tuple[str, str]]:
    metadata = file.metadata
    types = Counter(info.ggml_type.name for info in file.tensors.values())
    n_params = sum(math.prod(info.shape) for info in file.tensors.values())
    template = metadata.get("tokenizer.chat_template")
    rows = [
        ("file", f"{file.path}, GGUF version {file.version}"),
        ("size in the file", size(file.n_bytes)),
        ("size in memory", _memory_size(file)),
        ("parameters", f"{count(n_params)} ({n_params})"),
        ("tensors", f"{len(file.tensors)}: " + ", ".join(f"{n} {name}" for name, n in types.most_common())),
    ]
    if isinstance(template, str):
        digest = hashlib.sha256(template.encode()).hexdigest()
        rows.append(("chat template", f"{len(template)} characters, sha256 {digest}"))
    else:
        rows.append(("chat template", "none: prompts are continued as they are"))
    return rows + _head_rows(file) + _quality_rows(metadata)


def _head(file: GgufFile) -> tuple[Head, HeadWeights] | None:
    """Return the draft head in a file and its weights, as far as they are known without its target."""
    from ..runtime.models.eagle3 import is_head
    from ..runtime.speculation.head_model import read_head
    from ..runtime.speculation.head_weights import HeadWeights

    if not is_head(file.metadata):
        return None
    weights = HeadWeights(file, None)
    return read_head(file, weights, None)[0], weights


def _head_rows(file: GgufFile) -> list[tuple[str, str]]:
    try:
        found = _head(file)
    except LlmrunError as error:
        return [("draft head", f"cannot be used: {error}")]
    if found is None:
        return []
    head, weights = found
    hp, first = head.hparams, ", ".join(map(str, head.layers))
    n_draft = head.step.outputs["logits"].n_col
    shared = [name for name in ("token_embd.weight", "output.weight") if not weights.has(name)]
    return [
        ("draft head", f"EAGLE-3, for a model {head.n_embd_target} wide with {hp.n_vocab} tokens (--draft)"),
        ("looks at", f"what layers {first} are given"),
        ("drafts", f"{n_draft} of {hp.n_vocab} tokens"),
        ("of its model", ", ".join(shared) if shared else "nothing: embeddings and output matrix are its own"),
    ]


def _quality_rows(metadata: Metadata) -> list[tuple[str, str]]:
    from ..quant.quality_card import QualityCard

    card = QualityCard.from_metadata(metadata)
    return card.rows() if card is not None else []


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    width = min(48, max((len(name) for name, _ in rows), default=0))
    return [f"{escaped(name):{width}}  {escaped(value)}" for name, value in rows]


def _tensor_line(info: TensorInfo) -> str:
    shape = " x ".join(map(str, info.shape))
    return f"{info.ggml_type.name:8} {shape:>16} {size(info.n_bytes):>8}  {escaped(info.name)}"


def _shown(metadata: Metadata, key: str) -> str:
    """Return a metadata value on one line: long texts cut, arrays by their first elements."""
    if metadata.is_array(key):
        n_item = metadata.count(key)
        items = _items(metadata, key, MAX_SHOWN_ITEMS)
        dots = ", …" if n_item > len(items) else ""
        return f"{metadata.type_name(key)}: [{', '.join(map(_short, items))}{dots}]"
    return _short(metadata.get(key))


def _items(metadata: Metadata, key: str, n: int) -> list[Any]:
    value = metadata.get(key)
    return [item.item() if hasattr(item, "item") else item for item in value[:n]]  # type: ignore[index]


def _short(value: object) -> str:
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if len(value) <= MAX_SHOWN_TEXT else f"{value[:MAX_SHOWN_TEXT]!r}… ({len(value)} characters)"


def _record(file: GgufFile, *, with_tensors: bool, with_program: bool) -> dict[str, Any]:
    metadata = file.metadata
    values: dict[str, Any] = {}
    for key in metadata.keys():  # noqa: SIM118  # not a dict
        if metadata.is_array(key):
            values[key] = {"type": metadata.type_name(key), "first": _items(metadata, key, MAX_SHOWN_ITEMS)}
        else:
            value = metadata.get(key)
            values[key] = value if not isinstance(value, float) or math.isfinite(value) else str(value)
    record: dict[str, Any] = {
        "path": str(file.path),
        "version": file.version,
        "n_bytes": file.n_bytes,
        "n_params": sum(math.prod(info.shape) for info in file.tensors.values()),
        "metadata": values,
    }
    if with_tensors:
        record["tensors"] = [
            {
                "name": info.name,
                "type": info.ggml_type.name,
                "shape": list(info.shape),
                "n_bytes": info.n_bytes,
                "shard": info.shard,
                "offset": info.offset,
            }
            for info in file.tensors.values()
        ]
    if with_program:
        record["program"] = _program_lines(file)
    return record


def _program_lines(file: GgufFile) -> list[str]:
    from ..runtime.engine import load_program
    from ..runtime.fuse import prepare
    from ..runtime.weights import GgufWeights

    found = _head(file)
    if found is None:
        return str(load_program(file, GgufWeights(file), None)[1]).splitlines()
    programs = (prepare(program) for program in (found[0].fuse, found[0].step))
    return "\n\n".join(map(str, programs)).splitlines()


def _memory_size(file: GgufFile) -> str:
    """Return what the weights take once they are packed, or why that is not known."""
    from ..runtime.engine import load_program, streamed_weights
    from ..runtime.weights import GgufWeights

    weights = GgufWeights(file)
    try:
        found = _head(file)
        if found is not None:
            matrices = [w for part in (found[0].fuse, found[0].step) for w in streamed_weights(part)]
            return size(found[1].packed_bytes(w for w in matrices if found[1].has(w.name)))
        _, program = load_program(file, weights, None, is_fused=False)
    except LlmrunError as error:
        return f"cannot be run: {error}"
    return size(weights.packed_bytes(streamed_weights(program)))
