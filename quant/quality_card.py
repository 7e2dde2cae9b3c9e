"""The quality card: what quantising did to a model, measured when the file was made and kept in its metadata.

Every value has a fixed size, so that a writer can reserve the room (``placeholder``), measure the finished tensors,
and then put the figures in their place.

=============================================  ===============================================================
``llmrun.quality.version``                     u32, 1
``.ppl_base``, ``.ppl``                        f32, perplexity of the source and of the file
``.kld_mean``, ``_median``, ``_q999``, ``_max``  f32, Kullback-Leibler divergence from the source, nats
``.same_top``, ``.p_diff_rms``                 f32, share of equal likeliest tokens; root mean square of differences
                                               of the probability of the text's next token
``.n_token``, ``.n_ctx``                       u32, tokens that counted, tokens of a chunk
``.flips.refusals``, ``.code``, ``.arithmetic``  i32 [2], probes that are answered differently, and all
``.worst_tensors``                             text, "name type error; …", the largest relative errors, padded
``.text``, ``.text_sha256``                    text, name (padded) and hash of the text
``.source_sha256``                             text, hash of the file or folder that was quantised
=============================================  ===============================================================
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..formats.errors import FormatError
from ..formats.meta_value import MetaValue
from ..formats.metadata import Metadata, ValueType
from ..formats.record import Record, field

PREFIX = "llmrun.quality."
VERSION = 1
FIGURES = ("ppl_base", "ppl", "kld_mean", "kld_median", "kld_q999", "kld_max", "same_top", "p_diff_rms")
COUNTS = ("n_token", "n_ctx")
HASHES = ("text_sha256", "source_sha256")
KINDS = ("refusals", "code", "arithmetic")
N_WORST = 5
WORST_BYTES, TEXT_BYTES, HASH_BYTES = 512, 64, 64


class QualityCard(Record, kw_only=True):
    """The figures of one file; see the table above."""

    ppl_base: float
    ppl: float
    kld_mean: float
    kld_median: float
    kld_q999: float
    kld_max: float
    same_top: float
    p_diff_rms: float
    n_token: int
    n_ctx: int
    flips: dict[str, tuple[int, int]] = field(default_factory=dict)
    worst: list[str] = field(default_factory=list)
    text: str = ""
    text_sha256: str = ""
    source_sha256: str = ""

    def metadata(self) -> dict[str, MetaValue]:
        """Return the values for a file's metadata; always of the same keys and sizes."""
        values = {"version": MetaValue.u32(VERSION)}
        values |= {name: MetaValue.f32(_finite(getattr(self, name))) for name in FIGURES}
        values |= {name: MetaValue.u32(getattr(self, name)) for name in COUNTS}
        for kind in KINDS:
            pair = np.array(self.flips.get(kind, (0, 0)), np.int32)
            values[f"flips.{kind}"] = MetaValue.numbers(ValueType.I32, pair)
        values["worst_tensors"] = MetaValue.text(_padded("; ".join(self.worst[:N_WORST]), WORST_BYTES))
        values["text"] = MetaValue.text(_padded(self.text, TEXT_BYTES))
        values |= {name: MetaValue.text(_padded(getattr(self, name), HASH_BYTES)) for name in HASHES}
        return {PREFIX + key: value for key, value in values.items()}

    @classmethod
    def placeholder(cls) -> dict[str, MetaValue]:
        """Return values of the same keys and sizes, to be replaced."""
        values: dict[str, Any] = {**dict.fromkeys(FIGURES, 0.0), **dict.fromkeys(COUNTS, 0)}
        return cls(**values).metadata()

    @classmethod
    def from_metadata(cls, meta: Metadata) -> QualityCard | None:
        """Return a file's card; None where it has none, or one that this version does not read or believe."""
        try:
            if meta.required(PREFIX + "version", int) != VERSION or not meta.required(PREFIX + "n_token", int):
                return None
            figures = {name: meta.required(PREFIX + name, float) for name in FIGURES}
            counts = {name: meta.required(PREFIX + name, int) for name in COUNTS}
            flips = {}
            for kind in KINDS:
                pair = meta.required(f"{PREFIX}flips.{kind}", list[int])
                flips[kind] = (pair[0], pair[1]) if len(pair) == 2 else (0, 0)
            texts = {name: meta.required(PREFIX + name, str).strip() for name in ("text", *HASHES)}
            worst = meta.required(PREFIX + "worst_tensors", str).strip()
        except FormatError:
            return None
        values: dict[str, Any] = {**figures, **counts, **texts}
        return cls(flips=flips, worst=[w for w in worst.split("; ") if w], **values)

    @property
    def n_flip(self) -> tuple[int, int]:
        """Probes that are answered differently, and all of them."""
        return sum(n for n, _ in self.flips.values()), sum(n for _, n in self.flips.values())

    def line(self) -> str:
        """Return the card in one line."""
        n, of = self.n_flip
        flips = f" · {n} of {of} probes flipped" if of else ""
        return (
            f"quality: KL {self.kld_mean:.4f} from its source · same likeliest token {100 * self.same_top:.1f} % ·"
            f" perplexity {_ratio(self.ppl, self.ppl_base)}{flips}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return the card as a table of names and values."""
        kld = ", ".join(
            f"{name} {value:.6f}"
            for name, value in (
                ("mean", self.kld_mean), ("median", self.kld_median), ("99.9%", self.kld_q999), ("max", self.kld_max),
            )
        )  # fmt: skip
        flips = ", ".join(f"{kind} {n} of {of}" for kind, (n, of) in self.flips.items() if of)
        rows = [
            ("quality: perplexity", f"{self.ppl:.4f}, source {self.ppl_base:.4f} ({_ratio(self.ppl, self.ppl_base)})"),
            ("quality: KL divergence", kld),
            ("quality: same top token", f"{100 * self.same_top:.2f} %, RMS of Δp {100 * self.p_diff_rms:.2f} %"),
            ("quality: flipped probes", flips),
            ("quality: worst tensors", "; ".join(self.worst)),
            ("quality: measured on", f"{self.n_token} tokens of {self.text!r}, sha256 {self.text_sha256[:16]}…"),
            ("quality: source", f"sha256 {self.source_sha256}"),
        ]
        return [(name, value) for name, value in rows if value]


def _ratio(ppl: float, base: float) -> str:
    return f"{100 * (ppl / base - 1):+.2f} %" if base else "unknown"


def _finite(value: float) -> float:
    largest = float(np.finfo(np.float32).max)
    return min(max(value, -largest), largest) if not math.isnan(value) else largest


def _padded(text: str, n_byte: int) -> bytes:
    """Return text as exactly ``n_byte`` bytes of UTF-8, cut or filled with spaces."""
    return text.encode()[:n_byte].decode(errors="ignore").encode().ljust(n_byte)
