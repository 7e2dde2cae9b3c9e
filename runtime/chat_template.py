"""Messages to the text and the token ids that a model was trained on, by the template in its file.

The template is a program from the internet; `template_sandbox.py` bounds what it can do. This module
feeds it, and makes sure that what a user writes stays text: a message that says ``<|im_end|>`` does not end its
turn.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..formats.errors import ConfigError, FormatError
from ..formats.metadata import Metadata
from .tokenizer.base import Fragment, Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

    from .template_sandbox import BoundedEnvironment

MAX_SOURCE = 1 << 20  # characters
_KEY = "tokenizer.chat_template"
_RESERVED = frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "chat_template", "tokenize"),
        *("bos_token", "eos_token", "unk_token", "pad_token"),
        *("range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"),
    )
)
_STAND_INS = 0x100000  # plane 16, private use: no vocabulary and no font has it
_MAX_LITERAL = 64  # characters of a text that a template looks for in a message
_MAX_LITERALS = 256
_MAX_MESSAGE = 200


class ChatTemplate:
    """A chat template and what its model's tokenizer makes of the result.

    Rendering is serialised by a lock; the object can be shared between threads.

    Attributes:
        name: ``default``, or the name of one of several.
        source: the template as it is in the file.
        sha256: of the source, for comparing it with a known one.
    """

    def __init__(
        self, source: str, tokenizer: Tokenizer, *, name: str = "default", tool_source: str | None = None
    ) -> None:
        """Take over a template; it is compiled when first used.

        Args:
            source: the template.
            tokenizer: of the same model.
            name: which of the file's templates it is.
            tool_source: a template for conversations with tools, if the file has one.

        Raises:
            FormatError: it is longer than any template.
        """
        self._where = f"{tokenizer.vocabulary.where}: the chat template"
        for text in (source, tool_source or ""):
            if len(text) > MAX_SOURCE:
                raise FormatError(f"{self._where} has {len(text)} characters, expected at most {MAX_SOURCE}")
        self.name = name
        self.source = source
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self._tool_source = tool_source
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._compiled: dict[str, Template] = {}

    @classmethod
    def from_metadata(cls, metadata: Metadata, tokenizer: Tokenizer, *, name: str | None = None) -> ChatTemplate | None:
        """Return the model's template; None if it has none, as base models do.

        Args:
            metadata: of the model's file.
            tokenizer: of the same model.
            name: of a template, where the file has several (``tokenizer.chat_template.NAME``).

        Raises:
            ConfigError: there is no template of that name.
            FormatError: it is not a text, or too long.
        """
        named = template_names(metadata)
        if name is not None and name not in named:
            known = ", ".join(named) or "none"
            raise ConfigError(f"{metadata.path}: there is no chat template {name!r}, there are: {known}")
        if name is None and "default" not in named:
            return None
        tool_key = named.get("tool_use") if name is None else None
        return cls(
            metadata.required(named[name or "default"], str),
            tokenizer,
            name=name or "default",
            tool_source=metadata.required(tool_key, str) if tool_key else None,
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the conversation as text.

        Args:
            messages: dicts with ``role``, ``content`` and whatever else the template knows.
            add_generation_prompt: whether the text ends where the assistant's answer begins.
            tools: JSON descriptions of functions.
            kwargs: further values for the template, such as ``enable_thinking``.

        Raises:
            ConfigError: a name in ``kwargs`` is taken.
            FormatError: the template fails, refuses the messages, or takes too long.
        """
        taken = sorted(_RESERVED & kwargs.keys())
        if taken:
            raise ConfigError(f"the chat template's {taken[0]} cannot be set")
        tokens = {f"{name}_token": self._special_text(name) for name in ("bos", "eos", "unk", "pad")}
        values = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **{name: text for name, text in tokens.items() if text is not None},
            **kwargs,
        }
        source = self._tool_source if tools and self._tool_source is not None else self.source
        n_char = sum(map(len, _texts([messages, tools, kwargs])))
        with self._lock:
            return self._run(source, values, n_char)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Return the conversation as token ids; only the template itself can write control tokens.

        The text between two control tokens is tokenized in one piece, whoever wrote it, so ids are those of the
        rendered text unless a message spells a control token. Begins with bos if the model wants
        one and the template writes none. For arguments and errors see ``render``.
        """
        guard = self._marks.guard([messages, tools, kwargs])
        try:
            values = guard.hide({"messages": messages, "tools": tools} | kwargs)
        except RecursionError:
            raise ConfigError("the messages are nested too deeply") from None
        text = self.render(**values, add_generation_prompt=add_generation_prompt)
        fragments: list[Fragment] = []
        for fragment in self._tokenizer.partition(text, parse_special=True):
            if isinstance(fragment, int):
                fragments.append(fragment)
            else:
                fragments += self._tokenizer.partition(guard.show(fragment), parse_special=False)
        bos_id = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos_id is not None and fragments[:1] != [bos_id]:
            fragments.insert(0, bos_id)
        return self._tokenizer.encode_fragments(fragments, add_special=False)

    @cached_property
    def end_of_turn(self) -> frozenset[int]:
        """Tokens that end the assistant's turn: the tokenizer's, and the one that the template writes after it."""
        return self._tokenizer.eog_ids | self._written_end()

    def _written_end(self) -> frozenset[int]:
        """Return the control token that the template writes right after an answer, if it does."""
        answer = "An answer that no template contains, 7f3a."
        try:
            text = self.render(
                [{"role": "user", "content": "A question."}, {"role": "assistant", "content": answer}],
                add_generation_prompt=False,
            )
        except FormatError:  # a template for something else than plain chat
            return frozenset()
        _, found, rest = text.rpartition(answer)
        fragments = (
            [part for part in self._tokenizer.partition(rest, parse_special=True) if part != ""] if found else []
        )
        while fragments and isinstance(fragments[0], str) and not fragments[0].strip():
            fragments.pop(0)
        first = fragments[0] if fragments else None
        is_control = isinstance(first, int) and self._tokenizer.vocabulary.texts[first] in self._tokenizer.control_texts
        return frozenset((first,)) if isinstance(first, int) and is_control else frozenset()

    def _special_text(self, name: str) -> str | None:
        vocabulary = self._tokenizer.vocabulary
        return vocabulary.texts[vocabulary.special[name]] if name in vocabulary.stated else None

    @cached_property
    def _environment(self) -> BoundedEnvironment:
        from .template_sandbox import BoundedEnvironment  # Jinja2: 50 ms, and a base model needs none

        return BoundedEnvironment()

    @cached_property
    def _marks(self) -> _Marks:
        return _Marks(self._tokenizer.control_texts, self._literals())

    def _literals(self) -> list[str]:
        """Return the template's string constants: texts that it may look for in a message."""
        from jinja2 import nodes

        found: list[str] = []
        with self._lock:
            try:
                for source in (self.source, self._tool_source or ""):
                    self._environment.start(0)
                    constants = self._environment.parse(source).find_all(nodes.Const)
                    found += [node.value for node in constants if isinstance(node.value, str)]
            except Exception:  # the same as in _run, which says what is wrong
                return found
        return found

    def _run(self, source: str, values: dict[str, Any], n_char: int) -> str:
        """Compile if need be, and render.

        A template can raise anything at all: every exception in here is its failure.
        """
        try:
            if source not in self._compiled:
                self._environment.start(0)
                self._compiled[source] = self._environment.from_string(source)
            template = self._compiled[source]
            self._environment.start(n_char)
            parts, n_out = [], 0
            for part in template.root_render_func(template.new_context(values)):
                parts.append(part)
                n_out += len(part)
                self._environment.check_text(n_out)
            return "".join(parts)
        except Exception as error:
            raise FormatError(f"{self._where} failed: {_one_line(error)}") from None


