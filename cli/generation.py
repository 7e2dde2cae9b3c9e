"""From command-line options to the engine's own objects; shared by the commands that generate text."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import ConfigError, LlmrunError
from ..formats.record import replace
from ..runtime.kernels.layout import DEFAULT_KV_TYPE, KV_TYPES
from .declare import UsageError
from .imports import import_engine, start_collector
from .options import LoadOptions, PromptOptions, SamplingOptions, SpeculationOptions
from .render.progress import ProgressBar
from .text_input import unescape

if TYPE_CHECKING:
    from ..runtime.engine import Engine, GeneratedToken, GenerationParams, GenerationStats, Session

WHOLE_CONTEXT = 2**31 - 1  # what -1 means where an option counts the latest tokens


def open_engine(path: Path, options: LoadOptions, *, n_ctx: int | None = None, draft: Path | None = None) -> Engine:
    """Open a model, with a progress bar where that takes long.

    Args:
        path: the GGUF file.
        options: how to open it.
        n_ctx: context in tokens; None: what ``options`` say.
        draft: a model that drafts for it.

    Raises:
        LlmrunError: whatever the engine finds wrong with the file, the options or the machine.
        UsageError: an option has no sense.
    """
    kv_type = kv_type_of(options)
    import_engine()  # here: --help must not pay for the engine
    from ..runtime.engine import Engine

    with ProgressBar(f"loading {path.name}", delay_s=0.5) as progress:
        engine = Engine.open(
            path,
            n_ctx=n_ctx if n_ctx is not None else options.ctx_size or None,
            n_threads=options.threads or None,
            n_ubatch=options.ubatch_size,
            use_mmap=options.mmap,
            tokenizer_pre=options.override_pre,
            kv_type=kv_type,
            draft=draft,
            on_progress=progress,
        )
    start_collector()
    return engine


def kv_type_of(options: LoadOptions) -> str:
    """Return how keys and values are to be kept.

    Raises:
        UsageError: there is no such type, or two are wanted.
    """
    wanted = {"-ctk": options.cache_type_k, "-ctv": options.cache_type_v}
    given = {option: kv_type for option, kv_type in wanted.items() if kv_type is not None}
    for option, kv_type in given.items():
        if kv_type not in KV_TYPES:
            raise UsageError(f"{kv_type!r} is not one of {', '.join(KV_TYPES)}", hint=option)
    if len(set(given.values())) > 1:
        raise UsageError("keys and values of different types are not supported: expected the same as -ctk", hint="-ctv")
    return next(iter(given.values()), DEFAULT_KV_TYPE)


def choose_seed(seed: int) -> int:
    """Return the seed to use: the given one, or a random one for -1."""
    return int.from_bytes(os.urandom(4), "little") if seed < 0 else seed


def sampler_options(options: SamplingOptions) -> dict[str, object]:
    """Return the sampler chain's options by the name of the setting; None means the default."""
    order = parse_order(options)
    return {
        "temperature": options.temp,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "typical_p": options.typical,
        "top_n_sigma": options.top_nsigma,
        "xtc_probability": options.xtc_probability,
        "xtc_threshold": options.xtc_threshold,
        "repeat_last_n": WHOLE_CONTEXT if options.repeat_last_n < 0 else options.repeat_last_n,
        "repeat_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "dry_multiplier": options.dry_multiplier,
        "dry_base": options.dry_base,
        "dry_allowed_length": options.dry_allowed_length,
        "dry_penalty_last_n": WHOLE_CONTEXT if options.dry_penalty_last_n < 0 else options.dry_penalty_last_n,
        "dry_sequence_breakers": [unescape(text) for text in options.dry_sequence_breaker or []] or None,
        "dynatemp_range": options.dynatemp_range,
        "dynatemp_exponent": options.dynatemp_exp,
        "logit_bias": options.logit_bias or None,
        "samplers": order,
    }


