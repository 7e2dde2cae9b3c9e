"""Options of ``llmrun bench``. Names and defaults are llama-bench's; where it has several spellings, all work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ...formats.record import Record
from ...runtime.kernels.layout import KV_TYPES
from ..declare import Option, UsageError

FORMATS = ("md", "csv", "json", "jsonl", "sql")


class TestOptions(Record, kw_only=True):
    """What is run."""

    model: Annotated[
        list[str] | None,
        Option(
            "--model",
            "-m",
            "--hf-repo",
            "-hf",
            metavar="MODEL",
            help="A GGUF file, a name from `llmrun list`, or user/repo[:QUANT] on the Hugging Face hub, or several.",
            show_default=False,
        ),
    ] = None
    n_prompt: Annotated[
        list[str] | None,
        Option(
            "--n-prompt", "-p", metavar="N", help="Tokens of a prompt: rows pp512.  [default: 512]", show_default=False
        ),
    ] = None
    n_gen: Annotated[
        list[str] | None,
        Option("--n-gen", "-n", metavar="N", help="Tokens to decode: rows tg128.  [default: 128]", show_default=False),
    ] = None
    pg: Annotated[
        list[str] | None,
        Option("-pg", metavar="PP,TG", help="A prompt and then tokens to decode, timed together.", show_default=False),
    ] = None
    n_depth: Annotated[
        list[str] | None,
        Option(
            "--n-depth",
            "-d",
            metavar="N",
            help="Tokens in the context before, not timed.  [default: 0]",
            show_default=False,
        ),
    ] = None
    batch_size: Annotated[
        list[str] | None,
        Option(
            "--batch-size",
            "-b",
            metavar="N",
            help="Tokens that a prompt is given in at a time.  [default: 2048]",
            show_default=False,
        ),
    ] = None
    ubatch_size: Annotated[
        list[str] | None,
        Option("--ubatch-size", "-ub", metavar="N", help="Tokens of one pass.  [default: 512]", show_default=False),
    ] = None
    cache_type_k: Annotated[
        list[str] | None,
        Option(
            "--cache-type-k",
            "-ctk",
            metavar="T",
            help=f"Types of the KV cache, keys and values: {', '.join(KV_TYPES)}.  [default: f16]",
            show_default=False,
        ),
    ] = None
    cache_type_v: Annotated[
        list[str] | None,
        Option("--cache-type-v", "-ctv", metavar="T", help="The same as -ctk.", show_default=False),
    ] = None
    threads: Annotated[
        list[str] | None,
        Option(
            "--threads",
            "-t",
            metavar="N",
            help="Compute threads, at most one per processor.  [default: one per usable performance core]",
            show_default=False,
        ),
    ] = None
    flash_attn: Annotated[
        list[str] | None,
        Option(
            "--flash-attn",
            "-fa",
            metavar="on|auto",
            help="Attention is always of the flash kind; off is refused.",
            show_default=False,
        ),
    ] = None
    mmap: Annotated[
        list[str] | None,
        Option("--mmap", "-mmp", metavar="0|1", help="Map the file, or read it.  [default: 1]", show_default=False),
    ] = None
    n_gpu_layers: Annotated[
        list[str] | None,
        Option(
            "--n-gpu-layers",
            "-ngl",
            metavar="0",
            help="Anything but 0 is refused: there is no GPU code.",
            show_default=False,
        ),
    ] = None
    npl: Annotated[
        list[str] | None,
        Option(
            "-npl",
            metavar="N",
            help="Sequences decoded together, as llama-batched-bench does, in turn; without -p, -n or -pg only that.",
            show_default=False,
        ),
    ] = None
    npp: Annotated[
        list[str] | None,
        Option(
            "-npp", metavar="N", help="With -npl: prompt tokens of each sequence.  [default: 128]", show_default=False
        ),
    ] = None
    ntg: Annotated[
        list[str] | None,
        Option("-ntg", metavar="N", help="With -npl: tokens to decode, each.  [default: 128]", show_default=False),
    ] = None
    pps: Annotated[bool, Option("-pps", help="With -npl: the sequences share one prompt.")] = False
    repetitions: Annotated[
        int | None,
        Option(
            "--repetitions",
            "-r",
            min=1,
            max=1000,
            metavar="N",
            help="Times that each test is run.  [default: 5; with --vs 9]",
            show_default=False,
        ),
    ] = None
    delay: Annotated[
        float, Option("--delay", min=0, max=86400, metavar="S", help="Seconds to wait before each test.")
    ] = 0.0
    no_warmup: Annotated[bool, Option("--no-warmup", help="Do not run each test once before it counts.")] = False


class MachineOptions(Record, kw_only=True):
    """What is measured besides the tests, and what things cost."""

    no_roofline: Annotated[
        bool, Option("--no-roofline", help="Do not measure the machine's read bandwidth and int8 peak.")
    ] = False
    starts: Annotated[
        int,
        Option(
            "--starts", min=0, max=100, metavar="N", help="Time `llmrun run` of one token, the whole process, N times."
        ),
    ] = 0
    price_kwh: Annotated[
        float | None,
        Option(
            "--price-kwh",
            min=0,
            max=1e12,
            metavar="X",
            help="What a kilowatt-hour costs, in any currency.",
            show_default=False,
        ),
    ] = None
    hardware_cost: Annotated[
        float | None,
        Option(
            "--hardware-cost",
            min=0,
            max=1e12,
            metavar="X",
            help="What the machine costs, in the same.",
            show_default=False,
        ),
    ] = None
    lifetime: Annotated[
        float, Option("--lifetime", min=0.01, max=100, metavar="YEARS", help="How long the machine is used.")
    ] = 3.0


def measuring_options(tests: TestOptions, machine: MachineOptions) -> dict[str, object]:
    """Return options that only the plain measurement knows, by name: what they are set to, None where they are not."""
    return {
        "--delay": tests.delay or None, "--starts": machine.starts or None, "--price-kwh": machine.price_kwh,
        "--hardware-cost": machine.hardware_cost,
    }  # fmt: skip


class PeerOptions(Record, kw_only=True):
    """What it is compared with."""

    vs: Annotated[
        str | None,
        Option(
            "--vs",
            metavar="ENGINE",
            help="Run the same tests on another engine in turn and give ratios: llama-cpp (llama-cpp-python).",
            show_default=False,
        ),
    ] = None
    peer_python: Annotated[
        str | None,
        Option(
            "--peer-python",
            metavar="PROGRAM",
            help="The Python that has llama-cpp-python.  [default: this one]",
            show_default=False,
        ),
    ] = None


class DraftOptions(Record, kw_only=True):
    """What guessing ahead gains."""

    spec: Annotated[
        str | None,
        Option(
            "--spec",
            metavar="auto|draft|ngram",
            help="Instead: answer fixed prompts (code, edits, JSON, prose, chat, …) with and without guessing ahead.",
            show_default=False,
        ),
    ] = None
    draft: Annotated[
        str | None,
        Option(
            "--draft",
            "-md",
            "--model-draft",
            metavar="MODEL",
            help="With --spec: a small model or an EAGLE-3 head that guesses ahead.",
            show_default=False,
        ),
    ] = None
    kinds: Annotated[
        str | None,
        Option(
            "--kinds",
            metavar="LIST",
            help="With --spec: these kinds of prompts only, such as code,edit.",
            show_default=False,
        ),
    ] = None


class OutputOptions(Record, kw_only=True):
    """How it is written."""

    output: Annotated[
        str,
        Option("--output", "-o", metavar="FORM", help=f"Form of the rows on standard output: {', '.join(FORMATS)}."),
    ] = "md"
    output_err: Annotated[
        str | None,
        Option(
            "--output-err",
            "-oe",
            metavar="FORM",
            help="Form of the rows on standard error as well.",
            show_default=False,
        ),
    ] = None
    plot: Annotated[
        Path | None,
        Option("--plot", metavar="FILE", help="Also draw the rows: a .png or .svg file.", show_default=False),
    ] = None
    progress: Annotated[bool, Option("--progress", help="Say on standard error what is being run.")] = False


def one_of(text: str, allowed: tuple[str, ...], option: str) -> str:
    """Return ``text`` if it is allowed.

    Raises:
        UsageError: it is not.
    """
    if text not in allowed:
        raise UsageError(f"{text!r}: expected one of {', '.join(allowed)}", option)
    return text
