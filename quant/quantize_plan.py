"""Which tensor becomes what: decided, and checked, before anything is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from re import Pattern

from ..formats.errors import ConfigError, FormatError, quote
from ..formats.ggml_types import GgmlType
from ..formats.gguf_writer import TensorEntry
from ..formats.meta_value import MetaValue
from ..formats.record import Record, field, replace
from .checkpoint import Checkpoint, SourceTensor
from .dequantize import DEQUANTIZERS
from .file_types import (
    TOKEN_EMBEDDINGS,
    FileType,
    MixtureRules,
    ModelShape,
    fitting_type,
    is_quantized_by_rule,
    n_dims,
    sorted_for_rules,
)  # fmt: skip
from .imatrix import Imatrix
from .quantize import QUANTIZABLE

FLOATS = (GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.F64)
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


class QuantizeOptions(Record, kw_only=True):
    """What the user wants.

    Attributes:
        mixture: the file type.
        overrides: patterns of names and the types for what they match; the first that matches counts.
        output_type: for the output matrix, None: the rules'.
        embedding_type: for token embeddings, likewise.
        is_pure: no rules, all matrices of the mixture's default type.
        leaves_output: the output matrix stays as it is.
        allows_requantize: whether tensors may be quantised that were quantised before.
        keeps_quantized: tensors that were quantised before stay as they are (a GPTQ or AWQ checkpoint's integers).
        imatrix: importance of input columns.
    """

    mixture: FileType
    overrides: Sequence[tuple[Pattern[str], GgmlType]] = ()
    output_type: GgmlType | None = None
    embedding_type: GgmlType | None = None
    is_pure: bool = False
    leaves_output: bool = False
    allows_requantize: bool = False
    keeps_quantized: bool = False
    imatrix: Imatrix | None = None


class PlannedTensor(Record):
    """A tensor and the type that it will have."""

    source: SourceTensor
    ggml_type: GgmlType

    @property
    def is_copied(self) -> bool:
        """Whether its bytes are taken over."""
        return self.ggml_type is self.source.ggml_type and self.source.raw is not None

    @property
    def entry(self) -> TensorEntry:
        """What the writer wants to know."""
        return TensorEntry(self.source.name, self.source.shape, self.ggml_type)


class QuantizePlan(Record):
    """All tensors of the result, in llama-quantize's order: those outside of layers, then layer by layer, by name.

    Attributes:
        checkpoint: the source.
        options: what the user wants.
        tensors: with their types.
        notes: lines that the user should read.
        extra: metadata of the result beside the source's.
    """

    checkpoint: Checkpoint
    options: QuantizeOptions
    tensors: list[PlannedTensor]
    notes: list[str] = field(default_factory=list)
    extra: Mapping[str, MetaValue] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Size of all tensors of the result."""
        return sum(t.entry.n_bytes for t in self.tensors)

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return sum(t.source.n_weights for t in self.tensors)

    @property
    def largest_bytes(self) -> int:
        """Size of the largest tensor in float32."""
        return max((4 * t.source.n_weights for t in self.tensors), default=0)

    def with_finished(self, tensors: Mapping[str, SourceTensor], extra: Mapping[str, MetaValue]) -> QuantizePlan:
        """Return a plan that takes tensors over from elsewhere, which may have another type than was planned."""
        planned = [
            t if tensors[t.source.name] is t.source
            else PlannedTensor(replace(tensors[t.source.name], shard=t.source.shard), tensors[t.source.name].ggml_type)
            for t in self.tensors
        ]  # fmt: skip
        return replace(self, tensors=planned, extra={**self.extra, **extra})

    def metadata(self) -> dict[str, MetaValue]:
        """Return the metadata of the result."""
        values = {**self.checkpoint.metadata, **self.extra}
        for key in ("general.quantization_version", "general.file_type"):  # at the end, as llama-quantize has them
            values.pop(key, None)
        values["general.quantization_version"] = MetaValue.u32(QUANTIZATION_VERSION)
        values["general.file_type"] = MetaValue.u32(self.options.mixture.number)
        imatrix = self.options.imatrix
        if imatrix is not None:  # as llama-quantize writes them
            values["quantize.imatrix.file"] = MetaValue.text(str(imatrix.path or ""))
            if imatrix.datasets:
                values["quantize.imatrix.dataset"] = MetaValue.text(imatrix.datasets[0])
            values["quantize.imatrix.entries_count"] = MetaValue.u32(len(imatrix.names))
            if imatrix.n_chunk:
                values["quantize.imatrix.chunks_count"] = MetaValue.u32(imatrix.n_chunk)
        return values


def weight_type(name: str) -> GgmlType:
    """Return the GGML type of a name, in any case.

    Raises:
        ConfigError: there is none, or it cannot be written.
    """
    found = GgmlType.__members__.get(name.upper())
    if found is None or found not in QUANTIZABLE:
        names = ", ".join(t.name for t in GgmlType if t in QUANTIZABLE)
        raise ConfigError(f"{name} is no type that can be written, expected one of: {names}")
    return found


def parse_override(text: str) -> tuple[Pattern[str], GgmlType]:
    """Return what ``REGEX=TYPE`` says.

    Raises:
        ConfigError: it has another form.
    """
    pattern, equals, name = text.rpartition("=")
    if not (pattern and equals):
        raise ConfigError(f"--tensor-type {text}: expected REGEX=TYPE, such as 'ffn_down=Q6_K'")
    try:
        return re.compile(pattern), weight_type(name)
    except re.error as error:
        raise ConfigError(f"--tensor-type {text}: {error}") from None


def plan_quantization(checkpoint: Checkpoint, options: QuantizeOptions) -> QuantizePlan:
    """Decide the type of every tensor.

    Raises:
        ConfigError: the wish cannot be carried out.
        FormatError: the source lacks a count that the rules need.
    """
    names = [t.name for t in checkpoint.tensors]
    shape = ModelShape.read(checkpoint.architecture, checkpoint.metadata, checkpoint.path)
    rules = MixtureRules(options.mixture, shape, names, has_imatrix=options.imatrix is not None)
    notes: list[str] = []
    narrowed: Counter[tuple[GgmlType, GgmlType]] = Counter()
    types = {t.name: _type_of(t, options, rules, narrowed) for t in sorted_for_rules(checkpoint.tensors)}
    planned = [PlannedTensor(t, types[t.name]) for t in sorted_for_rules(checkpoint.tensors)]
    for (wanted, got), n in narrowed.items():
        what = "1 tensor is" if n == 1 else f"{n} tensors are"
        notes.append(f"{what} too narrow for blocks of {wanted.name}: {got.name} instead")
    _check(checkpoint, options, planned, names)
    if options.imatrix is not None:
        notes += _check_imatrix(options.imatrix, planned)
    return QuantizePlan(checkpoint, options, planned, [*checkpoint.notes, *notes])


def _type_of(
    tensor: SourceTensor, options: QuantizeOptions, rules: MixtureRules, narrowed: Counter[tuple[GgmlType, GgmlType]]
) -> GgmlType:
    name, mixture = tensor.name, options.mixture
    if not is_quantized_by_rule(tensor) or tensor.ggml_type not in DEQUANTIZERS:
        is_small_half = n_dims(tensor) == 1 and tensor.ggml_type in (GgmlType.F16, GgmlType.BF16)
        return GgmlType.F32 if is_small_half else tensor.ggml_type  # norms and biases are F32 everywhere
    if name == "output.weight" and options.leaves_output:
        return tensor.ggml_type
    if options.keeps_quantized and not options.allows_requantize and tensor.ggml_type not in FLOATS:
        return tensor.ggml_type
    manual = next((kind for pattern, kind in options.overrides if pattern.search(name)), None)
    if name in TOKEN_EMBEDDINGS and options.embedding_type and (manual is None or name == "token_embd.weight"):
        wanted = options.embedding_type
    elif name == "output.weight" and options.output_type:
        wanted = options.output_type
    elif manual is not None:
        wanted = manual
    elif options.is_pure or not mixture.is_mixture:
        wanted = mixture.default
    elif name == "token_embd.weight" and rules.is_tied and options.output_type:
        wanted = options.output_type
    else:
        wanted = rules.choose(tensor)
    fitting = fitting_type(wanted, tensor.n_in)
    if fitting is not wanted:
        narrowed[wanted, fitting] += 1
    return fitting


def _check(
    checkpoint: Checkpoint, options: QuantizeOptions, planned: Sequence[PlannedTensor], names: Sequence[str]
) -> None:
    for pattern, _ in options.overrides:
        if not any(pattern.search(name) for name in names):
            raise ConfigError(f"--tensor-type: no tensor's name matches '{pattern.pattern}'")
    if options.output_type and not {"output.weight", "token_embd.weight"} & set(names):
        raise ConfigError(f"{checkpoint.path}: has no output matrix")
    for tensor in planned:
        source = tensor.source
        is_changed = tensor.ggml_type is not source.ggml_type
        if is_changed and source.ggml_type not in FLOATS and not options.allows_requantize:
            raise ConfigError(
                f"{checkpoint.path}: is quantised already (tensor {quote(source.name)} is {source.ggml_type.name});"
                " quantising twice loses more. Start from F16, BF16 or F32, or give --allow-requantize"
            )
        if not tensor.is_copied and tensor.ggml_type not in QUANTIZABLE:
            raise ConfigError(
                f"{checkpoint.path}: tensor {quote(source.name)} would be {tensor.ggml_type.name},"
                " which cannot be written"
            )


def _check_imatrix(imatrix: Imatrix, planned: Sequence[PlannedTensor]) -> list[str]:
    """Check every entry's shape; return notes on tensors without one."""
    missing = []
    for tensor in planned:
        if tensor.ggml_type in FLOATS or tensor.is_copied:
            continue
        stack = imatrix.stacked(tensor.source.name, tensor.source.n_in)
        if stack is None:
            missing.append(tensor.source.name)
            continue
        n_mat = tensor.source.n_rows // tensor.source.shape[-2]
        if len(stack) not in (1, n_mat):
            raise FormatError(
                f"{imatrix.path}: entry {quote(tensor.source.name)} is for {len(stack)} matrices, expected {n_mat}:"
                " it was measured with another model"
            )
    unusual = [name for name in missing if name not in (*TOKEN_EMBEDDINGS, "output.weight")]
    if unusual and len(missing) == sum(t.ggml_type not in FLOATS and not t.is_copied for t in planned):
        raise FormatError(f"{imatrix.path}: has no entry for any tensor of this model")
    if not unusual:
        return []
    shown = ", ".join(unusual[:3]) + (", …" if len(unusual) > 3 else "")
    return [f"{len(unusual)} tensors have no entry in the importance matrix: {shown}"]
