"""The trees of scikit-learn's ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import UnsupportedError
from fastopt.models.forest import CompactForest, Ensemble

__all__ = ["is_ensemble", "read_ensemble"]

_ENSEMBLES = {
    "RandomForestClassifier": "mean",
    "RandomForestRegressor": "mean",
    "ExtraTreesClassifier": "mean",
    "ExtraTreesRegressor": "mean",
    "DecisionTreeClassifier": "mean",
    "DecisionTreeRegressor": "mean",
    "GradientBoostingClassifier": "sum",
    "GradientBoostingRegressor": "sum",
    "HistGradientBoostingClassifier": "sum",
    "HistGradientBoostingRegressor": "sum",
}


def is_ensemble(model: Any) -> bool:
    """Whether :func:`read_ensemble` takes it."""
    return type(model).__name__ in _ENSEMBLES and type(model).__module__.startswith("sklearn.")


def read_ensemble(model: Any, X: Any) -> Ensemble:
    """The trees of a fitted scikit-learn ensemble.

    Parameters
    ----------
    model : RandomForest, ExtraTrees, DecisionTree, GradientBoosting or HistGradientBoosting
    X : (rows, n_features) array
        A few rows, on which the result is compared with the model's own.

    Raises
    ------
    UnsupportedError
        Another estimator, several targets, categorical splits, an ``init`` estimator that depends
        on X, or outputs that differ from the model's.
    """
    if not is_ensemble(model):
        raise UnsupportedError(
            f"model: expected a fitted {', '.join(_ENSEMBLES)}, got {type(model).__name__}"
        )
    name = type(model).__name__
    classes = getattr(model, "classes_", None)
    if isinstance(classes, list) or getattr(model, "n_outputs_", 1) > 1:
        raise UnsupportedError(f"{name}: several targets")
    few = X[:64]
    if name.startswith("Hist"):
        stages = [list(stage) for stage in model._predictors]
        trees = [_hist_tree(p.nodes) for stage in stages for p in stage]
    elif name.startswith("GradientBoosting"):
        stages = [list(stage) for stage in model.estimators_]
        rate = float(model.learning_rate)
        trees = [_tree(t.tree_, rate) for stage in stages for t in stage]
    else:
        members = getattr(model, "estimators_", [model])
        stages = [[t] for t in members]
        trees = [_tree(t.tree_, 1.0 / len(members), classes is not None) for t in members]
    n_outputs = trees[0]["value"].shape[1] if _ENSEMBLES[name] == "mean" else len(stages[0])
    link = "identity"
    if _ENSEMBLES[name] == "sum" and classes is not None:
        link = "logistic" if n_outputs == 1 else "softmax"
    elif getattr(model, "loss", None) in ("poisson", "gamma"):
        link = "exp"
    ensemble = _joined(trees, np.zeros(n_outputs), link, classes, model.n_features_in_)
    ensemble = replace(ensemble, narrow=not name.startswith("Hist"))
    if _ENSEMBLES[name] == "sum":
        ensemble = replace(ensemble, column=np.tile(np.arange(n_outputs), len(stages)))
        ensemble = replace(ensemble, base=_base_of(model, ensemble, few))
    return ensemble


def _base_of(model: Any, ensemble: Ensemble, few: Any) -> Array:
    """The constant that boosting starts from: the model's sums less the trees'."""
    own = CompactForest(ensemble)._sums(few)
    if ensemble.classes is not None:
        given = np.asarray(model.decision_function(few), np.float64).reshape(own.shape)
    else:
        given = np.asarray(model.predict(few), np.float64).reshape(own.shape)
        given = np.log(given) if ensemble.link == "exp" else given
    rest = given - own
    base: Array = np.median(rest, axis=0)
    scale = np.abs(given).max(initial=1.0)
    if not np.allclose(rest, base, atol=1e-5 * scale):
        raise UnsupportedError(f"{type(model).__name__}: its start is no constant")
    return base


def _tree(tree: Any, scale: float, proportions: bool = False) -> dict[str, Array]:
    """One of scikit-learn's Cython trees."""
    value = tree.value[:, 0, :].astype(np.float64)
    if proportions:
        value = value / value.sum(axis=1, keepdims=True)
    nodes = tree.__getstate__()["nodes"]
    nan_left = np.zeros(len(nodes), bool)
    if "missing_go_to_left" in nodes.dtype.names:
        nan_left |= nodes["missing_go_to_left"].astype(bool)
    return {
        "feature": np.where(tree.children_left < 0, -1, tree.feature),
        "threshold": tree.threshold.astype(np.float64),
        "nan_left": nan_left,
        "left": tree.children_left.astype(np.int64),
        "right": tree.children_right.astype(np.int64),
        "value": value * scale,
        "weight": tree.weighted_n_node_samples.astype(np.float64),
    }


