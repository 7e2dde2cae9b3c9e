"""The sampler chain: from one row of logits and its history to one token.

Nothing here changes from token to token, so rows of a verification batch, each with a history of its own, can be
sampled in any order and thrown away. See `noise` for where the randomness comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...formats.errors import ConfigError, FormatError
from .candidates import Candidates, largest
from .dry import dry, tokens_after_breaker
from .logit_bias import logit_bias
from .min_p import min_p
from .noise import Ids, NoiseKey, draw
from .penalties import penalties
from .portable_math import exp, fixed_sum, ln_scalar
from .settings import SamplerSettings
from .temperature import MIN_TEMPERATURE, dynamic_temperature, temperature
from .top_k import top_k
from .top_n_sigma import top_n_sigma
from .top_p import top_p
from .typical import typical
from .xtc import MAX_THRESHOLD, xtc

History: TypeAlias = Sequence[int] | npt.NDArray[np.integer]
Step: TypeAlias = Callable[[Candidates, History, NoiseKey], Candidates]

_KEEPS_BEST = frozenset({"top_k", "top_p", "min_p", "top_n_sigma"})  # they never remove the best candidate


class Sampler:
    """Picks tokens by fixed settings; without state, and safe to use from several threads.

    Args:
        settings: which samplers, how strong, in which order.
        n_vocab: length of a row of logits.
        piece: bytes of a token id, special tokens as their text; called only when DRY is on.
        eog_ids: the tokens that end a text; used only with ignore_eos.
        ignore_eos: never pick one of eog_ids.

    Raises:
        ConfigError: the logit bias names a token that the vocabulary does not have.
    """

    def __init__(
        self,
        settings: SamplerSettings,
        n_vocab: int,
        piece: Callable[[int], bytes],
        eog_ids: frozenset[int] = frozenset(),
        *,
        ignore_eos: bool = False,
    ) -> None:
        self.settings = settings
        self.n_vocab = n_vocab
        self._piece = lru_cache(maxsize=16384)(piece)
        self._breakers = tuple(breaker.encode() for breaker in settings.dry_sequence_breakers)
        self._ids: Ids = np.arange(n_vocab, dtype=np.int64)  # [n_vocab]
        bias = self._merged_bias(eog_ids if ignore_eos else frozenset())
        self._bias_ids = np.fromiter(bias, dtype=np.int64, count=len(bias))
        self._biases = np.fromiter(bias.values(), dtype=np.float64, count=len(bias))
        self._steps = self._active_steps()

    @property
    def takes_largest(self) -> bool:
        """Whether a pick is always the largest logit's token, whatever the others are."""
        return self._is_greedy and not self._steps and not len(self._bias_ids)

    def pick(self, logits: npt.NDArray[np.float32], history: History, noise: NoiseKey, ids: Ids | None = None) -> int:
        """Return the token that follows a history.

        Args:
            logits: float32 [n], one for each of ``ids``; not modified.
            history: the row's previous token ids, prompt and generated, oldest first; not modified. With windows of
            thousands of tokens, an int64 array saves a conversion of 30 ns per token.
            noise: which noise to use; unused at temperature 0.
            ids: ascending token ids [n], all others are left out; None: the whole vocabulary.

        Raises:
            FormatError: the logits hold NaN or +inf, or only -inf.
            ConfigError: the settings forbid every token.
        """
        ids = self._ids if ids is None else ids
        if logits.shape != ids.shape or not 0 < len(ids) <= self.n_vocab or logits.dtype != np.float32:
            raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}, expected float32 [{len(ids)}]")
        _check(logits)
        candidates = Candidates(ids, logits)
        if len(self._bias_ids):
            candidates = logit_bias(candidates, self._bias_ids, self._biases)
            if candidates.logits.max() == -np.inf:
                raise ConfigError("logit_bias: forbids every token that the model considers possible")
        for step in self._steps:
            candidates = step(candidates, history, noise)
        if self._is_greedy or len(candidates.ids) == 1:
            return int(candidates.ids[np.argmax(candidates.logits)])
        return draw(candidates.ids, candidates.logits, noise)

    def top_logprobs(self, logits: npt.NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Return the k likeliest tokens of the raw distribution, as (token id, ln of its probability).

        The likeliest comes first, equal ones in order of id. Tokens of probability 0 (logit -inf) are left out.

        Raises:
            FormatError: the logits hold NaN or +inf, or only -inf.
        """
        _check(logits)
        if k <= 0:
            return []
        top = float(logits.max())
        log_total = ln_scalar(fixed_sum(exp(logits, top)))
        index = largest(logits, k)
        index = index[np.argsort(-logits[index], kind="stable")]
        return [(int(i), float(logits[i]) - top - log_total) for i in index]

    def _merged_bias(self, forbidden: frozenset[int]) -> dict[int, float]:
        """Return the bias of every token that has one, repeated entries added."""
        merged: dict[int, float] = {}
        for token_id, bias in self.settings.logit_bias:
            if token_id >= self.n_vocab:
                raise ConfigError(f"logit_bias: expected a token id below {self.n_vocab}, got {token_id}")
            merged[token_id] = merged.get(token_id, 0.0) + bias
        merged.update(dict.fromkeys(sorted(forbidden), -math.inf))
        return merged

    def _active_steps(self) -> list[Step]:
        """Return the samplers that do something, in order; sets whether the choice needs no noise."""
        available = self._available_steps()
        names = [name for name in self.settings.samplers if name in available]
        self._is_greedy = False
        if "temperature" in names and self._takes_best():
            # Temperature 0 leaves one candidate. Filters directly before it that keep the best need not run.
            self._is_greedy = True
            del names[names.index("temperature") :]
            while names and names[-1] in _KEEPS_BEST:
                names.pop()
        return [available[name] for name in names]

    def _takes_best(self) -> bool:
        return self.settings.temperature < MIN_TEMPERATURE and self.settings.dynatemp_range == 0.0

    def _available_steps(self) -> dict[str, Step]:
        """Return the samplers that the settings switch on, by name."""
        s = self.settings
        steps: dict[str, Step] = {}
        if s.repeat_last_n and (s.repeat_penalty != 1.0 or s.frequency_penalty or s.presence_penalty):
            steps["penalties"] = self._penalties
        if s.dry_multiplier and s.dry_base >= 1.0 and s.dry_penalty_last_n:
            steps["dry"] = self._dry
        if s.top_n_sigma > 0.0:
            steps["top_n_sigma"] = lambda c, _history, _noise: top_n_sigma(c, s.top_n_sigma)
        if s.top_k > 0:
            steps["top_k"] = lambda c, _history, _noise: top_k(c, s.top_k)
        if s.typical_p < 1.0:
            steps["typ_p"] = lambda c, _history, _noise: typical(c, s.typical_p, s.min_keep)
        if s.top_p < 1.0:
            steps["top_p"] = lambda c, _history, _noise: top_p(c, s.top_p, s.min_keep)
        if s.min_p > 0.0:
            steps["min_p"] = lambda c, _history, _noise: min_p(c, s.min_p, s.min_keep)
        if s.xtc_probability > 0.0 and s.xtc_threshold <= MAX_THRESHOLD:
            steps["xtc"] = lambda c, _history, noise: xtc(c, s.xtc_probability, s.xtc_threshold, s.min_keep, noise)
        if s.dynatemp_range > 0.0:
            steps["temperature"] = lambda c, _history, _noise: dynamic_temperature(
                c, s.temperature, s.dynatemp_range, s.dynatemp_exponent
            )
        elif s.temperature != 1.0:
            steps["temperature"] = lambda c, _history, _noise: temperature(c, s.temperature)
        return steps

    def _penalties(self, candidates: Candidates, history: History, _noise: NoiseKey) -> Candidates:
        s = self.settings
        window = np.asarray(history[-s.repeat_last_n :], dtype=np.int64)
        return penalties(candidates, window, s.repeat_penalty, s.frequency_penalty, s.presence_penalty)

    def _dry(self, candidates: Candidates, history: History, _noise: NoiseKey) -> Candidates:
        s = self.settings
        window = np.asarray(history[-s.dry_penalty_last_n :], dtype=np.int64)
        n_free = tokens_after_breaker(window, self._window_piece, self._breakers)
        return dry(
            candidates,
            window,
            n_free,
            self._is_breaker,
            multiplier=s.dry_multiplier,
            base=s.dry_base,
            allowed_length=s.dry_allowed_length,
        )

    def _window_piece(self, token_id: int) -> bytes:
        """Return a token's bytes; none for an id that stands for something else than text."""
        return self._piece(token_id) if 0 <= token_id < self.n_vocab else b""

    def _is_breaker(self, token_id: int) -> bool:
        piece = self._window_piece(token_id)
        return any(breaker in piece for breaker in self._breakers)


def _check(logits: npt.NDArray[np.float32]) -> None:
    """Raise FormatError unless the largest logit is a finite number."""
    top = logits.max()  # NaN if there is one
    if np.isfinite(top):
        return
    if top == -np.inf:
        raise FormatError("logits: all are -inf. The model file is damaged")
    token_id = int(np.flatnonzero(~(logits < np.inf))[0])
    raise FormatError(f"logits: token {token_id} has {float(logits[token_id])}. The model file is damaged")