def parse_order(options: SamplingOptions) -> tuple[str, ...] | None:
    """Return the samplers that ``--samplers`` or ``--sampler-seq`` name, None for the default order.

    Raises:
        ConfigError: both are given, or one names a sampler that does not exist.
    """
    import_engine()
    from ..runtime.sampling.settings import parse_sampler_letters, parse_samplers

    if options.samplers is not None and options.sampler_seq is not None:
        raise ConfigError("--samplers and --sampler-seq exclude each other")
    if options.sampler_seq is not None:
        return parse_sampler_letters(options.sampler_seq)
    return None if options.samplers is None else parse_samplers(options.samplers)


def generation_params(
    options: SamplingOptions,
    *,
    seed: int,
    n_logprobs: int = 0,
    max_tokens: int | None = None,
    speculation: SpeculationOptions | None = None,
) -> GenerationParams:
    """Return the engine's parameters for one answer.

    Args:
        options: the command line's sampling options.
        seed: the seed, already chosen.
        n_logprobs: likeliest tokens to report with each generated one.
        max_tokens: limit where the options set none.
        speculation: the command line's options about guessing ahead.
    """
    import_engine()
    from ..runtime.engine import GenerationParams
    from ..runtime.sampling.settings import SamplerSettings
    from ..runtime.speculation.settings import SpeculationSettings

    spec = SpeculationOptions() if speculation is None else speculation
    return GenerationParams(
        sampler=SamplerSettings.from_options(sampler_options(options)),
        seed=seed,
        max_tokens=max_tokens if options.predict < 0 else options.predict,
        stop=tuple(unescape(text) for text in options.reverse_prompt or () if text),
        n_logprobs=n_logprobs,
        ignore_eos=options.ignore_eos,
        speculation=SpeculationSettings(mode=spec.spec, draft_max=spec.draft_max, draft_min=spec.draft_min),
    )


def check_speculation(options: SpeculationOptions) -> None:
    """Refuse combinations that would leave an option without effect.

    Raises:
        UsageError: there is one.
    """
    if options.spec not in ("auto", "off", "draft", "ngram"):
        raise UsageError(f"{options.spec!r} is not one of auto, off, draft, ngram", hint="--spec")
    if options.draft is None and options.spec == "draft":
        raise UsageError("draft needs a draft model: --draft MODEL", hint="--spec")
    if options.draft is not None and options.spec in ("off", "ngram"):
        raise UsageError(f"is not used with --spec {options.spec}", hint="--draft")
    if options.draft_min > options.draft_max:
        raise UsageError(f"is larger than --draft-max {options.draft_max}", hint="--draft-min")
    if options.verify_lossless and options.spec == "off":
        raise UsageError("has nothing to check with --spec off", hint="--verify-lossless")