def _hist_tree(nodes: Any) -> dict[str, Array]:
    """One of HistGradientBoosting's trees."""
    leaf = nodes["is_leaf"].astype(bool)
    if (nodes["is_categorical"].astype(bool) & ~leaf).any():
        raise UnsupportedError("HistGradientBoosting: categorical splits")
    return {
        "feature": np.where(leaf, -1, nodes["feature_idx"].astype(np.int64)),
        "threshold": nodes["num_threshold"].astype(np.float64),
        "nan_left": nodes["missing_go_to_left"].astype(bool),
        "left": np.where(leaf, -1, nodes["left"].astype(np.int64)),
        "right": np.where(leaf, -1, nodes["right"].astype(np.int64)),
        "value": nodes["value"].astype(np.float64)[:, None],
        "weight": nodes["count"].astype(np.float64),
    }


def _joined(
    trees: Sequence[dict[str, Array]],
    base: Array,
    link: str,
    classes: Array | None,
    n_features: int,
) -> Ensemble:
    """Trees one after another, each in preorder, inner values the means of their leaves."""
    parts = [_preorder(t) for t in trees]
    sizes = [len(t["feature"]) for t in parts]
    root = np.cumsum([0, *sizes])[:-1].astype(np.int64)
    for t, first in zip(parts, root, strict=True):
        for side in ("left", "right"):
            t[side] = np.where(t["feature"] >= 0, t[side] + first, -1)
    whole = {k: np.concatenate([t[k] for t in parts]) for k in parts[0]}
    ensemble = Ensemble(
        **whole, root=root, column=np.zeros(len(parts), np.int64), base=base, link=link,
        classes=classes, n_features=int(n_features),
        narrow=True,
    )  # fmt: skip
    for level in reversed(ensemble.levels()):
        inner = level[ensemble.feature[level] >= 0]
        left, right = ensemble.left[inner], ensemble.right[inner]
        weight = ensemble.weight[left] + ensemble.weight[right]
        total = (
            ensemble.weight[left, None] * ensemble.value[left]
            + ensemble.weight[right, None] * ensemble.value[right]
        )
        ensemble.value[inner] = total / np.where(weight > 0, weight, 1.0)[:, None]
        ensemble.weight[inner] = weight
    return ensemble


def _preorder(tree: dict[str, Array]) -> dict[str, Array]:
    """The same tree with every left child right behind its parent."""
    order: list[int] = []
    stack = [0]
    left, right = tree["left"].tolist(), tree["right"].tolist()
    while stack:
        node = stack.pop()
        order.append(node)
        if left[node] >= 0:
            stack += (right[node], left[node])
    place = np.empty(len(left), np.int64)
    index = np.array(order)
    place[index] = np.arange(len(index))
    moved = {k: a[index] for k, a in tree.items()}
    for side in ("left", "right"):
        moved[side] = np.where(moved["feature"] >= 0, place[moved[side]], -1)
    return moved
