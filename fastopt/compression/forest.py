"""Tree ensembles: fewer trees, smaller trees, fewer bits, within a stated drop."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_labels, as_numbers
from fastopt._options import number
from fastopt._random import Seed, generator_of
from fastopt.compression.data import open_rows
from fastopt.compression.explain import Compressed, Measures
from fastopt.compression.options import Options
from fastopt.compression.recipe import Recipe
from fastopt.errors import ArrayError, UnsupportedError
from fastopt.models import Input
from fastopt.models.forest import CompactForest, Ensemble
from fastopt.models.sklearn import read_ensemble

__all__ = ["CompressedForest", "compress_forest", "compressed_ensemble"]

_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05)  # of the trees
_BITS = 8
_MAX_CUTS = 254  # a byte per threshold, NaN and a leaf besides
# Fractions of a tree's whole spread that a subtree must explain per leaf to stay.
_ALPHAS = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_RANKED_ROWS = 2048  # rows on which trees are ranked


@dataclass(frozen=True)
class CompressedForest:
    """What :func:`compress_forest` returns.

    Attributes
    ----------
    model : CompactForest or the original
        The original where no recipe kept the budget.
    changed : bool
    max_drop, drop, search_drop : float
        What was asked; what was reached on the check rows and on the search rows.
    before, after : float
        The metric on the check rows.
    bytes_before, bytes_after : int
        Of a pickle.
    n_trees, n_nodes : tuple of int
        Before and after.
    """

    model: Any
    changed: bool
    max_drop: float
    drop: float
    search_drop: float
    before: float
    after: float
    bytes_before: int
    bytes_after: int
    n_trees: tuple[int, int]
    n_nodes: tuple[int, int]


def compress_forest(
    model: Any, X: Any, y: Any = None, *, max_drop: float = 0.01, seed: Seed = 0
) -> CompressedForest:
    """The smallest form of a fitted tree ensemble that loses at most ``max_drop``.

    Parameters
    ----------
    model : RandomForest, ExtraTrees, DecisionTree, GradientBoosting or HistGradientBoosting
        A fitted estimator of scikit-learn. Not changed.
    X : (rows, n_features) array
        Rows that the ensemble was not trained on. Half of them drive the search, half confirm.
    y : (rows,) array, optional
        Targets: the metric is accuracy or R^2. Without them it is agreement with the original.
    max_drop : float
        Of the metric, 0..1.
    seed : int, SeedSequence or Generator
        Which rows confirm.

    Returns
    -------
    CompressedForest

    Raises
    ------
    UnsupportedError
        Another model, or trees that cannot be read.
    ArrayError
        Fewer than 4 rows, or y of another length.

    Notes
    -----
    Averaged trees are ranked greedily: each next tree is the one that brings the mean of those
    taken closest to the whole ensemble's output (ordered aggregation, Martinez-Munoz et al., "An
    analysis of ensemble pruning techniques", 2009). Boosted stages are only cut off at the end.
    Every tree is pruned by minimal cost-complexity on its own outputs. Values are stored in 8 bits
    and thresholds as one of at most 254 per feature. Recipes are tried from the smallest; the
    first is taken whose drop on the search rows plus one standard error keeps the budget, and
    which keeps it on the check rows too.
    """
    budget = number(max_drop, "max_drop", low=0.0, high=1.0, high_open=True)
    x = as_array(X, "X", cast="float64", ndim=2)
    if len(x) < 4:
        raise ArrayError(f"X: expected 4 or more rows (rows, n_features), got shape {x.shape}")
    ensemble = read_ensemble(model, x)
    given = model.predict(x) if y is None else y
    target = as_numbers(given, "y") if ensemble.classes is None else as_labels(given, "y")
    if len(target) != len(x):
        raise ArrayError(f"y: expected {len(x)} targets, got {len(target)}")
    order = generator_of(seed).permutation(len(x))
    search, check = order[: len(x) // 2], order[len(x) // 2 :]
    classifier = ensemble.classes is not None

    def losses(predictor: Any, rows: Array) -> Array:
        found = predictor.predict(x[rows])
        if classifier:
            return np.asarray(found != target[rows], np.float64)
        scale = float(np.var(target)) or 1.0
        return np.asarray((found - target[rows]) ** 2 / scale)

    base = {True: losses(model, search), False: losses(model, check)}
    candidates = []
    for ranked in _fewer_trees(ensemble, x[search], classifier):
        spread = _spread(ranked)
        for alpha in _ALPHAS:
            small = CompactForest(ranked.prune(alpha * spread), bits=_BITS, max_cuts=_MAX_CUTS)
            candidates.append((small.nbytes, small))
    whole = len(pickle.dumps(model))
    taken: Any = model
    search_drop = 0.0
    for _, small in sorted(candidates, key=lambda c: c[0]):
        gap = losses(small, search) - base[True]
        error = float(gap.std(ddof=1)) / len(gap) ** 0.5
        if gap.mean() + error > budget:
            continue
        gap_check = losses(small, check) - base[False]
        if gap_check.mean() <= budget:
            taken, search_drop = small, float(gap.mean())
            break
    before = 1.0 - float(base[False].mean())
    after = 1.0 - float(losses(taken, check).mean())
    changed = taken is not model
    return CompressedForest(
        model=taken, changed=changed, max_drop=budget, drop=before - after,
        search_drop=search_drop, before=before, after=after, bytes_before=whole,
        bytes_after=len(pickle.dumps(taken)),
        n_trees=(ensemble.trees, taken.n_trees if changed else ensemble.trees),
        n_nodes=(len(ensemble.feature), taken.n_nodes if changed else len(ensemble.feature)),
    )  # fmt: skip


def compressed_ensemble(model: Any, data: Any, options: Options, started: float) -> Compressed:
    """What :func:`compress_forest` finds, in the form that :func:`fastopt.compress` returns.

    Raises
    ------
    UnsupportedError
        An option that the search over trees does not have.
    """
    plain = Options()
    for name in ("metric", "confidence", "passes", "keep", "method", "max_evals", "max_time"):
        if getattr(options, name) != getattr(plain, name):
            raise UnsupportedError(f"{name}: no option for a {type(model).__name__}")
    if options.calib is not None or options.check is not None or options.target != "size":
        raise UnsupportedError(
            f"calib, check, target: no options for a {type(model).__name__}: half of data confirms"
        )
    columns = (Input("X", "float64", (None, int(model.n_features_in_))),)
    rows = open_rows(data, columns, "data", options.labels)
    x, y = rows.column("X"), rows.y
    found = compress_forest(model, x, y, max_drop=options.max_drop, seed=options.seed)
    seconds = _predict_s([model, found.model], x[: options.batch])
    before, after = (
        Measures(metric, nodes, nbytes, 0, s)
        for metric, nodes, nbytes, s in zip(
            (found.before, found.after), found.n_nodes, (found.bytes_before, found.bytes_after),
            seconds, strict=True,
        )
    )  # fmt: skip
    notes = [f"{found.n_trees[0]} -> {found.n_trees[1]} trees; nodes are counted as parameters"]
    kind = "r2" if not hasattr(model, "classes_") else "accuracy" if y is not None else "agreement"
    return Compressed(
        model=found.model, recipe=Recipe(), before=before, after=after, max_drop=found.max_drop,
        drop=found.drop, search_drop=found.search_drop, changed=found.changed, decisions=(),
        candidates=(), metric=kind, target="size", method="smallest first", refused=0,
        time_s=time.monotonic() - started, n_search=len(x) // 2, n_check=len(x) - len(x) // 2,
        notes=tuple(notes), batch=options.batch, threads=options.threads,
    )  # fmt: skip


def _predict_s(models: Sequence[Any], x: Array, rounds: int = 5) -> list[float]:
    """Median seconds of ``predict``, interleaved."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for taken, model in zip(times, models, strict=True):
            start = time.perf_counter()
            model.predict(x)
            taken.append(time.perf_counter() - start)
    return [float(np.median(taken)) for taken in times]


