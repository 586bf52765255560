"""The main job: the smallest model within a stated drop, and what was done to get it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array
from fastopt._options import choice, integer, number
from fastopt._random import Seed
from fastopt.compression.budget import (
    TARGETS,
    Measures,
    Metric,
    cost_of,
    measure,
    metric_of,
    outputs_of,
    split,
)
from fastopt.compression.passes import PASSES
from fastopt.compression.recipe import Kitchen, Recipe
from fastopt.errors import ArrayError, OptionError
from fastopt.models import Model
from fastopt.search import minimize

__all__ = ["Compressed", "Decision", "Measures", "compress"]

START_SHARES = (1.0, 0.5, 0.25, 0.125)  # of every layer, all in int8: where the search begins


@dataclass(frozen=True)
class Decision:
    """One thing that was done, and what it is worth.

    Attributes
    ----------
    name, place, what : str
        The pass, the layer or group, and what was done.
    saved : float
        How much larger the target (bytes, multiply-adds, seconds) would be without it.
    drop : float
        How much better the metric on the search rows would be without it.
    """

    name: str
    place: str
    what: str
    saved: float
    drop: float


@dataclass(frozen=True)
class Candidate:
    """One evaluated recipe: its cost and its drop on the search rows."""

    recipe: Recipe
    cost: float
    drop: float


@dataclass(frozen=True)
class Compressed:
    """What :func:`compress` returns.

    Attributes
    ----------
    model : Model
        The compressed model; the original, copied, where no recipe kept the budget.
    recipe : Recipe
        The choices that made it; ``recipe.to_dict()`` is JSON.
    before, after : Measures
        On the check rows, which the search never saw.
    max_drop, drop, search_drop : float
        What was asked; what was reached on the check rows and on the search rows.
    changed : bool
        False where no recipe kept the budget and the model is the original.
    decisions : tuple of Decision
        One a step, with what undoing it would cost.
    candidates : tuple of Candidate
        Everything the search evaluated, in order.
    metric, target, method : str
    refused : int
        Smaller recipes that kept the budget on the search rows but not on the check rows.
    time_s : float
        Seconds the whole job took.
    """

    model: Model
    recipe: Recipe
    before: Measures
    after: Measures
    max_drop: float
    drop: float
    search_drop: float
    changed: bool
    decisions: tuple[Decision, ...]
    candidates: tuple[Candidate, ...]
    metric: str
    target: str
    method: str
    refused: int
    time_s: float

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front of cost against drop among the candidates, cheapest first."""
        best: list[Candidate] = []
        for c in sorted(self.candidates, key=lambda c: (c.cost, c.drop)):
            if not best or c.drop < best[-1].drop:
                best.append(c)
        return tuple(best)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the compressed model."""
        self.model.save(path)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The before/after table, its head first, each cell as text."""
        b, a = self.before, self.after
        return [
            ("", "before", "after", "ratio"),
            (self.metric, f"{b.metric:.4f}", f"{a.metric:.4f}", f"{a.metric - b.metric:+.4f}"),
            ("parameters", f"{b.n_params:,}", f"{a.n_params:,}", _times(b.n_params, a.n_params)),
            ("bytes", f"{b.nbytes:,}", f"{a.nbytes:,}", _times(b.nbytes, a.nbytes)),
            ("multiply-adds", f"{b.macs:,}", f"{a.macs:,}", _times(b.macs, a.macs)),
            (
                "latency (64 rows)",
                f"{b.latency_s * 1e6:.0f} us",
                f"{a.latency_s * 1e6:.0f} us",
                _times(b.latency_s, a.latency_s),
            ),
        ]

    def table(self) -> str:
        """Before and after, asked and reached, and the reason for each step, as text."""
        rows = self.rows()
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = [
            "  ".join(
                cell.ljust(width) if k == 0 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines += ["", self.verdict()]
        unit = {"size": "bytes", "macs": "multiply-adds", "latency": "seconds"}[self.target]
        for d in self.decisions:
            lines.append(
                f"  {d.name:<9} {d.place:<10} {d.what}; "
                f"without it {d.saved:+,.6g} {unit}, {self.metric} {d.drop:+.4f}"
            )
        return "\n".join(lines)

    def verdict(self) -> str:
        """One sentence: what was asked and what was reached."""
        asked = f"asked: {self.metric} drop <= {self.max_drop:.4g}"
        if not self.changed:
            return f"{asked}; no recipe kept it on the check rows: the model is unchanged"
        return (
            f"{asked}; reached {self.drop:.4g} on rows the search did not see "
            f"({self.search_drop:.4g} on those it saw)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model as plain data for JSON."""
        return {
            "metric": self.metric,
            "target": self.target,
            "method": self.method,
            "max_drop": self.max_drop,
            "drop": self.drop,
            "search_drop": self.search_drop,
            "changed": self.changed,
            "refused": self.refused,
            "time_s": self.time_s,
            "before": vars(self.before),
            "after": vars(self.after),
            "recipe": self.recipe.to_dict(),
            "decisions": [vars(d) for d in self.decisions],
            "front": [
                {"recipe": c.recipe.to_dict(), "cost": c.cost, "drop": c.drop} for c in self.front
            ],
            "n_candidates": len(self.candidates),
        }

    def to_json(self) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def compress(
    model: Model,
    data: Any,
    *,
    max_drop: float = 0.01,
    metric: str | Metric | None = None,
    passes: Sequence[str] = tuple(PASSES),
    target: str = "size",
    method: str = "genetic",
    max_evals: int = 200,
    max_time: float | None = None,
    calib: Any = None,
    check: Any = None,
    seed: Seed = 0,
    callback: Callable[[int, float], object] | None = None,
) -> Compressed:
    """The smallest version of ``model`` whose metric drops by no more than ``max_drop``.

    Searches over what each pass does at each layer: which share of a group's units is kept
    (pruned by OBS, or merged by similarity, the next layer refitted), which layers are split into
    two thinner ones, whether all weights are then fitted to the original's outputs (no labels),
    which weights are stored as int8. The smallest recipes that keep the budget on the search rows
    are then tried on check rows that the search never saw, smallest first; the first that keeps it
    there too is returned. ``model`` is not changed.

    Parameters
    ----------
    model : Model
        For example a :class:`fastopt.models.Network`.
    data : (X, y) or X
        Validation rows. Without y the metric compares with the original model's own outputs.
    max_drop : float
        Largest loss of the metric, absolute: 0.01 is one point of accuracy.
    metric : {"accuracy", "r2"} or callable, optional
        ``metric(outputs, y) -> float``, higher is better. By default accuracy for classes, R^2
        for numbers.
    passes : sequence of {"prune", "merge", "layer", "refit", "quantize"}
        Which passes may act; they are applied in that order.
    target : {"size", "macs", "latency"}
        What is made small: bytes as saved, multiply-adds, or seconds measured here.
    method : {"random", "greedy", "genetic", "auto"}
        The search of :func:`fastopt.minimize`.
    max_evals, max_time : int, float
        Budget of the search in recipes and in seconds.
    calib : X, optional
        Rows for the Grams (no labels); by default the search rows.
    check : (X, y) or X, optional
        Rows for the final check; by default a third of ``data`` is held back for it.
    seed : int, SeedSequence or Generator
    callback : callable, optional
        Called with (recipes evaluated, best cost so far / cost of the original).

    Returns
    -------
    Compressed

    Raises
    ------
    OptionError, ArrayError, DTypeError
        Before any work.

    Notes
    -----
    Reproducible: the same seed gives the same recipe (``target="latency"`` and ``max_time``
    depend on the clock).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> from fastopt.models import Network
    >>> x = np.random.default_rng(0).standard_normal((300, 8), dtype=np.float32)
    >>> net = Network.mlp((8, 64, 2), seed=0)
    >>> small = fastopt.compress(net, x, max_drop=0.05, max_evals=40)
    >>> small.after.nbytes < net.nbytes
    True
    """
    start = time.monotonic()
    limit = number(max_drop, "max_drop", low=0.0)
    goal = choice(target, "target", TARGETS)
    budget = integer(max_evals, "max_evals", low=1)
    x, y = _pair(data, "data")
    name, score = metric_of(metric, model, x, y)
    if check is None:
        seen, held = split(len(x), 1 / 3, seed)
        x_check, y_check = x[held], None if y is None else y[held]
        x, y = x[seen], None if y is None else y[seen]
    else:
        x_check, y_check = _pair(check, "check")
        if (y is None) != (y_check is None):
            raise OptionError("check: must have labels where data has them, and only there")
    if y is None:
        y, y_check = outputs_of(model, x), outputs_of(model, x_check)
    kitchen = Kitchen(model, x if calib is None else _rows(calib, "calib"), passes)

    base = score(outputs_of(model, x), y)
    base_cost = cost_of(model, goal, x)
    candidates: list[Candidate] = []
    memory: dict[str, Candidate] = {}
    best = 1.0

    def evaluate(choices: Mapping[str, Any]) -> float:
        """log2 of the cost ratio within the budget; above every such value outside it."""
        nonlocal best
        recipe = Recipe(dict(choices))
        key = json.dumps(recipe.to_dict(), sort_keys=True, default=str)
        if key not in memory:
            cooked = kitchen.cook(recipe).model
            drop = base - score(outputs_of(cooked, x), y)
            drop = drop if math.isfinite(drop) else math.inf
            memory[key] = Candidate(recipe, cost_of(cooked, goal, x), drop)
        found = memory[key]
        candidates.append(found)
        kept = found.drop <= limit
        if kept:
            best = min(best, found.cost / base_cost)
        if callback is not None:
            callback(len(candidates), best)
        excess = min(found.drop - limit, 1e6)
        return math.log2(max(found.cost, 1e-12) / base_cost) if kept else 64.0 + excess

    minimize(
        evaluate,
        kitchen.space(),
        method=method,
        max_evals=budget,
        max_time=max_time,
        seed=seed,
        x0=None if method == "random" else [kitchen.start(s) for s in START_SHARES],
    )
    # A near miss may be within the budget once every pass is thorough.
    near = sorted(
        (c for c in memory.values() if c.drop <= 2 * limit and c.cost < base_cost),
        key=lambda c: (c.cost, c.drop),
    )
    base_check = score(outputs_of(model, x_check), y_check)
    chosen, refused, drop = Candidate(Recipe(), base_cost, 0.0), 0, 0.0
    for candidate in near:
        recipe = kitchen.final(candidate.recipe)
        cooked = kitchen.cook(recipe).model
        found = base - score(outputs_of(cooked, x), y)
        if not found <= limit:  # NaN is not within a budget
            continue
        lost = base_check - score(outputs_of(cooked, x_check), y_check)
        if lost <= limit:
            chosen, drop = Candidate(recipe, candidate.cost, found), lost
            break
        refused += 1
    applied = kitchen.cook(chosen.recipe)
    decisions = []
    for step, place, what in applied.notes:
        undone = kitchen.cook(chosen.recipe.without(f"{step}.{place}")).model
        decisions.append(
            Decision(
                step,
                place,
                what,
                cost_of(undone, goal, x) - cost_of(applied.model, goal, x),
                score(outputs_of(undone, x), y) - score(outputs_of(applied.model, x), y),
            )
        )
    before, after = measure([model, applied.model], score, x_check, y_check)
    return Compressed(
        model=applied.model.copy(),
        recipe=chosen.recipe,
        before=before,
        after=after,
        max_drop=limit,
        drop=drop,
        search_drop=chosen.drop,
        changed=bool(applied.notes),
        decisions=tuple(decisions),
        candidates=tuple(candidates),
        metric=name,
        target=goal,
        method=method,
        refused=refused,
        time_s=time.monotonic() - start,
    )


def _rows(x: Any, name: str) -> Array:
    a = as_array(x, name, cast="float32")
    if a.ndim < 2 or len(a) == 0:
        raise ArrayError(f"{name}: expected rows of inputs, got shape {a.shape}")
    return a


def _pair(data: Any, name: str) -> tuple[Array, Array | None]:
    """(X, y) or X alone, checked for length."""
    if isinstance(data, tuple):
        if len(data) != 2:
            raise OptionError(f"{name}: expected (X, y) or X, got a tuple of {len(data)}")
        x, y = _rows(data[0], name), np.asarray(data[1])
        if len(x) != len(y):
            raise ArrayError(f"{name}: X has {len(x)} rows and y has {len(y)}")
        return x, y
    return _rows(data, name), None


def _times(before: float, after: float) -> str:
    return f"{before / after:.1f}x" if after else "-"
