"""Where every command is: its module and function, by the words that call it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

COMMANDS = {
    "chat": ("chat", "chat"),
    "run": ("run", "run"),
    "inspect": ("inspect", "inspect"),
    "tokenize": ("tokenize", "tokenize"),
    "detokenize": ("tokenize", "detokenize"),
    "pull": ("pull", "pull"),
    "list": ("pull", "list_models"),
    "rm": ("pull", "remove"),
    "doctor": ("doctor", "doctor"),
    "draft": ("draft", "draft"),
    "quantize": ("quantize", "quantize"),
    "bench": ("bench.command", "bench"),
    "bench compare": ("bench.compare", "compare"),
    "eval perplexity": ("eval", "perplexity"),
    "eval kld": ("eval_kld", "kld"),
    "eval compare": ("eval_compare", "compare"),
    "imatrix": ("imatrix", "imatrix"),
}


def load_command(words: str) -> Callable[..., None]:
    """Return the function of a command, importing no other command's module."""
    module, function = COMMANDS[words]
    command: Callable[..., None] = getattr(import_module(f".{module}", __package__), function)
    return command
