"""What drafts gain: fixed prompts, each answered without and with them by turns, the same ids or an error.

Both answers of a round are made together, a few tokens of each in turn. A machine that others use, or that gets hot,
changes its speed within seconds: whole answers one after the other differ by 5 % and more for that alone, and so did
what drafts seemed to gain (bench/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ...formats.errors import CapacityError, LlmrunError
from ...formats.record import Record, field
from ..sampling.settings import SamplerSettings
from ..session import GenerationParams, GenerationStats
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
TURN = 8  # tokens of one answer before the other goes on


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
    """Answer one prompt ``n_round`` times each way, by turns.

    Every answer is a new conversation: nothing is known of the text from the last round, only of the machine.

    Raises:
        CapacityError: the context has no room for two answers.
        LlmrunError: a text differs.
    """
    if engine.template is None:
        ids = engine.tokenizer.encode(prompt.text)
    else:
        ids = engine.template.encode([{"role": "user", "content": prompt.text}])
    room = engine.n_ctx // 2 - len(ids)
    if room < 2:
        raise CapacityError(
            f"{prompt.kind}-{prompt.name}: two answers to {len(ids)} tokens do not fit the context of {engine.n_ctx}"
            f" tokens: give it {2 * (len(ids) + n_gen)}"
        )
    result, want = DraftResult(prompt=prompt, n_prompt=len(ids)), list[int]()
    for i in range(n_round):
        ways = (PLAIN, speculation) if i % 2 == 0 else (speculation, PLAIN)
        for got, stats in _answers(engine, ids, [_params(prompt, min(n_gen, room), way) for way in ways]):
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


def _answers(
    engine: Engine, ids: Sequence[int], ways: Sequence[GenerationParams]
) -> list[tuple[list[int], GenerationStats]]:
    """Return the ids and the numbers of one prompt's answers in several ways, made by turns."""
    sessions = [engine.session() for _ in ways]
    answers = [session.generate(ids, params) for session, params in zip(sessions, ways, strict=True)]
    texts, going = [list[int]() for _ in ways], set(range(len(ways)))
    try:
        while going:
            for i in sorted(going):
                turn = list(islice(answers[i], TURN))
                texts[i] += [token.token_id for token in turn if token.token_id >= 0]
                if len(turn) < TURN:
                    going.discard(i)
        return [(text, session.stats) for text, session in zip(texts, sessions, strict=True)]
    finally:
        for answer, session in zip(answers, sessions, strict=True):
            answer.close()
            session.close()


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
