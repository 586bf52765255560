"""The search: a knapsack over measured effects, steered by the metric, then refined.

Choosing one option for each place so that the cost is least for a given sum of errors is a
multiple-choice knapsack; a Lagrange multiplier m solves it place by place (least cost + m * error)
for a whole range of budgets. Bisection finds the smallest m whose recipe keeps the metric's
budget; what the sum of single effects does not see is left to the refinement.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import IO, Any

import numpy as np

from fastopt._files import path_of, storage_errors
from fastopt._random import Seed
from fastopt.compression.prepare import Option
from fastopt.compression.recipe import Recipe
from fastopt.errors import FormatError
from fastopt.search import Space, minimize

__all__ = ["NEAR", "Candidate", "Memory", "Search", "knapsack", "trend"]

_STEPS = 12  # of the search for the multiplier
_AIM = 0.8  # of the budget
NEAR = 30.0  # budgets; beyond, a drop says nothing about small ones
_RULED_OUT = 4.0  # of the deviance: two standard errors
_POWERS = (0.5, 0.75, 1.0)
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


class Memory:
    """Evaluated recipes by key; with a path also on disk, so a killed run can go on.

    One line per recipe with a CRC-32; the first line says what the run was. A torn last line, all
    that a kill can leave, is dropped; damage before it is refused.

    Raises
    ------
    FormatError
        The file is no such journal, is damaged, or belongs to another run.
    StorageError
        It cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self._known: dict[str, list[float]] = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        where = path_of(path, "storage")
        with storage_errors(where):
            self._file = open(where, "a+b")  # noqa: SIM115
        try:
            with storage_errors(where):
                self._file.seek(0)
                data = self._file.read()
            if b"\n" in data:
                self._read(data, where, identity)
            elif data and not _line(["fastopt.compress", identity]).startswith(data):
                raise FormatError("is not a journal of fastopt compress", where, 0)
            else:  # new, or a torn first line
                with storage_errors(where):
                    self._file.truncate(0)
                self._write(["fastopt.compress", identity])
        except BaseException:
            self._file.close()
            raise

    def _read(self, data: bytes, where: str, identity: str) -> None:
        assert self._file is not None
        good = 0
        for line in data.split(b"\n")[:-1]:
            record = _record(line)
            if good == 0:
                if record is None or record[0] != "fastopt.compress":
                    raise FormatError("is not a journal of fastopt compress", where, 0)
                if record[1] != identity:
                    raise FormatError(
                        "belongs to another run (other model, data or options); "
                        "give another --storage",
                        where,
                    )
            elif record is None or not _is_measured(record[1]):
                raise FormatError(
                    "damaged record; cut the file there to go on without what follows",
                    where,
                    good,
                )
            else:
                self._known[record[0]] = record[1]
            good += len(line) + 1
        with storage_errors(where):
            self._file.truncate(good)

    def get(self, key: str) -> list[float] | None:
        """What was measured of a recipe, where it is known."""
        return self._known.get(key)

    def put(self, key: str, values: list[float]) -> None:
        """Keep them."""
        self._known[key] = values
        if self._file is not None:
            self._write([key, values])

    def _write(self, record: list[Any]) -> None:
        assert self._file is not None
        with storage_errors(os.fsdecode(self._file.name)):
            self._file.write(_line(record))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _line(record: list[Any]) -> bytes:
    text = json.dumps(record).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> list[Any] | None:
    """A name and a value; None where the line is damaged."""
    code, _, text = line.partition(b" ")
    if b"%08x" % zlib.crc32(text) != code:
        return None
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, list) and len(found) == 2 and isinstance(found[0], str)
    return found if whole else None


def _is_measured(values: Any) -> bool:
    """Whether they are the numbers of a Candidate; the first two, cost and drop, are never NaN."""
    return (
        isinstance(values, list)
        and len(values) == len(fields(Candidate)) - 1
        and all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in values)
        and values[0] >= 0
        and values[1] == values[1]
    )


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


