"""What is measured and what is promised: metrics, splits, costs, the drop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastopt._arrays import Array
from fastopt._options import choice
from fastopt._random import Seed, generator_of
from fastopt.errors import ArrayError, OptionError
from fastopt.models import Model

__all__ = [
    "METRICS",
    "TARGETS",
    "Measures",
    "Metric",
    "latencies",
    "measure",
    "metric_of",
    "split",
]

Metric: TypeAlias = "Callable[[Array, Any], float]"


def accuracy(outputs: Array, y: Any) -> float:
    """Share of rows whose largest output is the class y (an index)."""
    return float(np.mean(outputs.argmax(axis=1) == y))


def r2(outputs: Array, y: Any) -> float:
    """1 - squared error / squared spread of y."""
    target = np.asarray(y, np.float64).reshape(outputs.shape)
    spread = float(((target - target.mean(axis=0)) ** 2).sum())
    error = float(((target - outputs) ** 2).sum())
    return 1.0 - error / spread if spread > 0 else float(error == 0)


METRICS: dict[str, Metric] = {"accuracy": accuracy, "r2": r2}
TARGETS = ("size", "macs", "latency")


@dataclass(frozen=True)
class Measures:
    """One row of the before/after table.

    Attributes
    ----------
    metric : float
        On the held-out rows, higher is better.
    n_params, nbytes, macs : int
        Parameters, bytes as saved, multiply-adds for one input row.
    latency_s : float
        Median seconds for one batch of the check rows (at most 64), measured interleaved.
    """

    metric: float
    n_params: int
    nbytes: int
    macs: int
    latency_s: float


def metric_of(metric: str | Metric | None, model: Model, x: Array, y: Any) -> tuple[str, Metric]:
    """The metric's name and function; a default that fits y.

    None means accuracy where y holds classes, R^2 where it holds numbers, and R^2 against the
    original model's own outputs where there is no y.
    """
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric is not None:
        name = choice(metric, "metric", METRICS)
    elif y is None:
        name = "r2"
    else:
        outputs = next(model.run(x[:1]))[0]
        is_class = np.asarray(y).dtype.kind in "iuUSOb" and outputs.shape[1] > 1
        name = "accuracy" if is_class else "r2"
    if name != "accuracy":
        return name, METRICS[name]
    classes = getattr(model, "classes", None)
    if classes is None:
        return name, accuracy
    return name, lambda outputs, labels: float(np.mean(classes[outputs.argmax(axis=1)] == labels))


def outputs_of(model: Model, x: Array) -> Array:
    """All outputs, one row an input row."""
    return np.concatenate([out for out, _ in model.run(x)])


def split(n: int, share: float, seed: Seed) -> tuple[Array, Array]:
    """Row numbers for the search and, apart from them, for the check."""
    order = generator_of(seed).permutation(n)
    held = round(n * share)
    if held < 1 or n - held < 1:
        raise ArrayError(f"data: {n} rows cannot be split into a search and a check part")
    return np.sort(order[held:]), np.sort(order[:held])


def cost_of(model: Model, target: str, x: Array) -> float:
    """What the search makes small."""
    if target == "size":
        return float(model.nbytes)
    if target == "macs":
        return float(model.macs)
    if target == "latency":
        return latencies([model], x)[0]
    raise OptionError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")


def latencies(models: list[Model], x: Array, rounds: int = 21) -> list[float]:
    """Median seconds for one batch (the first 64 rows) of each model, interleaved."""
    batch = x[:64]
    times: list[list[float]] = [[] for _ in models]
    for model in models:  # warm
        next(model.run(batch))
    for _ in range(rounds):
        for taken, model in zip(times, models, strict=True):
            start = time.perf_counter()
            next(model.run(batch))
            taken.append(time.perf_counter() - start)
    return [float(np.median(taken)) for taken in times]


def measure(models: list[Model], metric: Metric, x: Array, y: Any) -> list[Measures]:
    """The table's rows on the given data."""
    return [
        Measures(
            metric(outputs_of(model, x), y), model.n_params, model.nbytes, model.macs, seconds
        )
        for model, seconds in zip(models, latencies(models, x), strict=True)
    ]
