"""Command-line options that several commands share, in groups named after what they set.

A command asks for a whole group with one parameter::

    @expand_options
    def run(model: Model, loading: LoadOptions, sampling: SamplingOptions) -> None: ...

and Typer sees the fields of the group as if they had been written in the signature. Names and
defaults are those of llama.cpp (``common/arg.cpp``); where it has several spellings, all work.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a name from `llmrun list`, or user/repo[:QUANT] on the Hugging Face hub.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is opened."""

    ctx_size: Annotated[
        int,
        typer.Option(
            "--ctx-size",
            "-c",
            "--ctx",
            min=0,
            metavar="N",
            help="Context in tokens; 0: the model's own, or what memory allows.",
        ),
    ] = 0
    threads: Annotated[
        int,
        typer.Option(
            "--threads", "-t", min=0, metavar="N", help="Compute threads; 0: one per usable performance core."
        ),
    ] = 0
    ubatch_size: Annotated[
        int, typer.Option("--ubatch-size", "-ub", min=1, metavar="N", help="Prompt tokens computed together.")
    ] = 512
    mmap: Annotated[
        bool,
        typer.Option("--mmap/--no-mmap", help="Map the file, or read it (for files that may change while in use)."),
    ] = True
    override_pre: Annotated[
        str | None,
        typer.Option(
            "--override-pre",
            metavar="NAME",
            help="Use this pre-tokenizer where the file names an unknown one.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen and when an answer ends."""

    predict: Annotated[
        int,
        typer.Option(
            "--predict",
            "-n",
            "--n-predict",
            "--max-tokens",
            min=-1,
            metavar="N",
            help="Stop after this many tokens; -1: at the end of the answer or of the context.",
        ),
    ] = -1
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            "-s",
            min=-1,
            max=2**63 - 1,
            metavar="N",
            help="The same seed gives the same text; -1: a random one, shown.",
        ),
    ] = -1
    temp: Annotated[
        float,
        typer.Option("--temp", "--temperature", min=0, metavar="X", help="Temperature; 0: always the likeliest token."),
    ] = 0.8
    top_k: Annotated[int, typer.Option("--top-k", min=0, metavar="N", help="Keep the N likeliest tokens; 0: all.")] = 40
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p", min=0, max=1, metavar="P", help="Keep the likeliest tokens up to this probability; 1: all."
        ),
    ] = 0.95
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", min=0, max=1, metavar="P", help="Drop tokens below this share of the likeliest one's; 0: none."
        ),
    ] = 0.05
    typical: Annotated[
        float,
        typer.Option("--typical", "--typical-p", min=0, max=1, metavar="P", help="Locally typical sampling; 1: off."),
    ] = 1.0
    top_nsigma: Annotated[
        float,
        typer.Option(
            "--top-nsigma",
            "--top-n-sigma",
            metavar="X",
            help="Keep logits within X deviations of the largest; negative: off.",
        ),
    ] = -1.0
    xtc_probability: Annotated[
        float,
        typer.Option(
            "--xtc-probability", min=0, max=1, metavar="P", help="Chance that XTC drops the top choices; 0: off."
        ),
    ] = 0.0
    xtc_threshold: Annotated[
        float,
        typer.Option(
            "--xtc-threshold", min=0, max=1, metavar="P", help="Probability above which a token is a top choice."
        ),
    ] = 0.1
    repeat_last_n: Annotated[
        int,
        typer.Option(
            "--repeat-last-n", min=-1, metavar="N", help="Tokens that the penalties look at; 0: none, -1: the context."
        ),
    ] = 64
    repeat_penalty: Annotated[
        float,
        typer.Option("--repeat-penalty", min=0, metavar="X", help="Divide the logits of repeated tokens; 1: off."),
    ] = 1.0
    presence_penalty: Annotated[
        float, typer.Option("--presence-penalty", metavar="X", help="Subtract once from every repeated token; 0: off.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, typer.Option("--frequency-penalty", metavar="X", help="Subtract once per repetition; 0: off.")
    ] = 0.0
    dry_multiplier: Annotated[
        float,
        typer.Option("--dry-multiplier", min=0, metavar="X", help="Strength of the DRY repetition penalty; 0: off."),
    ] = 0.0
    dry_base: Annotated[float, typer.Option("--dry-base", metavar="X", help="DRY: growth per repeated token.")] = 1.75
    dry_allowed_length: Annotated[
        int,
        typer.Option("--dry-allowed-length", min=0, metavar="N", help="DRY: repetitions up to this length are free."),
    ] = 2
    dry_penalty_last_n: Annotated[
        int,
        typer.Option(
            "--dry-penalty-last-n", min=-1, metavar="N", help="DRY: tokens to look at; 0: none, -1: the context."
        ),
    ] = 64
    dry_sequence_breaker: Annotated[
        list[str] | None,
        typer.Option(
            "--dry-sequence-breaker",
            metavar="TEXT",
            help=r"DRY: text that ends a repetition (may repeat; replaces \n : \" *); 'none': no breakers.",
            show_default=False,
        ),
    ] = None
    dynatemp_range: Annotated[
        float,
        typer.Option("--dynatemp-range", min=0, metavar="X", help="Let entropy move the temperature this far; 0: off."),
    ] = 0.0
    dynatemp_exp: Annotated[
        float, typer.Option("--dynatemp-exp", metavar="X", help="Exponent of the dynamic temperature.")
    ] = 1.0
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            "--logit-bias",
            "-l",
            metavar="ID(+|-)X",
            help="Add to a token's logit, such as 15043-1 (may repeat).",
            show_default=False,
        ),
    ] = None
    samplers: Annotated[
        str | None,
        typer.Option("--samplers", metavar="LIST", help="Samplers in order, separated by ';'.", show_default=False),
    ] = None
    sampler_seq: Annotated[
        str | None,
        typer.Option(
            "--sampler-seq",
            "--sampling-seq",
            metavar="LETTERS",
            help="The same, one letter each: edskypmxt.",
            show_default=False,
        ),
    ] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end of the answer.")] = False
    reverse_prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--reverse-prompt",
            "-r",
            "--stop",
            metavar="TEXT",
            help=r"Stop where this text appears; \n is a newline (may repeat).",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What the chat template is given besides the conversation."""

    system_prompt: Annotated[
        str | None, typer.Option("--system-prompt", "-sys", metavar="TEXT", help="System prompt.", show_default=False)
    ] = None
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            "--chat-template-kwargs",
            metavar="JSON",
            help="Variables for the chat template, such as '{\"enable_thinking\": false}'.",
            show_default=False,
        ),
    ] = None


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` with every option group in its signature replaced by the group's fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    members: dict[str, list[str]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        field_hints = get_type_hints(groups[name], include_extras=True)
        members[name] = [field.name for field in dataclasses.fields(groups[name])]
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field_hints[field.name]
            )
            for field in dataclasses.fields(groups[name])
        ]

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        built = {
            name: groups[name](**{field: values.pop(field) for field in fields}) for name, fields in members.items()
        }
        command(**values, **built)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {}
    return expanded
