"""``llmrun quantize --target…``: a plan from a budget, what it is chosen from, and whether the result keeps to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.errors import ConfigError, LlmrunError
from .declare import UsageError
from .quantize_report import print_notes, print_table
from .render.progress import ProgressBar
from .render.text import size

if TYPE_CHECKING:
    from ..quant.quality_card import QualityCard
    from ..quant.quantize_plan import QuantizePlan
    from ..quant.target import Target
    from ..runtime.budget_plan import BudgetPlan, Point
    from .quantize_job import Job, Measure

MOST_TRIES = 3  # of a file whose divergence or speed is not what was estimated
TOLERANCE = 0.02
SPARE = 0.8  # of the wanted divergence: a file that loses less is larger than it need be


def target_of(
    size_text: str | None, bits: float | None, divergence: float | None, tokens_s: float | None
) -> Target | None:
    """Return what the options say; None where none is given.

    Raises:
        UsageError: more than one is.
        ConfigError: a value cannot be.
    """
    given = [value for value in (size_text, bits, divergence, tokens_s) if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError("--target, --target-bpw, --target-kld and --target-tps exclude each other", "--target")
    from ..quant.target import Kind, Target, parse_size

    if size_text is not None:
        return parse_size(size_text)
    kinds = ((Kind.BITS, bits), (Kind.DIVERGENCE, divergence), (Kind.SPEED, tokens_s))
    return next(Target(kind, float(value)) for kind, value in kinds if value is not None)


class _MissedError(Exception):
    """A file was measured and is not what was wanted: its divergence, or its tokens a second, in ``found``."""

    def __init__(self, found: float) -> None:
        super().__init__()
        self.found = found


class TargetPlans:
    """Plans for one target: the first by estimates, others after a file has missed it.

    Args:
        plan: the model's, with any mixture.
        target: what is wanted.
        text: is measured on; None: the one that llmrun brings.
        folder: of the result.
        n_thread: threads.
    """

    def __init__(self, plan: QuantizePlan, target: Target, text: Path | None, folder: Path, n_thread: int) -> None:
        from ..runtime.budget_plan import journal_path, open_solver
        from ..runtime.scale_search import CompiledSearch
        from ..runtime.texts import calibration_text
        from .text_input import read_text

        self.target, self._factor = target, 1.0
        self._path = journal_path(plan, folder)
        with self.telling_what_is_kept(), ProgressBar("measuring", has_time_left=True) as progress:
            self._solver, self._journal = open_solver(
                plan, target, calibration_text() if text is None else read_text(text), folder,
                search=CompiledSearch(on_progress=progress), n_thread=n_thread, on_progress=progress,
            )  # fmt: skip

    @contextmanager
    def telling_what_is_kept(self) -> Iterator[None]:
        """Say that what was measured is kept, where it ends early."""
        try:
            yield
        except (KeyboardInterrupt, LlmrunError):
            if self._path.exists():
                print_notes([f"what was measured is kept in {self._path}: the next run goes on from there"])
            raise

    def forget(self) -> None:
        """Remove what was measured: the file is complete."""
        self._journal.remove()

    def best(self) -> BudgetPlan:
        """Return the plan by what is known now.

        Raises:
            ConfigError: the target cannot be reached.
        """
        return self._solver.solve(self.target, self._factor)

    def measured(self, key: str | None) -> float | None:
        """Return the divergence of a file that an earlier run has made and measured; None where there was none."""
        return None if key is None else self._journal.choices.get(key)

    def keep(self, key: str | None, divergence: float) -> None:
        """Keep the divergence of a file for a run that goes on from here."""
        if key is not None and key not in self._journal.choices:
            self._journal.add_choice(key, divergence)

    def missed(self, factor: float) -> None:
        """Multiply the estimates of divergence, or of seconds a token."""
        self._factor *= factor


def write_within(
    plans: TargetPlans, job: Job, report: Path | None, *, dry_run: bool
) -> tuple[QuantizePlan, list[Path]]:
    """Write the file of a target; where its measured divergence or speed misses, types are chosen anew.

    Args:
        plans: of the target.
        job: the file.
        report: the page to write.
        dry_run: only show what was chosen.

    Returns:
        The plan, and the paths written.

    Raises:
        LlmrunError: the target cannot be reached, or the file cannot be made.
    """
    from ..quant.target import Kind

    budget = plans.best()
    if plans.target.kind is Kind.SPEED:
        budget = _fast_enough(plans, job)
    print_budget(budget)
    if report is not None:
        write_report(budget, report)
    if dry_run or plans.target.kind is not Kind.DIVERGENCE:
        return budget.plan, [] if dry_run else job.write(budget.plan)
    for i in range(MOST_TRIES):
        is_last, key = i + 1 == MOST_TRIES, job.key_of(budget.plan)
        try:
            known = plans.measured(key)
            if known is not None and not is_last:
                raise _MissedError(known)
            return budget.plan, job.write(budget.plan, partial(_checked, budget=budget, is_last=is_last))
        except _MissedError as missed:
            plans.keep(key, missed.found)
            print_notes([f"a divergence of {missed.found:.4f} was measured: types are chosen anew"])
            plans.missed(missed.found / budget.chosen.divergence)
            budget = plans.best()
    raise AssertionError("the last try is taken as it is")


def _checked(measure: Measure, *, budget: BudgetPlan, is_last: bool) -> Measure:
    """Return ``measure`` with a check of what it finds, which raises where another choice would come nearer."""

    def checked(path: Path) -> QualityCard:
        card = measure(path)
        wanted, found = budget.target.value, card.kld_mean
        if not SPARE * wanted <= found <= wanted * (1 + TOLERANCE):
            if not is_last:
                raise _MissedError(max(found, 1e-9))
            if found > wanted:
                print_notes([f"a divergence of {found:.4f} was measured, {wanted:g} at most was wanted"])
        print_notes(["the divergence is that of this text; of another one it may be larger"])
        return card

    return checked


def _fast_enough(plans: TargetPlans, job: Job) -> BudgetPlan:
    """Return a plan whose file, quantised plainly and thrown away again, decodes as fast as wanted."""

    def speed(path: Path) -> QualityCard:
        raise _MissedError(measured_speed(path, job.n_thread))

    for _ in range(MOST_TRIES):
        budget = plans.best()
        try:
            job.write_plainly(budget.plan, speed)
        except _MissedError as measured:
            found = measured.found
        is_enough = found >= budget.target.value * (1 - TOLERANCE)
        line = f"{found:.1f} tokens a second were measured, {budget.chosen.tokens_s:.1f} estimated"
        print_notes([line if is_enough else f"{line}: types are chosen anew"])
        if is_enough:
            return budget
        plans.missed(budget.chosen.tokens_s / found)
    return plans.best()


def measured_speed(path: Path, n_thread: int) -> float:
    """Return how many tokens a second a file decodes here, the best of some runs."""
    from ..runtime.engine import Engine
    from ..runtime.measure.bench_row import BenchTest
    from ..runtime.measure.runner import Runner

    test = BenchTest(n_gen=32)
    with ProgressBar("measuring the speed"), Engine.open(path, n_ctx=64, n_threads=n_thread) as engine:
        runner = Runner(engine)
        try:
            runner.warm_up(test)
            return test.n_token / min(runner.sample(test).total_ns for _ in range(3)) * 1e9
        finally:
            runner.close()


def print_budget(budget: BudgetPlan) -> None:
    """Print the curve, llama-quantize's mixtures and the choice, by size, to standard error."""
    rows: list[tuple[str, ...]] = [("", "size", "bits", "divergence", "tok/s here")]
    points = [*((p, p.name) for p in (*budget.curve, *budget.mixtures)), (budget.chosen, "chosen")]
    for point, name in sorted(points, key=lambda item: item[0].n_bytes):
        rows.append((name, *_cells(point)))
    print_table(rows)
    print(
        "rows without a name: the best types at that size; divergences and speeds are estimates, of mixtures as llmrun"
        " would quantise them",
        file=sys.stderr,
    )


def _cells(point: Point) -> tuple[str, str, str, str]:
    return size(point.n_bytes), f"{point.bits:.2f}", f"{point.divergence:.4f}", f"{point.tokens_s:.0f}"


def write_report(budget: BudgetPlan, path: Path) -> None:
    """Write the page of ``--report``.

    Raises:
        ConfigError: it cannot be written.
    """
    from ..formats.atomic_file import AtomicFile
    from .render.budget_page import budget_page

    with AtomicFile(path) as file:
        file.write(budget_page(budget).encode())
        file.finish()


def check_report(path: Path | None, *, has_target: bool, is_forced: bool) -> None:
    """Refuse a page that cannot be written, before anything is measured.

    Raises:
        UsageError: there is no budget to report on.
        ConfigError: the file is there.
    """
    if path is None:
        return
    if not has_target:
        raise UsageError("shows what a budget buys: give a target too", "--report")
    if path.exists() and not is_forced:
        raise ConfigError(f"{path}: exists already; --force replaces it")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
