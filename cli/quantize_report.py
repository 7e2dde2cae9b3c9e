"""What ``llmrun quantize`` says: notes before, a table of types and sizes after, or instead."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from .render.text import count, escaped, size, styled

if TYPE_CHECKING:
    from ..quant.quantize_plan import PlannedTensor, QuantizePlan
    from ..runtime.calibrated_plan import Calibration

_N_CTX = 4096  # the context for which a dry run adds the KV cache


def print_notes(notes: list[str]) -> None:
    """Print what the user should know, to standard error."""
    for note in notes:
        print(styled(f"note: {escaped(note)}", "dim", sys.stderr), file=sys.stderr)


def print_result(plan: QuantizePlan, name: str, written: list[Path], seconds: float) -> None:
    """Print what was written, and what it is called: types to standard error, the paths to standard output."""
    print_types(plan)
    n_byte = sum(path.stat().st_size for path in written)
    bits = 8 * plan.n_bytes / max(plan.n_weights, 1)
    print(f"{name}, {size(n_byte)}, {bits:.2f} bits per weight, {seconds:.1f} s", file=sys.stderr)
    for path in written:
        print(path)


def print_types(plan: QuantizePlan) -> None:
    """Print one line per type: how many tensors and weights, their size before and after."""
    groups: dict[str, list[PlannedTensor]] = defaultdict(list)
    for tensor in plan.tensors:
        groups[tensor.ggml_type.name].append(tensor)
    rows: list[tuple[str, ...]] = [("type", "tensors", "weights", "before", "after")]
    for name, tensors in sorted(groups.items(), key=lambda item: -sum(t.entry.n_bytes for t in item[1])):
        rows.append((name, *_sums(tensors)))
    rows.append(("all", *_sums(plan.tensors)))
    print_table(rows)


def _sums(tensors: list[PlannedTensor]) -> tuple[str, str, str, str]:
    before = sum(_source_bytes(t) for t in tensors)
    after = sum(t.entry.n_bytes for t in tensors)
    return str(len(tensors)), count(sum(t.source.n_weights for t in tensors)), size(before), size(after)


def _source_bytes(tensor: PlannedTensor) -> int:
    from ..formats.ggml_types import row_bytes

    return tensor.source.n_rows * row_bytes(tensor.source.ggml_type, tensor.source.n_in)


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows, the first one of titles, to standard error."""
    if not sys.stderr.isatty():
        for row in rows:
            print("\t".join(row), file=sys.stderr)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    Console(stderr=True, highlight=False).print(table)


def print_estimate(plan: QuantizePlan, target: Path, calibration: Calibration | None) -> None:
    """Print what the result would be: types to standard error, sizes, memory and speed to standard output.

    Raises:
        LlmrunError: the model cannot be calibrated.
    """
    from ..runtime.calibrated_plan import needs_of
    from ..runtime.measure.roofline import measure
    from ..runtime.threads import default_threads
    from .render.progress import ProgressBar

    print_types(plan)
    n_thread = default_threads()[0]
    with ProgressBar("measuring read bandwidth"):
        limits = measure(n_thread)
    needs = needs_of(plan, calibration)
    per_token, cache = _bytes_per_token(plan), _cache_bytes(plan)
    bits = 8 * plan.n_bytes / max(plan.n_weights, 1)
    lines = [
        ("would write", escaped(str(target))),
        ("size", f"{size(plan.n_bytes)}, {bits:.2f} bits per weight"),
        (
            "memory",
            f"{size(plan.n_bytes)} of weights" + (f", {size(cache)} of KV cache at {_N_CTX} tokens" if cache else ""),
        ),
        ("speed here", _speed(per_token, limits.read_bytes_s if limits else 0, n_thread)),
        ("memory to quantise", f"about {size(needs.memory)} at most"),
        ("disk to quantise", _disk(needs.disk, target)),
    ]
    for title, text in lines:
        print(f"{title:20}{text}")


def _disk(n_bytes: int, target: Path) -> str:
    import shutil

    try:
        free = shutil.disk_usage(target.absolute().parent).free
    except OSError as error:
        return f"{size(n_bytes)}; {escaped(str(target.absolute().parent))}: {error.strerror}"
    return f"{size(n_bytes)}, {size(free)} free" + (": too little" if n_bytes > free else "")


def _speed(per_token: int, bandwidth: float, n_thread: int) -> str:
    if not bandwidth:
        return f"not measured; {size(per_token)} of weights are read for every token"
    return (
        f"at most {bandwidth / per_token:.0f} tok/s when decoding: {size(per_token)} a token,"
        f" {bandwidth / 1e9:.1f} GB/s read by {n_thread} threads"
    )


def _bytes_per_token(plan: QuantizePlan) -> int:
    """Return the bytes of weights that decoding one token reads; of experts those that are used."""
    from ..quant.file_types import TOKEN_EMBEDDINGS

    is_tied = all(t.source.name != "output.weight" for t in plan.tensors)
    n_expert, n_used = (_count(plan, key) for key in ("expert_count", "expert_used_count"))
    total = 0.0
    for tensor in plan.tensors:
        name, n_byte = tensor.source.name, tensor.entry.n_bytes
        if name in TOKEN_EMBEDDINGS and not (is_tied and name == "token_embd.weight"):
            continue
        total += n_byte * n_used / n_expert if "_exps." in name and n_expert and n_used else n_byte
    return max(1, int(total))


def _count(plan: QuantizePlan, key: str) -> int:
    found = plan.checkpoint.metadata.get(f"{plan.checkpoint.architecture}.{key}")
    return found.value if found is not None and isinstance(found.value, int) else 0


def _cache_bytes(plan: QuantizePlan) -> int:
    n_layer, n_embd, n_head = (_count(plan, key) for key in ("block_count", "embedding_length", "attention.head_count"))
    n_head_kv = _count(plan, "attention.head_count_kv") or n_head
    if not (n_layer and n_embd and n_head):
        return 0
    n_key = _count(plan, "attention.key_length") or n_embd // n_head
    n_value = _count(plan, "attention.value_length") or n_embd // n_head
    return 2 * n_layer * n_head_kv * (n_key + n_value) * _N_CTX
