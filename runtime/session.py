"""One conversation with a model: what is cached of it, and the loop that generates an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import CapacityError, ConfigError, FormatError
from ..formats.record import Record
from .kv_cache import KvSequence
from .sampling.chain import Sampler
from .sampling.settings import SamplerSettings
from .speculation.loop import Verifier
from .speculation.settings import DEFAULT_SPECULATION, SpeculationSettings, SpeculationStats
from .speculation.source import Answer
from .stop_strings import StopStrings

if TYPE_CHECKING:
    from .engine import Engine
    from .speculation.controller import Controller
    from .tokenizer.stream_decoder import StreamDecoder

F32 = NDArray[np.float32]


class GenerationParams(Record, kw_only=True):
    """How one answer is made.

    ``sample`` counts the answers to one prompt: the same seed and sample give the same text. ``max_tokens``
    None means until the end of the turn or of the context.
    """

    sampler: SamplerSettings
    seed: int
    sample: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n_logprobs: int = 0
    ignore_eos: bool = False
    speculation: SpeculationSettings = DEFAULT_SPECULATION


class GeneratedToken(Record, kw_only=True):
    """One token: its id, the text that became complete with it, and the likeliest tokens in its place.

    Text that was held back until the end comes with the id -1.
    """

    token_id: int
    text: str
    logprobs: tuple[tuple[int, float], ...] | None = None  # (token id, ln of its probability)


class GenerationStats(Record, kw_only=True, frozen=False):
    """Numbers of one answer; complete when its generator has ended or was closed."""

    n_prompt: int = 0
    n_cached: int = 0  # of the prompt, reused from the KV cache
    n_generated: int = 0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    decode_s: float = 0.0  # from the first token on, without what is done with each outside
    finish_reason: str = ""  # "stop", "length" or "cancelled"
    speculation: SpeculationStats | None = None  # None where it was off

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens computed per second."""
        return (self.n_prompt - self.n_cached) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tps(self) -> float:
        """Generated tokens per second, the first one left out."""
        return (self.n_generated - 1) / self.decode_s if self.n_generated > 1 and self.decode_s else 0.0


class _Decoding(Record):
    """What the loop over an answer's tokens works with."""

    params: GenerationParams
    answer: Answer
    decoder: StreamDecoder
    stops: StopStrings
    started: float


