"""Command-line options that several commands share, in groups named after what they set.

A command asks for a whole group with one parameter::

    def run(model: Model, loading: LoadOptions, sampling: SamplingOptions) -> None: ...

and its fields become options as if they had been written in the signature. Names and
defaults are those of llama.cpp (``common/arg.cpp``); where it has several spellings, all work.
"""

from __future__ import annotations

from typing import Annotated

from ..formats.record import Record
from ..runtime.kernels.layout import KV_TYPES
from .declare import Argument, Option

Model = Annotated[
    str,
    Argument(
        metavar="MODEL",
        help="A GGUF file, a name from `llmrun list`, or user/repo[:QUANT] on the Hugging Face hub.",
        show_default=False,
    ),
]

Threads = Annotated[
    int,
    Option(
        "--threads",
        "-t",
        min=0,
        metavar="N",
        help="Compute threads, at most one per processor; 0: one per usable performance core.",
    ),
]


class LoadOptions(Record, kw_only=True):
    """How a model is opened."""

    ctx_size: Annotated[
        int,
        Option(
            "--ctx-size",
            "-c",
            "--ctx",
            min=0,
            metavar="N",
            help="Context in tokens; 0: the model's own, or what memory allows.",
        ),
    ] = 0
    threads: Threads = 0
    ubatch_size: Annotated[
        int, Option("--ubatch-size", "-ub", min=1, metavar="N", help="Prompt tokens computed together.")
    ] = 512
    mmap: Annotated[
        bool,
        Option("--mmap/--no-mmap", help="Map the file, or read it (for files that may change while in use)."),
    ] = True
    cache_type_k: Annotated[
        str | None,
        Option(
            "--cache-type-k",
            "-ctk",
            metavar="|".join(KV_TYPES),
            help="How keys and values are kept, both in one type; q8_0 takes about half the memory.  [default: f16]",
            show_default=False,
        ),
    ] = None
    cache_type_v: Annotated[
        str | None,
        Option("--cache-type-v", "-ctv", metavar="|".join(KV_TYPES), help="The same as -ctk.", show_default=False),
    ] = None
    override_pre: Annotated[
        str | None,
        Option(
            "--override-pre",
            metavar="NAME",
            help="Use this pre-tokenizer where the file names an unknown one.",
            show_default=False,
        ),
    ] = None