def template_names(metadata: Metadata) -> dict[str, str]:
    """Return the metadata key of every chat template in a file, by name; the usual one is ``default``."""
    keys = [key for key in metadata.keys() if key == _KEY or key.startswith(_KEY + ".")]  # noqa: SIM118 - no mapping
    return {key[len(_KEY) + 1 :] or "default": key for key in keys if metadata.type_name(key) == "str"}


class _Marks:
    """The characters in messages that could make control tokens, for one vocabulary and template.

    Control tokens begin and end with characters such as ``<`` and ``]``. In what a user writes these are
    replaced by private characters, one for one, before the template sees it, and put back when the control
    tokens that the template wrote have been found. Texts that the template itself may look for, such as
    ``</think>``, stay as they are, unless they could be a part of a control token.
    """

    def __init__(self, control_texts: Iterable[str], literals: Iterable[str]) -> None:
        controls = [text for text in control_texts if text.strip()]
        edges = {char for text in controls for char in (text[0], text[-1]) if not char.isalnum() and not char.isspace()}
        starts = {text[:i] for text in controls for i in range(1, len(text) + 1)}
        ends = {text[i:] for text in controls for i in range(len(text))}
        candidates = [text for text in dict.fromkeys(literals) if 1 < len(text) <= _MAX_LITERAL and edges & set(text)]
        kept = [text for text in candidates[:_MAX_LITERALS] if not _could_join(text, starts, ends, frozenset(controls))]
        kept.sort(key=len, reverse=True)
        self._edges = sorted(edges)
        self._words = [text for text in controls if not edges & {text[0], text[-1]}]
        self._kept = re.compile("(" + "|".join(map(re.escape, kept)) + ")") if kept else None

    def guard(self, values: Any) -> _Guard:
        """Return what hides and shows these characters in texts that contain none of its private characters."""
        used = set().union(*map(set, _texts(values)))
        free = (chr(code) for code in range(_STAND_INS, 0x10FFFE) if chr(code) not in used)
        return _Guard(
            {char: next(free) for char in self._edges}, {text: next(free) for text in self._words}, self._kept
        )


