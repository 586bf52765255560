"""What is measured: outputs of rows, and metrics of them (1 is perfect)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice, integer
from fastopt.compression.data import Columns, Rows, load_object
from fastopt.errors import ArrayError, OptionError, TrialError
from fastopt.models.base import Model

__all__ = [
    "LEAST",
    "METRICS",
    "Metric",
    "Outputs",
    "are_probabilities",
    "batches_ok",
    "collect",
    "log_odds",
    "metric_of",
    "relative_error",
    "rows_changed",
]

LEAST = 1e-30  # of a probability whose logarithm is taken
_MOST = 1 - 2.0**-24  # float32 has no probability between it and 1

METRICS = ("accuracy", "r2", "agreement")


@dataclass(frozen=True)
class Outputs:
    """Outputs of rows by name.

    Attributes
    ----------
    parts : list of dict
        One entry per row where rows were fed one by one, else one entry for all of them.
    single : bool
        Which of the two.
    stacked : bool
        Samples fed whole get an axis of their own; rows are concatenated.
    logits : dict
        By output its values before the last Softmax or Sigmoid, flattened, all rows together.
    odds : frozenset of str
        Outputs that are probabilities, with no such values before them.
    scores : dict
        What metrics say of parts of these outputs compared with themselves.
    """

    parts: list[dict[str, Array]]
    single: bool = False
    stacked: bool = False
    logits: dict[str, Array] = field(default_factory=dict)
    odds: frozenset[str] = frozenset()
    scores: dict[object, float] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def joint(self) -> dict[str, Array] | None:
        """All rows in one array per output; None where their shapes differ."""
        if not self.single:
            return self.parts[0]
        together = np.stack if self.stacked else np.concatenate
        found: dict[str, Array] = {}
        for name, first in self.parts[0].items():
            arrays = [part[name] for part in self.parts]
            rest = slice(None) if self.stacked else slice(1, None)
            if first.ndim == 0 and not self.stacked:
                arrays = [a[None] for a in arrays]
            elif any(a.shape[rest] != first.shape[rest] for a in arrays):
                return None
            found[name] = together(arrays)
        return found

    def select(self, index: Array) -> Outputs:
        """The outputs of some of the rows."""
        if self.single:
            return Outputs([self.parts[int(k)] for k in index], True, self.stacked)
        return Outputs([{name: a[index] for name, a in self.parts[0].items()}])

    @property
    def finite(self) -> Array:
        """(n,) bool: rows without NaN."""
        if self.single:
            return np.array([all(_finite(a[None])[0] for a in p.values()) for p in self.parts])
        flags: Array = np.logical_and.reduce([_finite(a) for a in self.parts[0].values()])
        return flags

    def __len__(self) -> int:
        return len(self.parts) if self.single else len(next(iter(self.parts[0].values())))


def _finite(a: Array) -> Array:
    """For each row whether it is free of NaN."""
    if a.dtype.kind != "f":
        return np.ones(len(a), bool)
    good: Array = np.logical_not(np.isnan(a).reshape(len(a), -1)).min(axis=1, initial=True)
    return good


def collect(
    model: Model, rows: Rows, batch: int, weights: Mapping[str, Array] | None = None
) -> Outputs:
    """The model's outputs for all rows, and its logits where they are before an activation.

    ``weights`` gives layers other weights for this run alone.
    """
    parts: list[dict[str, Array]] = []
    before = model.logits
    logits: dict[str, list[Array]] = {}
    for outputs, tapped in rows.run(model, batch, tuple(dict.fromkeys(before.values())), weights):
        parts.append(outputs)
        for name, a in outputs.items():
            a = tapped.get(before.get(name, ""), a)
            if a.dtype.kind == "f":
                logits.setdefault(name, []).append(a.reshape(-1))
    flat = {name: np.concatenate(p) for name, p in logits.items()}
    bare = flat.keys() - before.keys() - model.classes_axis.keys()
    odds = frozenset(name for name in bare if are_probabilities(flat[name]))
    if rows.single:
        return Outputs(parts, True, "samples" in rows.kinds.values(), flat, odds)
    joint = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return Outputs([joint], logits=flat, odds=odds)


def are_probabilities(a: Array) -> bool:
    """Whether values may come from a Sigmoid: it reaches 1 but not 0."""
    return a.size > 0 and bool(a.min() > 0) and bool(a.max() <= 1)


def log_odds(p: Array) -> Array:
    """log(p / (1 - p)), finite."""
    kept = np.clip(p, LEAST, _MOST)
    found: Array = np.log(kept) - np.log1p(-kept)
    return found


def relative_error(ours: Outputs, theirs: Outputs) -> float:
    """Largest squared error over squared spread among the logits; infinite if not finite.

    Probabilities that come without logits are compared by their log odds.
    """
    worst = 0.0
    for name, b in theirs.logits.items():
        a = ours.logits[name]
        seen = np.isfinite(b)
        if a.shape != b.shape or not np.isfinite(a[seen]).all():
            return math.inf
        target, found = b[seen].astype(np.float64), a[seen]
        if name in theirs.odds:
            target, found = log_odds(target), log_odds(found)
        spread = float(((target - target.mean()) ** 2).sum()) if len(target) else 0.0
        error = float(((found - target) ** 2).sum())
        worst = max(worst, error / spread if spread > 0 else (math.inf if error else 0.0))
    return worst


def rows_changed(ours: Outputs, theirs: Outputs) -> int:
    """How many rows have other logits; all of them where logits are not counted by rows."""
    n = len(theirs)
    changed = np.zeros(n, np.bool_)
    for name, b in theirs.logits.items():
        a = ours.logits[name]
        if a.shape != b.shape or b.size % n:
            return n
        changed |= (a != b).reshape(n, -1).any(axis=1)
    return int(changed.sum())


def batches_ok(model: Model, rows: Rows) -> bool:
    """Whether axis 0 of every output counts the rows of a feed."""
    few = rows.select(np.arange(min(2, len(rows))))
    for outputs, _ in few.run(model, 2):
        if any(a.ndim == 0 or len(a) != len(few) for a in outputs.values()):
            return False
    return True


# --- metrics ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric of outputs, 1 at best.

    Attributes
    ----------
    name : str
    function : callable
        ``(outputs, columns, y, reference) -> float``, all of them joint.
    row_loss : callable or None
        The same arguments; (n,) losses in 0..1 whose mean is 1 - metric, where it is such a mean.
    bounded : bool
        A drop of 1 is a loss of everything.
    """

    name: str
    function: Callable[[dict[str, Array], Mapping[str, Any], Any, dict[str, Array]], float]
    row_loss: Callable[[dict[str, Array], Any, dict[str, Array]], Array] | None = None
    bounded: bool = True

    def score(self, outputs: Outputs, rows: Rows, reference: Outputs) -> float:
        """The metric; the mean over feeds where outputs differ in shape."""
        ours, theirs = outputs.joint, reference.joint
        if ours is not None and theirs is not None:
            return float(self.function(ours, Columns(rows), rows.y, theirs))
        found = []
        for k in range(len(rows)):
            one, index = rows.select(np.array([k])), np.array([k])
            mine, original = outputs.select(index).joint, reference.select(index).joint
            assert mine is not None
            assert original is not None
            found.append(float(self.function(mine, Columns(one), one.y, original)))
        return float(np.mean(found))

    def drop(self, original: Outputs, ours: Outputs, rows: Rows, index: Array | None) -> float:
        """Score of the original minus ours, on the rows ``index`` or all of them."""
        key = (self.name, id(self.function), None if index is None else index.tobytes())
        reference = original
        if index is not None:
            rows, reference, ours = rows.select(index), original.select(index), ours.select(index)
        if key not in original.scores:
            original.scores[key] = self.score(reference, rows, reference)
        return original.scores[key] - self.score(ours, rows, reference)

    def losses(self, outputs: Outputs, rows: Rows, reference: Outputs) -> Array | None:
        """The loss of each row, or None where the metric is no mean over rows."""
        ours, theirs = outputs.joint, reference.joint
        if self.row_loss is None or ours is None or theirs is None:
            return None
        return self.row_loss(ours, rows.y, theirs)