class SamplingOptions(Record, kw_only=True):
    """How the next token is chosen and when an answer ends."""

    predict: Annotated[
        int,
        Option(
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
        Option(
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
        Option("--temp", "--temperature", min=0, metavar="X", help="Temperature; 0: always the likeliest token."),
    ] = 0.8
    top_k: Annotated[int, Option("--top-k", min=0, metavar="N", help="Keep the N likeliest tokens; 0: all.")] = 40
    top_p: Annotated[
        float,
        Option("--top-p", min=0, max=1, metavar="P", help="Keep the likeliest tokens up to this probability; 1: all."),
    ] = 0.95
    min_p: Annotated[
        float,
        Option(
            "--min-p", min=0, max=1, metavar="P", help="Drop tokens below this share of the likeliest one's; 0: none."
        ),
    ] = 0.05
    typical: Annotated[
        float,
        Option("--typical", "--typical-p", min=0, max=1, metavar="P", help="Locally typical sampling; 1: off."),
    ] = 1.0
    top_nsigma: Annotated[
        float,
        Option(
            "--top-nsigma",
            "--top-n-sigma",
            metavar="X",
            help="Keep logits within X deviations of the largest; negative: off.",
        ),
    ] = -1.0
    xtc_probability: Annotated[
        float,
        Option("--xtc-probability", min=0, max=1, metavar="P", help="Chance that XTC drops the top choices; 0: off."),
    ] = 0.0
    xtc_threshold: Annotated[
        float,
        Option("--xtc-threshold", min=0, max=1, metavar="P", help="Probability above which a token is a top choice."),
    ] = 0.1
    repeat_last_n: Annotated[
        int,
        Option(
            "--repeat-last-n", min=-1, metavar="N", help="Tokens that the penalties look at; 0: none, -1: the context."
        ),
    ] = 64
    repeat_penalty: Annotated[
        float,
        Option("--repeat-penalty", min=0, metavar="X", help="Divide the logits of repeated tokens; 1: off."),
    ] = 1.0
    presence_penalty: Annotated[
        float, Option("--presence-penalty", metavar="X", help="Subtract once from every repeated token; 0: off.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Option("--frequency-penalty", metavar="X", help="Subtract once per repetition; 0: off.")
    ] = 0.0
    dry_multiplier: Annotated[
        float,
        Option("--dry-multiplier", min=0, metavar="X", help="Strength of the DRY repetition penalty; 0: off."),
    ] = 0.0
    dry_base: Annotated[float, Option("--dry-base", metavar="X", help="DRY: growth per repeated token.")] = 1.75
    dry_allowed_length: Annotated[
        int,
        Option("--dry-allowed-length", min=0, metavar="N", help="DRY: repetitions up to this length are free."),
    ] = 2
    dry_penalty_last_n: Annotated[
        int,
        Option("--dry-penalty-last-n", min=-1, metavar="N", help="DRY: tokens to look at; 0: none, -1: the context."),
    ] = 64
    dry_sequence_breaker: Annotated[
        list[str] | None,
        Option(
            "--dry-sequence-breaker",
            metavar="TEXT",
            help=r"DRY: text that ends a repetition (may repeat; replaces \n : \" *); 'none': no breakers.",
            show_default=False,
        ),
    ] = None
    dynatemp_range: Annotated[
        float,
        Option("--dynatemp-range", min=0, metavar="X", help="Let entropy move the temperature this far; 0: off."),
    ] = 0.0
    dynatemp_exp: Annotated[
        float, Option("--dynatemp-exp", metavar="X", help="Exponent of the dynamic temperature.")
    ] = 1.0
    logit_bias: Annotated[
        list[str] | None,
        Option(
            "--logit-bias",
            "-l",
            metavar="ID(+|-)X",
            help="Add to a token's logit, such as 15043-1 (may repeat).",
            show_default=False,
        ),
    ] = None
    samplers: Annotated[
        str | None,
        Option("--samplers", metavar="LIST", help="Samplers in order, separated by ';'.", show_default=False),
    ] = None
    sampler_seq: Annotated[
        str | None,
        Option(
            "--sampler-seq",
            "--sampling-seq",
            metavar="LETTERS",
            help="The same, one letter each: edskypmxt.",
            show_default=False,
        ),
    ] = None
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Go on after the end of the answer.")] = False
    reverse_prompt: Annotated[
        list[str] | None,
        Option(
            "--reverse-prompt",
            "-r",
            "--stop",
            metavar="TEXT",
            help=r"Stop where this text appears; \n is a newline (may repeat).",
            show_default=False,
        ),
    ] = None


class SpeculationOptions(Record, kw_only=True):
    """How several tokens may be computed at once. None of it changes the text."""

    draft: Annotated[
        str | None,
        Option(
            "--draft",
            "-md",
            "--model-draft",
            metavar="MODEL",
            help="A small model, or an EAGLE-3 head of this one, that guesses ahead; the text stays the same.",
            show_default=False,
        ),
    ] = None
    draft_max: Annotated[
        int,
        Option(
            "--draft-max",
            "--draft-n",
            min=0,
            max=64,
            metavar="N",
            help="Guess at most N tokens ahead; 0: none.",
        ),
    ] = 15
    draft_min: Annotated[
        int, Option("--draft-min", min=0, max=64, metavar="N", help="Leave shorter guesses aside.")
    ] = 0
    spec: Annotated[
        str,
        Option(
            "--spec",
            metavar="auto|off|draft|ngram",
            help="What guesses ahead: whatever pays, nothing, the draft model alone, or copies of the text alone.",
        ),
    ] = "auto"
    verify_lossless: Annotated[
        bool,
        Option(
            "--verify-lossless", help="Generate again without guessing ahead and compare; a difference is an error."
        ),
    ] = False


class PromptOptions(Record, kw_only=True):
    """What the chat template is given besides the conversation."""

    system_prompt: Annotated[
        str | None, Option("--system-prompt", "-sys", metavar="TEXT", help="System prompt.", show_default=False)
    ] = None
    chat_template_kwargs: Annotated[
        str | None,
        Option(
            "--chat-template-kwargs",
            metavar="JSON",
            help="Variables for the chat template, such as '{\"enable_thinking\": false}'.",
            show_default=False,
        ),
    ] = None
