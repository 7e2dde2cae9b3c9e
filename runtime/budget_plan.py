"""A plan from a budget: types for every matrix by their measured losses, what ``llmrun quantize --target`` does.

``sensitivity.py`` measures losses, ``measure/kernel_speed.py`` what a weight of each type costs of a step, and
``quant/budget.py`` solves. The curve of all budgets and llama-quantize's mixtures are points of the same estimate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from ..formats.atomic_file import check_space
from ..formats.errors import ConfigError, FormatError
from ..formats.ggml_types import BLOCK, GgmlType, row_bytes
from ..formats.gguf_writer import header_bytes
from ..formats.record import Record, replace
from ..quant.budget import Assignment, Budget, Option, seconds_of
from ..quant.file_types import MIXTURES, TOKEN_EMBEDDINGS, FileType, is_quantized_by_rule
from ..quant.quality_card import QualityCard
from ..quant.quantize_plan import FLOATS, PlannedTensor, QuantizePlan, plan_quantization
from ..quant.scale_search import ScaleSearch
from ..quant.target import Kind, Target
from .calibrated_plan import calibration_chunks, check_unquantized, hash_of
from .layerwise.runner import LayerwiseRunner
from .layerwise.source import described
from .measure.kernel_speed import seconds_per_weight
from .sensitivity import EMBEDDING, OUTPUT, TRIED, Sensitivities, Sensitivity, scaled
from .sensitivity_journal import SensitivityJournal

T = GgmlType
TYPES = (T.Q2_K, T.Q3_K, T.IQ4_XS, T.IQ4_NL, T.Q4_0, T.Q4_1, T.Q4_K, T.Q5_0, T.Q5_1, T.Q5_K, T.Q6_K, T.Q8_0, T.F16)
SHOWN_MIXTURES = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
PROBE_CTX, PROBE_CHUNKS = 96, 4
OTHER_SHARE = 0.12  # of a decode step: attention, norms, barriers beside the matrices
ALIGNMENT_BYTES, MORE_METADATA_BYTES = 32, 4096
N_POINT = 12
VERSION = 1  # of the arithmetic: a journal of another one is not gone on with

Progress = Callable[[str, int, int], None]


class Point(Record):
    """A file that could be made.

    Attributes:
        name: of a mixture, or "".
        n_bytes: of the file.
        bits: of a weight.
        divergence: estimated.
        tokens_s: estimated, when decoding here.
    """

    name: str
    n_bytes: int
    bits: float
    divergence: float
    tokens_s: float


class BudgetPlan(Record):
    """What was chosen, and from what.

    Attributes:
        plan: with the chosen types.
        target: what was wanted.
        chosen: the estimate for it.
        curve: optima from the smallest file to the best.
        mixtures: llama-quantize's, by the same estimate.
        sensitivities: what was measured.
    """

    plan: QuantizePlan
    target: Target
    chosen: Point
    curve: list[Point]
    mixtures: list[Point]
    sensitivities: Sensitivities


def measure_sensitivities(
    plan: QuantizePlan,
    text: str,
    folder: Path,
    *,
    search: ScaleSearch,
    n_thread: int,
    on_progress: Progress | None = None,
) -> tuple[Sensitivities, SensitivityJournal]:
    """Return what each matrix of a plan loses by each type, and the journal.

    Args:
        plan: any plan of the model.
        text: is calibrated on; a few short chunks are taken.
        folder: of the temporary file, and of a journal, from which the same call goes on where this one ended.
            It stays: ``journal_path``.
        search: for scales.
        n_thread: threads.
        on_progress: called as (what, done, total).

    Raises:
        CapacityError: the disk is too small for the rows of all tries.
        LlmrunError: the model cannot be run.
    """
    names = [t.source.name for t in plan.tensors if is_free(t)]
    with ExitStack() as stack:
        source = stack.enter_context(described(plan.checkpoint))
        chunks = calibration_chunks(source, text, PROBE_CTX, PROBE_CHUNKS)
        runner = stack.enter_context(
            LayerwiseRunner(source, n_ctx=PROBE_CTX, n_threads=n_thread, folder=folder, on_progress=on_progress)
        )
        path = journal_path(plan, folder)
        # The rows of the source, of each try and of all together; then in the journal, and in what replaces it.
        check_space(path, 3 * 4 * sum(map(len, chunks)) * runner.hparams.n_embd * (len(names) + 2))
        kinds = [kind.name for kind in (TRIED, *TYPES)]
        key = hash_of(plan.checkpoint.path, VERSION, kinds, names, [list(chunk) for chunk in chunks])
        measure = Sensitivity(runner, TYPES, search=search, n_thread=n_thread, on_progress=on_progress)
        journal = SensitivityJournal(path, key)
        return measure.measure(chunks, names, journal), journal


def journal_path(plan: QuantizePlan, folder: Path) -> Path:
    """Return where losses of a model are kept while they are measured and used, in the folder of the result.

    They do not depend on the target: where one cannot be reached, the next one goes on from there.
    """
    return folder / f".{plan.checkpoint.path.resolve().name}.sensitivity"


def is_free(tensor: PlannedTensor) -> bool:
    """Return whether a tensor is a matrix that may have any type."""
    return is_quantized_by_rule(tensor.source) and len(tensor.source.shape) == 2


class Solver:
    """Finds types for one model.

    Args:
        plan: the model's, made with any mixture; options for single tensors are kept to.
        sensitivities: losses.
        seconds: of a decode step for one weight of each type; types without are not chosen where speed is limited.
    """

    def __init__(self, plan: QuantizePlan, sensitivities: Sensitivities, seconds: Mapping[GgmlType, float]) -> None:
        self._plan, self._sensitivities, self._seconds = plan, sensitivities, seconds
        tensors = {t.source.name: t for t in plan.tensors}
        self._is_tied = OUTPUT not in tensors
        self._options: dict[str, list[Option]] = {}
        for name, options in sensitivities.options.items():
            wanted = (
                [o for o in options if o.ggml_type is tensors[name].ggml_type] if _is_fixed(plan, name) else options
            )
            if not wanted:
                raise ConfigError(f"{name}: {tensors[name].ggml_type.name} cannot be had with a target")
            self._options[name] = [self._timed(o, tensors[name]) for o in wanted]
        self._other_bytes = sum(t.entry.n_bytes for t in plan.tensors if t.source.name not in self._options)
        entries = [t.entry for t in plan.tensors]
        header = len(header_bytes({**plan.metadata(), **QualityCard.placeholder()}, entries, plan.checkpoint.path))
        self._overhead = header + MORE_METADATA_BYTES + ALIGNMENT_BYTES * len(entries)

    def _timed(self, option: Option, tensor: PlannedTensor) -> Option:
        name = tensor.source.name
        is_looked_up = name == EMBEDDING and not self._is_tied
        of_weight = 0.0 if is_looked_up else self._seconds.get(option.ggml_type, float("inf"))
        return replace(option, seconds=tensor.source.n_weights * of_weight / (1 - OTHER_SHARE))

    def solve(self, target: Target, factor: float = 1.0) -> BudgetPlan:
        """Return the plan for a target.

        Args:
            target: what is wanted.
            factor: of the estimates, where a file was measured since: of divergences, or of seconds a token.

        Raises:
            ConfigError: it cannot be reached.
        """
        is_speed = target.kind is Kind.SPEED
        options = self._options if is_speed else scaled(self._options, factor)
        seconds_factor = factor if is_speed else 1.0
        by_size = Budget(options)
        match target.kind:
            case Kind.BYTES:
                found = self._within(by_size, target.value)
            case Kind.BITS:
                found = self._within(by_size, target.value * self._plan.n_weights / 8 + self._overhead)
            case Kind.DIVERGENCE:
                found = by_size.with_loss(target.value)
            case Kind.SPEED:
                found = Budget(options, seconds_of).within(1 / target.value / factor, "seconds a token")
        types = found.types
        tensors = [replace(t, ggml_type=types.get(t.source.name, t.ggml_type)) for t in self._plan.tensors]
        wanted = replace(self._plan.options, mixture=_nearest_mixture(tensors))
        return BudgetPlan(
            replace(self._plan, options=wanted, tensors=tensors),
            target,
            self._point("", found, seconds_factor),
            [self._point("", assignment, seconds_factor) for assignment in by_size.curve(N_POINT)],
            [self._point(name, found, seconds_factor) for name, found in self._mixtures(options)],
            replace(self._sensitivities, options=options),
        )

    def _within(self, budget: Budget, limit: float) -> Assignment:
        rest = self._other_bytes + self._overhead
        try:
            return budget.within(limit - rest)
        except ConfigError:
            least = sum(min(o.n_bytes for o in options) for options in self._options.values()) + rest
            raise ConfigError(
                f"{limit / 1e6:.1f} MB are too few for this model, the least is {least / 1e6:.1f} MB"
            ) from None

    def _point(self, name: str, assignment: Assignment, seconds_factor: float) -> Point:
        n_bytes = assignment.n_bytes + self._other_bytes
        seconds = assignment.seconds * seconds_factor
        tokens_s = 1 / seconds if 0 < seconds < float("inf") else 0.0
        return Point(name, n_bytes + self._overhead, 8 * n_bytes / self._plan.n_weights, assignment.loss, tokens_s)

    def _mixtures(self, options: Mapping[str, list[Option]]) -> Iterator[tuple[str, Assignment]]:
        """Yield llama-quantize's mixtures, as far as losses of their types are known."""
        for name in SHOWN_MIXTURES:
            try:
                wanted = replace(self._plan.options, mixture=MIXTURES[name])
                types = {t.source.name: t.ggml_type for t in plan_quantization(self._plan.checkpoint, wanted).tensors}
            except (ConfigError, FormatError):
                continue
            chosen = {n: o for n, of_matrix in options.items() for o in of_matrix if o.ggml_type is types[n]}
            if len(chosen) == len(options):
                yield name, Assignment(chosen)


