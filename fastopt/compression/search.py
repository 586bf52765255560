"""The search: a knapsack over measured effects, steered by the metric, then refined.

Choosing one option for each place so that the cost is least for a given sum of errors is a
multiple-choice knapsack; a Lagrange multiplier m solves it place by place (least cost + m * error)
for a whole range of budgets. Bisection finds the smallest m whose recipe keeps the metric's
budget; what the sum of single effects does not see is left to the refinement.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._random import Seed
from fastopt.compression.journal import Memory
from fastopt.compression.prepare import Option
from fastopt.compression.recipe import Recipe
from fastopt.models import Group
from fastopt.search import Space
from fastopt.search.methods import engine_for

__all__ = ["NEAR", "Candidate", "Search", "knapsack", "rivals_of", "trend"]

_STEPS = 12  # of the search for the multiplier
_FINE = 0.005  # of the cost: what a smaller recipe within the budget could still save
_AIM = 0.8  # of the budget
NEAR = 30.0  # budgets; beyond, a drop says nothing about small ones
_RULED_OUT = 4.0  # of the deviance: two standard errors
_POWERS = (0.5, 0.75, 1.0)
_STALE = 10  # batches without a new recipe after which a refinement ends
_SAFER = (1.4, 2.0, 2.8, 4.0, 6.0, 10.0, 20.0, 60.0, 300.0, 1e4)


@dataclass(frozen=True)
class Candidate:
    """One evaluated recipe, on the search rows.

    Attributes
    ----------
    recipe : Recipe
    cost : float
        Of the target.
    drop, std_error : float
        Of the metric.
    error : float
        Relative squared error of the logits.
    cautious : float
        The drop with its uncertainty (see :mod:`fastopt.compression.margins`).
    """

    recipe: Recipe
    cost: float
    drop: float
    std_error: float = 0.0
    error: float = 0.0
    cautious: float = 0.0


def trend(candidates: Sequence[Candidate], limit: float) -> Callable[[float], float]:
    """An upper estimate of the drop that an error of the logits leads to, c * error^p.

    A few rows show no drop at all before they show a large one; the errors of all candidates
    together tell what is likely in between. p = 1/2 where decisions flip (a decision's margin is
    an amplitude), 1 where the metric is smooth. c and p by quasi-likelihood (Poisson's, with the
    dispersion that the standard errors show); every p that the drops do not rule out counts, c
    with one standard error.
    """
    points = [
        (c.error, max(c.drop, 0.0), c.std_error)
        for c in {c.recipe.key: c for c in candidates}.values()
        if 0 < c.error < math.inf and c.drop <= NEAR * limit and math.isfinite(c.std_error)
    ]
    if not any(drop > 0 for _, drop, _ in points):
        return lambda error: 0.0
    errors, drops, spread = np.array(points).T
    seen = drops > 0
    dispersion = max(float((spread[seen] ** 2).sum() / drops.sum()), 1e-12)
    fits = []
    for power in _POWERS:
        level = float(drops.sum() / (errors**power).sum())
        expected = level * errors**power
        lost = float((drops[seen] * np.log(drops[seen] / expected[seen])).sum())
        fits.append((2 * lost / dispersion, power, level))
    best = min(fits)[0]
    unsure = 1 + math.sqrt(dispersion / drops.sum())
    likely = [(power, level * unsure) for lost, power, level in fits if lost <= best + _RULED_OUT]
    return lambda error: max(level * float(error**power) for power, level in likely)


def knapsack(
    options: Mapping[str, list[Option]],
    multiplier: float,
    rivals: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """For each place the option of least cost + multiplier * error; ties go to the first.

    Of each set of ``rivals`` only the best one is taken, the others keep their first option.
    """

    def worth(o: Option) -> float:
        return o.cost + multiplier * o.error

    found = {}
    for key, choices in options.items():
        found[key] = min((o for o in choices if math.isfinite(o.error)), key=worth)
    for keys in rivals:
        known = [key for key in keys if key in found]
        gains = {key: worth(found[key]) - worth(options[key][0]) for key in known}
        for key in sorted(known, key=gains.__getitem__)[1:]:
            found[key] = options[key][0]
    return {key: o.value for key, o in found.items()}


def rivals_of(groups: Mapping[str, Group]) -> list[list[str]]:
    """Sets of variables of which one at most can act.

    Units that are pruned, units that are merged and the rank of the layer that makes them are the
    same redundancy: what each saves and does was measured without the others.
    """
    return [
        [f"prune.{name}", f"merge.{name}", *(f"layer.{m.tensor}" for m in group.producers)]
        for name, group in groups.items()
    ]


class Search:
    """Evaluates recipes, and looks for the smallest one within the budget.

    Parameters
    ----------
    measure : callable
        ``measure(recipes)`` gives (cost, drop, standard error, error, cautious drop) of each on
        the search rows, in their order.
    base_cost, limit : float
        Cost of the original; the drop that is allowed.
    max_evals : int
    deadline : float or None
        On the clock of ``time.monotonic``.
    memory : Memory
    callback : callable or None
        Called with (recipes evaluated, best cost so far / cost of the original).
    follows : bool
        The metric compares with the original's outputs, so errors foretell drops.
    rivals : sequence of sequence of str
        Variables of which one at most acts in the knapsack's recipes.
    candidates : list of Candidate, optional
        Where evaluated recipes are put, those of an earlier search among them.
    """

    def __init__(
        self,
        measure: Callable[[Sequence[Recipe]], Iterator[tuple[float, ...]]],
        base_cost: float,
        limit: float,
        max_evals: int,
        deadline: float | None,
        memory: Memory,
        callback: Callable[[int, float], object] | None,
        follows: bool,
        rivals: Sequence[Sequence[str]] = (),
        candidates: list[Candidate] | None = None,
    ) -> None:
        self._measure = measure
        self._base, self._limit = base_cost, limit
        self._max_evals, self._deadline, self._until = max_evals, deadline, deadline
        self._memory, self._callback = memory, callback
        self._follows, self._rivals = follows, rivals
        self._best = 1.0
        self._multiplier = 0.0
        self.candidates: list[Candidate] = [] if candidates is None else candidates

    def evaluate(self, recipes: Sequence[Recipe]) -> list[Candidate]:
        """Cost and drop of recipes, from memory where they were seen before."""
        new = {r.key: r for r in recipes if self._memory.get(r.key) is None}
        measured = self._measure(list(new.values()))
        found = []
        for recipe in recipes:
            known = self._memory.get(recipe.key)
            if known is None:
                known = list(next(measured))
                known[1] = known[1] if math.isfinite(known[1]) else math.inf
                self._memory.put(recipe.key, known)
            candidate = Candidate(recipe, *known)
            found.append(candidate)
            self.candidates.append(candidate)
            if self.keeps(candidate):
                self._best = min(self._best, candidate.cost / self._base)
            if self._callback is not None:
                self._callback(len(self.candidates), self._best)
        return found

    def keeps(self, c: Candidate) -> bool:
        """Whether a candidate keeps the budget on the search rows.

        Where the metric compares with the original, so does what its error foretells, and its
        margins count: a drop is then all loss. With labels losses and gains offset each other,
        and the check rows decide.
        """
        if not self._follows:
            return c.drop <= self._limit
        expected = trend(self.candidates, self._limit)(c.error)
        return max(c.cautious, expected) <= self._limit

    @property
    def over(self) -> bool:
        """Whether the budget of recipes or seconds is spent."""
        late = self._until is not None and time.monotonic() >= self._until
        return late or len(self.candidates) >= self._max_evals

    def within(self, seconds: float) -> None:
        """Spend no more than these seconds from now on, nor more than is left."""
        until = time.monotonic() + seconds
        self._until = until if self._deadline is None else min(self._deadline, until)

    def bisect(
        self, options: Mapping[str, list[Option]], start: Recipe, *, base: float | None = None
    ) -> Candidate | None:
        """The smallest recipe of the knapsack's family that keeps the budget.

        With ``base``, what the options' costs are taken from, it is the one of the smallest
        multiplier, whatever a clock says of its cost.
        Between a multiplier that fails and one that keeps the budget the next one is where a
        straight line through the logarithms of their drops meets it; every third step halves.
        """
        low, high = _range(options)  # log multipliers: too small a model, too careful a one
        failed: Candidate | None = None
        best: Candidate | None = None
        seen: dict[str, Candidate] = {}
        costs = {k: {o.value: o.cost for o in choices} for k, choices in options.items()}

        def told(c: Candidate) -> float:
            """Its cost as the single choices tell it: the same whenever the clock is asked."""
            saved = sum(known[c.recipe.choices[k]] for k, known in costs.items())
            return (self._base if base is None else base) + saved

        for step in range(_STEPS):
            if failed and best and told(best) - told(failed) <= _FINE * told(best):
                break
            share = 0.5 if step % 3 == 2 else self._between(failed, best)
            middle = low + share * (high - low)
            recipe = self._solved(options, start, math.exp(middle))
            if recipe.key not in seen and self.over:
                break
            found = seen[recipe.key] = seen.get(recipe.key) or self.evaluate([recipe])[0]
            if self.keeps(found):
                high = middle
                if base is not None or best is None or found.cost <= best.cost:
                    best = found
            else:
                low, failed = middle, found
        self._multiplier = high
        return best

    def _solved(
        self, options: Mapping[str, list[Option]], start: Recipe, multiplier: float
    ) -> Recipe:
        return start.replaced(knapsack(options, multiplier, self._rivals))

    def _between(self, failed: Candidate | None, kept: Candidate | None) -> float:
        """Where between two multipliers the drop is likely to meet the budget, 0..1."""
        if failed is None or kept is None or not 0 < kept.drop < failed.drop < math.inf:
            return 0.5
        meets = math.log(failed.drop / max(_AIM * self._limit, 1e-12))
        return min(0.9, max(0.1, meets / math.log(failed.drop / kept.drop)))

    def safer(self, options: Mapping[str, list[Option]], start: Recipe) -> Iterator[Candidate]:
        """Recipes of the same family with less and less error, where they keep the budget."""
        done = {c.recipe.key for c in self.candidates}
        for factor in _SAFER:
            recipe = self._solved(options, start, math.exp(self._multiplier) * factor)
            if self.over:
                return
            if recipe.key not in done:
                done.add(recipe.key)
                (found,) = self.evaluate([recipe])
                if self.keeps(found):
                    yield found

    def refine(
        self, places: Mapping[str, Any], first: list[Recipe], method: str, seed: Seed
    ) -> None:
        """Search the whole mixed space from the recipes found so far, batch by batch.

        The batches are the engine's own, so that any number of workers gives the same recipes.
        """
        left = self._max_evals - len(self.candidates)
        if self.over or not places:
            return
        space = Space(**places)
        x0 = None if method == "random" else [dict(r.choices) for r in first][:left]
        engine, _ = engine_for(method, space, max_evals=left, seed=seed, x0=x0)
        known: set[str] = set()
        stale = 0
        while not self.over and stale < _STALE:
            left = self._max_evals - len(self.candidates)
            trials = space.dicts_of(space.parse(engine.ask(min(left, engine.batch))))
            recipes = [Recipe(trial) for trial in trials]
            new = {r.key: r for r in recipes if r.key not in known}
            stale = 0 if new else stale + 1
            known.update(new)
            values = dict(
                zip(new, map(self._value, self.evaluate(list(new.values()))), strict=True)
            )
            told = [
                (t, values[r.key]) for t, r in zip(trials, recipes, strict=True) if r.key in values
            ]
            if told:
                engine.tell(*map(list, zip(*told, strict=True)))

    def _value(self, c: Candidate) -> float:
        """log2 of the cost ratio within the budget; above every such value outside it."""
        if self.keeps(c):
            return math.log2(max(c.cost, 1e-12) / self._base)
        return 64.0 + min(max(c.drop - self._limit, 0.0), 1e6)


def _range(options: Mapping[str, list[Option]]) -> tuple[float, float]:
    """Logarithms of multipliers between which the knapsack's answer changes."""
    rates = [
        -o.cost / o.error
        for choices in options.values()
        for o in choices
        if o.cost < 0 and 0 < o.error < math.inf
    ]
    if not rates:
        return 0.0, 0.0
    return float(np.log(min(rates) / 4)), float(np.log(max(rates) * 4))
