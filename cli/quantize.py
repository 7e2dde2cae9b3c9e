"""``llmrun quantize``: write a model with smaller weights."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..formats.errors import ConfigError
from ..formats.record import replace
from .checkpoint_source import open_source
from .declare import Argument, Option, UsageError
from .imports import import_numpy, start_collector
from .quantize_job import Job
from .quantize_report import print_estimate, print_notes, print_result
from .quantize_target import TargetPlans, check_report, target_of, write_within

if TYPE_CHECKING:
    from ..quant.checkpoint import Checkpoint
    from ..quant.file_types import FileType
    from ..quant.quantize_plan import QuantizeOptions
    from ..runtime.calibrated_plan import Calibration

TensorTypes = Annotated[
    list[str] | None,
    Option(
        "--tensor-type",
        metavar="REGEX=TYPE",
        help="Type for the tensors whose names the pattern is found in; may repeat, the first that matches counts.",
        show_default=False,
    ),
]


def quantize(
    paths_and_type: Annotated[
        list[str],
        Argument(
            metavar="IN [OUT] [TYPE]",
            help="A GGUF file, a Hugging Face folder, user/repo on the hub, or a name from `llmrun list`;"
            " the file to write, by default beside IN and named after TYPE; and a type such as Q4_K_M, Q8_0 or F16, or"
            " none with a target.",
            show_default=False,
        ),
    ],
    imatrix: Annotated[
        Path | None,
        Option(
            "--imatrix", metavar="FILE", help="Importance matrix, as `llama-imatrix` writes it.", show_default=False
        ),
    ] = None,
    tensor_type: TensorTypes = None,
    output_tensor_type: Annotated[
        str | None, Option("--output-tensor-type", metavar="TYPE", help="Of the output matrix.", show_default=False)
    ] = None,
    token_embedding_type: Annotated[
        str | None, Option("--token-embedding-type", metavar="TYPE", help="Of token embeddings.", show_default=False)
    ] = None,
    pure: Annotated[bool, Option("--pure", help="All matrices of one type, no mixture.")] = False,
    leave_output_tensor: Annotated[
        bool, Option("--leave-output-tensor", help="Keep the output matrix as it is.")
    ] = False,
    allow_requantize: Annotated[
        bool, Option("--allow-requantize", help="Quantise what was quantised before; loses more.")
    ] = False,
    allow_nan: Annotated[
        bool, Option("--allow-nan", help="Convert weights that are infinite or NaN instead of refusing them.")
    ] = False,
    tokenizer_pre: Annotated[
        str | None,
        Option(
            "--tokenizer-pre",
            metavar="NAME",
            help="Pre-tokenizer of a Hugging Face folder, where it is not recognised.",
            show_default=False,
        ),
    ] = None,
    keep_split: Annotated[
        bool, Option("--keep-split", help="As many files as the GGUF has that IN is the first of.")
    ] = False,
    target: Annotated[
        str | None,
        Option(
            "--target",
            metavar="SIZE",
            help="Instead of TYPE: the best file of this size, such as 0.9GB.",
            show_default=False,
        ),
    ] = None,
    target_bpw: Annotated[
        float | None, Option("--target-bpw", metavar="X", help="The same by bits a weight.", show_default=False)
    ] = None,
    target_kld: Annotated[
        float | None,
        Option(
            "--target-kld",
            metavar="X",
            help="The smallest file this near to IN (mean KL divergence, on the text of the quality card).",
            show_default=False,
        ),
    ] = None,
    target_tps: Annotated[
        float | None,
        Option("--target-tps", metavar="X", help="The best file that decodes this fast here.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        Option("--report", metavar="FILE", help="A page with what each size would cost (HTML).", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        Option(
            "--method",
            metavar="NAME",
            help="rtn: by the weights alone, or with --imatrix; imatrix, awq, gptq, awq+gptq: layer by layer, by what"
            " the model makes of a text; awq with --imatrix: by that alone, in seconds. Without: rtn, and with a target"
            " awq+gptq, or awq with --imatrix.",
            show_default=False,
        ),
    ] = None,
    calibration_text: Annotated[
        Path | None,
        Option(
            "--calibration-text",
            "-f",
            metavar="FILE",
            help="The text of these methods; without: the one that llmrun brings.",
            show_default=False,
        ),
    ] = None,
    chunks: Annotated[
        int,
        Option("--chunks", min=-1, metavar="N", help="Chunks of 512 tokens of it, evenly spread; -1: all."),
    ] = 24,
    quality: Annotated[
        bool | None,
        Option(
            "--quality/--no-quality",
            help="Measure the result beside IN, and keep the figures in its metadata (a quality card). Without either:"
            " done where a text is calibrated on.",
            show_default=False,
        ),
    ] = None,
    quality_text: Annotated[
        Path | None,
        Option(
            "--quality-text",
            metavar="FILE",
            help="The text that is measured on, which implies --quality; without: the one that llmrun brings.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Only show sizes, memory, and how fast the result may run here.")
    ] = False,
    force: Annotated[bool, Option("--force", help="Replace OUT if it is there.")] = False,
    threads: Annotated[
        int, Option("--threads", "-t", min=0, metavar="N", help="Threads; 0: one per usable performance core.")
    ] = 0,
) -> None:
    """Write IN as a GGUF file with weights of TYPE, which llama.cpp reads too.

    Types: F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S
    Q2_K Q2_K_S MXFP4 MXFP4_MOE; not those of llama-quantize below 2.6 bits nor its IQ3 (IQ1, IQ2, IQ3, TQ, Q1_0, Q2_0),
    which need tables or training. The types of single tensors follow llama-quantize's mixtures. OUT appears when it is
    complete, or not at all.
    """
    wanted = target_of(target, target_bpw, target_kld, target_tps)
    check_report(report, has_target=wanted is not None, is_forced=force)
    if quality_text is not None:
        if quality is False:
            raise UsageError("is for a quality card, which --no-quality leaves out", "--quality-text")
        quality = True
    source, out, type_name = _split(paths_and_type, has_target=wanted is not None)
    import_numpy()  # here: --help must not pay for it
    from ..quant.checkpoint import GgufCheckpoint
    from ..quant.file_types import ALIASES, MIXTURES, file_type
    from ..quant.quantize_plan import plan_quantization
    from ..runtime.threads import default_threads

    if wanted is not None and (out or "").upper() in (*MIXTURES, *ALIASES):
        raise UsageError(f"{out} is a type, which a target stands for; ./{out} would be a file", "IN [OUT]")
    mixture = file_type(type_name)
    method = method or ("rtn" if wanted is None else "awq" if imatrix else "awq+gptq")
    calibration = _calibration(
        method, calibration_text, chunks, has_imatrix=imatrix is not None, has_target=wanted is not None
    )
    options = _options(
        mixture, imatrix, tensor_type or [], (output_tensor_type, token_embedding_type),
        is_pure=pure, leaves_output=leave_output_tensor, allows_requantize=allow_requantize,
    )  # fmt: skip
    start_collector()
    start = time.perf_counter()
    n_thread = threads or default_threads()[0]
    checkpoint = open_source(source, wanted=mixture.default, pre=tokenizer_pre)
    if not isinstance(checkpoint, GgufCheckpoint):  # of a GPTQ or AWQ model: its integers
        options = replace(options, keeps_quantized=True)
    try:
        name = mixture.name if wanted is None else wanted.label
        path = Path(out).expanduser() if out else default_target(checkpoint.path, name)
        plan = plan_quantization(checkpoint, options)
        if dry_run and wanted is None:
            print_notes(plan.notes)
            print_estimate(plan, path, calibration)
            return
        n_part = max(t.shard for t in checkpoint.tensors) + 1 if keep_split else 1
        if n_part > 1 and (quality or (wanted is not None and wanted.is_measured)):
            raise ConfigError(f"{path}: a result that is measured is one file; leave out --keep-split")
        if not dry_run:
            _check_target(path, checkpoint, n_part, is_forced=force)
        is_read = calibration is not None or wanted is not None
        is_measured = is_read and n_part == 1 if quality is None else quality
        scales_channels = calibration is None and method == "awq"
        job = Job(path, n_thread, allow_nan, keep_split, calibration, scales_channels, is_measured, quality_text)
        if wanted is None:
            print_notes(plan.notes)
            written = job.write(plan)
        else:
            print_notes([note for note in plan.notes if "too narrow" not in note])
            plans = TargetPlans(plan, wanted, calibration_text, path.absolute().parent, n_thread)
            with plans.telling_what_is_kept():
                plan, written = write_within(plans, job, report, dry_run=dry_run)
            plans.forget()
            if dry_run:
                print_estimate(plan, path, calibration)
                return
    finally:
        checkpoint.close()
    print_result(plan, mixture.name if wanted is None else "mixed types", written, time.perf_counter() - start)


def _split(arguments: list[str], *, has_target: bool) -> tuple[str, str | None, str]:
    """Return IN, OUT and TYPE; with a target, the type of what is left to it."""
    if has_target:
        if len(arguments) > 2:
            raise UsageError(f"{len(arguments)} arguments, expected IN or IN OUT: a target stands for TYPE", "IN [OUT]")
        return arguments[0], arguments[1] if len(arguments) > 1 else None, "Q8_0"
    if len(arguments) == 2:
        return arguments[0], None, arguments[1]
    if len(arguments) == 3:
        return arguments[0], arguments[1], arguments[2]
    raise UsageError(f"{len(arguments)} arguments, expected IN TYPE or IN OUT TYPE", "IN [OUT] TYPE")


def _options(
    mixture: FileType,
    imatrix: Path | None,
    tensor_types: list[str],
    named_types: tuple[str | None, str | None],
    *,
    is_pure: bool,
    leaves_output: bool,
    allows_requantize: bool,
) -> QuantizeOptions:
    from ..quant.imatrix import Imatrix
    from ..quant.quantize_plan import QuantizeOptions, parse_override, weight_type

    output, embedding = (weight_type(name) if name else None for name in named_types)
    if output and leaves_output:
        raise ConfigError("--output-tensor-type and --leave-output-tensor exclude each other")
    return QuantizeOptions(
        mixture=mixture,
        overrides=[parse_override(text) for text in tensor_types],
        output_type=output,
        embedding_type=embedding,
        is_pure=is_pure,
        leaves_output=leaves_output,
        allows_requantize=allows_requantize,
        imatrix=Imatrix.load(imatrix) if imatrix else None,
    )


def default_target(source: Path, type_name: str) -> Path:
    """Return where the result goes when nothing is said: beside the source, the type at the end of its name."""
    from ..quant.file_types import ALIASES, MIXTURES

    stem = source.resolve().name if source.is_dir() else source.name.removesuffix(".gguf")
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    types = "|".join([*MIXTURES, *ALIASES])
    stem = re.sub(rf"[-._](?:{types})$", "", stem, flags=re.IGNORECASE) or stem
    return source.resolve().parent / f"{stem}-{type_name}.gguf"


def _calibration(
    method: str, file: Path | None, n_chunk: int, *, has_imatrix: bool, has_target: bool
) -> Calibration | None:
    """Return what a calibrated method needs; None for ``rtn``, and for ``awq`` by an importance matrix."""
    if method == "rtn" or (method == "awq" and has_imatrix):
        if file is not None and not has_target:
            raise UsageError("a text is for methods that measure: imatrix, awq, gptq, awq+gptq", "--calibration-text")
        return None
    if has_imatrix:
        raise UsageError(f"{method} measures what matters itself; for rtn and awq this can be given", "--imatrix")
    if n_chunk == 0:
        raise UsageError("0 chunks, expected at least 1, or -1 for all", "--chunks")
    from ..runtime.calibrated_plan import Calibration, check_method
    from ..runtime.texts import CALIBRATION, calibration_text
    from .text_input import read_text

    check_method(method)
    text = calibration_text() if file is None else read_text(file)
    name = CALIBRATION if file is None else file.name
    return Calibration(method, text, name, n_chunk=n_chunk if n_chunk > 0 else None)


def _check_target(target: Path, checkpoint: Checkpoint, n_part: int, *, is_forced: bool) -> None:
    """Refuse to overwrite.

    Raises:
        ConfigError: the target is there, or is the source, or no file.
    """
    from ..runtime.quantizer import split_path

    paths = [target] if n_part == 1 else [split_path(target, i, n_part) for i in range(n_part)]
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder, expected a file to write")
        if not path.exists():
            continue
        if checkpoint.path.exists() and path.samefile(checkpoint.path):
            raise ConfigError(f"{path}: is the file that is read, give another name for the result")
        if not is_forced:
            raise ConfigError(f"{path}: exists already; --force replaces it")