def open_solver(
    plan: QuantizePlan,
    target: Target,
    text: str,
    folder: Path,
    *,
    search: ScaleSearch,
    n_thread: int,
    on_progress: Progress | None = None,
) -> tuple[Solver, SensitivityJournal]:
    """Measure a model; arguments and the journal as for ``measure_sensitivities``.

    Raises:
        ConfigError: it was quantised before, or it is known without measuring that the target cannot be reached.
        LlmrunError: the model cannot be run.
    """
    check_unquantized(plan)
    _check_size(plan, target)
    seconds = seconds_per_weight(TYPES, n_thread, on_progress=on_progress)
    found, journal = measure_sensitivities(
        plan, text, folder, search=search, n_thread=n_thread, on_progress=on_progress
    )
    return Solver(plan, found, seconds), journal


def _check_size(plan: QuantizePlan, target: Target) -> None:
    """Refuse a size that no types give, and types of the user's that are none of a target's."""
    options = {
        t.source.name: [
            Option(kind, t.source.n_rows * row_bytes(kind, t.source.n_in), 0.0)
            for kind in TYPES if t.source.n_in % BLOCK[kind][0] == 0
        ]
        for t in plan.tensors if is_free(t)
    }  # fmt: skip
    solver = Solver(plan, Sensitivities(options, 0.0, 0.0), {})
    if target.kind in (Kind.BYTES, Kind.BITS):
        solver.solve(target)


def _is_fixed(plan: QuantizePlan, name: str) -> bool:
    """Return whether the user has said what type a tensor is to have."""
    options = plan.options
    if any(pattern.search(name) for pattern, _ in options.overrides):
        return True
    is_output = name == OUTPUT or (name == EMBEDDING and all(t.source.name != OUTPUT for t in plan.tensors))
    if is_output and (options.output_type or options.leaves_output):
        return True
    return name in TOKEN_EMBEDDINGS and options.embedding_type is not None


def _nearest_mixture(tensors: list[PlannedTensor]) -> FileType:
    """Return the file type that most weights have, for ``general.file_type``."""
    counts: Counter[GgmlType] = Counter()
    for tensor in tensors:
        if tensor.ggml_type not in FLOATS:
            counts[tensor.ggml_type] += tensor.source.n_weights
    most = counts.most_common(1)[0][0] if counts else T.Q8_0
    named = {T.Q3_K: "Q3_K_M", T.Q4_K: "Q4_K_M", T.Q5_K: "Q5_K_M"}
    return MIXTURES[named.get(most, most.name)]
