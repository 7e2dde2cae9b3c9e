"""Messages to the text and the token ids that a model was trained on, by the template in its file.

The template is a program from the internet; `template_sandbox.py` bounds what it can do. This module
feeds it, and makes sure that what a user writes stays text: a message that says ``<|im_end|>`` does not end its
turn.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..formats.errors import ConfigError, FormatError
from ..formats.metadata import Metadata
from .template_guard import Guard, Marks, texts_within
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
        n_char = sum(map(len, texts_within([messages, tools, kwargs])))
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
        values = {"messages": messages, "tools": tools} | kwargs
        guard = self._marks.guard(values)
        try:
            text = self._render_guarded(values, guard, add_generation_prompt)
        except RecursionError:
            raise ConfigError("the messages are nested too deeply") from None
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

    def _render_guarded(self, values: dict[str, Any], guard: Guard, add_generation_prompt: bool) -> str:
        """Render with the messages' dangerous characters hidden, as few of them as the template can bear.

        A template may look at a hidden character (``'<' in content``) and render something else. Then only what
        spells a control token is hidden, provided that this makes the same control tokens.
        """
        hidden = {name: guard.hide(value) for name, value in values.items()}
        text = self.render(**hidden, add_generation_prompt=add_generation_prompt)
        if hidden == values:
            return text
        plain = self.render(**values, add_generation_prompt=add_generation_prompt)
        if guard.show(text) == plain:
            return text
        hidden = {name: guard.hide(value, self._marks.spans) for name, value in values.items()}
        other = self.render(**hidden, add_generation_prompt=add_generation_prompt)
        is_same = guard.show(other) == plain and self._controls(other) == self._controls(text)
        return other if is_same else text

    def _controls(self, text: str) -> list[int]:
        return [part for part in self._tokenizer.partition(text, parse_special=True) if isinstance(part, int)]

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
    def _marks(self) -> Marks:
        return Marks(self._tokenizer.control_texts, self._literals())

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

    def prepare(self) -> None:
        """Import Jinja2 and compile the template, so that the first message need not wait; errors wait for it."""
        with self._lock, suppress(Exception):
            self._compile(self.source)
        _ = self._marks

    def _compile(self, source: str) -> Template:
        if source not in self._compiled:
            self._environment.start(0)
            self._compiled[source] = self._environment.from_string(source)
        return self._compiled[source]

    def _run(self, source: str, values: dict[str, Any], n_char: int) -> str:
        """Compile if need be, and render.

        A template can raise anything at all: every exception in here is its failure.
        """
        try:
            template = self._compile(source)
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