def _fewer_trees(ensemble: Ensemble, x: Array, classifier: bool) -> list[Ensemble]:
    """The ensemble with each share of its trees."""
    width = ensemble.value.shape[1]
    counts = sorted({max(1, round(s * ensemble.trees)) for s in _SHARES}, reverse=True)
    averaged = (
        ensemble.link == "identity" and not ensemble.base.any() and (width > 1 or not classifier)
    )
    if not averaged:  # boosting: whole stages from the front
        per = len(ensemble.base)
        stages = sorted({max(1, n // per) for n in counts}, reverse=True)
        return [ensemble.take(np.arange(n * per)) for n in stages]
    few = x[:_RANKED_ROWS]
    outputs = np.stack(
        [CompactForest(ensemble.take(np.array([t])))._sums(few) for t in range(ensemble.trees)]
    ).reshape(ensemble.trees, -1)
    order = _ranked(outputs * ensemble.trees)
    return [ensemble.take(order[:n], ensemble.trees / n) for n in counts]


def _ranked(outputs: Array) -> Array:
    """Trees in the order in which their running mean comes closest to the mean of all."""
    goal = outputs.mean(axis=0)
    apart = outputs - goal
    cross = apart @ apart.T
    left = np.ones(len(outputs), bool)
    with_sum = np.zeros(len(outputs))  # product with the sum of those taken
    order = []
    for _ in range(len(outputs)):
        score = np.where(left, cross.diagonal() + 2 * with_sum, np.inf)
        t = int(score.argmin())
        order.append(t)
        left[t] = False
        with_sum += cross[:, t]
    return np.array(order)


def _spread(ensemble: Ensemble) -> float:
    """Mean over the trees of the squared spread of their leaves' values, weighted."""
    leaf = ensemble.feature < 0
    square = np.einsum("ij,ij->i", ensemble.value, ensemble.value) * ensemble.weight
    root = ensemble.root
    total = float(square[leaf].sum() - square[root].sum())
    return max(0.0, total) / max(1, len(root))
