"""What can be set about speculation, and the numbers that are reported of it."""

from __future__ import annotations

from ...formats.errors import ConfigError
from ...formats.record import Record, field

MODES = ("auto", "off", "draft", "ngram")
DRAFT_MAX = 15  # with the token before it a pass of 16 rows: a wider one reads the weights twice
MAX_DRAFT = 64  # tokens; beyond, a pass costs more than it can save


class SpeculationSettings(Record, kw_only=True):
    """Which drafts may be used. None of it changes the text.

    Attributes:
        mode: "auto": what is there and pays; "draft" or "ngram": that source only; "off": none.
        draft_max: most tokens that are drafted at once.
        draft_min: drafts of fewer tokens are not verified.

    Raises:
        ConfigError: a setting is not one of these, or out of its range.
    """

    mode: str = "auto"
    draft_max: int = DRAFT_MAX
    draft_min: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"speculation: expected one of {', '.join(MODES)}, got {self.mode!r}")
        if not 0 <= self.draft_min <= self.draft_max <= MAX_DRAFT:
            raise ConfigError(
                f"speculation: expected 0 <= draft_min <= draft_max <= {MAX_DRAFT},"
                f" got {self.draft_min} and {self.draft_max}"
            )


DEFAULT_SPECULATION = SpeculationSettings(mode="off")


class SourceStats(Record, kw_only=True, frozen=False):
    """Numbers of one source of drafts, for one answer."""

    n_pass: int = 0  # that verified a draft of this source
    n_drafted: int = 0  # tokens that were verified
    n_accepted: int = 0
    draft_s: float = 0.0  # making drafts, those that were not verified included
    drafted_at: list[int] = field(default_factory=list)  # by place in the draft
    accepted_at: list[int] = field(default_factory=list)

    @property
    def acceptance(self) -> float:
        """Share of the verified tokens that were right."""
        return self.n_accepted / self.n_drafted if self.n_drafted else 0.0

    @property
    def mean_accepted(self) -> float:
        """Right tokens per draft."""
        return self.n_accepted / self.n_pass if self.n_pass else 0.0

    def count(self, n_drafted: int, n_accepted: int) -> None:
        """Count one verified draft."""
        self.n_pass += 1
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        while len(self.drafted_at) < n_drafted:
            self.drafted_at.append(0)
            self.accepted_at.append(0)
        for place in range(n_drafted):
            self.drafted_at[place] += place <= n_accepted  # later ones were not reached
            self.accepted_at[place] += place < n_accepted


class SpeculationStats(Record, kw_only=True, frozen=False):
    """Numbers of one answer; the token after the prompt is not counted, it needs no pass of its own."""

    n_token: int = 0
    n_pass: int = 0
    spent_s: float = 0.0  # in passes and in drafting
    plain_s: float = 0.0  # what the passes of the same tokens would have taken one by one, as measured
    other_s: float = 0.0  # picking tokens and turning them into text, which takes as long either way
    sources: dict[str, SourceStats] = field(default_factory=dict)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens for each pass of the target."""
        return self.n_token / self.n_pass if self.n_pass else 0.0

    @property
    def plain_tps(self) -> float:
        """Tokens per second one at a time; 0 where nothing is known."""
        return self.n_token / (self.plain_s + self.other_s) if self.plain_s else 0.0

    @property
    def speedup(self) -> float:
        """How many times faster than one token at a time; 1 where nothing is known."""
        if not (self.spent_s and self.plain_s):
            return 1.0
        return (self.plain_s + self.other_s) / (self.spent_s + self.other_s)
