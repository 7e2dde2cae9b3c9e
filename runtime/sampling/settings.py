"""The sampler settings, with llama.cpp's names, defaults and order; checked when they are made.

Source of names, defaults and ranges: llama.cpp, common/common.h (``common_params_sampling``) and common/arg.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ...formats.errors import ConfigError
from ...formats.record import Record, fields_of

DEFAULT_SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
_SAMPLER_LETTERS = dict(zip("edskypmxt", DEFAULT_SAMPLERS, strict=True))  # of --sampler-seq
_SAMPLER_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}
_F32_MAX = 3.4028234663852886e38


class SamplerSettings(Record, kw_only=True):
    """How a token is chosen from the logits; the defaults are llama.cpp's.

    Attributes:
        temperature: the logits are divided by it; 0 takes the likeliest token.
        dynatemp_range: the temperature follows the entropy within temperature ± this; 0 is off.
        dynatemp_exponent: how the entropy maps to that range.
        top_k: keep the k likeliest tokens; 0 or less is off.
        top_p: keep the likeliest tokens that together have this probability; 1 is off.
        min_p: keep tokens with at least this share of the best one's probability; 0 is off.
        typical_p: keep the tokens whose surprise is nearest to the entropy, with this probability; 1 is off.
        top_n_sigma: keep logits within this many standard deviations of the largest; 0 or less is off.
        xtc_probability: how often the likeliest tokens are excluded; 0 is off.
        xtc_threshold: of the tokens with at least this probability, XTC leaves only the least likely; above 0.5 is off.
        repeat_last_n: how many of the latest tokens the three penalties look at; 0 is off.
        repeat_penalty: a logit of a repeated token is divided (negative: multiplied) by it; 1 is off.
        frequency_penalty: subtracted once for every occurrence; 0 is off.
        presence_penalty: subtracted once if the token occurs; 0 is off.
        dry_multiplier: strength of the penalty on tokens that would continue a repeated sequence; 0 is off.
        dry_base: the penalty is multiplier * base ** (length of the repetition - allowed length); 0 is off.
        dry_allowed_length: repetitions shorter than this are free.
        dry_penalty_last_n: how many of the latest tokens DRY looks at; 0 is off.
        dry_sequence_breakers: strings that a repetition does not extend across.
        logit_bias: pairs (token id, number added to its logit); -inf forbids the token.
        samplers: names in the order in which they are applied; those left out do nothing.
        min_keep: top_p, min_p, typical and XTC leave at least this many tokens.

    Raises:
        ConfigError: a setting is of the wrong type or out of its range.
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: tuple[tuple[int, float], ...] = ()
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    min_keep: int = 0

    def __post_init__(self) -> None:
        for name in fields_of(SamplerSettings):
            value = getattr(self, name)
            if name in _NUMBER_RANGES:
                object.__setattr__(self, name, _number(name, value))
            elif name in _INTEGER_MINIMA:
                _check_integer(name, value)
        if 0.0 < self.dry_base < 1.0:
            raise ConfigError(f"dry_base: expected 0 (off) or at least 1, got {self.dry_base:g}")
        object.__setattr__(self, "dry_sequence_breakers", _breakers(self.dry_sequence_breakers))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "samplers", _sampler_names(self.samplers))

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> SamplerSettings:
        """Make settings from options of a command line, a chat command or a request.

        Args:
            options: by field name; None means the default. A str is parsed as the option's value
                (``samplers``: names with ``;`` between; ``logit_bias``: one ``ID+BIAS``; or lists of such strings).

        Raises:
            ConfigError: an unknown name, a value that cannot be parsed or is out of range.
        """
        known = fields_of(cls)
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                raise ConfigError(f"{name}: no such sampler setting, expected one of {', '.join(sorted(known))}")
            if value is not None:
                values[name] = _parse(name, value)
        return cls(**values)


# Inclusive ranges; a number outside float32 has no meaning beside float32 logits.
_NUMBER_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, _F32_MAX),
    "dynatemp_range": (0.0, _F32_MAX),
    "dynatemp_exponent": (0.0, _F32_MAX),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (-_F32_MAX, _F32_MAX),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "repeat_penalty": (1 / _F32_MAX, _F32_MAX),
    "frequency_penalty": (-_F32_MAX, _F32_MAX),
    "presence_penalty": (-_F32_MAX, _F32_MAX),
    "dry_multiplier": (-_F32_MAX, _F32_MAX),
    "dry_base": (0.0, _F32_MAX),
}
_INTEGER_MINIMA: dict[str, int | None] = {
    "top_k": None,
    "repeat_last_n": 0,
    "dry_allowed_length": 0,
    "dry_penalty_last_n": 0,
    "min_keep": 0,
}


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: expected a number, got {_short(value)}")
    low, high = _NUMBER_RANGES[name]
    if not low <= value <= high:
        if name == "repeat_penalty":
            expected = "a finite number above 0"
        elif high == _F32_MAX:
            expected = "a finite number" if low < 0 else "a finite number, at least 0"
        else:
            expected = f"{low:g} to {high:g}"
        raise ConfigError(f"{name}: expected {expected}, got {_short(value)}")
    return float(value)


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}: expected a whole number, got {_short(value)}")
    minimum = _INTEGER_MINIMA[name]
    if minimum is not None and value < minimum:
        raise ConfigError(f"{name}: expected at least {minimum}, got {_short(value)}")


