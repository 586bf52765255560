"""Stoppers: rules that end a trial early by the values it reports on its way.

A stopper is told finished trials (``tell``) and hands out rules (``rule``): a rule is a snapshot,
a picklable callable of a running trial's reports, so it decides alike in any worker. Where rules
are made between batches, decisions depend on earlier batches alone and are the same for any
number of workers; made on every arrival, they are the asynchronous forms. Values are minimised.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import NormalDist, median
from typing import Any, NamedTuple

import numpy as np

from fastopt._options import choice, integer, number
from fastopt.errors import FormatError, OptionError

__all__ = [
    "STOPPERS",
    "Hyperband",
    "Ladder",
    "Median",
    "Stopper",
    "SuccessiveHalving",
    "Wilcoxon",
    "signed_rank_p",
    "stopper_of",
]

Reports = Sequence[tuple[int, float]]  # (step, value), steps rising


class Ladder(NamedTuple):
    """How a cohort is thinned: ``size`` trials, rungs at ``first`` step times powers of
    ``reduction`` and below ``last``, of which the best 1 / ``reduction`` go on."""

    size: int
    first: int
    reduction: int
    last: float = math.inf


class Stopper:
    """Base of the stoppers: what they know is ``seen``, plain data."""

    name = ""

    def __init__(self) -> None:
        self.seen: dict[Any, Any] = {}

    def rule(self) -> Any:
        """A callable of one trial's reports so far: True ends it."""
        raise NotImplementedError  # pragma: no cover

    def ladder(self) -> Ladder | None:
        """How the next trials are thinned where they can wait for each other; None: they are
        not, and end by ``rule``."""
        return None

    def tell(self, reports: Reports, y: float, stopped: bool = False) -> None:
        """Take in a finished or stopped trial: its reports and its final value."""
        raise NotImplementedError  # pragma: no cover

    def state_dict(self) -> dict[str, Any]:
        """What the next rules depend on, as plain data."""
        return {"name": self.name, "seen": copy.deepcopy(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; FormatError and no change where it is not this stopper's."""
        if not isinstance(state, Mapping):
            raise FormatError(f"state: expected a dict of state_dict, got {type(state).__name__}")
        if set(state) != {"name", "seen"} or state["name"] != self.name:
            raise FormatError(f"state: is not that of a {self.name!r} stopper")
        if not self.fits(state["seen"]):
            raise FormatError(f"state: seen is not what a {self.name!r} stopper has seen")
        self.seen = copy.deepcopy(state["seen"])

    def fits(self, seen: Any) -> bool:
        """Whether ``seen`` can have come from such a stopper."""
        return isinstance(seen, dict)


@dataclass(frozen=True)
class RungRule:
    """Ends a trial that reaches a rung outside the best 1 / reduction of those that reached it."""

    rungs: tuple[tuple[int, tuple[float, ...]], ...]  # (step, values in rising order)
    reduction: int

    def __call__(self, reports: Reports) -> bool:
        step, value = reports[-1]
        before = reports[-2][0] if len(reports) > 1 else -1
        for rung, values in self.rungs:
            if before < rung <= step:
                keep = max(1, (len(values) + 1) // self.reduction)
                if math.isnan(value) or bisect_left(values, value) >= keep:
                    return True
        return False


class SuccessiveHalving(Stopper):
    """At steps r, r k, r k^2 ... only the best 1 / k of the trials that came so far go on.

    Parameters
    ----------
    min_steps : int
        r, the first rung.
    reduction : int
        k.
    cohort : int, optional
        Trials that wait for each other at the rungs, where the objective yields its values and
        ``mode="sync"``; k^2 by default. 0: no trial waits, each is judged by those before it.

    Notes
    -----
    Of a cohort the best 1 / k leave the first rung, the best 1 / k of those the second and so on;
    the last one runs to its end (Jamieson & Talwalkar, AISTATS 2016). With rules made on every
    arrival it is ASHA's stopping form (Li et al., MLSys 2020): the first trial at a rung always
    goes on.

    Examples
    --------
    >>> stopper = SuccessiveHalving(min_steps=1, reduction=2)
    >>> stopper.tell([(1, 0.3), (2, 0.2)], 0.2)
    >>> stopper.rule()([(1, 0.5)]), stopper.rule()([(1, 0.1)])
    (True, False)
    """

    name = "halving"

    def __init__(
        self, *, min_steps: int = 1, reduction: int = 3, cohort: int | None = None
    ) -> None:
        super().__init__()
        self.min_steps = integer(min_steps, "min_steps", low=1)
        self.reduction = integer(reduction, "reduction", low=2)
        default = self.reduction**2
        self.cohort = default if cohort is None else integer(cohort, "cohort", low=0)

    def fits(self, seen: Any) -> bool:
        return _by_step(seen) and all(values == sorted(values) for values in seen.values())

    def ladder(self) -> Ladder | None:
        return Ladder(self.cohort, self.min_steps, self.reduction) if self.cohort else None

    def rule(self) -> RungRule:
        return RungRule(
            tuple((step, tuple(values)) for step, values in sorted(self.seen.items())),
            self.reduction,
        )

    def tell(self, reports: Reports, y: float, stopped: bool = False) -> None:
        rung, i = self.min_steps, 0
        while i < len(reports):
            step, value = reports[i]
            if step < rung:
                i += 1
                continue
            if not math.isnan(value):
                insort(self.seen.setdefault(rung, []), float(value))
            rung *= self.reduction


class Hyperband(Stopper):
    """Successive halving with several first rungs in turns, from hasty to patient.

    Parameters
    ----------
    max_steps : int
        The most steps a trial takes; bracket s of 0..log_k(max_steps) has its first rung at
        max_steps / k^s, so that bracket 0 stops nobody.
    reduction : int
        k.

    Notes
    -----
    Brackets get trials in the published proportions, ceil((S + 1) k^s / (s + 1)) of S + 1
    brackets (Li et al., JMLR 18 (2018), algorithm 1). ``rule`` is of the bracket whose turn it
    is, by the number of trials told.

    Examples
    --------
    >>> Hyperband(max_steps=9, reduction=3).shares
    [9, 5, 3]
    """

    name = "hyperband"

    def __init__(self, *, max_steps: int = 81, reduction: int = 3) -> None:
        super().__init__()
        self.max_steps = integer(max_steps, "max_steps", low=1)
        self.reduction = integer(reduction, "reduction", low=2)
        most = int(math.log(self.max_steps, self.reduction) + 1e-9)
        sizes = range(most, -1, -1)
        self.shares = [math.ceil((most + 1) * reduction**s / (s + 1)) for s in sizes]
        self.brackets = [
            SuccessiveHalving(min_steps=self.max_steps // reduction**s, reduction=reduction)
            for s in sizes
        ]
        self.seen = {"told": 0, "brackets": [b.seen for b in self.brackets]}

    def bracket_of(self, trial: int) -> int:
        """Which bracket trial number ``trial`` belongs to; 0 is the hastiest."""
        place = trial % sum(self.shares)
        return next(i for i in range(len(self.shares)) if place < sum(self.shares[: i + 1]))

    def ladder(self) -> Ladder:
        bracket = self.bracket_of(self.seen["told"])
        left = sum(self.shares[: bracket + 1]) - self.seen["told"] % sum(self.shares)
        first = self.brackets[bracket].min_steps
        return Ladder(left, first, self.reduction, self.max_steps)

    def rule(self) -> RungRule:
        return self.brackets[self.bracket_of(self.seen["told"])].rule()

    def tell(self, reports: Reports, y: float, stopped: bool = False) -> None:
        self.brackets[self.bracket_of(self.seen["told"])].tell(reports, y, stopped)
        self.seen["told"] += 1

    def fits(self, seen: Any) -> bool:
        if not isinstance(seen, dict) or set(seen) != {"told", "brackets"}:
            return False
        told, brackets = seen["told"], seen["brackets"]
        return (
            _is_count(told)
            and isinstance(brackets, list)
            and len(brackets) == len(self.brackets)
            and all(b.fits(own) for b, own in zip(self.brackets, brackets, strict=True))
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for bracket, seen in zip(self.brackets, self.seen["brackets"], strict=True):
            bracket.seen = seen


@dataclass(frozen=True)
class MedianRule:
    """Ends a trial whose best value is above the median of the others' best by the same step."""

    medians: tuple[tuple[int, float], ...]  # (step, median), steps rising
    patience: int

    def __call__(self, reports: Reports) -> bool:
        step = reports[-1][0]
        if len(reports) <= self.patience:
            return False
        i = bisect_left(self.medians, (step, math.inf)) - 1
        values = [v for _, v in reports if not math.isnan(v)]
        if i < 0 or self.medians[i][0] != step:
            return False
        return not values or min(values) > self.medians[i][1]


class Median(Stopper):
    """Ends trials whose best value so far is worse than the median of the others' at that step.

    Parameters
    ----------
    trials : int
        Trials that must have reported a step before it decides.
    patience : int
        Reports that every trial may make.

    Notes
    -----
    Golovin et al., "Google Vizier", KDD 2017, section 3.2.1.

    Examples
    --------
    >>> stopper = Median(trials=1)
    >>> stopper.tell([(1, 0.5), (2, 0.4)], 0.4)
    >>> stopper.rule()([(1, 0.6)]), stopper.rule()([(1, 0.45)])
    (True, False)
    """

    name = "median"

    def __init__(self, *, trials: int = 5, patience: int = 0) -> None:
        super().__init__()
        self.trials = integer(trials, "trials", low=1)
        self.patience = integer(patience, "patience", low=0)

    def fits(self, seen: Any) -> bool:
        return _by_step(seen)

    def rule(self) -> MedianRule:
        known = [
            (step, median(best)) for step, best in self.seen.items() if len(best) >= self.trials
        ]
        return MedianRule(tuple(sorted(known)), self.patience)

    def tell(self, reports: Reports, y: float, stopped: bool = False) -> None:
        best = math.inf
        for step, value in reports:
            if not math.isnan(value):
                best = min(best, float(value))
            self.seen.setdefault(step, []).append(best)


@dataclass(frozen=True)
class WilcoxonRule:
    """Ends a trial that is worse than the best one, step by step, beyond chance."""

    best: tuple[tuple[int, float], ...]
    p: float
    patience: int

    def __call__(self, reports: Reports) -> bool:
        other = dict(self.best)
        gaps = [v - other[s] for s, v in reports if s in other and not math.isnan(v - other[s])]
        if len(gaps) < self.patience or not gaps:
            return False
        return sum(gaps) > 0 and signed_rank_p(tuple(gaps)) < self.p


class Wilcoxon(Stopper):
    """Ends a trial that loses to the best one by a signed-rank test over the same steps.

    For objectives whose steps are separate measurements of the same things, such as the folds of
    a cross-validation; the final value is their mean.

    Parameters
    ----------
    p : float
        One-sided p below which a trial ends.
    patience : int
        Steps in common before it decides.

    Notes
    -----
    Wilcoxon, Biometrics Bulletin 1 (1945); zeros are split between the signs.

    Examples
    --------
    >>> stopper = Wilcoxon(p=0.1)
    >>> stopper.tell([(i, 0.1) for i in range(5)], 0.1)
    >>> stopper.rule()([(i, 0.2) for i in range(4)])
    True
    """

    name = "wilcoxon"

    def __init__(self, *, p: float = 0.1, patience: int = 2) -> None:
        super().__init__()
        self.p = number(p, "p", low=0, high=1)
        self.patience = integer(patience, "patience", low=1)
        self.seen = {"y": math.inf, "best": []}

    def fits(self, seen: Any) -> bool:
        if not isinstance(seen, dict) or set(seen) != {"y", "best"}:
            return False
        y, best = seen["y"], seen["best"]
        return (
            isinstance(y, float)
            and not math.isnan(y)
            and isinstance(best, list)
            and all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in best)
            and all(_is_count(step) and isinstance(value, float) for step, value in best)
        )

    def rule(self) -> WilcoxonRule:
        return WilcoxonRule(tuple(map(tuple, self.seen["best"])), self.p, self.patience)

    def tell(self, reports: Reports, y: float, stopped: bool = False) -> None:
        if not stopped and y < self.seen["y"]:
            self.seen = {"y": float(y), "best": [(int(s), float(v)) for s, v in reports]}


def _is_count(value: Any) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and 0 <= value < 1 << 63


def _by_step(seen: Any) -> bool:
    """A dict of step -> list of values, no NaN among them."""
    return isinstance(seen, dict) and all(
        _is_count(step)
        and isinstance(values, list)
        and all(isinstance(v, float) and not math.isnan(v) for v in values)
        for step, values in seen.items()
    )


@lru_cache(maxsize=256)
def _rank_sums(n: int) -> tuple[float, ...]:
    """P(W >= w) of the signed-rank sum of n pairs without ties, w = 0..n (n + 1) / 2."""
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1.0
    for rank in range(1, n + 1):
        counts[rank:] += counts[:-rank].copy()
    return tuple((np.cumsum(counts[::-1])[::-1] / 2.0**n).tolist())


def signed_rank_p(gaps: Sequence[float]) -> float:
    """One-sided p of the Wilcoxon signed-rank test that ``gaps`` are above 0.

    Exact up to 50 pairs without ties or zeros, else the normal approximation with the variance
    corrected for ties; a zero counts half for each sign.
    """
    sizes = np.abs(np.asarray(gaps, dtype=np.float64))
    order = np.argsort(sizes, kind="stable")
    values, first, counts = np.unique(sizes[order], return_index=True, return_counts=True)
    ranks = np.empty(len(sizes))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    positive = np.asarray(gaps) > 0
    zero = sizes == 0
    total = float(ranks[positive].sum() + 0.5 * ranks[zero].sum())
    n = len(sizes)
    if n <= 50 and len(values) == n and not zero.any():
        return _rank_sums(n)[round(total)]
    variance = n * (n + 1) * (2 * n + 1) / 24 - float((counts**3 - counts).sum()) / 48
    z0 = int(zero.sum())
    variance -= z0 * (z0 + 1) * (2 * z0 + 1) / 24 - (z0**3 - z0) / 48
    if variance <= 0:
        return 1.0
    return 1 - NormalDist().cdf((total - n * (n + 1) / 4) / math.sqrt(variance))


STOPPERS: dict[str, Callable[[], Stopper]] = {
    s.name: s for s in (SuccessiveHalving, Hyperband, Median, Wilcoxon)
}
# The same rule, made on every arrival in mode="async"; nobody waits.
STOPPERS["asha"] = partial(SuccessiveHalving, cohort=0)


def stopper_of(stopper: str | Stopper | None) -> Stopper | None:
    """A stopper by its name, or as it is."""
    if stopper is None or isinstance(stopper, Stopper):
        return stopper
    if not isinstance(stopper, str):
        raise OptionError(f"stopper: expected a name or a Stopper, got {type(stopper).__name__}")
    return STOPPERS[choice(stopper, "stopper", tuple(STOPPERS))]()