def knapsack(options: Mapping[str, list[Option]], multiplier: float) -> dict[str, Any]:
    """For each place the option of least cost + multiplier * error; ties go to the first."""
    found = {}
    for key, choices in options.items():
        usable = [o for o in choices if math.isfinite(o.error)]
        found[key] = min(usable, key=lambda o: o.cost + multiplier * o.error).value
    return found


class Search:
    """Evaluates recipes, and looks for the smallest one within the budget.

    Parameters
    ----------
    measure : callable
        ``measure(recipe) -> (cost, drop, standard error, error, cautious drop)`` on the search
        rows.
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
    """

    def __init__(
        self,
        measure: Callable[[Recipe], tuple[float, float, float, float, float]],
        base_cost: float,
        limit: float,
        max_evals: int,
        deadline: float | None,
        memory: Memory,
        callback: Callable[[int, float], object] | None,
        follows: bool,
    ) -> None:
        self._measure = measure
        self._base, self._limit = base_cost, limit
        self._max_evals, self._deadline = max_evals, deadline
        self._memory, self._callback = memory, callback
        self._follows = follows
        self._best = 1.0
        self._multiplier = 0.0
        self.candidates: list[Candidate] = []
        self.interrupted = False

    def evaluate(self, recipe: Recipe) -> Candidate:
        """Cost and drop of a recipe, from memory where it was seen before."""
        key = recipe.key
        known = self._memory.get(key)
        if known is None:
            known = list(self._measure(recipe))
            known[1] = known[1] if math.isfinite(known[1]) else math.inf
            self._memory.put(key, known)
        found = Candidate(recipe, *known)
        self.candidates.append(found)
        if self.keeps(found):
            self._best = min(self._best, found.cost / self._base)
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
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return late or len(self.candidates) >= self._max_evals

    def bisect(self, options: Mapping[str, list[Option]], start: Recipe) -> Candidate | None:
        """The smallest recipe of the knapsack's family that keeps the budget.

        Between a multiplier that fails and one that keeps the budget the next one is where a
        straight line through the logarithms of their drops meets it; every third step halves.
        """
        low, high = _range(options)  # log multipliers: too small a model, too careful a one
        failed: Candidate | None = None
        best: Candidate | None = None
        seen: dict[str, Candidate] = {}
        for step in range(_STEPS):
            share = 0.5 if step % 3 == 2 else self._between(failed, best)
            middle = low + share * (high - low)
            recipe = start.replaced(knapsack(options, math.exp(middle)))
            if recipe.key not in seen and self.over:
                break
            found = seen[recipe.key] = seen.get(recipe.key) or self.evaluate(recipe)
            if self.keeps(found):
                high = middle
                best = found if best is None or found.cost <= best.cost else best
            else:
                low, failed = middle, found
        self._multiplier = high
        return best

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
            recipe = start.replaced(knapsack(options, math.exp(self._multiplier) * factor))
            if self.over:
                return
            if recipe.key not in done:
                done.add(recipe.key)
                found = self.evaluate(recipe)
                if self.keeps(found):
                    yield found

    def refine(
        self, places: Mapping[str, Any], first: list[Recipe], method: str, seed: Seed
    ) -> None:
        """Search the whole mixed space from the recipes found so far."""
        left = self._max_evals - len(self.candidates)
        if self.over or not places:
            return
        seconds = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        x0 = None if method == "random" else [dict(r.choices) for r in first][:left]

        def objective(choices: Mapping[str, Any]) -> float:
            """log2 of the cost ratio within the budget; above every such value outside it."""
            try:
                found = self.evaluate(Recipe(dict(choices)))
            except KeyboardInterrupt:
                self.interrupted = True
                raise
            if self.keeps(found):
                return math.log2(max(found.cost, 1e-12) / self._base)
            return 64.0 + min(max(found.drop - self._limit, 0.0), 1e6)

        minimize(
            objective,
            Space(**places),
            method=method,
            max_evals=left,
            max_time=seconds,
            seed=seed,
            x0=x0,
        )


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
