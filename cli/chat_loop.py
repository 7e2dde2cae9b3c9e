"""One chat: takes lines, answers them, keeps the conversation. Slash commands are in ``slash.py``.

Drawing is left to a ``Screen`` and reading to whoever calls ``take``; so the same loop serves the
terminal and a pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..formats.errors import CapacityError, ConfigError, LlmrunError
from ..formats.record import Record, replace
from .conversation import Conversation
from .generation import check_lossless, generate, stats_line
from .think import ThinkSplitter, opens_thinking

if TYPE_CHECKING:
    from ..runtime.engine import Engine, GeneratedToken, GenerationParams, Session

RAW_MAX_TOKENS = 256  # a model without a chat template rarely ends by itself


class Leave(Exception):  # noqa: N818  # not an error
    """The user wants to leave the chat."""


class Screen(Protocol):
    """Where a chat shows things. Text from files and models may be passed as it is: the screen makes it safe."""

    def notice(self, text: str) -> None:
        """Show a remark of the program's own."""

    def error(self, text: str) -> None:
        """Show what went wrong."""

    def rows(self, rows: list[tuple[str, str]]) -> None:
        """Show names and what belongs to them."""

    def piece(self, text: str, *, is_thinking: bool) -> None:
        """Show the next piece of an answer."""

    def end_answer(self) -> None:
        """Finish the answer's last line."""

    def stats(self, line: str) -> None:
        """Show the line about an answer's speed."""


class ChatSettings(Record, frozen=False):
    """What ``/set`` changes.

    Attributes:
        sampler: sampler settings by name, as ``SamplerSettings.from_options`` takes them.
        params: everything else about an answer; its sampler is made from ``sampler``.
    """

    sampler: dict[str, object]
    params: GenerationParams


class Chat:
    """The state of a chat and what can be done with it."""

    def __init__(
        self,
        engine: Engine,
        screen: Screen,
        settings: ChatSettings,
        *,
        system: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        stops_at_interrupt: bool = True,
        verifies_lossless: bool = False,
    ) -> None:
        self.engine = engine
        self.screen = screen
        self.settings = settings
        self.conversation = Conversation(system)
        self.n_errors = 0
        self.was_stopped = False  # whether Ctrl-C ended what the last line asked for
        self._kwargs = template_kwargs or {}
        self._session: Session = engine.session()
        self._sample = 0
        self._stops_at_interrupt = stops_at_interrupt
        self._verifies_lossless = verifies_lossless
        self.has_changed_text = False  # speculation did: found by --verify-lossless

    def take(self, line: str) -> None:
        """Answer one line, or carry out the slash command in it. An error is shown, and the chat goes on.

        Raises:
            Leave: the user wants to leave.
        """
        from .slash import carry_out  # here: it knows this module

        self.was_stopped = False
        try:
            if line.startswith("/"):
                carry_out(self, line)
            elif line.strip():
                self.ask(line.removeprefix(" ") if line.startswith(" /") else line)
        except LlmrunError as error:
            self.n_errors += 1
            self.screen.error(str(error))

    def ask(self, text: str) -> None:
        """Add a question and answer it; a question that cannot be answered is not kept.

        Raises:
            LlmrunError: it does not fit into the context, or the template refuses it.
        """
        self._sample = 0
        self.conversation.turns.append({"role": "user", "content": text})
        answer = None
        try:
            answer = self._answer()
        finally:
            if answer is None:
                self.conversation.turns.pop()
        if answer is not None:
            self.conversation.turns.append({"role": "assistant", "content": answer})

    def regenerate(self) -> None:
        """Replace the last answer by the next sample for the same question.

        Raises:
            LlmrunError: there is none, or it does not fit.
        """
        before = self.conversation.turns[-1:]
        if not self.conversation.drop_answer():
            raise ConfigError("there is no answer yet")
        answer = None
        try:
            self._sample += 1
            answer = self._answer()
        finally:
            if answer is None:
                self._sample -= 1
                self.conversation.turns += before
        if answer is not None:
            self.conversation.turns.append({"role": "assistant", "content": answer})

    def restart(self) -> None:
        """Drop all turns; the system prompt stays."""
        self.conversation.turns.clear()
        self._sample = 0

    def prompt_ids(self) -> list[int]:
        """Return the token ids of the conversation, up to where the next answer begins."""
        if self.engine.template is None:
            return self.engine.tokenizer.encode(self.conversation.raw_text())
        return self.engine.template.encode(self.conversation.messages(), **self._kwargs)

    def _answer(self) -> str | None:
        """Generate and show an answer; None if it was stopped before it began."""
        ids = self.prompt_ids()
        n_ctx = self.engine.n_ctx
        if len(ids) >= n_ctx:
            raise CapacityError(
                f"the context is full: this turn needs {len(ids)} tokens and room for an answer, "
                f"the context has {n_ctx}. /undo drops the last turn, /clear all of them"
            )
        params = replace(self.settings.params, sample=self._sample)
        tail = self.engine.tokenizer.decode(ids[-8:], special=True)
        splitter = ThinkSplitter(is_thinking=self.engine.template is not None and opens_thinking(tail))
        text, is_stopped, n_generated = "", False, 0
        seen: list[GeneratedToken] = []
        tokens = generate(self._session, ids, params)
        try:
            for token in tokens:
                n_generated += 1
                seen.append(token)
                text += token.text
                self._show(splitter.feed(token.text))
        except KeyboardInterrupt:
            if not self._stops_at_interrupt:
                raise
            is_stopped = self.was_stopped = True
        finally:
            tokens.close()
            self._show(splitter.flush())
            if n_generated:
                self.screen.end_answer()
        if is_stopped and not n_generated:
            self.screen.notice("stopped before the answer began; the question is not kept")
            return None
        stats = self._session.stats
        if stats.finish_reason == "length" and (params.max_tokens is None or n_generated < params.max_tokens):
            self.screen.notice(f"the context of {n_ctx} tokens is full: /undo drops the last turn, /clear all of them")
        elif stats.finish_reason == "length":
            self.screen.notice(f"stopped at the limit of {params.max_tokens} tokens (-n, /set predict)")
        line = stats_line(stats, n_used=len(self._session.tokens), n_ctx=n_ctx)
        self.screen.stats(f"{line} · stopped" if is_stopped else line)
        if self._sample and params.sampler.temperature == 0:
            self.screen.notice("at temperature 0 every answer is the same: /set temp 0.8 makes others")
        if self._verifies_lossless:
            self._verify(ids, params, seen)
        return text

    def _verify(self, ids: list[int], params: GenerationParams, seen: list[GeneratedToken]) -> None:
        """Say whether the answer is the same without speculation."""
        try:
            stats = check_lossless(self._session, ids, params, seen)
        except LlmrunError as error:
            self.has_changed_text = True
            self.screen.error(str(error))
        else:
            self.screen.notice(f"the same {stats.n_generated} tokens without speculation, {stats.decode_tps:.1f} tok/s")

    def _show(self, parts: list[tuple[str, bool]]) -> None:
        for text, is_thinking in parts:
            self.screen.piece(text, is_thinking=is_thinking)
