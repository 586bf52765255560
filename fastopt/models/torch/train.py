"""Training of a torch module's own parameters with an optimiser of fastopt, through autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._random import Seed, generator_of
from fastopt.models.torch.edit import Names

__all__ = ["epochs_of", "loss_of", "own_params", "trainable"]


def trainable(names: Names) -> dict[str, Any]:
    """The parameters that require gradients, by name."""
    found = {name: getattr(*places[0]) for name, places in names.places.items()}
    return {name: p for name, p in found.items() if p.requires_grad}


def own_params(names: Names) -> dict[str, Array]:
    """In place: copies of the trainable parameters; their live arrays by name."""
    for name, p in trainable(names).items():
        names.put(name, p.detach().numpy())
    return {name: p.detach().numpy() for name, p in trainable(names).items()}


def loss_of(result: Any, labels: Array) -> Any:
    """Cross-entropy over axis 1 for integer labels, else the mean squared error."""
    import torch

    out = result
    if not isinstance(out, torch.Tensor):
        out = next(iter(out.values() if isinstance(out, Mapping) else out))
    if labels.dtype.kind in "iub" and out.dim() > 1:
        return torch.nn.functional.cross_entropy(out, torch.from_numpy(labels.astype(np.int64)))
    target = torch.from_numpy(labels.astype(np.float32)).to(out.dtype)
    return torch.nn.functional.mse_loss(out, target.reshape(out.shape))


def epochs_of(
    loss: Callable[[Array], Any],
    held: Sequence[Any],
    optimizer: Any,
    n: int,
    epochs: int,
    batch_size: int | None,
    seed: Seed,
) -> list[float]:
    """Mini-batches of ``loss(index)``; the mean loss of each epoch."""
    import torch

    size = n if batch_size is None else batch_size
    rng, history = generator_of(seed), []
    for _ in range(epochs):
        order, total = rng.permutation(n), 0.0
        for start in range(0, n, size):
            index = order[start : start + size]
            value = loss(index)
            grads = torch.autograd.grad(value, held, allow_unused=True)
            optimizer.step([
                np.zeros(tuple(p.shape), np.float32) if g is None else g.contiguous().numpy()
                for g, p in zip(grads, held, strict=True)
            ])  # fmt: skip
            total += float(value.detach()) * len(index)
        history.append(total / n)
    return history
