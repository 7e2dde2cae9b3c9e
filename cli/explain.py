"""``llmrun doctor MODEL``: why the model is as fast as it is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.errors import ConfigError
from .generation import open_engine
from .options import LoadOptions
from .render.progress import ProgressBar
from .render.text import size

if TYPE_CHECKING:
    from ..runtime.measure.diagnosis import Diagnosis, Gain, Phase
    from ..runtime.measure.roofline import Roofline

MAX_JITTER = 1.5  # of decode steps: above, something disturbs
MAX_STEAL = 0.02
MAX_BARRIERS = 0.1
MAX_SWITCHES = 200
MAX_GAINS = 3


def explain(path: Path, roofline: Roofline, n_threads: int) -> dict[str, str]:
    """Run the model a little and return rows that say what limits it.

    Raises:
        LlmrunError: the model cannot be opened.
    """
    from ..runtime.measure.diagnosis import DECODE, PROMPT, diagnose
    from ..runtime.measure.traffic import read_traffic

    traffic = read_traffic(path)
    n_ctx = max(PROMPT.n_slot, DECODE.n_slot)
    with open_engine(path, LoadOptions(threads=n_threads), n_ctx=n_ctx) as engine, ProgressBar("measuring") as bar:
        bar("measuring", 0, 0)
        found = diagnose(engine, traffic, roofline)
    return rows_of(found, path.name)


def rows_of(found: Diagnosis, name: str) -> dict[str, str]:
    """Return what was found, by heading."""
    prompt, decoding = found.phases
    return {
        "model": f"{name}, {size(found.step_bytes)} to read for a token",
        "prompt": phase_text(prompt),
        "decoding": phase_text(decoding),
        "barriers": _barriers(found),
        "disturbances": "; ".join(disturbances(found)) or "none seen",
        "faster": faster_text(found),
    }


def phase_text(phase: Phase) -> str:
    """Return one line about a phase: speed, both shares, and the verdict."""
    verdict = {
        "memory": "memory-bound: only fewer bytes or faster memory would help",
        "compute": "compute-bound: more cores or a wider instruction set would help",
        "neither": "at neither limit: time is lost elsewhere, see below",
    }
    return (
        f"{phase.tokens_s:.1f} tok/s, {100 * phase.bandwidth_share:.0f} % of the read bandwidth,"
        f" {100 * phase.int8_share:.0f} % of the int8 peak; {verdict[phase.limit]}"
    )


def _barriers(found: Diagnosis) -> str:
    if not found.n_barrier:
        return "none: one thread"
    shares = ", ".join(f"{100 * phase.barrier_share:.1f} % of {phase.name}" for phase in found.phases)
    return f"{found.n_barrier} a pass, {found.barrier_ns / 1000:.2f} µs each: {shares}"


def disturbances(found: Diagnosis) -> list[str]:
    """Return what kept the model from being faster, as far as the system tells."""
    seen, reasons = found.disturbance, []
    if (seen.steal_share or 0) > MAX_STEAL:
        reasons.append(f"{100 * (seen.steal_share or 0):.1f} % of processor time went to other virtual machines")
    if seen.n_throttle:
        reasons.append(f"the processor was slowed down because of heat {seen.n_throttle} times")
    if seen.n_major_fault:
        reasons.append(f"{seen.n_major_fault} pages were read from disk: memory is short, or the file was not cached")
    if (seen.n_switch or 0) > MAX_SWITCHES:
        reasons.append(f"other programs took a processor {seen.n_switch} times; try fewer threads, or a quiet machine")
    if found.jitter > MAX_JITTER:
        reasons.append(f"every tenth token takes {found.jitter:.1f} times as long as the usual one")
    if max(phase.barrier_share for phase in found.phases) > MAX_BARRIERS:
        reasons.append("a good part of the time goes into barriers: try fewer threads")
    return reasons


def faster_text(found: Diagnosis) -> str:
    """Return which quantisation would decode faster, and by how much at most."""
    decoding = found.phases[1]
    if decoding.limit == "compute":
        return "decoding is not limited by memory here: a smaller file would not be faster"
    if not found.gains:
        return "there is no smaller quantisation worth its loss"
    condition = "" if decoding.limit == "memory" else "once nothing else holds decoding up: "
    return condition + ", ".join(gain_text(gain) for gain in found.gains[:MAX_GAINS])


def gain_text(gain: Gain) -> str:
    """Return one quantisation's line."""
    return f"{gain.quant} about +{gain.gain_pct:.0f} % ({size(gain.step_bytes)} a token)"


def need_roofline(roofline: Roofline | None) -> Roofline:
    """Return the machine's limits.

    Raises:
        ConfigError: they could not be measured.
    """
    if roofline is None:
        raise ConfigError("the machine's limits could not be measured: the probe ended early, perhaps out of memory")
    return roofline
