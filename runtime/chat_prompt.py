"""From the messages of a chat to token ids, so that no message can forge a special token.

A chat template writes special tokens as text (``<|im_start|>``), so its output must be encoded with
special tokens recognised. The same text inside a message must stay text: whoever writes a message
could otherwise end the turn and begin one of the system's.

Where a message holds such text (nearly never), a guard character is put into it before rendering: the
tokenizer then finds no special token there, whatever the template did to the message. The guards are
taken out again before the text is encoded. Messages without such text are encoded exactly as llama.cpp
does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..formats.errors import ConfigError

if TYPE_CHECKING:
    from .chat_template import ChatTemplate
    from .tokenizer import Tokenizer

# Noncharacters, which no text should hold; one that occurs in no message is taken.
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
    guard, guarded = _guard_messages(tokenizer, messages)
    text = template.render(guarded, add_generation_prompt=add_generation_prompt, **kwargs)
    fragments: list[str | int] = []
    for fragment in tokenizer.partition(text, parse_special=True):
        if isinstance(fragment, str) and guard and guard in fragment:
            # Once more, for user-defined tokens that a guard may have hidden: those count in any text.
            fragments += tokenizer.partition(fragment.replace(guard, ""), parse_special=False)
        else:
            fragments.append(fragment)
    ids = tokenizer.encode_fragments(fragments, add_special=False)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]  # unless the template wrote it: llama.cpp never has two
    return ids


def _guard_messages(tokenizer: Tokenizer, messages: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return the guard ("" if none is needed) and the messages with it inside every forged special token."""
    contents = [message["content"] for message in messages if isinstance(message.get("content"), str)]
    together = "\n".join(contents)
    # One character cannot be guarded; no template marks a turn with one.
    forged = sorted(text for text in tokenizer.control_texts if len(text) > 1 and text in together)
    if not forged:
        return "", list(messages)
    guard = next((char for char in _GUARDS if char not in together), None)
    if guard is None:
        raise ConfigError("a message holds text that cannot be told from a special token")
    # The rest is only looked at, so that special tokens that overlap are all found.
    inside = re.compile("|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in forged))
    return guard, [
        {**message, "content": inside.sub(lambda match: match.group() + guard, message["content"])}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]
