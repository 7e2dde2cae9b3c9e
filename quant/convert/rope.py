"""Rotary embedding of config.json as GGUF's keys and tensors: linear, llama3, yarn, longrope.

Source: ``modeling_rope_utils.py`` of transformers; for GGUF's meaning of the keys llama.cpp's ``llama-context.cpp``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError, quote
from ...formats.hf_config import JsonObject
from ...formats.record import Record, field

KINDS = "default, linear, dynamic, yarn, llama3 or longrope"
_MAX_CTX, _MAX_THETA, _MAX_FACTOR = 1 << 31, 1e12, 1e6


class Rope(Record, frozen=False):
    """What becomes of the rotation.

    Attributes:
        theta: ``rope.freq_base``.
        local_theta: ``rope.freq_base_swa``, of layers that see a window (Gemma 3).
        n_rot: components of a head that are rotated.
        keys: further ``rope.*`` keys (without the architecture): text, count or factor.
        tensors: divisors of the frequencies, f32 ``[n_rot / 2]``.
        notes: what GGUF cannot say.
    """

    theta: float
    local_theta: float | None
    n_rot: int
    keys: dict[str, str | int | float] = field(default_factory=dict)
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_rope(config: JsonObject, defaults: dict[str, Any], arch: str, n_embd_head: int, n_ctx: int) -> Rope:
    """Return the rotation that a configuration asks for.

    Args:
        config: of the text model.
        defaults: the family's values for missing keys.
        arch: GGUF's architecture.
        n_embd_head: width of a head.
        n_ctx: the context that the model was trained for.

    Raises:
        FormatError: a value is missing, out of range, or of a kind that GGUF's architecture does not have.
    """
    scaling, local = _objects(config)
    theta = scaling.optional("rope_theta", float) or config.optional("rope_theta", float) or defaults["rope_theta"]
    local_theta = None
    if "rope_local_base_freq" in defaults:
        local_theta = local.optional("rope_theta", float) if local else config.optional("rope_local_base_freq", float)
        local_theta = local_theta or defaults["rope_local_base_freq"]
    for value in (theta, local_theta or theta):
        if not 1 < value < _MAX_THETA:
            raise FormatError(f"{config.where}: rope_theta is {value:g}, expected more than 1, below 1e12")
    if local is not None and _kind(local) != "default":
        raise FormatError(f"{local.where}: layers with a window rotate with scaling, which {arch} in GGUF cannot")
    part = scaling.optional("partial_rotary_factor", float) or config.optional("partial_rotary_factor", float) or 1.0
    rope = Rope(theta, local_theta, int(n_embd_head * part))
    if not 2 <= rope.n_rot <= n_embd_head or rope.n_rot % 2 or (part != 1 and arch != "phi3"):
        raise FormatError(f"{config.where}: partial_rotary_factor {part:g} of heads of {n_embd_head} cannot be kept")
    _scale(rope, config, scaling, arch, n_ctx)
    return rope


def _objects(config: JsonObject) -> tuple[JsonObject, JsonObject | None]:
    """Return the parameters of layers that see everything, and those of layers with a window if they have their own."""
    rope = config.object("rope_parameters") or config.object("rope_scaling")
    if rope is None:
        return JsonObject(config.where, {}), None
    full = rope.object("full_attention")
    return (rope, None) if full is None else (full, rope.object("sliding_attention"))


def _kind(scaling: JsonObject) -> str:
    kind = (scaling.either(("rope_type", "type"), str) or "default").lower()
    return "longrope" if kind == "su" else kind


def _factor(scaling: JsonObject, key: str, default: float | None = None) -> float:
    value = scaling.required(key, float) if default is None else scaling.optional(key, float)
    value = default if value is None else value
    assert value is not None
    if not 1 / _MAX_FACTOR <= value <= _MAX_FACTOR:
        raise FormatError(f"{scaling.where}: {quote(key)} is {value:g}, expected 0.000001 to 1000000")
    return value


def _original(config: JsonObject, scaling: JsonObject, default: int | None) -> int:
    key = "original_max_position_embeddings"
    n_ctx = scaling.optional(key, int) or config.optional(key, int) or default
    if n_ctx is None:
        raise FormatError(f"{config.where}: {quote(key)} is missing, {_kind(scaling)} scaling needs it")
    if not 2 <= n_ctx <= _MAX_CTX:
        raise FormatError(f"{config.where}: {quote(key)} is {n_ctx}, expected 2 to {_MAX_CTX}")
    return n_ctx


def _scale(rope: Rope, config: JsonObject, scaling: JsonObject, arch: str, n_ctx: int) -> None:
    """Fill in keys, tensors and notes."""
    kind = _kind(scaling)
    if arch == "phi3":
        rope.keys["scaling.original_context_length"] = _original(config, scaling, n_ctx)
        if kind not in ("default", "longrope") and not (kind == "yarn" and "long_factor" in scaling):
            raise FormatError(f"{scaling.where}: rope scaling {quote(kind)}, expected longrope for {arch}")
        if kind != "default":
            _longrope(rope, scaling, kind, n_ctx / int(rope.keys["scaling.original_context_length"]))
    elif kind == "linear":
        rope.keys |= {"scaling.type": "linear", "scaling.factor": _factor(scaling, "factor")}
    elif kind == "yarn":
        _yarn(rope, config, scaling, n_ctx)
    elif kind == "llama3" and arch == "llama":
        rope.tensors["rope_freqs.weight"] = _llama3(rope, config, scaling)
    elif kind == "dynamic":
        rope.notes.append(f"dynamic rope scaling is left out: it changes only texts of more than {n_ctx} tokens")
    elif kind != "default":
        raise FormatError(f"{scaling.where}: rope scaling {quote(kind)} is not known for {arch}, expected {KINDS}")


def _yarn(rope: Rope, config: JsonObject, scaling: JsonObject, n_ctx: int) -> None:
    """Source: arXiv 2309.00071, section 3.2. GGUF multiplies its ``attn_factor`` by 0.1 ln(factor) + 1."""
    factor = _factor(scaling, "factor")
    for key in ("mscale", "mscale_all_dim"):
        if key in scaling:
            raise FormatError(f"{scaling.where}: yarn with {quote(key)} is not supported")
    if scaling.optional("truncate", bool) is False:
        raise FormatError(f"{scaling.where}: yarn without truncation is not supported")
    rope.keys |= {"scaling.type": "yarn", "scaling.factor": factor}
    rope.keys["scaling.original_context_length"] = _original(config, scaling, n_ctx)
    wanted = scaling.either(("attention_factor", "attn_factor"), float)
    if wanted is not None:
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        if not 1e-3 <= wanted / usual <= 1e3:
            raise FormatError(f"{scaling.where}: the attention factor is {wanted:g}, expected about {usual:g}")
        if abs(wanted / usual - 1) > 1e-6:
            rope.keys["scaling.attn_factor"] = wanted / usual
    for key, name in (("beta_fast", "scaling.yarn_beta_fast"), ("beta_slow", "scaling.yarn_beta_slow")):
        if key in scaling:
            rope.keys[name] = _factor(scaling, key)


def _llama3(rope: Rope, config: JsonObject, scaling: JsonObject) -> NDArray[np.float32]:
    """Return the divisors of Llama 3.1's frequencies: long waves by ``factor``, short ones by 1, blended between."""
    factor = _factor(scaling, "factor")
    low, high = _factor(scaling, "low_freq_factor"), _factor(scaling, "high_freq_factor")
    n_ctx = _original(config, scaling, None)
    if high <= low:
        raise FormatError(f"{scaling.where}: high_freq_factor is {high:g}, expected more than low_freq_factor {low:g}")
    divisors = []
    for i in range(0, rope.n_rot, 2):
        wave_length = 2 * math.pi * rope.theta ** (i / rope.n_rot)
        if wave_length < n_ctx / high:
            divisors.append(1.0)
        elif wave_length > n_ctx / low:
            divisors.append(factor)
        else:
            smooth = (n_ctx / wave_length - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def _longrope(rope: Rope, scaling: JsonObject, kind: str, scale: float) -> None:
    """Phi-3's factors, for texts up to the original context and for longer ones (arXiv 2402.13753)."""
    for name in ("long", "short"):
        factors = scaling.array(f"{name}_factor", float, rope.n_rot // 2)
        if factors is None:
            raise FormatError(f"{scaling.where}: {name}_factor is missing, {kind} scaling needs it")
        if not all(1 / _MAX_FACTOR <= factor <= _MAX_FACTOR for factor in factors):
            raise FormatError(f"{scaling.where}: {name}_factor holds values outside 0.000001 to 1000000")
        rope.tensors[f"rope_factors_{name}.weight"] = np.array(factors, np.float32)
    original = int(rope.keys["scaling.original_context_length"])
    factor = scaling.optional("attention_factor", float)
    if factor is None and scale <= 1:
        factor = 1.0
    elif factor is None:
        factor = 1 + 0.1 * math.log(scale) if kind == "yarn" else math.sqrt(1 + math.log(scale) / math.log(original))
    if not 1e-3 <= factor <= 1e3:
        raise FormatError(f"{scaling.where}: the attention factor is {factor:g}, expected 0.001 to 1000")
    rope.keys["scaling.attn_factor"] = factor
