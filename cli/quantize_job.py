"""Writing one quantised file: calibrated or not, measured or not, with a bar for each part of the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.record import Record
from .quantize_report import print_notes
from .render.progress import ProgressBar
from .render.text import escaped

if TYPE_CHECKING:
    from ..quant.quality_card import QualityCard
    from ..quant.quantize_plan import QuantizePlan
    from ..runtime.calibrated_plan import Calibration

Measure = Callable[[Path], "QualityCard"]


class Job(Record):
    """What is to be written, whatever the types.

    Attributes:
        path: the file, or what split files are named after.
        n_thread: threads.
        allows_nan: see ``Quantizer``.
        keeps_split: as many files as the source has.
        calibration: of a calibrated method; None: each weight by itself.
        scales_channels: without a calibration: channels are scaled by the plan's importance matrix.
        is_measured: put a quality card into the file.
        quality_text: the text of the card; None: the one that llmrun brings.
    """

    path: Path
    n_thread: int
    allows_nan: bool
    keeps_split: bool
    calibration: Calibration | None
    scales_channels: bool
    is_measured: bool
    quality_text: Path | None

    def key_of(self, plan: QuantizePlan) -> str | None:
        """Return a hash of all that the result's quality depends on; None where it is made in seconds."""
        if self.calibration is None:
            return None
        from ..runtime.calibrated_plan import hash_of
        from .text_input import read_text

        types = {tensor.source.name: tensor.ggml_type.name for tensor in plan.tensors}
        quality_text = None if self.quality_text is None else read_text(self.quality_text)
        made = self.calibration
        return hash_of(
            plan.checkpoint.path, types, made.method, made.text, made.n_ctx, made.n_chunk, quality_text
        )  # fmt: skip

    def write(self, plan: QuantizePlan, check: Callable[[Measure], Measure] | None = None) -> list[Path]:
        """Write the file of a plan and return its paths.

        Args:
            plan: what is to become what.
            check: put around what measures the unfinished file, which is then measured in any case.

        Raises:
            LlmrunError: it cannot be made; then there is none.
        """
        measure = self._measure(plan) if self.is_measured or check else None
        if measure is not None and check is not None:
            measure = check(measure)
        with self._calibrated(plan) as final:
            return self.write_plainly(final, measure)

    def write_plainly(self, plan: QuantizePlan, measure: Measure | None) -> list[Path]:
        """Write a plan's file without calibrating, and return its paths; raises as ``write``."""
        from ..runtime.quantizer import Quantizer
        from ..runtime.scale_search import CompiledSearch

        with ExitStack() as bar:
            progress = bar.enter_context(ProgressBar("quantising", has_time_left=True))

            def measure_next(path: Path) -> QualityCard:
                bar.close()  # measuring has one of its own
                assert measure is not None
                return measure(path)

            quantizer = Quantizer(
                plan, CompiledSearch(on_progress=progress), n_thread=self.n_thread, allows_nan=self.allows_nan,
                on_progress=progress,
            )  # fmt: skip
            return quantizer.write(
                self.path, keeps_split=self.keeps_split, measure=measure_next if measure is not None else None
            )

    @contextmanager
    def _calibrated(self, plan: QuantizePlan) -> Iterator[QuantizePlan]:
        """Carry out what a calibrated method does before the file is written; yields the plan that is left."""
        if self.calibration is None:
            yield self._scaled(plan) if self.scales_channels else plan
            return
        from ..runtime.calibrated_plan import calibrated, journal_path
        from ..runtime.scale_search import CompiledSearch

        with ExitStack() as bar, ExitStack() as stack:
            stack.enter_context(_telling_what_is_kept(journal_path(self.path)))
            progress = bar.enter_context(ProgressBar("calibrating", has_time_left=True))
            final = stack.enter_context(
                calibrated(
                    plan, self.calibration, self.path, search=CompiledSearch(on_progress=progress),
                    n_thread=self.n_thread, on_progress=progress, on_warning=lambda line: print_notes([line]),
                )
            )  # fmt: skip
            bar.close()
            yield final

    @property
    def _has_scales(self) -> bool:
        return self.scales_channels or (self.calibration is not None and self.calibration.has_scales)

    def _scaled(self, plan: QuantizePlan) -> QuantizePlan:
        """Return a plan with channels scaled by its importance matrix."""
        from ..runtime.imatrix_scales import with_channel_scales
        from ..runtime.scale_search import CompiledSearch

        with ProgressBar("choosing channel scales", has_time_left=True) as progress:
            search = CompiledSearch(on_progress=progress)
            return with_channel_scales(plan, search=search, n_thread=self.n_thread, on_progress=progress)

    def _measure(self, plan: QuantizePlan) -> Measure:
        """Return what measures an unfinished file beside the plan's source."""
        from ..runtime.layerwise.source import ModelSource, open_gguf
        from ..runtime.quality import measure_quality
        from ..runtime.texts import CALIBRATION, calibration_text
        from .text_input import read_text

        file = self.quality_text
        text = calibration_text() if file is None else read_text(file)

        def measure(path: Path) -> QualityCard:
            with open_gguf(path) as result, ProgressBar("measuring the result", has_time_left=True) as progress:
                # The result's metadata are the source's, in GGUF's words.
                source = ModelSource.of(plan.checkpoint, result.metadata)
                card = measure_quality(
                    source, result, text, text_name=CALIBRATION if file is None else file.name,
                    imatrix=plan.options.imatrix, n_threads=self.n_thread, on_progress=progress,
                    has_same_scales=not self._has_scales,
                )  # fmt: skip
            for name, value in card.rows():
                print(f"{escaped(name):24}  {escaped(value)}", file=sys.stderr)
            return card

        return measure


@contextmanager
def _telling_what_is_kept(journal: Path) -> Iterator[None]:
    """Say at an interruption where finished layers are kept."""
    try:
        yield
    except KeyboardInterrupt:
        if journal.exists():
            print_notes([f"finished layers are kept in {journal}: the same command goes on from there"])
        raise
