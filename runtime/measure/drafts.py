"""What drafts gain: fixed prompts, each answered without and with them in turn, the same ids or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...formats.errors import LlmrunError
from ...formats.record import Record, field
from ..sampling.settings import SamplerSettings
from ..session import GenerationParams
from ..speculation.settings import SpeculationSettings, SpeculationStats
from ..texts import DraftPrompt
from .statistics import quantile

if TYPE_CHECKING:
    from ..engine import Engine

# The prompt that asks for random words gets them: any token of the vocabulary. All others are answered greedily.
RANDOM = SamplerSettings(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)
GREEDY = SamplerSettings(temperature=0.0)
SEED = 1
PLAIN = SpeculationSettings(mode="off")


class DraftResult(Record, kw_only=True, frozen=False):
    """One prompt's answers; seconds are those after the first token, of each round."""

    prompt: DraftPrompt
    n_prompt: int
    n_token: int = 0
    plain_s: list[float] = field(default_factory=list)
    drafted_s: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)  # speed-ups as the answers' own statistics say
    stats: SpeculationStats = field(default_factory=SpeculationStats)  # of the last round

    @property
    def plain_ts(self) -> float:
        """Tokens per second without drafts, the median of the rounds."""
        return (self.n_token - 1) / quantile(self.plain_s, 0.5)

    @property
    def drafted_ts(self) -> float:
        """Tokens per second with drafts."""
        return (self.n_token - 1) / quantile(self.drafted_s, 0.5)

    @property
    def speedup(self) -> float:
        """Median of the rounds' ratios: what slows the machine down for a while slows both sides of one."""
        return quantile([a / b for a, b in zip(self.plain_s, self.drafted_s, strict=True)], 0.5)


def measure_drafts(
    engine: Engine,
    prompt: DraftPrompt,
    speculation: SpeculationSettings,
    *,
    n_gen: int,
    n_round: int,
    on_round: Callable[[int], None] | None = None,
) -> DraftResult:
    """Answer one prompt ``n_round`` times each way, in turn.

    Every answer is a new conversation: nothing is known of the text from the last round, only of the machine.

    Raises:
        LlmrunError: a text differs, or does not fit the context.
    """
    if engine.template is None:
        ids = engine.tokenizer.encode(prompt.text)
    else:
        ids = engine.template.encode([{"role": "user", "content": prompt.text}])
    n_gen = min(n_gen, engine.n_ctx - len(ids))
    result, want = DraftResult(prompt=prompt, n_prompt=len(ids)), list[int]()
    for i in range(n_round):
        for settings in (PLAIN, speculation) if i % 2 == 0 else (speculation, PLAIN):
            session = engine.session()
            try:
                got = [t.token_id for t in session.generate(ids, _params(prompt, n_gen, settings)) if t.token_id >= 0]
                stats = session.stats
            finally:
                session.close()
            if want and got != want:
                raise LlmrunError(f"{prompt.kind}-{prompt.name}: drafts changed the text. This is a bug of llmrun")
            want, result.n_token = got, len(got)
            if stats.speculation is None:
                result.plain_s.append(stats.decode_s)
            else:
                result.drafted_s.append(stats.decode_s)
                result.told.append(stats.speculation.speedup)
                result.stats = stats.speculation
        if on_round is not None:
            on_round(i + 1)
    return result


def warm_up(engine: Engine, speculation: SpeculationSettings) -> None:
    """Measure what is measured once per machine, before anything is timed."""
    session = engine.session()
    try:
        prompt = DraftPrompt(kind="warm", name="up", text="")
        for _ in session.generate([0] * 8, _params(prompt, 8, speculation)):
            pass
    finally:
        session.close()


def _params(prompt: DraftPrompt, n_gen: int, speculation: SpeculationSettings) -> GenerationParams:
    is_random = prompt.kind == "random"  # goes on after the answer's end: the tokens get only less likely
    sampler = RANDOM if is_random else GREEDY
    return GenerationParams(sampler=sampler, seed=SEED, max_tokens=n_gen, ignore_eos=is_random, speculation=speculation)