def _could_join(text: str, starts: set[str], ends: set[str], controls: frozenset[str]) -> bool:
    """Return whether a control token could begin or end within a text, or lies in it."""
    n_char = len(text)
    return (
        any(text[i:] in starts or text[: i + 1] in ends for i in range(n_char))
        or any(text[i:j] in controls for i in range(n_char) for j in range(i + 1, n_char + 1))
    )  # fmt: skip


class _Guard:
    """Hides the characters that `_Marks` found, and shows them again."""

    def __init__(self, edges: dict[str, str], words: dict[str, str], kept: re.Pattern[str] | None) -> None:
        self._hidden = str.maketrans(edges)
        self._words = {text: stand_in + text[1:] for text, stand_in in words.items()}
        self._shown = str.maketrans(
            {stand_in: char for char, stand_in in edges.items()} | {s: text[0] for text, s in words.items()}
        )
        self._kept = kept

    def hide(self, value: Any) -> Any:
        """Return a value of the messages with its texts made harmless."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list | tuple) else value

    def show(self, text: str) -> str:
        """Return the text with the characters put back."""
        return text if text.isascii() else text.translate(self._shown)

    def _hide_text(self, text: str) -> str:
        for word, hidden in self._words.items():
            text = text.replace(word, hidden)
        if self._kept is None:
            return text.translate(self._hidden)
        parts = self._kept.split(text)  # every second one is a literal
        return "".join(part if i % 2 else part.translate(self._hidden) for i, part in enumerate(parts))


def _texts(value: Any) -> list[str]:
    """Return every text within a value of messages."""
    found, pending = [], [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
    return found


def _one_line(error: Exception) -> str:
    """Return what an exception of a template says, printable and short."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    line = getattr(error, "lineno", None)
    text = " ".join(str(getattr(error, "message", None) or error).split()) or type(error).__name__
    text = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    text = text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…"
    return f"line {line}: {text}" if isinstance(line, int) else text
