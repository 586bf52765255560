"""The four stages of a compression on one job: prepare, search, confirm; explain follows."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastopt.compression.accept import by_size, certify, confirm
from fastopt.compression.confirm import rows_needed
from fastopt.compression.job import Job, fittable, narrow
from fastopt.compression.journal import Memory
from fastopt.compression.passes import PASSES, quantize, refit, retrain
from fastopt.compression.prepare import Probe, effects, measured
from fastopt.compression.recipe import Recipe
from fastopt.compression.search import Candidate, Search, rivals_of
from fastopt.errors import OptionError
from fastopt.models import Model
from fastopt.search import Choice

__all__ = ["BITS_ONLY", "run", "variables_of"]

BITS_ONLY = ("fold", "quantize")
_START_SHARES = (1.0, 0.5, 0.25, 0.125)  # of every layer: where the refinement begins, too
_EVALS_MACS = 4e12  # of the whole search, where the number of recipes is not given
# Runs of the model that one step of a refit takes as long as: forward and backward by NumPy.
_FIT_RUNS = {"dense": 15, "conv": 100}
_FEWEST_EVALS, _MOST_EVALS, _EVALS_PER_PLACE = 16, 200, 12
_LONG_MACS = 1e9  # of a run over the search rows, beyond which structure is not refined
_TIMED_S = 120.0  # of each search for a latency
_WHOLE_BITS = (8, 16, 32)  # of forms that are decoded in one step

Callback = Callable[[int, float], object]


def run(job: Job, memory: Memory, callback: Callback | None) -> None:
    """Find and confirm a recipe; without folding where a folded model loses too much by itself."""
    options = job.options
    if not _certifiable(job):
        return
    if options.retrain_epochs:
        _check_trainable(job)
    deadline = None if options.max_time is None else time.monotonic() + options.max_time
    _attempt(job, memory, callback, deadline)
    rest = tuple(name for name in options.acting if name != PASSES["fold"].NAME)
    if job.confirmed is None and job.start.choices and rest:
        job.options = replace(options, passes=rest)
        _attempt(job, memory, callback, deadline)


def _certifiable(job: Job) -> bool:
    """Whether there are rows enough for a certificate, where one is asked for."""
    options = job.options
    if options.confidence is None or job.metric.row_loss is None:
        return True
    needed = rows_needed(options.max_drop, options.confidence)
    if needed <= len(job.check) and options.max_drop > 0:
        return True
    job.notes.append(
        f"{len(job.check)} check rows cannot certify a drop of {options.max_drop:g} at "
        f"{options.confidence:.0%}: {needed:,} without a single loss would be needed"
    )
    return False


def _attempt(job: Job, memory: Memory, callback: Callback | None, deadline: float | None) -> None:
    places, search = _prepared(job, memory, callback, deadline)
    job.say("searching")
    _searched(job, search, places)
    job.say("confirming on rows that the search did not see")
    if job.options.confidence is not None:
        certify(job)
    else:
        confirm(job, job.candidates)


def _prepared(
    job: Job, memory: Memory, callback: Callback | None, deadline: float | None
) -> tuple[dict[str, Any], Search]:
    """What is searched over, and what each choice does alone."""
    options = job.options
    places, job.start = _places(job)
    search = Search(
        job.measure_all,
        job.cost(job.original),
        options.max_drop,
        len(job.candidates) + _evals(job, len(places)),
        deadline,
        memory,
        callback,
        job.follows,
        rivals_of(job.bench.apply(job.start).model.groups),
        job.candidates,
    )
    job.keeps = search.keeps
    what = "measuring what each choice does alone"
    job.say(what)
    probe = Probe(job.bench, job.start, job.prices, job.search, job.feed, places)
    job.effects = effects(probe, job.team, lambda done, of: job.say(f"{what}: {done}/{of}"))
    return measured(places, job.effects), search


def _searched(job: Job, search: Search, places: Mapping[str, Any]) -> None:
    """The knapsack's recipes, the smallest confirmed at once; then the whole space."""
    options = job.options
    start = _refitted(job)
    timed = options.target == "latency"  # the result depends on the clock anyway
    if timed:
        search.within(_TIMED_S)
    best = search.bisect(job.effects, start)
    if best is not None and timed:
        search.within(_TIMED_S)
        best = _smaller(job, search, best) or best
    if options.confidence is None and best is not None:
        confirm(job, [best])
    for safer in search.safer(job.effects, start):
        if options.confidence is None:
            if job.confirmed is not None:
                break
            confirm(job, [safer])
    if job.slow and job.confirmed is None:
        _quick(job, search)
    if options.method != "auto" or not _adds_up(job):
        if timed:
            search.within(_TIMED_S)
        method = "genetic" if options.method == "auto" else options.method
        search.refine(places, _first(job, places), method, options.seed)


def _adds_up(job: Job) -> bool:
    """Whether the knapsack's sums are as good as a search, or a search would take too long."""
    if not narrow(job.original) or fittable(job.original):
        return False
    if set(job.options.acting) <= set(BITS_ONLY) and job.options.target != "latency":
        return True
    return len(job.search) * job.original.macs > _LONG_MACS


