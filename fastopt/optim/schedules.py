"""Learning-rate schedules: the factor on lr at step t = 0, 1, ...

Each is a small callable for ``schedule=`` of an optimizer, a function of t alone, so that a run
resumes from the step count; only :class:`ReduceOnPlateau` has a state, which it saves itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastopt._options import choice, integer, number
from fastopt.errors import FormatError, OptionError

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "OneCycle",
    "Polynomial",
    "ReduceOnPlateau",
    "Step",
    "Warmup",
]


@dataclass(frozen=True)
class Constant:
    """factor(t) = ``factor``."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        number(self.factor, "factor", low=0.0)

    def __call__(self, t: int) -> float:
        return self.factor


@dataclass(frozen=True)
class Step:
    """factor(t) = gamma^floor(t / every).

    Examples
    --------
    >>> from fastopt.optim.schedules import Step
    >>> [Step(every=2, gamma=0.5)(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        integer(self.every, "every", low=1)
        number(self.gamma, "gamma", low=0.0)

    def __call__(self, t: int) -> float:
        return float(self.gamma ** (t // self.every))


@dataclass(frozen=True)
class Exponential:
    """factor(t) = gamma^t."""

    gamma: float

    def __post_init__(self) -> None:
        number(self.gamma, "gamma", low=0.0)

    def __call__(self, t: int) -> float:
        return float(self.gamma**t)


@dataclass(frozen=True)
class Polynomial:
    """factor(t) = end + (1 - end) (1 - min(t, total) / total)^power; power 1 is linear."""

    total: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        integer(self.total, "total", low=1)
        number(self.power, "power", low=0.0)
        number(self.end, "end", low=0.0, high=1.0)

    def __call__(self, t: int) -> float:
        left = 1.0 - min(t, self.total) / self.total
        return float(self.end + (1.0 - self.end) * left**self.power)


@dataclass(frozen=True)
class Cosine:
    """factor(t) = end + (1 - end) (1 + cos(pi t / total)) / 2; with ``restarts`` it begins anew.

    Parameters
    ----------
    total : int
        Steps of the (first) fall.
    end : float
        Factor at its end.
    restarts : bool
        Begin again after ``total`` steps, each period ``stretch`` times the last (SGDR,
        Loshchilov and Hutter 2017, eq. 5); else stay at ``end``.
    stretch : int
        >= 1.

    Examples
    --------
    >>> from fastopt.optim.schedules import Cosine
    >>> [round(Cosine(total=4)(t), 3) for t in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    total: int
    end: float = 0.0
    restarts: bool = False
    stretch: int = 1

    def __post_init__(self) -> None:
        integer(self.total, "total", low=1)
        number(self.end, "end", low=0.0, high=1.0)
        integer(self.stretch, "stretch", low=1)

    def __call__(self, t: int) -> float:
        period = self.total
        if not self.restarts:
            t = min(t, period)
        elif self.stretch == 1:
            t %= period
        else:
            while t >= period:
                t -= period
                period *= self.stretch
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * t / period)) / 2.0


@dataclass(frozen=True)
class OneCycle:
    """Rises from 1 / div to 1 over ``warm`` of ``total`` steps, then falls to 1 / (div final_div).

    Both ways by half a cosine, as torch.optim.lr_scheduler.OneCycleLR (Smith and Topin 2018); the
    group's lr is the peak.
    """

    total: int
    warm: float = 0.3
    div: float = 25.0
    final_div: float = 1e4

    def __post_init__(self) -> None:
        integer(self.total, "total", low=2)
        number(self.warm, "warm", low=0.0, high=1.0, low_open=True, high_open=True)
        number(self.div, "div", low=1.0)
        number(self.final_div, "final_div", low=1.0)

    def __call__(self, t: int) -> float:
        peak = self.warm * self.total - 1.0
        first, last = 1.0 / self.div, 1.0 / (self.div * self.final_div)
        if t <= peak:
            begin, end, share = first, 1.0, t / peak if peak > 0 else 1.0
        else:
            begin, end = 1.0, last
            share = min(1.0, (t - peak) / (self.total - 1.0 - peak))
        return end + (begin - end) * (1.0 + math.cos(math.pi * share)) / 2.0


@dataclass(frozen=True)
class Warmup:
    """factor(t) = (t + 1) / steps while t < steps, then ``after(t - steps)``.

    Examples
    --------
    >>> from fastopt.optim.schedules import Cosine, Warmup
    >>> [round(Warmup(2, Cosine(total=2))(t), 2) for t in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    steps: int
    after: Callable[[int], float] = field(default_factory=Constant)

    def __post_init__(self) -> None:
        integer(self.steps, "steps", low=0)
        if not callable(self.after):
            raise OptionError("after: expected a schedule")

    def __call__(self, t: int) -> float:
        return (t + 1) / self.steps if t < self.steps else self.after(t - self.steps)


class ReduceOnPlateau:
    """Multiply by ``factor`` when ``observe`` saw no better value for ``patience`` calls.

    Parameters
    ----------
    factor : float
        What the factor is multiplied by, in (0, 1).
    patience : int
        Calls without an improvement that are ignored.
    threshold : float
        Relative improvement that counts.
    cooldown : int
        Calls after a fall in which none are counted.
    least : float
        The factor never falls below it.
    mode : "min" or "max"
        Whether smaller or larger is better.

    Examples
    --------
    >>> from fastopt.optim.schedules import ReduceOnPlateau
    >>> plateau = ReduceOnPlateau(factor=0.5, patience=1)
    >>> for loss in (1.0, 1.0, 1.0):
    ...     plateau.observe(loss)
    >>> plateau(0)
    0.5
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        *,
        threshold: float = 1e-4,
        cooldown: int = 0,
        least: float = 0.0,
        mode: str = "min",
    ) -> None:
        self.factor = number(factor, "factor", low=0.0, high=1.0, low_open=True, high_open=True)
        self.patience = integer(patience, "patience", low=0)
        self.threshold = number(threshold, "threshold", low=0.0)
        self.cooldown = integer(cooldown, "cooldown", low=0)
        self.least = number(least, "least", low=0.0, high=1.0)
        self.mode = choice(mode, "mode", ("min", "max"))
        self.current = 1.0
        self.best = math.inf if mode == "min" else -math.inf
        self.bad = self.cooling = 0

    def __call__(self, t: int) -> float:
        return self.current

    def observe(self, value: float) -> None:
        """Tell the latest loss (or score); a NaN counts as no improvement."""
        value = float(value)
        if self.mode == "min":
            better = value < self.best - self.threshold * abs(self.best) or self.best == math.inf
        else:
            better = value > self.best + self.threshold * abs(self.best) or self.best == -math.inf
        if better and not math.isnan(value):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooling:
            self.cooling -= 1
            self.bad = 0
        if self.bad > self.patience:
            self.current = max(self.least, self.current * self.factor)
            self.bad, self.cooling = 0, self.cooldown

    def state_dict(self) -> dict[str, float]:
        """What it remembers, as plain numbers."""
        return {
            "current": self.current,
            "best": self.best,
            "bad": self.bad,
            "cooling": self.cooling,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """In place: take over a ``state_dict``."""
        wanted = ("current", "best", "bad", "cooling")
        if not isinstance(state, Mapping) or set(state) != set(wanted):
            raise FormatError(f"state: expected the keys {', '.join(wanted)}")
        self.current, self.best = float(state["current"]), float(state["best"])
        self.bad, self.cooling = int(state["bad"]), int(state["cooling"])
