"""The main job: prepare, search, confirm, explain."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastopt._options import choice, number, short
from fastopt._random import Seed
from fastopt.compression.accept import by_size, certify, confirm
from fastopt.compression.adapters import open_model
from fastopt.compression.confirm import rows_needed
from fastopt.compression.explain import Compressed
from fastopt.compression.forest import compressed_ensemble
from fastopt.compression.job import Job, fittable, identity, narrow, open_job
from fastopt.compression.options import CHECKING, Options
from fastopt.compression.outcome import explained
from fastopt.compression.passes import PASSES, retrain
from fastopt.compression.prepare import effects
from fastopt.compression.recipe import Recipe
from fastopt.compression.search import Candidate, Memory, Search
from fastopt.errors import OptionError
from fastopt.models import Model
from fastopt.models.sklearn import is_ensemble
from fastopt.search import Choice, Float

__all__ = ["apply_recipe", "compress"]

START_SHARES = (1.0, 0.5, 0.25, 0.125)  # of every layer: where the refinement begins, too

_EVALS_MACS = 4e12  # of the whole search, where the number of recipes is not given
_FEWEST_EVALS, _MOST_EVALS = 16, 200
_BITS_ONLY = ("fold", "quantize")


def compress(
    model: Any,
    data: Any,
    *,
    max_drop: float = 0.01,
    metric: str | Callable[..., float] | None = None,
    labels: str | None = None,
    classes_axis: int | None = None,
    confidence: float | None = None,
    passes: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    target: str = "size",
    method: str = "auto",
    max_evals: int | None = None,
    max_time: float | None = None,
    retrain_epochs: int = 0,
    calib: Any = None,
    check: Any = None,
    batch: int = 1,
    threads: int = 1,
    portable: bool = False,
    storage: str | os.PathLike[str] | None = None,
    seed: Seed = 0,
    callback: Callable[[int, float], object] | None = None,
    progress: Callable[[str], object] | None = None,
    on_interrupt: str = "return",
) -> Compressed:
    """The smallest version of ``model`` whose metric drops by no more than ``max_drop``.

    What each choice costs and does alone is measured first; a knapsack over these effects gives a
    recipe for every budget, the metric on the search rows picks among them by bisection, and a
    search over the mixed space refines the best. The smallest recipes that keep the budget are
    then tried on check rows that the search never saw, smallest first; the first that keeps it
    there too is returned. ``model`` is not changed.

    Parameters
    ----------
    model : path, onnx.ModelProto, Network, torch.nn.Module or fitted scikit-learn estimator
        ``result.model`` has the same kind (an adapter with ``save`` where a path was given; of
        scikit-learn an estimator of the same class where that can hold the result, else a
        :class:`~fastopt.models.sklearn.CompactEstimator`; of torch a module of the same class, or
        the traced one where its own code holds numbers that no longer fit). Tree ensembles go to
        :func:`~fastopt.compression.forest.compress_forest`.
    data : path, mapping of arrays by input name, (X, y) or X
        See :func:`fastopt.compression.data.open_rows` for how axes are read. Without labels the
        metric compares with the original model's own outputs.
    max_drop : float
        Largest loss of the metric, absolute: 0.01 is one point of accuracy.
    metric : {"accuracy", "r2", "agreement"}, "module:function" or callable, optional
        A callable takes ``(outputs, data, reference)``, dicts of arrays by name, or
        ``(outputs, y)``; higher is better, 1 is perfect. By default accuracy for labels that are
        classes, R^2 for numbers, agreement with the original without labels.
    labels : str, optional
        The array that holds labels; by default ``y``.
    classes_axis : int, optional
        For agreement: the axis of the classes in every output.
    confidence : float, optional
        Certify that the true drop keeps the budget, for example 0.95. By default the drop on the
        check rows plus one standard error must keep it.
    passes : sequence of {"fold", "prune", "merge", "layer", "refit", "quantize"}
        Which passes may act; they are applied in that order. By default all of them; for the
        size of a model that cannot be fitted as a whole (an ONNX graph), fold and quantize: per
        byte fewer bits cost less than fewer units.
    keep : sequence of str
        Patterns of layers and groups that stay as they are.
    target : {"size", "macs", "latency"}
        What is made small: bytes as saved, multiply-adds, or seconds measured here.
    method : {"random", "greedy", "genetic", "auto"}
        The refinement's search, one of :func:`fastopt.minimize`; "auto" refines (genetic) a
        model that can be fitted as a whole or stored in float alone; elsewhere effects add up and
        nothing is gained.
    max_evals, max_time : int, float
        Budget of the search in recipes (by default what suits the model's multiply-adds) and in
        seconds.
    retrain_epochs : int
        Train each recipe's model on for so many epochs (Adam), on ``calib`` with its labels, or
        on the search rows: a :class:`Network`, an MLP of scikit-learn, a torch module.
    calib : data, optional
        Rows for the Grams; by default the search rows. Labels are needed for retraining alone.
    check : data, optional
        Rows for the final check; by default a quarter of ``data`` is held back for it.
    batch, threads : int
        Rows per run and threads of the latency that is measured.
    portable : bool
        Plain forms only, for run-times that do not fold constants.
    storage : path, optional
        Journal of evaluated recipes: the same call goes on where a killed one ended.
    seed : int, SeedSequence or Generator
    callback : callable, optional
        Called with (recipes evaluated, best cost so far / cost of the original).
    progress : callable, optional
        Called with a line of text when a step begins.
    on_interrupt : {"return", "raise"}
        Ctrl-C returns the last confirmed model (``.interrupted`` is True), or raises.

    Returns
    -------
    Compressed

    Raises
    ------
    OptionError, ArrayError, DTypeError, FormatError, UnsupportedError
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
    started = time.monotonic()
    options = Options(
        max_drop=max_drop, metric=metric, labels=labels, classes_axis=classes_axis,
        confidence=confidence, passes=passes, keep=keep, target=target, method=method,
        max_evals=max_evals, max_time=max_time, retrain_epochs=retrain_epochs, calib=calib,
        check=check, batch=batch, threads=threads, portable=portable, seed=seed,
    )  # fmt: skip
    choice(on_interrupt, "on_interrupt", ("return", "raise"))
    if is_ensemble(model):
        return compressed_ensemble(model, data, options, started)
    original, give_back = open_model(model, options.portable, data)
    if options.passes is None:
        options = replace(options, passes=_default_passes(original, options.target))
    job = open_job(original, data, options, progress)
    memory = Memory(storage, identity(job))
    try:
        _run(job, memory, callback)
    except KeyboardInterrupt:
        if on_interrupt == "raise":
            raise
        job.interrupted = True
    finally:
        memory.close()
    try:
        return explained(job, give_back, started)
    except KeyboardInterrupt:
        if on_interrupt == "raise" or job.interrupted:
            raise
        job.interrupted = True  # what was confirmed is not lost while it is measured
        return explained(job, give_back, started)


def apply_recipe(recipe: Recipe, model: Any, data: Any, **options: Any) -> Compressed:
    """Repeat a recipe on another model of the same structure, and check its drop on data.

    For a model that was trained again: nothing is searched. Where the recipe does not keep
    ``max_drop`` the original comes back.

    Parameters
    ----------
    recipe : Recipe
    model, data
        As :func:`compress` takes them.
    **options
        Those of :func:`compress` that measure and check: ``max_drop``, ``metric``, ``labels``,
        ``classes_axis``, ``confidence``, ``calib``, ``check``, ``batch``, ``threads``,
        ``portable``, ``seed``.

    Returns
    -------
    Compressed

    Raises
    ------
    OptionError
        The recipe names a place or a form that the model does not have, or an option steers a
        search.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.compression import Recipe, apply_recipe
    >>> from fastopt.models import Network
    >>> x = np.random.default_rng(0).standard_normal((200, 32), dtype=np.float32)
    >>> recipe = Recipe({"quantize.dense0": "int8"})
    >>> done = apply_recipe(recipe, Network.mlp((32, 64, 2), seed=0), x, max_drop=0.1)
    >>> done.changed, done.after.nbytes < done.before.nbytes
    (True, True)
    """
    started = time.monotonic()
    if unknown := set(options) - CHECKING:
        raise OptionError(f"{', '.join(sorted(unknown))}: no option of a recipe's check")
    asked = Options(**options, passes=tuple(PASSES))
    original, give_back = open_model(model, asked.portable, data)
    _check_places(recipe, original)
    job = open_job(original, data, asked, None)
    candidate = Candidate(recipe, *job.measure(recipe))
    job.candidates.append(candidate)
    if asked.confidence is None:
        confirm(job, [candidate])
    else:
        certify(job)
    return replace(explained(job, give_back, started), method="recipe")


def _run(job: Job, memory: Memory, callback: Callable[[int, float], object] | None) -> None:
    started = time.monotonic()
    options = job.options
    if options.confidence is not None and job.metric.row_loss is not None:
        needed = rows_needed(options.max_drop, options.confidence)
        if needed > len(job.check) or options.max_drop == 0:
            job.notes.append(
                f"{len(job.check)} check rows cannot certify a drop of {options.max_drop:g} at "
                f"{options.confidence:.0%}: {needed:,} without a single loss would be needed"
            )
            return
    if options.retrain_epochs:
        _check_trainable(job)
    places, job.start = _places(job)
    cost = job.cost(job.original)
    deadline = None if options.max_time is None else started + options.max_time
    search = Search(
        job.measure, cost, options.max_drop, _evals(job), deadline, memory, callback, job.follows
    )
    job.keeps = search.keeps
    job.candidates = search.candidates
    job.say("measuring what each choice does alone")
    job.effects = effects(
        job.bench, places, job.start, job.cost, job.search, job.feed, job.per_byte,
        lambda done, of: job.say(f"measuring what each choice does alone: {done}/{of}"),
    )  # fmt: skip
    job.say("searching")
    best = search.bisect(job.effects, _refitted(job))
    if options.confidence is None and best is not None:
        confirm(job, [best])
    for safer in search.safer(job.effects, _refitted(job)):
        if options.confidence is None:
            if job.confirmed is not None:
                break
            confirm(job, [safer])
    if options.method != "auto" or fittable(job.original) or not narrow(job.original):
        method = "genetic" if options.method == "auto" else options.method
        search.refine(places, _first(job, places), method, options.seed)
    if search.interrupted:
        raise KeyboardInterrupt
    job.say("confirming on rows that the search did not see")
    if options.confidence is not None:
        certify(job)
    else:
        confirm(job, job.candidates)


def _refitted(job: Job) -> Recipe:
    """The recipe that the knapsack's choices are put into: folded, and refitted where possible."""
    made: dict[str, Any] = dict(_retrained(job))
    refit = PASSES["refit"]
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


def _evals(job: Job) -> int:
    """The recipes that a search evaluates at most; a function of the model's size, not of time."""
    if job.options.max_evals is not None:
        return job.options.max_evals
    work = max(1, job.original.macs) * len(job.search) + 50 * job.original.nbytes
    return int(min(_MOST_EVALS, max(_FEWEST_EVALS, _EVALS_MACS / work)))


def _first(job: Job, places: Mapping[str, Any]) -> list[Recipe]:
    """Where the refinement begins: what the bisection found, and every place at one share."""
    kept = sorted(filter(job.keeps, job.candidates), key=by_size)
    found = [
        {k: c.recipe.choices.get(k, _neutral(v)) for k, v in places.items()} for c in kept[:3]
    ]
    for share in START_SHARES:
        found.append({k: PASSES[k.partition(".")[0]].start(share, v) for k, v in places.items()})
    return [Recipe(f) for f in found]


def _neutral(variable: Any) -> Any:
    return variable.options[0] if isinstance(variable, Choice) else 1.0


def _default_passes(model: Model, target: str) -> tuple[str, ...]:
    """All, but where per byte fewer bits cost less than fewer units and no refit makes up."""
    everything = target != "size" or fittable(model) or not narrow(model)
    return tuple(PASSES) if everything else _BITS_ONLY


def _check_places(recipe: Recipe, model: Model) -> None:
    folded = model.copy()
    if any(name == "fold" for name, _, _ in recipe.steps()):
        folded.fold()
    for name, place, value in recipe.steps():
        variables = variables_of(model if name == "fold" else folded, name, "latency")
        if place not in variables:
            raise OptionError(f"recipe: {name} cannot act on {place!r} in this model")
        variable = variables[place]
        if isinstance(variable, Float):
            number(value, f"recipe: {name}.{place}", low=variable.low, high=variable.high)
            continue
        final = getattr(PASSES[name], "final", lambda option: option)
        if value not in (*variable.options, *map(final, variable.options)):
            stored = "be stored as" if name == "quantize" else "take"
            raise OptionError(f"recipe: {name}.{place} cannot {stored} {short(value)}")