def parse_template_kwargs(text: str | None) -> dict[str, Any]:
    """Read the JSON object of ``--chat-template-kwargs``.

    Raises:
        ConfigError: it is not a JSON object.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--chat-template-kwargs: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"--chat-template-kwargs: expected a JSON object, got {text!r}")
    reserved = sorted(value.keys() & {"self", "messages", "tools", "add_generation_prompt"})  # more in the template
    if reserved:
        raise ConfigError(f"--chat-template-kwargs: {', '.join(reserved)} cannot be set this way")
    return value


def check_template_options(options: PromptOptions) -> None:
    """Refuse what a prompt without a chat template would leave without effect.

    Raises:
        ConfigError: something is given.
    """
    given = {"--system-prompt": options.system_prompt, "--chat-template-kwargs": options.chat_template_kwargs}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{name} needs a chat template")


def generate(session: Session, ids: list[int], params: GenerationParams) -> Generator[GeneratedToken]:
    """Yield the tokens of one answer, with a progress bar while a long prompt is read.

    Closing this generator closes the engine's, so that ``session.stats`` is complete afterwards.
    """
    with ProgressBar("reading the prompt") as progress:
        on_prefill = partial(progress, "reading the prompt")
        tokens = session.generate(ids, params, on_prefill=on_prefill)
        try:
            token = next(tokens, None)
        except BaseException:
            tokens.close()
            raise
    try:
        while token is not None:
            yield token
            token = next(tokens, None)
    finally:
        tokens.close()


def check_lossless(
    session: Session, ids: list[int], params: GenerationParams, tokens: Sequence[GeneratedToken]
) -> GenerationStats:
    """Generate an answer again without guessing ahead, and compare the token ids.

    Args:
        session: the one that generated it; its ``stats`` become those of the second time.
        ids: the prompt.
        params: of the answer.
        tokens: the answer, or its beginning where it was stopped.

    Returns:
        The numbers of the second time.

    Raises:
        LlmrunError: there is a difference.
    """
    from ..runtime.speculation.settings import SpeculationSettings

    want = [token.token_id for token in tokens if token.token_id >= 0]
    # An answer that ended by itself must do so again, right after its last token.
    reason = session.stats.finish_reason
    limit = len(want) if reason == "cancelled" else params.max_tokens
    plain = replace(params, max_tokens=limit, n_logprobs=0, speculation=SpeculationSettings(mode="off"))
    got = []
    with ProgressBar("checking without guessing ahead") as progress:
        for token in session.generate(ids, plain):
            if token.token_id >= 0:
                got.append(token.token_id)
                progress("checking without guessing ahead", min(len(got), len(want)), len(want))
            if got != want[: len(got)]:
                break
    if got != want or (reason != "cancelled" and session.stats.finish_reason != reason):
        at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
        there = [str(ids_[at]) if at < len(ids_) else "the end" for ids_ in (want, got)]
        raise LlmrunError(
            f"speculation changed the text: token {at} is {there[0]}, expected {there[1]}. This is a bug of llmrun"
        )
    return session.stats


def speculation_part(stats: GenerationStats) -> list[str]:
    """Return what the line about an answer says of guessing ahead; nothing where nothing was guessed."""
    spec = stats.speculation
    if spec is None or not any(source.n_pass for source in spec.sources.values()):
        return []
    sources = ", ".join(
        f"{name} {source.n_accepted}/{source.n_drafted}" for name, source in spec.sources.items() if source.n_pass
    )
    return [f"speculation {spec.speedup:.2f}x ({sources} right, {spec.tokens_per_pass:.1f} tokens a pass)"]


def speculation_numbers(stats: GenerationStats) -> dict[str, Any] | None:
    """Return the numbers of ``--json`` about guessing ahead; None where it was off."""
    spec = stats.speculation
    if spec is None:
        return None
    return {
        "n_token": spec.n_token,
        "n_pass": spec.n_pass,
        "tokens_per_pass": round(spec.tokens_per_pass, 3),
        "speedup": round(spec.speedup, 3),
        "plain_tps": round(spec.plain_tps, 3) if spec.plain_s else None,
        "sources": {
            name: {
                "n_pass": source.n_pass,
                "n_drafted": source.n_drafted,
                "n_accepted": source.n_accepted,
                "acceptance": round(source.acceptance, 4),
                "mean_accepted": round(source.mean_accepted, 3),
                "draft_s": round(source.draft_s, 6),
                "drafted_at": source.drafted_at,
                "accepted_at": source.accepted_at,
            }
            for name, source in spec.sources.items()
        },
    }


def stats_line(stats: GenerationStats, *, n_used: int, n_ctx: int) -> str:
    """Return the one line about an answer: speeds, time to first token, context used."""
    cached = f" + {stats.n_cached} cached" if stats.n_cached else ""
    parts = [f"prefill {stats.prefill_tps:.1f} tok/s ({stats.n_prompt - stats.n_cached}{cached})"]
    if stats.n_generated > 1:
        parts.append(f"decode {stats.decode_tps:.1f} tok/s ({stats.n_generated})")
    parts += speculation_part(stats)
    parts.append(f"first token {stats.first_token_s:.2f} s")
    parts.append(f"context {n_used}/{n_ctx}")
    return " · ".join(parts)


def timings(stats: GenerationStats) -> dict[str, Any]:
    """Return the numbers of ``--json``: counts of tokens, seconds, tokens per second."""
    return {
        "n_prompt": stats.n_prompt,
        "n_cached": stats.n_cached,
        "n_generated": stats.n_generated,
        "prefill_s": round(stats.prefill_s, 6),
        "first_token_s": round(stats.first_token_s, 6),
        "decode_s": round(stats.decode_s, 6),
        "prefill_tps": round(stats.prefill_tps, 3),
        "decode_tps": round(stats.decode_tps, 3),
    }
