"""Choose a type for every matrix so that the loss is smallest within a budget of bytes (or of seconds a token).

Losses of different matrices are added; each matrix has a few options. Only options on the lower convex hull of (cost,
loss) matter: steps along the hulls are taken from the steepest on, which is the optimum of the Lagrangian for every
budget at which a step ends (Shoham and Gersho, 1988), and steps that still fit are taken from the rest. The result is
off the true optimum by less than what the first step that did not fit would have gained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from ..formats.errors import ConfigError
from ..formats.ggml_types import GgmlType
from ..formats.record import Record, field


class Option(Record):
    """One type that a matrix can have.

    Attributes:
        ggml_type: the type.
        n_bytes: of the whole matrix.
        loss: what the model loses by it, not negative; divergences that are added.
        seconds: that one token spends on the matrix.
    """

    ggml_type: GgmlType
    n_bytes: int
    loss: float
    seconds: float = 0.0


Cost = Callable[[Option], float]


def bytes_of(option: Option) -> float:
    """Return what an option costs of a file's size."""
    return float(option.n_bytes)


def seconds_of(option: Option) -> float:
    """Return what an option costs of a token's time."""
    return option.seconds


class Assignment(Record, frozen=False):
    """A type for every matrix.

    Attributes:
        options: by name of the matrix.
    """

    options: dict[str, Option] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of all matrices."""
        return sum(option.n_bytes for option in self.options.values())

    @property
    def seconds(self) -> float:
        """Seconds of a token."""
        return math.fsum(option.seconds for option in self.options.values())

    @property
    def loss(self) -> float:
        """Loss of all matrices together."""
        return math.fsum(option.loss for option in self.options.values())

    @property
    def types(self) -> dict[str, GgmlType]:
        """Types by name."""
        return {name: option.ggml_type for name, option in self.options.items()}


class _Step(Record):
    steepness: float  # loss that a unit of cost saves
    name: str
    index: int  # of the option on the hull that the step leads to
    cost: float


def hull(options: Sequence[Option], cost: Cost) -> list[Option]:
    """Return the options on the lower convex hull of (cost, loss), from the cheapest to the one with least loss."""
    result: list[Option] = []
    for option in sorted(options, key=lambda o: (cost(o), o.loss, o.ggml_type)):
        if result and option.loss >= result[-1].loss:
            continue
        while len(result) > 1 and _steepness(result[-2], result[-1], cost) <= _steepness(result[-1], option, cost):
            result.pop()
        result.append(option)
    return result


def _steepness(a: Option, b: Option, cost: Cost) -> float:
    extra = cost(b) - cost(a)
    return (a.loss - b.loss) / extra if extra > 0 else math.inf


class Budget:
    """All optima of a model.

    Args:
        options: of each matrix by name, at least one each.
        cost: ``bytes_of`` or ``seconds_of``.
    """

    def __init__(self, options: Mapping[str, Sequence[Option]], cost: Cost = bytes_of) -> None:
        self._cost = cost
        self._hulls = {name: hull(of_matrix, cost) for name, of_matrix in options.items()}
        steps = [
            _Step(_steepness(a, b, cost), name, i, cost(b) - cost(a))
            for name, points in self._hulls.items()
            for i, (a, b) in enumerate(pairwise(points), 1)
        ]
        self._steps = sorted(steps, key=lambda s: (-s.steepness, s.name, s.index))

    def within(self, limit: float, what: str = "bytes") -> Assignment:
        """Return the assignment with the least loss whose cost is ``limit`` at most.

        Raises:
            ConfigError: even the cheapest costs more.
        """
        index = dict.fromkeys(self._hulls, 0)
        total = math.fsum(self._cost(points[0]) for points in self._hulls.values())
        if total > limit:
            raise ConfigError(f"a budget of {limit:.6g} {what} is too small, the least is {total:.6g}")
        for step in self._steps:
            if step.index == index[step.name] + 1 and total + step.cost <= limit:
                index[step.name] = step.index
                total += step.cost
        return self._chosen(index)

    def with_loss(self, limit: float) -> Assignment:
        """Return the cheapest assignment whose loss is ``limit`` at most.

        Raises:
            ConfigError: no assignment loses so little.
        """
        index = dict.fromkeys(self._hulls, 0)
        chosen = self._chosen(index)
        for step in self._steps:
            if chosen.loss <= limit:
                break
            index[step.name] = step.index
            chosen = self._chosen(index)
        if chosen.loss > limit:
            raise ConfigError(f"a divergence of {limit:.3g} is out of reach, the least is about {chosen.loss:.3g}")
        for step in reversed(self._steps):  # what the last, large step made unnecessary
            if step.index == index[step.name] and step.index > 0:
                lower = self._chosen({**index, step.name: step.index - 1})
                if lower.loss <= limit:
                    index[step.name], chosen = step.index - 1, lower
        return chosen

    def curve(self, n: int = 12) -> list[Assignment]:
        """Return up to ``n`` optima from the cheapest to the best, their costs in equal ratios."""
        index = dict.fromkeys(self._hulls, 0)
        points, totals = [dict(index)], [math.fsum(self._cost(p[0]) for p in self._hulls.values())]
        for step in self._steps:
            index[step.name] = step.index
            points.append(dict(index))
            totals.append(totals[-1] + step.cost)
        ratio = totals[-1] / totals[0] if totals[0] > 0 else 1.0
        wanted = [totals[0] * ratio ** (i / max(n - 1, 1)) for i in range(n)]
        nearest = dict.fromkeys(min(range(len(totals)), key=lambda i, w=w: abs(totals[i] - w)) for w in wanted)  # type: ignore[misc]
        return [self._chosen(points[i]) for i in nearest]

    def _chosen(self, index: dict[str, int]) -> Assignment:
        return Assignment({name: self._hulls[name][i] for name, i in index.items()})
