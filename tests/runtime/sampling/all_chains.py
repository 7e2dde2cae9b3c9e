"""Sampler chains of every kind, and one digest of what they all pick; needs nothing but llmrun."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from llmrun.runtime.sampling.chain import Sampler
from llmrun.runtime.sampling.noise import NoiseKey
from llmrun.runtime.sampling.settings import SamplerSettings

NO_FILTERS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
CHAINS: dict[str, dict[str, object]] = {
    "defaults": {},
    "greedy": {"temperature": 0.0},
    "greedy with penalties": {"temperature": 0.0, "repeat_penalty": 1.5, "presence_penalty": 1.0},
    "greedy with xtc": {"temperature": 0.0, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    "greedy with typical": {"temperature": 0.0, "typical_p": 0.5},
    "temperature alone": {**NO_FILTERS, "temperature": 0.7},
    "temperature 1 alone": {**NO_FILTERS, "temperature": 1.0},
    "hot": {**NO_FILTERS, "temperature": 5.0},
    "top-k alone": {**NO_FILTERS, "top_k": 7},
    "top-p alone": {**NO_FILTERS, "top_p": 0.9},
    "min-p alone": {**NO_FILTERS, "min_p": 0.02},
    "typical alone": {**NO_FILTERS, "typical_p": 0.7},
    "top-n-sigma alone": {**NO_FILTERS, "top_n_sigma": 1.3},
    "dynatemp": {"dynatemp_range": 0.5, "dynatemp_exponent": 1.7},
    "dynatemp alone": {**NO_FILTERS, "dynatemp_range": 0.5},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.08, "top_p": 1.0},
    "xtc alone": {**NO_FILTERS, "xtc_probability": 1.0, "xtc_threshold": 0.02},
    "penalties": {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.4, "repeat_last_n": 30},
    "dry": {"dry_multiplier": 3.0, "dry_penalty_last_n": 100},
    "dry, short": {"dry_multiplier": 3.0, "dry_allowed_length": 0, "dry_base": 1.1},
    "bias": {"logit_bias": ((0, 5.0), (1, 5.0), (2, -math.inf), (0, 1.0))},
    "min_keep": {"top_p": 0.1, "min_p": 0.9, "typical_p": 0.2, "min_keep": 12},
    "everything": {
        "repeat_penalty": 1.1,
        "dry_multiplier": 0.8,
        "top_n_sigma": 2.0,
        "top_k": 30,
        "typical_p": 0.98,
        "top_p": 0.97,
        "min_p": 0.01,
        "xtc_probability": 0.5,
        "dynatemp_range": 0.2,
    },
    "temperature first": {"samplers": ("temperature", "top_k", "typ_p", "top_p", "min_p"), "temperature": 2.5},
    "penalties last": {"samplers": ("top_k", "min_p", "temperature", "penalties"), "repeat_penalty": 2.0},
    "greedy, penalties after top-k": {
        "samplers": ("top_k", "penalties", "temperature"),
        "temperature": 0.0,
        "top_k": 3,
        "presence_penalty": 9.0,
    },
    "no samplers": {"samplers": ()},
    "no temperature sampler": {"samplers": ("top_k",), "temperature": 0.0},
    "one twice": {"samplers": ("temperature", "top_p", "temperature"), "temperature": 1.5},
}


def piece(token_id: int) -> bytes:
    """Bytes of a token of the test vocabulary: every tenth contains a line end."""
    return b".\n" if token_id % 10 == 0 else b"t%d" % token_id


def sampler(n_vocab: int, **options: object) -> Sampler:
    return Sampler(SamplerSettings(**options), n_vocab, piece)


def picks_of_all_chains() -> list[int]:
    """Pick with every chain from rows made of whole numbers, so that no library makes the input differ."""
    picks = []
    for n_vocab in (100, 9973):
        numbers = (np.arange(n_vocab, dtype=np.int64) * 2654435761 + 12345) % 2**32
        for options in CHAINS.values():
            chain = sampler(n_vocab, **options)
            for position in range(8):
                logits = (((numbers >> position) % 4099) / 512).astype(np.float32)
                picks.append(chain.pick(logits, [5, 3, 7] * position, NoiseKey(99, 0, position)))
            picks += [int(np.float64(p).view(np.int64)) for _, p in chain.top_logprobs(logits, 3)]
    return picks


def digest() -> str:
    return hashlib.sha256(repr(picks_of_all_chains()).encode()).hexdigest()
