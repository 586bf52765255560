"""Tree ensembles as arrays: read from scikit-learn, pruned, stored in few bits, run."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, as_labels, as_numbers
from fastopt._kernels import forest as kernel
from fastopt._options import integer
from fastopt.errors import ArrayError, FormatError, UnsupportedError

__all__ = ["CompactForest", "Ensemble", "is_ensemble", "read_ensemble"]

_NAN_LEFT, _NAN_CODE = 0x8000, 0xFFFF  # as the kernel has them
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


@dataclass(frozen=True)
class Ensemble:
    """All trees of an ensemble, their nodes in preorder one tree after another.

    Attributes
    ----------
    feature : (nodes,) int64
        -1 at a leaf.
    threshold : (nodes,) float64
        A row goes left where its value is <= threshold.
    nan_left : (nodes,) bool
    left, right : (nodes,) int64
        Children by node number; -1 at a leaf.
    value : (nodes, width) float64
        Outputs; at an inner node the mean of its leaves, weighted.
    weight : (nodes,) float64
        Training rows that reached the node.
    root, column : (trees,) int64
        First node of each tree, and the first output that it adds to.
    base : (n_outputs,) float64
        What the trees are added to.
    link : {"identity", "logistic", "softmax", "exp"}
        From the sum to the prediction.
    classes : array or None
    n_features : int
    narrow : bool
        Whether values are compared in float32, as scikit-learn's trees do.
    """

    feature: Array
    threshold: Array
    nan_left: Array
    left: Array
    right: Array
    value: Array
    weight: Array
    root: Array
    column: Array
    base: Array
    link: str
    classes: Array | None
    n_features: int
    narrow: bool

    @property
    def trees(self) -> int:
        """Number of trees."""
        return len(self.root)

    def take(self, trees: Array, scale: float = 1.0) -> Ensemble:
        """The trees of those numbers, in that order, their values times ``scale``."""
        ends = np.append(self.root[1:], len(self.feature))
        spans = [np.arange(self.root[t], ends[t]) for t in trees]
        nodes = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        root = np.cumsum([0, *map(len, spans)])[:-1].astype(np.int64)
        shift = np.repeat(root - self.root[trees], [len(s) for s in spans])
        inner = self.feature[nodes] >= 0
        return replace(
            self,
            feature=self.feature[nodes], threshold=self.threshold[nodes],
            nan_left=self.nan_left[nodes], weight=self.weight[nodes],
            left=np.where(inner, self.left[nodes] + shift, -1),
            right=np.where(inner, self.right[nodes] + shift, -1),
            value=self.value[nodes] * scale, root=root, column=self.column[trees],
        )  # fmt: skip

    def levels(self) -> list[Array]:
        """The nodes by depth, roots first."""
        found, level = [], self.root
        while len(level):
            found.append(level)
            inner = level[self.feature[level] >= 0]
            level = np.concatenate([self.left[inner], self.right[inner]])
        return found

    def prune(self, alpha: float) -> Ensemble:
        """The subtrees of least squared deviation of their leaves' values plus alpha per leaf.

        Breiman, Friedman, Olshen and Stone, "Classification and regression trees" (1984), section
        3.3, with the squared error of the tree's own output as the cost. At alpha 0 only subtrees
        whose leaves all agree become a leaf, which changes nothing.
        """
        levels = self.levels()
        square = self.weight * np.einsum("ij,ij->i", self.value, self.value)
        spread = np.where(self.feature < 0, square, 0.0)  # sum of w |v|^2 over the leaves
        cost = np.full(len(self.feature), alpha)
        closed = self.feature < 0
        for level in reversed(levels):
            inner = level[self.feature[level] >= 0]
            left, right = self.left[inner], self.right[inner]
            spread[inner] = spread[left] + spread[right]
            apart = cost[left] + cost[right]
            together = np.maximum(spread[inner] - square[inner], 0.0) + alpha
            together = np.where(together - alpha <= 1e-12 * spread[inner], alpha, together)
            closed[inner] = together <= apart
            cost[inner] = np.minimum(together, apart)
        alive = np.zeros(len(self.feature), bool)
        front = self.root
        while len(front):
            alive[front] = True
            front = front[~closed[front]]
            front = np.concatenate([self.left[front], self.right[front]])
        number = np.cumsum(alive) - 1
        inner = alive & ~closed

        def keep(a: Array, empty: float) -> Array:
            return np.where(inner, a, empty)[alive].astype(a.dtype)

        return replace(
            self,
            feature=keep(self.feature, -1), threshold=keep(self.threshold, 0.0),
            nan_left=keep(self.nan_left, False),
            left=np.where(inner, number[self.left], -1)[alive],
            right=np.where(inner, number[self.right], -1)[alive],
            value=self.value[alive], weight=self.weight[alive], root=number[self.root],
        )  # fmt: skip


class CompactForest:
    """A tree ensemble in few bytes that predicts as scikit-learn's estimators do.

    Parameters
    ----------
    ensemble : Ensemble
        From :func:`read_ensemble`.
    bits : {4, 6, 8, 16} or None
        Bits of a leaf's value, over the range of all leaves; None keeps float32 values.
    max_cuts : int
        Most thresholds per feature, 1..65535; more are merged with their neighbours.

    Attributes
    ----------
    classes_ : array
        Of classifiers.
    n_features_in_ : int
    n_trees, n_nodes : int
    nbytes : int
        Bytes of a pickle, nearly.

    Notes
    -----
    Thresholds of trees that compare in float32 are rounded down to float32, which changes no
    comparison. The state is plain arrays: nodes in preorder take a feature and the number of a
    cut, one byte each where they fit; leaves the number of a distinct value. Pickles and copies
    keep predictions bit for bit.
    """

    def __init__(self, ensemble: Ensemble, *, bits: int | None = None, max_cuts: int = 65535):
        limit = integer(max_cuts, "max_cuts", low=1, high=65535)
        if bits is not None:
            integer(bits, "bits", low=2, high=16)
        e = ensemble
        inner = e.feature >= 0
        self._link, self._narrow = e.link, e.narrow
        self._base = e.base.copy()
        self.n_features_in_ = e.n_features
        if e.classes is not None:
            self.classes_ = e.classes
        used = np.unique(e.feature[inner])
        threshold = e.threshold
        if e.narrow:
            low = threshold.astype(np.float32)
            low = np.where(low > threshold, np.nextafter(low, np.float32(-np.inf)), low)
            threshold = low.astype(np.float64)
        cut = np.zeros(len(e.feature), np.int64)
        cuts = []
        for f in used:
            at = np.flatnonzero(inner & (e.feature == f))
            values = _merged(threshold[at], limit)
            cuts.append(values)
            cut[at] = _nearest(values, threshold[at])
        rows, leaf = _few_values(e.value[~inner], bits)
        self._state = {
            "used": used,
            "cuts": np.concatenate(cuts) if cuts else np.zeros(0),
            "n_cuts": np.array([len(c) for c in cuts], np.int64),
            "inner": inner,
            "feature": np.searchsorted(used, e.feature[inner]),
            "cut": cut[inner],
            "nan_left": e.nan_left[inner],
            "leaf": leaf,
            "value": rows,
            "root": e.root,
            "column": e.column,
        }
        if len(used) >= _NAN_LEFT or len(e.feature) >= 2**31:
            raise UnsupportedError("forest: more than 32767 features or 2**31 nodes")
        self._link_arrays()

    # ------------------------------------------------------------------ running
    def _link_arrays(self) -> None:
        """The kernel's arrays, out of the compact state."""
        s = self._state
        inner = s["inner"]
        test = np.full(len(inner), _NAN_CODE << 16, np.uint32)  # a leaf's cut: every row stays
        test[inner] = s["feature"] | np.where(s["nan_left"], _NAN_LEFT, 0) | s["cut"] << 16
        right = np.zeros(len(inner), np.int32)
        right[~inner] = -1 - s["leaf"]
        right[inner] = _right_children(inner)
        self._cuts = (
            s["used"].astype(np.int32),
            np.cumsum(np.append(0, s["n_cuts"])).astype(np.int32),
            np.ascontiguousarray(s["cuts"], np.float64),
        )
        self._nodes = (
            test.view(np.int32), right, s["root"].astype(np.int32), s["column"].astype(np.int32),
            np.ascontiguousarray(s["value"], np.float64),
        )  # fmt: skip

    def _sums(self, X: Any, threads: int | None = None) -> Array:
        x = as_array(X, "X", cast="float64", shape=(None, self.n_features_in_))
        if self._narrow:
            x = x.astype(np.float32)
        x = np.ascontiguousarray(x, np.float64)
        code = np.empty((len(x), max(1, len(self._cuts[0]))), np.int32)
        used = _threads.resolve(threads, len(x) * self.n_trees, 1 << 14)
        if len(self._cuts[0]):
            kernel.encode(code, x, *self._cuts, used)
        out = np.tile(self._base, (len(x), 1))
        kernel.add(out, code, *self._nodes, used)
        return out

    def decision_function(self, X: Any) -> Array:
        """Sums of the trees' values, (rows, n_outputs) or (rows,) for one output."""
        sums = self._sums(X)
        return sums[:, 0] if sums.shape[1] == 1 else sums

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities, (rows, classes)."""
        if not hasattr(self, "classes_"):
            raise AttributeError("predict_proba: a regressor has no classes")
        sums = self._sums(X)
        if self._link == "logistic":
            p = 1.0 / (1.0 + np.exp(-sums[:, 0]))
            return np.column_stack([1.0 - p, p])
        if self._link == "softmax":
            e = np.exp(sums - sums.max(axis=1, keepdims=True))
            return np.asarray(e / e.sum(axis=1, keepdims=True))
        positive = np.maximum(sums, 0.0)
        total = positive.sum(axis=1, keepdims=True)
        return np.asarray(positive / np.where(total > 0, total, 1.0))

    def predict(self, X: Any) -> Array:
        """Class labels, or values of a regressor (rows,) or (rows, n_outputs)."""
        if hasattr(self, "classes_"):
            best: Array = self.classes_[self.predict_proba(X).argmax(axis=1)]
            return best
        sums = self.decision_function(X)
        return np.exp(sums) if self._link == "exp" else sums

    def score(self, X: Any, y: Any) -> float:
        """Accuracy of a classifier, R^2 of a regressor."""
        found = self.predict(X)
        if hasattr(self, "classes_"):
            return float((found == _like(as_labels(y, "y"), found)).mean())
        truth = _like(as_numbers(y, "y"), found)
        rest = ((truth - found) ** 2).sum()
        return float(1.0 - rest / ((truth - truth.mean(axis=0)) ** 2).sum())

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self._state["root"])

    @property
    def n_nodes(self) -> int:
        """Number of nodes, leaves included."""
        return len(self._state["inner"])

    @property
    def nbytes(self) -> int:
        """Bytes of the packed state."""
        return len(self._packed())

    def __repr__(self) -> str:
        return f"CompactForest(trees={self.n_trees}, nodes={self.n_nodes}, nbytes={self.nbytes})"

    # ------------------------------------------------------------------ plain data
    def _packed(self) -> bytes:
        """The arrays, each in the narrowest integers that hold it, deflated."""
        parts = []
        for name, a in self._state.items():
            if name in ("inner", "nan_left"):
                head, body = f"{name}:?:{len(a)}", np.packbits(a).tobytes()
            else:
                b = a
                if a.dtype.kind in "iu":
                    top = int(a.max(initial=0))
                    b = a.astype(f"u{1 if top < 256 else 2 if top < 65536 else 4}")
                elif a.dtype.kind == "f" and (a.astype("f4") == a).all():
                    b = a.astype("f4")
                shape = "x".join(map(str, a.shape))
                head, body = f"{name}:{b.dtype.str[1:]}:{shape}", b.tobytes()
            parts.append(f"{head}\n".encode() + len(body).to_bytes(8, "little") + body)
        return zlib.compress(b"".join(parts), 6)

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("_state", "_nodes", "_cuts")}
        return state | {"packed": self._packed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        self._state = _unpacked(rest.pop("packed"))
        vars(self).update(rest)
        self._link_arrays()


def _unpacked(packed: bytes) -> dict[str, Array]:
    data = zlib.decompress(packed)
    found: dict[str, Array] = {}
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        name, kind, shape = data[at:end].decode().split(":")
        size = int.from_bytes(data[end + 1 : end + 9], "little")
        body = data[end + 9 : end + 9 + size]
        at = end + 9 + size
        dims = tuple(int(n) for n in shape.split("x"))
        if len(body) != size:
            raise FormatError("CompactForest: the state is cut off")
        if kind == "?":
            bits = np.unpackbits(np.frombuffer(body, np.uint8), count=dims[0])
            found[name] = bits.astype(bool)
        else:
            a = np.frombuffer(body, f"<{kind}").reshape(dims)
            found[name] = a.astype(np.float64 if a.dtype.kind == "f" else np.int64)
    return found


def _right_children(inner: Array) -> Array:
    """Number of the right child of each inner node, for trees in preorder."""
    # Walk backwards with a stack of finished subtrees: an inner node's left child is the next
    # node, its right child the one after the left subtree.
    right = np.zeros(len(inner), np.int64)
    stack: list[int] = []
    flags = inner.tolist()
    for node in range(len(flags) - 1, -1, -1):
        if flags[node]:
            stack.pop()  # its left child, which is node + 1
            right[node] = stack.pop()
        stack.append(node)
    return right[inner]


def _merged(thresholds: Array, limit: int) -> Array:
    """The distinct thresholds; beyond ``limit`` the medians of equal shares of their uses."""
    values = np.unique(thresholds)
    if len(values) <= limit:
        return values
    order = np.sort(thresholds)
    picks = ((np.arange(limit) + 0.5) * len(order) / limit).astype(np.int64)
    return np.unique(order[picks])


def _nearest(values: Array, x: Array) -> Array:
    """Number of the value nearest to each x."""
    middle = (values[1:] + values[:-1]) / 2
    return np.searchsorted(middle, x, side="right")  # the last value may be infinite


def _few_values(value: Array, bits: int | None) -> tuple[Array, Array]:
    """(distinct leaf values, number of each leaf's)."""
    if bits is not None and value.size:
        low, high = float(value.min()), float(value.max())
        if high > low:
            step = (high - low) / (2**bits - 1)
            value = low + step * np.rint((value - low) / step)
    rows, leaf = np.unique(value.astype(np.float32), axis=0, return_inverse=True)
    return rows.astype(np.float64), leaf.reshape(-1).astype(np.int64)


# ---------------------------------------------------------------------- reading scikit-learn
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


def _like(y: Array, found: Array) -> Array:
    """``y`` where it has the shape of the predictions."""
    if y.shape != found.shape:
        raise ArrayError(f"y: expected shape {found.shape}, got {y.shape}")
    return y


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
