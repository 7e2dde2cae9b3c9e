"""From the messages of a chat to token ids, so that no message can forge a special token.

A chat template writes special tokens as text (``<|im_start|>``), so its output must be encoded with
special tokens recognised. The same text inside a message must stay text: whoever writes a message
could otherwise end the turn and begin one of the system's.

Where a message holds such text (nearly never), a guard character is put into it before rendering, so
that it is found again behind whatever the template did to the message, and the stretch of text around
it is encoded with special tokens off. Messages without such text are encoded exactly as llama.cpp does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..formats.errors import ConfigError

if TYPE_CHECKING:
    from .chat_template import ChatTemplate
    from .tokenizer import Tokenizer

# Noncharacters: never assigned, never in a vocabulary; one that occurs in no message is taken.
_GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **kwargs: Any,
) -> list[int]:
    """Return the prompt's token ids, with one BOS in front where the vocabulary asks for it.

    Args:
        template: the model's chat template.
        tokenizer: the model's tokenizer.
        messages: dictionaries with "role" and "content".
        add_generation_prompt: end with the opening of the assistant's turn.
        kwargs: further variables for the template.

    Raises:
        ConfigError: a message cannot be written without a special token.
        FormatError: the template fails; its own ``raise_exception`` message is in the line.
    """
    contents = [message["content"] for message in messages if isinstance(message.get("content"), str)]
    forged = set().union(*(special_texts(tokenizer, text) for text in set(contents)))
    if not forged:
        text = template.render(list(messages), add_generation_prompt=add_generation_prompt, **kwargs)
        return _with_bos(tokenizer, tokenizer.encode(text, add_special=False, parse_special=True))
    guard = next((char for char in _GUARDS if not any(char in text for text in contents)), None)
    if guard is None or any(len(text) < 2 for text in forged):
        raise ConfigError("a message holds text that cannot be told from a special token")
    inside = re.compile("|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in _longest_first(forged)))
    guarded = [
        {**message, "content": inside.sub(lambda match: match.group() + guard, message["content"])}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]
    text = template.render(guarded, add_generation_prompt=add_generation_prompt, **kwargs)
    return _with_bos(tokenizer, _encode_guarded(tokenizer, text, guard))


def special_texts(tokenizer: Tokenizer, text: str) -> set[str]:
    """Return the special tokens that ``text`` would be read as holding if nobody took care."""
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    if ids == tokenizer.encode(text, add_special=False, parse_special=False):
        return set()
    pieces = {tokenizer.piece(token_id, special=True) for token_id in set(ids) if not tokenizer.piece(token_id)}
    return {piece.decode("utf-8") for piece in pieces if piece}


def _encode_guarded(tokenizer: Tokenizer, text: str, guard: str) -> list[int]:
    real = special_texts(tokenizer, text)  # a guarded one is not recognised here
    parts = re.split("(" + "|".join(map(re.escape, _longest_first(real))) + ")", text) if real else [text]
    ids: list[int] = []
    trusted = ""  # parts waiting to be encoded together
    for i, part in enumerate(parts):
        is_special = i % 2 == 1
        if guard not in part or is_special:
            trusted += part
            continue
        ids += tokenizer.encode(trusted, add_special=False, parse_special=True) if trusted else []
        ids += tokenizer.encode(part.replace(guard, ""), add_special=False, parse_special=False)
        trusted = ""
    return ids + (tokenizer.encode(trusted, add_special=False, parse_special=True) if trusted else [])


def _longest_first(texts: set[str]) -> list[str]:
    return sorted(texts, key=lambda text: (-len(text), text))


def _with_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Put BOS in front unless the template already wrote it (llama.cpp: never two)."""
    if not tokenizer.add_bos or tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id]:
        return ids
    return [tokenizer.bos_id, *ids]
