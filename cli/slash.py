"""The slash commands of a chat: one function each, and the table that ``/help`` shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..formats.errors import ConfigError
from ..formats.record import Record, replace
from .chat_loop import Chat, Leave
from .conversation import Conversation
from .render.text import count, size
from .text_input import unescape

# Names of llama.cpp's flags for settings that have another name inside.
_ALIASES = {
    "temp": "temperature",
    "typical": "typical_p",
    "top_nsigma": "top_n_sigma",
    "dynatemp_exp": "dynatemp_exponent",
    "dry_sequence_breaker": "dry_sequence_breakers",
    "n": "predict",
    "n_predict": "predict",
    "max_tokens": "predict",
    "reverse_prompt": "stop",
}
_LARGEST_SEED = 2**63 - 1


class SlashCommand(Record):
    """One command: what it does, and how it is written."""

    carry_out: Callable[[Chat, str], None]
    arguments: str
    help: str


def carry_out(chat: Chat, line: str) -> None:
    """Carry out a line that begins with a slash.

    Raises:
        Leave: it was ``/bye``.
        LlmrunError: there is no such command, or it cannot be done.
    """
    name, _, argument = line[1:].strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f"there is no command /{name}. /help lists them; a space in front sends the line as text")
    command.carry_out(chat, argument.strip())


def _help(chat: Chat, argument: str) -> None:  # noqa: ARG001
    rows = [(f"/{name} {command.arguments}".rstrip(), command.help) for name, command in COMMANDS.items()]
    keys = [
        ("Enter", "send; after a final \\, or inside triple quotes, begin a new line"),
        ("Ctrl-C", "stop the answer and keep what is there; twice: leave"),
        ("Ctrl-D", "leave"),
    ]
    chat.screen.rows([*rows, *keys])


def _system(chat: Chat, argument: str) -> None:
    if not argument:
        chat.screen.notice(f"system prompt: {_system_prompt(chat)}")
        return
    if chat.engine.template is None:
        raise ConfigError("this model has no chat template, so it takes no system prompt")
    chat.conversation.system = None if argument == "-" else argument
    chat.screen.notice(
        "system prompt removed" if argument == "-" else "system prompt set; it counts from the next turn on"
    )


def _system_prompt(chat: Chat) -> str:
    nothing = "(the template decides)" if chat.engine.template is not None else "(none: no chat template)"
    return chat.conversation.system or nothing


def _regen(chat: Chat, argument: str) -> None:  # noqa: ARG001
    chat.regenerate()


def _undo(chat: Chat, argument: str) -> None:  # noqa: ARG001
    if not chat.conversation.undo():
        raise ConfigError("there is no turn to drop")
    chat.screen.notice(f"dropped the last turn; {_turns(chat.conversation)} left")


def _clear(chat: Chat, argument: str) -> None:  # noqa: ARG001
    chat.restart()
    chat.screen.notice("the conversation is empty")


def _set(chat: Chat, argument: str) -> None:
    if not argument:
        chat.screen.rows(_setting_rows(chat))
        return
    name, _, value = argument.partition(" ")
    name = name.lstrip("-").replace("-", "_")
    name, value = _ALIASES.get(name, name), value.strip()
    if not value:
        raise ConfigError(f"/set {name}: expected a value")
    params = chat.settings.params
    known = [row[0] for row in _setting_rows(chat)]
    if name not in known:
        raise ConfigError(f"/set {name}: no such setting, expected one of {', '.join(known)}")
    if name == "seed":
        chat.settings.params = replace(params, seed=_whole_number(name, value, 0, _LARGEST_SEED))
    elif name == "predict":
        limit = _whole_number(name, value, -1, _LARGEST_SEED)
        chat.settings.params = replace(params, max_tokens=None if limit < 0 else limit)
    elif name == "stop":
        chat.settings.params = replace(params, stop=() if value == "none" else (unescape(value),))
    else:
        from ..runtime.sampling.settings import SamplerSettings

        sampler = {**chat.settings.sampler, name: value}
        chat.settings.params = replace(params, sampler=SamplerSettings.from_options(sampler))
        chat.settings.sampler = sampler
    chat.screen.notice(f"{name} is {value}")


def _show(chat: Chat, argument: str) -> None:
    info, engine = chat.engine.info, chat.engine
    sections: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "model": lambda: [
            ("model", info.name),
            ("file", str(info.path)),
            ("architecture", info.architecture),
            ("weights", f"{info.quant}, {count(info.n_params)} parameters"),
            ("size", f"{size(info.file_bytes)} in the file, {size(info.packed_bytes)} in memory"),
            ("context", f"{engine.n_ctx} tokens (the model was trained on {info.n_ctx_train})"),
            ("computes with", f"{engine.n_threads} threads, {engine.isa}"),
        ],
        "settings": lambda: _setting_rows(chat),
        "system": lambda: [("system", _system_prompt(chat))],
        "template": lambda: [("template", engine.template.source if engine.template is not None else "(none)")],
        "history": lambda: [(turn["role"], turn["content"]) for turn in chat.conversation.messages()],
    }
    if argument and argument not in sections:
        raise ConfigError(f"/show {argument}: expected one of {', '.join(sections)}")
    names = [argument] if argument else ["model", "settings", "system"]
    chat.screen.rows([row for name in names for row in sections[name]()])


def _save(chat: Chat, argument: str) -> None:
    if not argument:
        raise ConfigError("/save: expected a file name")
    path = Path(argument).expanduser()
    settings = dict(_setting_rows(chat))
    chat.conversation.save(path, model=chat.engine.info.name, settings=settings)
    chat.screen.notice(f"saved {_turns(chat.conversation)} to {path}")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise ConfigError("/load: expected a file name")
    conversation = Conversation.load(Path(argument).expanduser())
    if conversation.system is not None and chat.engine.template is None:
        raise ConfigError(f"{argument}: has a system prompt, but this model has no chat template")
    chat.restart()
    chat.conversation = conversation
    chat.screen.notice(f"loaded {_turns(conversation)}")


def _bye(chat: Chat, argument: str) -> None:  # noqa: ARG001
    raise Leave


def _turns(conversation: Conversation) -> str:
    n_turn = len(conversation.turns) // 2
    return f"{n_turn} turn" if n_turn == 1 else f"{n_turn} turns"


def _setting_rows(chat: Chat) -> list[tuple[str, str]]:
    params = chat.settings.params
    sampler = [(name, _written(getattr(params.sampler, name))) for name in chat.settings.sampler]
    predict = "-1" if params.max_tokens is None else str(params.max_tokens)
    return [("seed", str(params.seed)), ("predict", predict), ("stop", _written(params.stop)), *sampler]


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return (
            "; ".join(repr(item) if isinstance(item, str) and not item.isidentifier() else str(item) for item in value)
            or "none"
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def _whole_number(name: str, value: str, low: int, high: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise ConfigError(f"/set {name}: expected a whole number from {low} to {high}, got {value!r}")
    return number


COMMANDS = {
    "help": SlashCommand(_help, "", "show this list"),
    "system": SlashCommand(_system, "[TEXT|-]", "show, set or (-) remove the system prompt"),
    "regen": SlashCommand(_regen, "", "answer the last question again, differently"),
    "undo": SlashCommand(_undo, "", "drop the last question and its answer"),
    "clear": SlashCommand(_clear, "", "drop the whole conversation"),
    "set": SlashCommand(_set, "[NAME VALUE]", "show the settings or change one, such as /set temp 0.2"),
    "show": SlashCommand(_show, "[WHAT]", "show model, settings, system, template or history"),
    "save": SlashCommand(_save, "FILE", "write the conversation to a file"),
    "load": SlashCommand(_load, "FILE", "go on with a conversation from a file"),
    "bye": SlashCommand(_bye, "", "leave"),
}
