"""Training: mini-batches with an optimiser, and a fit of all parameters to given outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._options import function
from fastopt._random import Seed, generator_of
from fastopt.errors import DTypeError, OptionError
from fastopt.optim import descend

__all__ = ["epochs_of", "in_parts", "matched"]


def epochs_of(
    value_and_grad: Callable[[Array], tuple[float, Mapping[str, Array]]],
    params: Mapping[str, Array],
    optimizer: Any,
    n: int,
    epochs: int,
    size: int,
    seed: Seed,
    callback: Callable[[int, float], object] | None,
) -> list[float]:
    """In place: mini-batches of ``value_and_grad(index)``; the mean loss of each epoch."""
    if callback is not None:
        function(callback, "callback")
    names = _bound_names(params, optimizer)
    rng = generator_of(seed)
    history: list[float] = []
    for epoch in range(epochs):
        order = rng.permutation(n) if size < n else np.arange(n)
        total = 0.0
        for start in range(0, n, size):
            index = order[start : start + size]
            loss, grads = value_and_grad(index)
            optimizer.step([grads[name] for name in names])
            total += loss * len(index)
        history.append(total / n)
        if callback is not None and callback(epoch, history[-1]) is True:
            break
    return history


def _bound_names(params: Mapping[str, Array], optimizer: Any) -> list[str]:
    """For each array of the optimiser, in its order, the parameter that it is."""
    if not hasattr(type(optimizer), "step") or not hasattr(optimizer, "param_groups"):
        raise DTypeError(
            f"optimizer: expected one of fastopt.optim over the network's params, "
            f"got {optimizer!r}"
        )
    mine = {a.__array_interface__["data"][0]: (name, a) for name, a in params.items()}
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            name, a = mine.get(p.__array_interface__["data"][0], ("", None))
            if a is None or a.shape != p.shape:
                raise OptionError(
                    f"optimizer: holds an array of shape {p.shape} that is none of this "
                    "network's parameters; make it from network.params"
                )
            found.append(name)
    return found


def in_parts(
    value_and_grad: Callable[[slice], tuple[float, dict[str, Array]]], n: int, size: int
) -> tuple[float, dict[str, Array]]:
    """The mean loss over n rows and its gradients, ``size`` rows at a time."""
    if n <= size:
        return value_and_grad(slice(None))
    total = 0.0
    sums: dict[str, Array] = {}
    for start in range(0, n, size):
        share = min(size, n - start) / n
        value, grads = value_and_grad(slice(start, start + size))
        total += share * value
        for name, g in grads.items():
            g *= np.float32(share)
            sums[name] = sums[name] + g if name in sums else g
    return total, sums


def matched(
    value_and_grad: Callable[[], tuple[float, Mapping[str, Array]]],
    params: list[Array],
    max_iter: int,
) -> tuple[float, float]:
    """In place: L-BFGS over all parameters; the value before and after, which never rises."""

    def put(flat: Array) -> None:
        start = 0
        for p in params:
            p[...] = flat[start : start + p.size].reshape(p.shape)
            start += p.size

    def at(flat: Array) -> tuple[float, Array]:
        put(flat)
        loss, grads = value_and_grad()
        return loss, np.concatenate([g.ravel() for g in grads.values()], dtype=np.float64)

    first = np.concatenate([p.ravel() for p in params], dtype=np.float64)
    before = at(first)[0]
    found = descend(at, first, optimizer="lbfgs", max_iter=max_iter)
    after = float(found.fun)
    put(found.x if after < before else first)
    return before, min(before, after)