def _short(value: object) -> str:
    """Return a value as it is shown in an error; it may come from a request and be of any size."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _items(name: str, value: object) -> Iterable[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ConfigError(f"{name}: expected a list, got {_short(value)}")
    return value


def _breakers(value: object) -> tuple[str, ...]:
    breakers = tuple(_items("dry_sequence_breakers", value))
    for breaker in breakers:
        if not isinstance(breaker, str) or not breaker:
            raise ConfigError(f"dry_sequence_breakers: expected strings that are not empty, got {_short(breaker)}")
    return breakers


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    biases = []
    for pair in _items("logit_bias", value):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError(f"logit_bias: expected pairs (token id, number), got {_short(pair)}")
        token_id, bias = pair
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise ConfigError(f"logit_bias: expected a token id, got {_short(token_id)}")
        is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not is_number or not (bias == -math.inf or -_F32_MAX <= bias <= _F32_MAX):
            got = _short(bias)
            raise ConfigError(f"logit_bias: expected a finite number or -inf for token {_short(token_id)}, got {got}")
        biases.append((token_id, float(bias)))
    return tuple(biases)


def _sampler_names(value: object) -> tuple[str, ...]:
    names = []
    for given in _items("samplers", value):
        name = str(given).strip().lower().replace("-", "_")
        name = _SAMPLER_ALIASES.get(name, name)
        for known in DEFAULT_SAMPLERS:  # "topk", "minp"
            if name == known.replace("_", ""):
                name = known
        if name not in DEFAULT_SAMPLERS:
            raise ConfigError(f"samplers: no sampler {_short(given)}, expected some of {', '.join(DEFAULT_SAMPLERS)}")
        names.append(name)
    return tuple(names)


def parse_samplers(text: str) -> tuple[str, ...]:
    """Parse ``--samplers``: names with ``;`` between them, spelt as llama.cpp allows (``top_k``, ``top-k``, ``topk``).

    Raises:
        ConfigError: an unknown name.
    """
    return _sampler_names(text.split(";")) if text.strip() else ()


def parse_sampler_letters(text: str) -> tuple[str, ...]:
    """Parse ``--sampler-seq``: one letter for each sampler; the default order is ``edskypmxt``.

    Raises:
        ConfigError: an unknown letter.
    """
    for letter in text:
        if letter not in _SAMPLER_LETTERS:
            expected = ", ".join(f"{key} ({name})" for key, name in _SAMPLER_LETTERS.items())
            raise ConfigError(f"sampler sequence: no sampler {letter!r}, expected some of {expected}")
    return tuple(_SAMPLER_LETTERS[letter] for letter in text)


def parse_logit_bias(text: str) -> tuple[int, float]:
    """Parse ``--logit-bias``: ``15043+1`` or ``15043-1.5``, ``15043-inf`` forbids the token.

    Raises:
        ConfigError: it has another form.
    """
    for sign in "+-":
        token_id, found, size = text.partition(sign)
        if found and token_id.strip().isdecimal() and token_id.isascii():
            try:
                number = float(size)
            except ValueError:
                break
            return int(token_id), number if sign == "+" else -number
    raise ConfigError(f"logit_bias: expected TOKEN_ID+BIAS or TOKEN_ID-BIAS, got {_short(text)}")


def _parse(name: str, value: object) -> object:
    """Turn an option's text into its type; other values pass, to be checked when the settings are made."""
    if name == "samplers":
        return parse_samplers(value) if isinstance(value, str) else value
    if name == "logit_bias":
        items = [value] if isinstance(value, str) else _items(name, value)
        return tuple(parse_logit_bias(item) if isinstance(item, str) else item for item in items)
    if name == "dry_sequence_breakers":
        items = [value] if isinstance(value, str) else list(_items(name, value))
        return () if items == ["none"] else items
    if not isinstance(value, str):
        return value
    kind = int if name in _INTEGER_MINIMA else float
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{name}: expected a {'whole ' * (kind is int)}number, got {_short(value)}") from None
