"""Labels to class numbers and back, and the predictions that every linear classifier shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_labels
from fastopt._kernels import linear
from fastopt._options import number
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.linear_model._data import _column, check_weights, weights_of
from fastopt.linear_model._problem import DIRECT, ONE_VS_REST, TWO
from fastopt.linear_model._rows import CSR, Rows

__all__ = ["ClassifierFace", "as_targets", "check_classes", "class_weights", "encode"]


def check_labels(y: Any, n: int) -> Array:
    """Labels (n,): integers, strings, bools or whole floats."""
    if y is None:
        raise ArrayError("y: requires y to be passed, but the target y is None; give the labels")
    a = as_labels(y, "y")
    if a.ndim == 2:
        a = _column(a, "y")
    if a.ndim != 1:
        raise ArrayError(f"y: expected shape ({n},), got {a.shape}")
    if len(a) != n:
        raise ArrayError(f"y: expected {n} labels, one per row of X, got {len(a)}")
    return a


def check_classes(classes: Any) -> Array:
    """All labels that partial fits will meet, sorted, each once."""
    try:
        return np.unique(as_labels(classes, "classes"))
    except TypeError as error:
        if isinstance(error, DTypeError):
            raise
        raise DTypeError(f"classes: the labels cannot be sorted: {error}") from None


def encode(
    y: Any, n: int, classes: Array | None = None, threads: int | None = None
) -> tuple[Array, Array]:
    """Sorted distinct labels and each row's number among them."""
    a = check_labels(y, n)
    try:
        labels, codes = _number(a, threads)
    except TypeError as error:
        raise DTypeError(f"y: the labels cannot be sorted: {error}") from None
    if classes is not None:
        where = np.searchsorted(classes, labels)
        where = np.minimum(where, len(classes) - 1)
        if not (classes[where] == labels).all():
            extra = labels[classes[where] != labels]
            raise ArrayError(f"y: holds labels that are not among the classes: {extra[:5]}")
        labels, codes = classes, codes if len(labels) == len(classes) else where[codes]
    if len(labels) < 2:
        raise ArrayError("y: The number of classes has to be greater than one; got 1 class")
    return labels, codes