class Session:
    """One conversation: the token ids whose keys and values are cached, and what generates more."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sequence = KvSequence(engine.pages, engine.n_ctx)
        if engine.hidden is not None:
            engine.hidden.follow(self._sequence)
        self.tokens: list[int] = []
        self.stats = GenerationStats()
        self._verifier = Verifier(engine, self._sequence, self.tokens)
        self._controller: Controller | None = None

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: GenerationParams,
        *,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generator[GeneratedToken]:
        """Yield the tokens of one answer.

        Args:
            prompt_ids: the whole conversation so far; what is already cached of it is not computed again.
            params: how to sample, and when to stop.
            on_prefill: called as (done, total) while the prompt is computed.

        Raises:
            CapacityError: the prompt does not fit the context.
            FormatError: the logits are not numbers.
        """
        from .tokenizer.stream_decoder import StreamDecoder

        engine, stats = self._engine, GenerationStats(n_prompt=len(prompt_ids))
        self.stats = stats
        if not prompt_ids:
            raise ConfigError("the prompt is empty: expected at least one token")
        if len(prompt_ids) >= engine.n_ctx:
            raise CapacityError(f"prompt of {len(prompt_ids)} tokens does not fit the context of {engine.n_ctx} tokens")
        answer = self._answer(params)
        decoder, stops = StreamDecoder(engine.tokenizer), StopStrings(params.stop)
        started = time.perf_counter()
        stats.finish_reason = "cancelled"
        logits = self._prefill(prompt_ids, stats, on_prefill)
        stats.prefill_s = time.perf_counter() - started
        yield from self._decode(_Decoding(params, answer, decoder, stops, started), list(prompt_ids), logits)
        if not stops.is_stopped:
            rest, is_stopped = stops.feed(decoder.flush())
            rest += "" if is_stopped else stops.flush()
            if rest:
                yield GeneratedToken(token_id=-1, text=rest)

    def _answer(self, params: GenerationParams) -> Answer:
        engine, tokenizer = self._engine, self._engine.tokenizer
        ends = tokenizer.eog_ids if engine.template is None else tokenizer.eog_ids | engine.template.end_of_turn
        sampler = Sampler(
            params.sampler,
            engine.info.n_vocab,
            lambda i: tokenizer.piece(i, special=True),
            ends,
            ignore_eos=params.ignore_eos,
        )
        return Answer(sampler=sampler, seed=params.seed, sample=params.sample, ends=ends)

    def _decode(self, decoding: _Decoding, history: list[int], logits: F32) -> Generator[GeneratedToken]:
        """Yield tokens from the logits after the prompt on, until something ends the answer."""
        params, answer, stats = decoding.params, decoding.answer, self.stats
        controller = self._controller_for(params, history, answer)
        self._verifier.is_best_wanted = answer.sampler.takes_largest and not params.n_logprobs
        resumed_at: float | None = None  # None: before the first token, and while the caller has one
        try:
            while stats.n_generated != params.max_tokens:
                token_id = self._pick(answer, logits, history)
                n_logprobs = params.n_logprobs
                logprobs = tuple(answer.sampler.top_logprobs(logits, n_logprobs)) if n_logprobs else None
                stats.n_generated += 1
                if stats.n_generated == 1:
                    resumed_at = time.perf_counter()
                    stats.first_token_s = resumed_at - decoding.started
                history.append(token_id)
                if token_id in answer.ends and not params.ignore_eos:
                    stats.finish_reason = "stop"
                    return
                text, is_stopped = decoding.stops.feed(decoding.decoder.feed(token_id))
                stats.decode_s += _since(resumed_at)
                resumed_at = None
                yield GeneratedToken(token_id=token_id, text=text, logprobs=logprobs)
                resumed_at = time.perf_counter()
                if is_stopped:
                    stats.finish_reason = "stop"
                    return
                if len(self.tokens) >= self._engine.n_ctx:
                    break
                n_wanted = None if params.max_tokens is None else params.max_tokens - stats.n_generated
                if n_wanted != 0:  # else nobody wants what comes after
                    logits = self._verifier.logits_after(history, controller, n_wanted)
            stats.finish_reason = "length"
        finally:
            stats.decode_s += _since(resumed_at)
            self._verifier.settle(controller)
            if controller is not None:
                stats.speculation = controller.end(history, stats.decode_s)

    def _pick(self, answer: Answer, logits: F32, history: list[int]) -> int:
        try:
            return answer.sampler.pick(logits, history, answer.noise(len(history)))
        except FormatError as error:
            raise FormatError(f"{self._engine.info.path}: {error}") from None

    def _controller_for(self, params: GenerationParams, prompt: list[int], answer: Answer) -> Controller | None:
        """Return what plans this answer's drafts, None where there are to be none."""
        from .speculation.controller import Controller

        settings = params.speculation
        if settings.mode == "off" or params.max_tokens == 1:  # the first token is the prompt's
            return None
        if self._controller is None:
            self._controller = Controller.for_engine(self._engine, self._sequence)
        self._controller.begin(prompt, answer, settings)
        return self._controller

    def _prefill(
        self, ids: Sequence[int], stats: GenerationStats, on_prefill: Callable[[int, int], None] | None
    ) -> NDArray[np.float32]:
        """Compute what is not cached yet; return the logits after the last token."""
        n_same = next(
            (i for i, (a, b) in enumerate(zip(self.tokens, ids, strict=False)) if a != b),
            min(len(self.tokens), len(ids)),
        )
        n_same = min(n_same, len(ids) - 1)  # the last token's logits are wanted
        del self.tokens[n_same:]
        self._sequence.rollback(n_same)
        stats.n_cached = n_same
        executor = self._engine.executor
        while len(self.tokens) < len(ids):
            chunk = ids[len(self.tokens) : len(self.tokens) + executor.n_tok]
            is_last = len(self.tokens) + len(chunk) == len(ids)
            with self._engine.lock:
                self._engine.run_tokens(self._sequence, chunk, [len(chunk) - 1] if is_last else [])
                result: F32 | None = executor.output("logits", 1)[0].copy() if is_last else None
            self.tokens.extend(chunk)
            if on_prefill:
                on_prefill(len(self.tokens) - n_same, len(ids) - n_same)
        assert result is not None
        return result

    def close(self) -> None:
        """Give the KV pages back."""
        self.tokens.clear()
        self._sequence.close()
        if self._controller is not None:
            self._controller.close()
            self._controller = None


def _since(started: float | None) -> float:
    return 0.0 if started is None else time.perf_counter() - started
