"""What a file shall be, instead of a type: so large, so many bits a weight, so near to its source, or so fast."""

from __future__ import annotations

import re
from enum import Enum

from ..formats.errors import ConfigError
from ..formats.record import Record

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}


class Kind(Enum):
    """What is limited."""

    BYTES = "bytes"
    BITS = "bits a weight"
    DIVERGENCE = "divergence"
    SPEED = "tokens a second"


class Target(Record):
    """A limit: of bytes or bits from above, of divergence from above, of speed from below."""

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        """Refuse what no file can be.

        Raises:
            ConfigError: the value is not above 0.
        """
        if not 0 < self.value < float("inf"):
            raise ConfigError(f"a target of {self.value:g} {self.kind.value}, expected more than 0")

    @property
    def is_measured(self) -> bool:
        """Whether it takes the file to know if it is what was wanted."""
        return self.kind in (Kind.DIVERGENCE, Kind.SPEED)

    @property
    def label(self) -> str:
        """A short name, for the file."""
        match self.kind:
            case Kind.BYTES:
                unit, name = next(((u, n) for u, n in ((10**9, "GB"), (10**6, "MB")) if self.value >= u), (1, "B"))
                return f"{self.value / unit:.4g}{name}"
            case Kind.BITS:
                return f"{self.value:g}bpw"
            case Kind.DIVERGENCE:
                return f"kld{self.value:g}"
            case Kind.SPEED:
                return f"{self.value:g}tps"


def parse_size(text: str) -> Target:
    """Return the target of a size such as ``0.9GB``, ``850MiB`` or ``900000000``.

    Raises:
        ConfigError: it has another form.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{text!r} is no size, expected a number with a unit, such as 0.9GB or 850MiB")
    return Target(Kind.BYTES, float(match[1]) * _UNITS[match[2]])