def metric_of(
    metric: str | Callable[..., float] | None,
    model: Model,
    rows: Rows,
    classes_axis: int | None = None,
) -> Metric:
    """The metric that was asked for, or one that fits the labels or, without labels, the outputs.

    Parameters
    ----------
    metric : {"accuracy", "r2", "agreement"}, ``"module:function"``, callable or None
        A callable takes ``(outputs, data, reference)``, dicts of arrays by name, or
        ``(outputs, y)``.
    classes_axis : int, optional
        Axis of the classes in every float output.
    """
    if classes_axis is not None:
        classes_axis = integer(classes_axis, "classes_axis")
    if isinstance(metric, str) and ":" in metric:
        metric = load_object(metric, "metric")
    if callable(metric):
        return _custom(metric)
    seen = next(rows.select(np.arange(1)).run(model, 1))[0]
    first = _first(seen)
    if metric is None:
        metric = _default(rows, first)
    name = choice(metric, "metric", METRICS)
    if name == "accuracy" and rows.labels is None:
        raise OptionError("metric: accuracy needs labels; name them with labels=")
    if name == "accuracy":
        return _accuracy(model.classes)
    if name == "r2" and rows.labels is not None:
        return Metric("r2", lambda o, _, y, __: _r2(_first(o), y))
    axes = dict(model.classes_axis)
    if classes_axis is not None:
        for a in seen.values():
            if a.dtype.kind == "f" and not -a.ndim <= classes_axis < a.ndim:
                raise OptionError(
                    f"classes_axis: outputs of shape {a.shape} have no {classes_axis}"
                )
        axes = dict.fromkeys(model.outputs, classes_axis)
    return _agreement(axes)


