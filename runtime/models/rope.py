"""Rotary frequencies from metadata: none, linear, llama3, yarn, longrope.

Everything is computed with ``decimal`` and rounded once to f64, so that no math library can make two
machines differ.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from ...formats.errors import FormatError
from ...formats.metadata import Metadata
from ..program import Rope
from ..weights import WeightSource

_CONTEXT = Context(prec=40)
_TWO_PI = Decimal("6.283185307179586476925286766559005768394")
YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0  # defaults of the paper (arXiv 2309.00071, section 3.2)


def frequencies(theta: float, n_rot: int) -> list[Decimal]:
    """Return ``theta ** (-2 i / n_rot)`` for i < n_rot / 2."""
    log = _CONTEXT.ln(Decimal(theta))
    return [
        _CONTEXT.exp(_CONTEXT.divide(_CONTEXT.multiply(log, Decimal(-2 * i)), Decimal(n_rot)))
        for i in range(n_rot // 2)
    ]


def read_rope(meta: Metadata, weights: WeightSource, *, n_embd_head: int, n_ctx: int | None, is_neox: bool) -> Rope:
    """Return the rotation that a file asks for.

    Raises:
        FormatError: a value is out of range, or the scaling type is unknown.
    """
    arch = meta.required("general.architecture", str)
    n_rot = meta.optional(f"{arch}.rope.dimension_count", int, n_embd_head)
    theta = meta.optional(f"{arch}.rope.freq_base", float, 10_000.0)
    if not 2 <= n_rot <= n_embd_head or n_rot % 2:
        raise FormatError(
            f"{meta.path}: {arch}.rope.dimension_count is {n_rot}, expected an even number from 2 to {n_embd_head}"
        )
    if not 1 < theta < 1e12:
        raise FormatError(f"{meta.path}: {arch}.rope.freq_base is {theta:g}, expected more than 1, below 1e12")
    base = frequencies(theta, n_rot)
    kind = meta.optional(f"{arch}.rope.scaling.type", str, "none")
    n_ctx_train = meta.optional(f"{arch}.context_length", int, 0)
    n_ctx_original = meta.optional(f"{arch}.rope.scaling.original_context_length", int, n_ctx_train)
    attention_factor = _moderate(meta, f"{arch}.rope.scaling.attn_factor", 1.0)
    factors = _factors(meta, weights, n_rot, (n_ctx or n_ctx_train) > n_ctx_original)
    if factors is not None:
        base = [_CONTEXT.divide(f, factor) for f, factor in zip(base, factors, strict=True)]
    if kind in ("none", "longrope"):
        return _rope(base, attention_factor, is_neox)
    scale = _moderate(meta, f"{arch}.rope.scaling.factor", 1.0)
    if kind == "linear":
        return _rope([_CONTEXT.divide(f, Decimal(scale)) for f in base], attention_factor, is_neox)
    if kind == "yarn":
        if n_ctx_original < 1:
            raise FormatError(f"{meta.path}: yarn needs {arch}.rope.scaling.original_context_length")
        fast = _moderate(meta, f"{arch}.rope.scaling.yarn_beta_fast", YARN_BETA_FAST)
        slow = _moderate(meta, f"{arch}.rope.scaling.yarn_beta_slow", YARN_BETA_SLOW)
        return _yarn(base, theta, scale, n_ctx_original, attention_factor, fast, slow, is_neox)
    raise FormatError(f"{meta.path}: rope scaling {kind!r} is not supported, expected none, linear, yarn or longrope")


def _moderate(meta: Metadata, key: str, default: float) -> float:
    """Return a factor between 0.001 and 1000000."""
    value = meta.optional(key, float, default)
    if not 1e-3 <= value <= 1e6:
        raise FormatError(f"{meta.path}: {key} is {value:g}, expected 0.001 to 1000000")
    return value


def _rope(values: list[Decimal], factor: float, is_neox: bool) -> Rope:
    return Rope(n_pair=len(values), frequencies=tuple(float(v) for v in values), factor=factor, is_neox=is_neox)


def _factors(meta: Metadata, weights: WeightSource, n_rot: int, is_long: bool) -> list[Decimal] | None:
    """Return the divisors of the frequencies that some files carry: llama3's, or longrope's long or short ones."""
    for name in ("rope_freqs.weight", "rope_factors_long.weight" if is_long else "rope_factors_short.weight"):
        if weights.has(name):
            values = weights.values(weights.vector(name, n_rot // 2))[: n_rot // 2]
            if not all(1e-3 < value < 1e6 for value in values):
                raise FormatError(f"{meta.path}: tensor '{name}' holds values outside 0.001 to 1000000")
            return [Decimal(float(value)) for value in values]
    return None


def _yarn(
    base: list[Decimal], theta: float, scale: float, n_ctx: int, factor: float, fast: float, slow: float, is_neox: bool
) -> Rope:
    """Interpolate slow pairs, keep fast ones, blend between (arXiv 2309.00071, section 3.2; eq. 22 for the factor)."""
    n_rot = 2 * len(base)

    def pair_of(n_turn: float) -> Decimal:
        ratio = _CONTEXT.divide(Decimal(n_ctx), _CONTEXT.multiply(Decimal(n_turn), _TWO_PI))
        return _CONTEXT.divide(Decimal(n_rot) * _CONTEXT.ln(ratio), 2 * _CONTEXT.ln(Decimal(theta)))

    low = max(Decimal(0), pair_of(fast).to_integral_value(ROUND_FLOOR))
    high = min(Decimal(n_rot - 1), pair_of(slow).to_integral_value(ROUND_CEILING))
    width = max(Decimal("0.001"), high - low)
    values = []
    for i, frequency in enumerate(base):
        kept = 1 - min(Decimal(1), max(Decimal(0), (i - low) / width))
        values.append(_CONTEXT.divide(frequency, Decimal(scale)) * (1 - kept) + frequency * kept)
    magnitude = 1 + Decimal("0.1") * _CONTEXT.ln(Decimal(scale))
    return _rope(values, float(Decimal(factor) * magnitude), is_neox)