def _smaller(job: Job, search: Search, best: Candidate) -> Candidate | None:
    """The same structure and the same products in fewer bytes, as far as the budget goes: what a
    clock does not tell apart."""
    options = {}
    for key, choices in job.effects.items():
        value = best.recipe.choices.get(key)
        alike = [o for o in choices if _runs_like(o.value, value)]
        if key.startswith(quantize.NAME) and alike:
            options[key] = [replace(o, cost=job.bytes_saved(key, o.value)) for o in alike]
    bytes_now = float(job.original.nbytes)
    return search.bisect(options, best.recipe, base=bytes_now) if options else None


def _runs_like(form: Any, other: Any) -> bool:
    """Whether two forms of a weight are multiplied in the same way."""
    return str(form).partition("+")[2] == str(other).partition("+")[2]


def _quick(job: Job, search: Search) -> None:
    """Look again among forms that are decoded in one step: the others took too long to load."""
    layers = job.bench.apply(job.start).model.layers
    whole = {
        f"{quantize.NAME}.{name}": {f.name for f in layer.forms if f.bits in _WHOLE_BITS}
        for name, layer in layers.items()
    }
    quick = {
        key: [o for o in options if o.value in whole.get(key, {o.value})]
        for key, options in job.effects.items()
    }
    best = search.bisect(quick, _refitted(job))
    if job.options.confidence is None and best is not None:
        confirm(job, [best])


def _refitted(job: Job) -> Recipe:
    """The recipe that the knapsack's choices are put into: folded, and refitted where possible."""
    made: dict[str, Any] = dict(_retrained(job))
    if refit.NAME in job.options.acting:
        places = refit.variables(job.original).items()
        made |= {f"refit.{k}": refit.start(0.0, v) for k, v in places}
    return job.start.replaced(made)


def _retrained(job: Job) -> dict[str, int]:
    """The choice that trains a recipe's model on, where that is asked for."""
    epochs = job.options.retrain_epochs
    return {f"{retrain.NAME}.{retrain.PLACE}": epochs} if epochs else {}


def _check_trainable(job: Job) -> None:
    if not isinstance(job.original, retrain.Trainable):
        raise OptionError(f"retrain_epochs: a {type(job.original).__name__} has no gradients")
    if job.calibration.labels is None:
        raise OptionError("retrain_epochs: needs labels with calib, or with data without calib")


def _places(job: Job) -> tuple[dict[str, Any], Recipe]:
    """What is searched over, and the recipe that leaves everything as it is (but folded)."""
    start: dict[str, Any] = {}
    fold = PASSES["fold"]
    if fold.NAME in job.options.acting:
        for place, variable in fold.variables(job.original).items():
            start[f"{fold.NAME}.{place}"] = fold.start(1.0, variable)
    model = job.bench.apply(Recipe(start)).model
    for pattern in job.options.keep:
        if not fnmatch.filter([*model.layers, *model.groups], pattern):
            raise OptionError(f"keep: no layer or group is called {pattern!r}")
    variables: dict[str, Any] = {}
    for name in job.options.acting:
        if name == fold.NAME:
            continue
        for place, variable in variables_of(model, name, job.options.target).items():
            if not any(fnmatch.fnmatchcase(place, pattern) for pattern in job.options.keep):
                variables[f"{name}.{place}"] = variable
    for key, epochs in _retrained(job).items():
        variables[key] = Choice(0, epochs)
    return variables, Recipe(start)


def variables_of(model: Model, name: str, target: str) -> dict[str, Any]:
    """What a pass may do, as far as it serves the target."""
    module = PASSES[name]
    found: dict[str, Any] = (
        module.variables(model, target == "latency")
        if name == "quantize"
        else module.variables(model)
    )
    return found


def _evals(job: Job, n_places: int) -> int:
    """The recipes that a search evaluates at most; a function of the model's size, not of time."""
    if job.options.max_evals is not None:
        return job.options.max_evals
    rows = len(job.search)
    if fittable(job.original) and refit.NAME in job.options.acting:
        runs = max(_FIT_RUNS.get(x.kind, 1) for x in job.original.layers.values())
        rows += runs * refit.SEARCHING * job.calibration.n_rows
    work = max(1, job.original.macs) * rows + 50 * job.original.nbytes
    most = min(_MOST_EVALS, _EVALS_PER_PLACE * n_places)
    return int(max(_FEWEST_EVALS, min(most, _EVALS_MACS / work)))


def _first(job: Job, places: Mapping[str, Any]) -> list[Recipe]:
    """Where the refinement begins: what the bisection found, and every place at one share."""
    kept = sorted(filter(job.keeps, job.candidates), key=by_size)
    found = [
        {k: c.recipe.choices.get(k, _neutral(v)) for k, v in places.items()} for c in kept[:3]
    ]
    for share in _START_SHARES:
        found.append({k: PASSES[k.partition(".")[0]].start(share, v) for k, v in places.items()})
    return [Recipe(f) for f in found]


def _neutral(variable: Any) -> Any:
    return variable.options[0] if isinstance(variable, Choice) else 1.0
