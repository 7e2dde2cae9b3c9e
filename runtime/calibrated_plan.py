"""Carry a plan out with a calibrated method: what ``llmrun quantize --method`` does before the file is written.

The text is cut into chunks; those that a quality card is measured on are left out, so that no file is judged by the
text that it was fitted to. Finished layers lie in a journal beside the result until that is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..formats.atomic_file import check_space
from ..formats.errors import ConfigError, FormatError, quote
from ..formats.ggml_types import GgmlType
from ..formats.meta_value import MetaValue
from ..formats.record import Record
from ..quant.quantize import QUANTIZABLE
from ..quant.quantize_plan import FLOATS, QuantizePlan
from ..quant.scale_search import ScaleSearch
from .block_store import BlockStore
from .calibrated import METHODS, CalibratedTensors, peak_bytes
from .evaluate import samples_of
from .layerwise.runner import LayerwiseRunner
from .layerwise.source import ModelSource, described
from .memory import OVERHEAD_BYTES
from .perplexity import plan_chunks
from .quality import DEFAULT_CHUNKS, spread
from .tokenizer.load import load_tokenizer

Progress = Callable[[str, int, int], None]
DEFAULT_CTX = 512
DEFAULT_CALIBRATION_CHUNKS = 24
PLAIN_BYTES = 200_000_000  # of a method without text, beside half of the largest tensor in float32
VERSION = 1  # of the arithmetic: a journal of another one is not gone on with


class Calibration(Record):
    """What a method looks at.

    Attributes:
        method: a key of ``METHODS``.
        text: the text.
        text_name: its name, kept in the result.
        n_ctx: tokens of a chunk.
        n_chunk: chunks, spread over the text; None: all.
    """

    method: str
    text: str
    text_name: str
    n_ctx: int = DEFAULT_CTX
    n_chunk: int | None = DEFAULT_CALIBRATION_CHUNKS

    @property
    def has_scales(self) -> bool:
        """Whether weights of the result are multiples of the source's, channel by channel."""
        return METHODS[self.method].has_scales

    def metadata(self, n_chunk: int) -> dict[str, MetaValue]:
        """Return what the result says of how it was made."""
        return {
            "llmrun.quantize.method": MetaValue.text(self.method),
            "llmrun.quantize.text": MetaValue.text(self.text_name),
            "llmrun.quantize.text_sha256": MetaValue.text(hashlib.sha256(self.text.encode()).hexdigest()),
            "llmrun.quantize.chunks": MetaValue.u32(n_chunk),
        }


