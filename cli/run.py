"""``llmrun run``: one answer on standard output, and nothing else there."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..formats.errors import ConfigError
from .declare import Option, UsageError
from .generation import (
    check_lossless,
    check_speculation,
    check_template_options,
    choose_seed,
    generate,
    generation_params,
    open_engine,
    parse_template_kwargs,
    speculation_numbers,
    stats_line,
    timings,
)
from .model_ref import resolve
from .options import LoadOptions, Model, PromptOptions, SamplingOptions, SpeculationOptions
from .render.text import escaped, printable, styled
from .text_input import argument_text, choose_text

if TYPE_CHECKING:
    from ..runtime.engine import Engine, GeneratedToken, GenerationStats

MAX_LOGPROBS = 1000


def run(
    model: Model,
    loading: LoadOptions,
    sampling: SamplingOptions,
    prompting: PromptOptions,
    speculation: SpeculationOptions,
    prompt: Annotated[
        str | None,
        Option("--prompt", "-p", metavar="TEXT", help="The prompt; '-' or a pipe: standard input.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        Option("--file", "-f", metavar="FILE", help="Read the prompt from a file.", show_default=False),
    ] = None,
    raw: Annotated[bool, Option("--raw", help="Continue the prompt as it is, without the chat template.")] = False,
    parse_special: Annotated[
        bool, Option("--parse-special", help="With --raw: text such as <|im_end|> means the special token.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of the text.")] = False,
    logprobs: Annotated[
        int,
        Option(
            "--logprobs", min=0, max=MAX_LOGPROBS, metavar="K", help="With --json: the K likeliest tokens at each step."
        ),
    ] = 0,
) -> None:
    """Answer one prompt.

    The answer goes to standard output, everything else to standard error. The chat template of the
    model is used where it has one; --raw continues the text instead.
    """
    if logprobs and not as_json:
        raise UsageError("needs --json", hint="--logprobs")
    if parse_special and not raw:
        raise UsageError("needs --raw: the text of a chat turn never holds special tokens", hint="--parse-special")
    check_speculation(speculation)
    kwargs = parse_template_kwargs(prompting.chat_template_kwargs)
    text = choose_text(prompt, file, where="-p/--prompt")
    path = resolve(model)
    draft = None if speculation.draft is None else resolve(speculation.draft)
    seed = choose_seed(sampling.seed)
    params = generation_params(sampling, seed=seed, n_logprobs=logprobs, speculation=speculation)
    with open_engine(path, loading, draft=draft) as engine:
        notices = list(engine.notices)
        if raw or engine.template is None:
            if not raw:
                notices.append("the model has no chat template: the prompt is continued as it is (--raw)")
            check_template_options(prompting)
            ids = engine.tokenizer.encode(text, parse_special=parse_special)
        else:
            ids = _chat_ids(engine, text, prompting.system_prompt, kwargs)
        if not ids:
            raise ConfigError("the prompt is empty")
        if sampling.seed < 0 and not as_json:
            notices.append(f"seed {seed}")
        session = engine.session()
        try:
            tokens = _print_tokens(generate(session, ids, params), notices, silent=as_json)
        except KeyboardInterrupt:
            _end_line(as_json)
            raise
        stats = session.stats
        if as_json:
            if speculation.verify_lossless:
                check_lossless(session, ids, params, tokens)
            _print_json(engine, tokens, seed, stats, with_logprobs=logprobs > 0)
        else:
            _end_line(as_json)
            if stats.finish_reason == "length" and params.max_tokens is None:
                _remark(f"stopped: the context of {engine.n_ctx} tokens is full")
            line = stats_line(stats, n_used=len(session.tokens), n_ctx=engine.n_ctx)
            _remark(line)
            if speculation.verify_lossless:
                plain = check_lossless(session, ids, params, tokens)
                _remark(f"the same {plain.n_generated} tokens without speculation, {plain.decode_tps:.1f} tok/s")


def _chat_ids(engine: Engine, text: str, system_prompt: str | None, kwargs: dict[str, Any]) -> list[int]:
    assert engine.template is not None
    messages = [{"role": "user", "content": text}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": argument_text(system_prompt, "--system-prompt")})
    return engine.template.encode(messages, **kwargs)


def _print_tokens(tokens: Iterator[GeneratedToken], notices: list[str], *, silent: bool) -> list[GeneratedToken]:
    """Print tokens as they come, and the notices when the first one is there: what goes wrong before is one line."""
    on_terminal = sys.stdout.isatty()
    seen: list[GeneratedToken] = []
    first = next(tokens, None)
    for notice in notices:
        _remark(notice)
    for token in tokens if first is None else chain((first,), tokens):
        seen.append(token)
        if not silent and token.text:
            sys.stdout.write(printable(token.text) if on_terminal else token.text)
            sys.stdout.flush()
    return seen


def _remark(text: str) -> None:
    print(styled(escaped(text), "dim", sys.stderr), file=sys.stderr)


def _end_line(silent: bool) -> None:
    if not silent:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _print_json(
    engine: Engine,
    tokens: list[GeneratedToken],
    seed: int,
    stats: GenerationStats,
    *,
    with_logprobs: bool,
) -> None:
    report: dict[str, Any] = {
        "text": "".join(token.text for token in tokens),
        "token_ids": [token.token_id for token in tokens if token.token_id >= 0],  # -1: text that was held back
        "finish_reason": stats.finish_reason,
        "seed": seed,
        "model": engine.info.path.name,
        "timings": timings(stats),
        "speculation": speculation_numbers(stats),
    }
    if with_logprobs:
        report["logprobs"] = [
            [
                # JSON has no infinity: null stands for a token that cannot be chosen.
                {"token_id": token_id, "logprob": logprob if math.isfinite(logprob) else None}
                for token_id, logprob in token.logprobs or ()
            ]
            for token in tokens
            if token.token_id >= 0
        ]
    print(json.dumps(report, ensure_ascii=False))