def _default(rows: Rows, first: Array) -> str:
    if rows.labels is None:
        return "agreement"
    y = rows.y
    assert y is not None
    many = first.ndim > 1 and first.shape[-1] > 1
    return "accuracy" if y.dtype.kind in "iuUSOb" and (many or first.dtype.kind in "iu") else "r2"


def _custom(function: Callable[..., float]) -> Metric:
    name = getattr(function, "__name__", "metric")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]

    def called(*arguments: Any) -> float:
        try:
            return float(function(*arguments))
        except Exception as error:
            raise TrialError(f"metric {name} raised {type(error).__name__}: {error}") from error

    if len(needed) == 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return Metric(name, lambda o, d, _, r: called(o, d, r))

    def two(o: dict[str, Array], _: Any, y: Any, r: dict[str, Array]) -> float:
        outputs: Any = _first(o) if len(o) == 1 else o
        return called(outputs, (_first(r) if len(r) == 1 else r) if y is None else y)

    return Metric(name, two, bounded=False)


def _first(outputs: Mapping[str, Array]) -> Array:
    return next(iter(outputs.values()))


def _accuracy(names: Array | None) -> Metric:
    """Share of rows whose largest output (or integer output) is the label."""

    def wrong(o: dict[str, Array], y: Array, _: Any) -> Array:
        found = _first(o)
        if found.dtype.kind == "f":
            found = found.reshape(len(found), -1).argmax(axis=1)
            found = found if names is None else names[found]
        labels = np.asarray(y).reshape(len(found), -1)
        lost: Array = (found.reshape(labels.shape) != labels).mean(axis=1)
        return lost

    return Metric("accuracy", lambda o, _, y, r: 1.0 - float(wrong(o, y, r).mean()), wrong)


def _r2(outputs: Array, target: Array) -> float:
    """1 - squared error / squared spread of the target."""
    if target.size != outputs.size:
        raise ArrayError(f"labels: expected {outputs.size} values, got shape {target.shape}")
    target = target.astype(np.float64).reshape(outputs.shape)
    spread = float(((target - target.mean(axis=0)) ** 2).sum())
    error = float(((target - outputs) ** 2).sum())
    return 1.0 - error / spread if spread > 0 else float(error == 0)


def _agreement(axes: Mapping[str, int]) -> Metric:
    """Agreement with the original, of the output that agrees least."""

    def differs(name: str, ours: Array, theirs: Array) -> Array | None:
        """Share of decisions of each row that differ, where the output holds decisions."""
        if name in axes and theirs.dtype.kind == "f":
            ours, theirs = ours.argmax(axes[name]), theirs.argmax(axes[name])
        elif theirs.dtype.kind == "f":
            return None
        lost: Array = (ours != theirs).reshape(len(ours), -1).mean(axis=1)
        return lost

    def one(name: str, ours: Array, theirs: Array) -> float:
        found = differs(name, ours, theirs)
        return _r2(ours, theirs) if found is None else 1.0 - float(found.mean())

    def worst(o: dict[str, Array], _: Any, __: Any, r: dict[str, Array]) -> float:
        return min(one(name, o[name], r[name]) for name in r)

    def rows(o: dict[str, Array], _: Any, r: dict[str, Array]) -> Array:
        shares = {name: differs(name, o[name], r[name]) for name in r}
        decided = [s for s in shares.values() if s is not None]
        return max(decided, key=lambda s: float(s.mean()))

    return Metric("agreement" if axes else "r2", worst, rows if axes else None)