@contextmanager
def calibrated(
    plan: QuantizePlan,
    calibration: Calibration,
    target: Path,
    *,
    search: ScaleSearch,
    n_thread: int,
    on_progress: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Iterator[QuantizePlan]:
    """Quantise a plan's matrices; yields a plan that only copies them.

    Args:
        plan: what is to become what.
        calibration: the method and its text.
        target: the result; a journal and the hidden states lie beside it, and the journal stays when the ``with``
            block ends with an error: the same call then goes on where this one ended.
        search: for scales.
        n_thread: threads.
        on_progress: called as (what, done, total).
        on_warning: see ``CalibratedTensors``.

    Raises:
        ConfigError: the source was quantised before, or another process does the same.
        CapacityError: disk or memory is too small.
        LlmrunError: the model cannot be run.
    """
    check_method(calibration.method)
    check_unquantized(plan)
    types = {t.source.name: t.ggml_type for t in plan.tensors if len(t.source.shape) > 1 and t.ggml_type in QUANTIZABLE}
    with ExitStack() as stack:
        source = stack.enter_context(described(plan.checkpoint))
        chunks = calibration_chunks(source, calibration.text, calibration.n_ctx, calibration.n_chunk)
        folder = target.absolute().parent
        runner = LayerwiseRunner(
            source, n_ctx=max(map(len, chunks)), n_threads=n_thread, folder=folder, on_progress=on_progress
        )
        stack.enter_context(runner)
        check_space(folder / target.name, _disk_bytes(plan, sum(map(len, chunks)), runner.hparams.n_embd))
        key = _key(plan, types, calibration.method, chunks)
        store = BlockStore(journal_path(target), key)
        try:
            made = CalibratedTensors(
                runner, types, calibration.method, search=search, n_thread=n_thread, store=store,
                on_warning=on_warning, on_progress=on_progress,
            )  # fmt: skip
            made.run(chunks)
            runner.close()
            yield plan.with_finished(made.tensors, calibration.metadata(len(chunks)))
        except BaseException:
            store.close(is_done=False)
            raise
        store.close()


class Needs(Record):
    """What quantising takes, in bytes: memory at most, about, and disk beside the result's path, with the result."""

    memory: int
    disk: int


def needs_of(plan: QuantizePlan, calibration: Calibration | None) -> Needs:
    """Return what a plan's work takes; calibrated or not.

    Raises:
        LlmrunError: the model cannot be calibrated.
    """
    plain = plan.largest_bytes // 2 + PLAIN_BYTES
    if calibration is None:
        return Needs(plain, plan.n_bytes)
    check_unquantized(plan)
    tensors = {t.source.name: t.source for t in plan.tensors}
    with described(plan.checkpoint) as source:
        chunks = calibration_chunks(source, calibration.text, calibration.n_ctx, calibration.n_chunk)
    memory = peak_bytes(tensors, METHODS[calibration.method]) + OVERHEAD_BYTES
    n_embd = tensors["token_embd.weight"].n_in
    return Needs(max(plain, memory), _disk_bytes(plan, sum(map(len, chunks)), n_embd))


def _disk_bytes(plan: QuantizePlan, n_row: int, n_embd: int) -> int:
    """Return the bytes of the journal and the result, and of the hidden states."""
    return 2 * plan.n_bytes + 4 * n_row * n_embd


def check_unquantized(plan: QuantizePlan) -> None:
    """Refuse a source that was quantised before, unless the user wants that.

    Raises:
        ConfigError: it was.
    """
    quantized = next((t.source for t in plan.tensors if t.source.ggml_type not in FLOATS), None)
    if quantized is not None and not plan.options.allows_requantize:
        raise ConfigError(
            f"{plan.checkpoint.path}: is quantised already (tensor {quote(quantized.name)} is"
            f" {quantized.ggml_type.name}); quantising twice loses more. Start from F16, BF16 or F32, or give"
            " --allow-requantize"
        )


def calibration_chunks(
    source: ModelSource, text: str, n_ctx: int = DEFAULT_CTX, n_chunk: int | None = None
) -> list[list[int]]:
    """Return chunks of a text, as a model is fed with them; none that a quality card is measured on, if there are more.

    Args:
        source: the model.
        text: the text.
        n_ctx: tokens of a chunk.
        n_chunk: chunks, spread over the text; None: all.

    Raises:
        LlmrunError: the text is too short, or the model has no tokenizer that can be read.
    """
    tokenizer = load_tokenizer(source.metadata)
    n_token = len(tokenizer.encode(text, add_special=True))
    chunks = plan_chunks(tokenizer, text, n_ctx=min(n_ctx, max(4, n_token // 2)))
    if len(chunks) > 2 * DEFAULT_CHUNKS:
        held_out = {id(chunk) for chunk in spread(chunks, DEFAULT_CHUNKS)}
        chunks = [chunk for chunk in chunks if id(chunk) not in held_out]
    return [sample.ids for sample in samples_of(spread(chunks, n_chunk), tokenizer)]


def journal_path(target: Path) -> Path:
    """Return where finished layers of a result are kept until it is complete."""
    return target.absolute().parent / f".{target.name}.calibration"


def check_method(method: str) -> None:
    """Refuse a method that does not exist.

    Raises:
        ConfigError: with those that do.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r}, expected one of rtn, {', '.join(METHODS)}")


def _key(plan: QuantizePlan, types: dict[str, GgmlType], method: str, chunks: Sequence[Sequence[int]]) -> str:
    """Return a hash of all that finished layers depend on; of the source, names, sizes and times of its files."""
    of_types = {name: kind.name for name, kind in types.items()}
    return hash_of(plan.checkpoint.path, VERSION, of_types, method, [list(c) for c in chunks])


def hash_of(path: Path, *parts: object) -> str:
    """Return a hash of what JSON can hold, and of names, sizes and times of the files of a checkpoint.

    Raises:
        FormatError: a file cannot be read.
    """
    try:
        files = [p for p in path.iterdir() if p.suffix in (".safetensors", ".json")] if path.is_dir() else [path]
        stats = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    return hashlib.sha256(json.dumps([stats, *parts]).encode()).hexdigest()