def _number(a: Array, threads: int | None) -> tuple[Array, Array]:
    """numpy.unique with its inverse; two labels by comparing, integers of a small range by
    counting, neither by sorting."""
    few = np.unique(a[:: max(1, len(a) // 256)])
    plain = a.dtype.kind in "iubf" and a.itemsize in (1, 4, 8) and a.dtype.isnative
    if len(few) == 2 and plain and len(a) >= 16:
        codes: Array = np.empty(len(a), np.uint8)
        count = _threads.resolve(threads, len(a))
        if linear.number_two(codes, a.copy() if a.strides[0] != a.itemsize else a, few, count):
            return few, codes
    elif len(few) == 2 and a.dtype.kind in "US":
        second = a == few[1]
        if (second | (a == few[0])).all():
            return few, second.view(np.uint8)
    if a.dtype.kind in "iu" and len(a):
        low, high = int(a.min()), int(a.max())
        if high - low < 1 << 16:
            offsets = a.astype(np.int64) - low
            present = np.flatnonzero(np.bincount(offsets))
            number = np.zeros(high - low + 1, np.intp)
            number[present] = np.arange(len(present))
            return (present + low).astype(a.dtype), number[offsets]
    labels, codes = np.unique(a, return_inverse=True)
    return labels, codes


def as_targets(x: Rows, codes: Array, n_classes: int) -> tuple[Array, int, int]:
    """Class numbers as a Problem takes them: its y, what they mean, and the number of outputs.

    A byte each where the kernel takes bytes, so that an epoch reads less.
    """
    two = n_classes == 2
    if not isinstance(x, CSR) and n_classes <= 256:
        numbers = codes.astype(np.uint8, copy=False)
        return numbers, TWO if two else ONE_VS_REST, 1 if two else n_classes
    numbers = codes.astype(x.dtype)
    return (2 * numbers - 1, DIRECT, 1) if two else (numbers, ONE_VS_REST, n_classes)


def class_weights(weight: Any, classes: Array, codes: Array, sample_weight: Any) -> Any:
    """Sample weights times the factor of each row's class; "balanced": sum of all weights over
    (classes times sum of the class's), so that a weight of two counts as two rows."""
    if weight is None:
        return sample_weight
    given = weights_of(sample_weight, len(codes))
    factors = np.ones(len(classes))
    if isinstance(weight, str) and weight == "balanced":
        counts = np.bincount(codes, given, minlength=len(classes))
        present = np.where(counts > 0, counts, 1.0)
        factors = counts.sum() / (len(classes) * present)
    elif isinstance(weight, Mapping):
        found = np.zeros(len(classes), np.bool_)
        unknown = []
        for label, factor in weight.items():
            hit = np.array([bool(c == label) for c in classes.tolist()])
            if not hit.any():
                unknown.append(label)
            found |= hit
            factors[hit] = number(factor, f"class_weight[{label!r}]", low=0)
        if unknown and not found.all():  # labels that this sample lacks are allowed
            raise OptionError(
                f"class_weight: no class is called {', '.join(map(repr, unknown[:5]))}; "
                f"the classes are {', '.join(map(repr, classes.tolist()[:10]))}"
            )
    else:
        raise OptionError(f"class_weight: expected a dict, 'balanced' or None, got {weight!r}")
    per_row = factors[codes]
    return per_row if given is None else per_row * given


class _WhenProbable:
    """predict_proba exists only where the loss gives probabilities (hasattr tells)."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.__doc__ = method.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        if owner is None:
            return self.method
        if not owner._has_probability():
            raise AttributeError(
                f"{self.method.__name__} is not available for loss={owner.loss!r}"
            )
        return self.method.__get__(owner, kind)


class ClassifierFace:
    """decision_function, predict, probabilities and score from coef_, intercept_, classes_."""

    classes_: Array
    _margins: Callable[[Any], Array]
    _has_probability: Callable[[], bool]
    _joint: Callable[[], bool]

    def decision_function(self, X: Any) -> Array:
        """X W' + b: (n,) for two classes (positive means the second), else (n, k)."""
        z = self._margins(X)
        return z.ravel() if z.shape[1] == 1 else z

    def predict(self, X: Any) -> Array:
        """The label with the largest margin, (n,)."""
        z = self.decision_function(X)
        codes = (z > 0).astype(np.intp) if z.ndim == 1 else z.argmax(axis=1)
        labels: Array = self.classes_[codes]
        return labels

    def _probability(self, z: Array) -> Array:
        if self._joint() and z.ndim == 2:
            e = np.exp(z - z.max(axis=1, keepdims=True))
            joint: Array = e / e.sum(axis=1, keepdims=True)
            return joint
        if getattr(self, "loss", "log_loss") == "modified_huber":
            p = (np.clip(z, -1, 1) + 1) / 2
        else:
            small = np.exp(-np.abs(z))
            p = np.where(z >= 0, 1, small) / (1 + small)
        if z.ndim == 1:
            return np.column_stack([1 - p, p])
        total = p.sum(axis=1, keepdims=True)
        ratio: Array = np.where(total > 0, p, 1.0) / np.where(total > 0, total, z.shape[1])
        return ratio

    @_WhenProbable
    def predict_proba(self, X: Any) -> Array:
        """Probability of each class, (n, k): the sigmoid (one against the rest, normalised) or
        the softmax."""
        return self._probability(self.decision_function(X))

    @_WhenProbable
    def predict_log_proba(self, X: Any) -> Array:
        """Logarithm of predict_proba."""
        with np.errstate(divide="ignore"):
            logs: Array = np.log(self._probability(self.decision_function(X)))
        return logs

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of rows whose predicted label is y."""
        predicted = self.predict(X)
        hits = predicted == check_labels(y, len(predicted))
        weights, _ = check_weights(sample_weight, len(hits), np.float64)
        return float(np.average(hits, weights=weights))
