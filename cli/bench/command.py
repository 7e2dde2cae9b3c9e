"""The command itself: reads the options, runs the plan, writes the rows."""

from __future__ import annotations

import sys
from typing import Any

from ..declare import UsageError
from .options import FORMATS, DraftOptions, MachineOptions, OutputOptions, PeerOptions, TestOptions, one_of


def bench(
    tests: TestOptions, machine: MachineOptions, peer: PeerOptions, drafts: DraftOptions, output: OutputOptions
) -> None:
    """Measure the speed of models, as llama-bench does.

    Numbers may be lists (1,2,4) and ranges (first-last, first-last+step, first-last*mult); every combination is run.
    """
    from .details import details
    from .plan import make_plan  # here: the help of every command imports this module
    from .writers import make_writer

    plan = make_plan(tests)
    forms = [one_of(output.output, FORMATS, "-o")]
    if output.output_err is not None and output.output_err != "none":
        forms.append(one_of(output.output_err, FORMATS, "-oe"))
    if drafts.spec is not None or drafts.draft is not None or drafts.kinds is not None:
        from .drafts import check_draft_options, run_drafts

        check_draft_options(tests, machine, peer, drafts, output)
        run_drafts(plan, tests, drafts, output)
        return
    if peer.vs is None and peer.peer_python is not None:
        raise UsageError("goes with --vs", "--peer-python")
    if peer.vs is not None:
        from .versus import check_peer_options, run_versus

        check_peer_options(plan, tests, machine, output, peer)
        run_versus(plan, tests, machine, output, peer)
        return
    if output.plot is not None:
        from .plot import check_plot

        check_plot(output.plot)
    from .measure import Bench

    run = Bench(plan, tests, machine, output)
    writers = [
        make_writer(form, stream, extra=plan.extra, build=_build())
        for form, stream in zip(forms, (sys.stdout, sys.stderr), strict=False)
    ]
    records: list[dict[str, Any]] = []
    for record in run.records():
        for writer in writers:
            if not records:  # not before a model was found and opened
                writer.begin()
            writer.row(record)
        records.append(record)
    for writer in writers:
        writer.end()
    has_prices = machine.price_kwh is not None or machine.hardware_cost is not None
    for form, stream in zip(forms, (sys.stdout, sys.stderr), strict=False):
        if form == "md":
            print(f"\n{details(records, run.energy, has_prices=has_prices)}", file=stream)
    if output.plot is not None:
        from .plot import plot

        plot(records, output.plot)


def _build() -> str:
    from ... import __version__
    from ...runtime.simd.isa import choose_target

    return f"llmrun {__version__} ({choose_target().name})"
