"""The main job: prepare, search, confirm, explain."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastopt._files import path_of
from fastopt._options import choice, function, number, short
from fastopt._random import Seed
from fastopt.compression.accept import certify, confirm
from fastopt.compression.adapters import open_model
from fastopt.compression.explain import Compressed
from fastopt.compression.forest import compressed_ensemble
from fastopt.compression.job import fittable, identity, narrow, open_job
from fastopt.compression.journal import Memory
from fastopt.compression.options import CHECKING, Options
from fastopt.compression.outcome import explained
from fastopt.compression.passes import PASSES
from fastopt.compression.recipe import Recipe
from fastopt.compression.search import Candidate
from fastopt.compression.stages import BITS_ONLY, run, variables_of
from fastopt.errors import DTypeError, OptionError
from fastopt.models import Model
from fastopt.models.sklearn import is_ensemble
from fastopt.search import Float

__all__ = ["apply_recipe", "compress"]


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
    workers: int = 1,
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
        Which passes may act; they are applied in that order. By default all of them. For a model
        that cannot be fitted as a whole (an ONNX graph): without merge; for its size fold and
        quantize alone, since per byte fewer bits cost less than fewer units.
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
    workers : int
        Processes that measure choices and recipes side by side; each holds the job in memory.
        The result is the same for any number (but with ``target="latency"``). A worker that dies
        is replaced and its work done again.
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
        check=check, batch=batch, threads=threads, workers=workers, portable=portable, seed=seed,
    )  # fmt: skip
    choice(on_interrupt, "on_interrupt", ("return", "raise"))
    storage = None if storage is None else path_of(storage, "storage")
    for told, name in ((callback, "callback"), (progress, "progress")):
        if told is not None:
            function(told, name)
    if is_ensemble(model):
        return compressed_ensemble(model, data, options, started)
    original, give_back = open_model(model, options.portable, data)
    if options.passes is None:
        options = replace(options, passes=_default_passes(original, options.target))
    job = open_job(original, data, options, progress)
    memory = Memory(storage, identity(job))
    try:
        run(job, memory, callback)
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
        ``workers``, ``portable``, ``seed``.

    Returns
    -------
    Compressed

    Raises
    ------
    OptionError
        The recipe names a place or a form that the model does not have, or an option steers a
        search.
    DTypeError
        ``recipe`` is no :class:`Recipe`.

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
    if not isinstance(recipe, Recipe):
        raise DTypeError(f"recipe: expected a Recipe, got {type(recipe).__name__}")
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


def _default_passes(model: Model, target: str) -> tuple[str, ...]:
    """All; for the size of a graph bits alone, where per byte fewer bits cost less than fewer
    units and no refit makes up; and for its latency no merging, which costs time and rarely beats
    removing units."""
    if fittable(model) or not narrow(model):
        return tuple(PASSES)
    if target == "size":
        return BITS_ONLY
    return tuple(name for name in PASSES if name != PASSES["merge"].NAME)


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
