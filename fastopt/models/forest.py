"""Tree ensembles as arrays: pruned, stored in few bits, run."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, as_labels, as_numbers
from fastopt._kernels import forest as kernel
from fastopt._options import integer
from fastopt.errors import ArrayError, UnsupportedError

__all__ = ["CompactForest", "Ensemble"]

_NAN_LEFT, _NAN_CODE = 0x8000, 0xFFFF  # as the kernel has them
_PARTS = (
    "used", "cuts", "n_cuts", "inner", "feature", "cut", "nan_left", "leaf", "value", "root",
    "column",
)  # fmt: skip


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
        """The arrays, each in the narrowest numbers that hold it, deflated."""
        file = io.BytesIO()
        for name in _PARTS:
            np.lib.format.write_array(file, _narrow(self._state[name]), allow_pickle=False)
        return zlib.compress(file.getvalue(), 6)

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("_state", "_nodes", "_cuts")}
        return state | {"packed": self._packed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        file = io.BytesIO(zlib.decompress(rest.pop("packed")))
        arrays = [np.lib.format.read_array(file, allow_pickle=False) for _ in _PARTS]
        wide = {"b": np.bool_, "u": np.int64, "f": np.float64}
        self._state = {
            n: a.astype(wide[a.dtype.kind]) for n, a in zip(_PARTS, arrays, strict=True)
        }
        vars(self).update(rest)
        self._link_arrays()


def _narrow(a: Array) -> Array:
    if a.dtype.kind in "iu":
        top = int(a.max(initial=0))
        return a.astype(f"u{1 if top < 256 else 2 if top < 65536 else 4}")
    single = a.astype("f4")
    return single if a.dtype.kind == "f" and (single == a).all() else a


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


def _like(y: Array, found: Array) -> Array:
    """``y`` where it has the shape of the predictions."""
    if y.shape != found.shape:
        raise ArrayError(f"y: expected shape {found.shape}, got {y.shape}")
    return y
