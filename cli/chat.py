"""``llmrun chat``: talk to a model in the terminal, or answer the lines of a pipe."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .catalogue import DEFAULT_MODEL
from .chat_loop import RAW_MAX_TOKENS, Chat, ChatSettings, Leave
from .declare import Argument, Option
from .generation import (
    check_speculation,
    check_template_options,
    choose_seed,
    generation_params,
    open_engine,
    parse_template_kwargs,
    sampler_options,
)
from .model_ref import resolve
from .options import LoadOptions, PromptOptions, SamplingOptions, SpeculationOptions
from .render.chat_screen import PlainScreen, TerminalScreen
from .render.text import count, size
from .text_input import argument_text, choose_text

if TYPE_CHECKING:
    from ..runtime.engine import Engine


def chat(
    loading: LoadOptions,
    sampling: SamplingOptions,
    prompting: PromptOptions,
    speculation: SpeculationOptions,
    model: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="A GGUF file, a name from `llmrun list`, or user/repo[:QUANT] on the Hugging Face hub.",
        ),
    ] = DEFAULT_MODEL,
    prompt: Annotated[
        str | None, Option("--prompt", "-p", metavar="TEXT", help="The first turn.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        Option("--file", "-f", metavar="FILE", help="Read the first turn from a file.", show_default=False),
    ] = None,
) -> None:
    """Talk to a model.

    In a terminal: /help lists the commands, Ctrl-C stops an answer and keeps it, Ctrl-D leaves.
    From a pipe: each line is a turn, the answers go to standard output, and it ends with the input.
    """
    check_speculation(speculation)
    kwargs = parse_template_kwargs(prompting.chat_template_kwargs)
    system = prompting.system_prompt
    if system is not None:
        system = argument_text(system, "--system-prompt")
    first = choose_text(prompt, file, where="-p/--prompt") if prompt is not None or file is not None else None
    path = resolve(model)
    draft = None if speculation.draft is None else resolve(speculation.draft)
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    seed = choose_seed(sampling.seed)
    params = generation_params(sampling, seed=seed, speculation=speculation)
    with _open(path, loading, draft, is_interactive=is_interactive) as engine:
        if engine.template is None:
            check_template_options(prompting)
        if engine.template is None and params.max_tokens is None and not params.ignore_eos:
            params = generation_params(sampling, seed=seed, max_tokens=RAW_MAX_TOKENS, speculation=speculation)
        screen = TerminalScreen() if is_interactive else PlainScreen()
        remarks = _remarks(engine, seed, params.max_tokens)
        if isinstance(screen, TerminalScreen):
            screen.header(
                engine.info.name, [*_description(engine), *remarks, "/help lists the commands, Ctrl-D leaves"]
            )
        else:
            for remark in remarks:
                screen.notice(remark)
        talk = Chat(
            engine,
            screen,
            ChatSettings(sampler_options(sampling), params),
            system=system,
            template_kwargs=kwargs,
            stops_at_interrupt=is_interactive,
            verifies_lossless=speculation.verify_lossless,
        )
        try:
            if first is not None:
                talk.take(first)
            if is_interactive:
                _talk_in_terminal(talk, screen)
            else:
                _answer_pipe(talk)
        except Leave:
            pass
    if talk.has_changed_text or (talk.n_errors and not is_interactive):
        raise SystemExit(1)


def _open(path: Path, loading: LoadOptions, draft: Path | None, *, is_interactive: bool) -> Engine:
    from .line_input import without_echo

    with without_echo() if is_interactive else nullcontext():
        return open_engine(path, loading, draft=draft)


def _talk_in_terminal(talk: Chat, screen: PlainScreen | TerminalScreen) -> None:
    from .line_input import terminal_reader, without_echo

    read = terminal_reader(screen.notice)
    is_second = False  # Ctrl-C; one that comes just after the end of an answer must not lose the conversation
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if is_second:
                raise
            is_second = True
            screen.notice("Ctrl-C again or Ctrl-D leaves")
            continue
        with without_echo():
            talk.take(line)
        is_second = talk.was_stopped


def _answer_pipe(talk: Chat) -> None:
    from .line_input import piped_lines

    for line in piped_lines():
        talk.take(line)


def _description(engine: Engine) -> list[str]:
    info = engine.info
    return [
        f"{info.architecture} · {info.quant} · {count(info.n_params)} parameters · "
        f"{size(info.file_bytes)} in the file, {size(info.packed_bytes)} in memory",
        f"context {engine.n_ctx} tokens · {engine.n_threads} threads · {engine.isa}",
        *([info.quality] if info.quality else []),
    ]


def _remarks(engine: Engine, seed: int, max_tokens: int | None) -> list[str]:
    remarks = list(engine.notices)
    if engine.template is None:
        limit = f", at most {max_tokens} tokens a turn (-n)" if max_tokens is not None else ""
        remarks.append(f"no chat template: this model continues your text{limit}")
    return [*remarks, f"seed {seed}"]
