"""Muon: momentum whose matrices are made orthogonal before the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._interrupts import interruptible, whole
from fastopt._options import choice, integer, number
from fastopt.errors import ArrayError, DTypeError
from fastopt.optim.groups import Params, Shared, Validator, as_arrays, flag, fraction, non_negative
from fastopt.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Muon"]


def _coefficients(value: Any) -> tuple[float, float, float]:
    try:
        a, b, c = (number(v, "ns_coefficients") for v in value)
    except (TypeError, ValueError):
        raise DTypeError(f"ns_coefficients: expected three numbers, got {value!r}") from None
    return a, b, c


class Muon(Optimizer):
    """In place: p <- (1 - lr weight_decay) p - lr' NS(u), NS(u) about (u u')^(-1/2) u.

    u is the momentum m <- momentum m + (1 - momentum) g, or Nesterov's.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        Matrices, float32 or float64, C-contiguous, overwritten by ``step``; biases and embeddings
        belong to AdamW.
    lr : float
        Step size, >= 0.
    weight_decay : float
        Decoupled decay.
    momentum : float
        Share of the buffer that is kept a step, in [0, 1).
    nesterov : bool
        Step along (1 - momentum) g + momentum buffer.
    ns_coefficients : (float, float, float)
        a, b, c of the iteration X <- a X + (b A + c A A) X, A = X X'.
    eps : float
        Smallest norm that is divided by.
    ns_steps : int
        Iterations, 1 to 99.
    adjust_lr_fn : None, "original" or "match_rms_adamw"
        lr' / lr: sqrt(max(1, rows / columns)), or 0.2 sqrt(max(rows, columns)).
    **shared
        ``state_dtype`` and the other options of :class:`Optimizer`.

    Notes
    -----
    The iteration runs in the parameter's precision through NumPy's BLAS (torch.optim.Muon, whose
    names and defaults these are, runs it in bfloat16, so results agree to about 1 %), with
    4 ns_steps rows columns min(rows, columns) multiply-adds or so. Jordan et al. 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import Muon
    >>> w = np.zeros((2, 2))
    >>> Muon(w, lr=1.0).step(np.array([[1.0, 0.0], [0.0, 5.0]]))
    >>> bool((np.diag(w) < -0.5).all())
    True
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "weight_decay": non_negative("weight_decay"),
        "momentum": fraction("momentum"),
        "nesterov": flag("nesterov"),
        "ns_coefficients": _coefficients,
        "eps": non_negative("eps"),
        "ns_steps": lambda value: integer(value, "ns_steps", low=1, high=99),
        "adjust_lr_fn": lambda value: (
            value
            if value is None
            else choice(value, "adjust_lr_fn", ("original", "match_rms_adamw"))
        ),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _check_groups(self, groups: Iterable[Mapping[str, Any]]) -> None:
        for group in groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ArrayError(f"params: Muon takes matrices, got shape {p.shape}")

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "sgd_momentum"

    def _counts_steps(self) -> bool:
        return False

    def _sync(self) -> None:
        """u = take g + momentum buffer is the step of SGD with momentum on take g, upwards."""
        self._check_groups(self.param_groups)
        for i, group in enumerate(self.param_groups):
            keep = group["momentum"]
            self._plan.set_options(
                i, (-1.0, 1.0 - keep, 0.0, 0.0, keep, 0.0, float(group["nesterov"]))
            )
        self._stale = False

    def _take(self, flat: tuple[Any, ...], scale: float, threads: int) -> float:
        flat = as_arrays(flat, self._zero_grads) or flat
        due = [(i, g) for i, g in enumerate(flat) if g is not None]
        held = done = False
        counts, moved, before = self._plan.counts, [], []
        try:
            with whole():
                norm = self._plan.step(flat, scale, self._max_norm, self._guard, threads, False)
                held = not self._guard or math.isfinite(norm)
            if not held:
                return norm
            # The long products come first; the buffers, which move with them, are moved back
            # should Ctrl-C come in between.
            moved = [a for i, _ in due for a in self._state[i].values()]
            before = [a.copy() for a in moved]
            changes = [self._change(i, threads) for i, _ in due]
            with whole():
                for (i, g), change in zip(due, changes, strict=True):
                    self._move(i, g, change)
                self._plan.count(norm)
                done = True
            return norm
        finally:
            with whole():
                if held and not done:
                    self._plan.counts = counts
                    for now, then in zip(moved, before, strict=False):
                        now[...] = then
                if held:
                    self._plan.release()

    def _change(self, i: int, threads: int) -> Array:
        """The orthogonal direction of matrix ``i``; its momentum buffer has moved then."""
        p, group = self._params[i], self.param_groups[self._group_of[i]]
        u = np.zeros_like(p)
        self._plan.step_into(i, u, threads)
        a, b, c = group["ns_coefficients"]
        work = 4.0 * group["ns_steps"] * p.size * min(p.shape)
        return interruptible(work, orthogonal, u, a, b, c, group["ns_steps"], group["eps"])

    def _move(self, i: int, g: Array, change: Array) -> None:
        p, group = self._params[i], self.param_groups[self._group_of[i]]
        dt = p.dtype.type
        rows, columns = p.shape
        lr = group["lr"] * self._factor
        if group["adjust_lr_fn"] == "match_rms_adamw":
            ratio = 0.2 * math.sqrt(max(rows, columns))
        else:
            ratio = math.sqrt(max(1.0, rows / max(columns, 1)))
        p *= dt(1.0 - lr * group["weight_decay"])
        p -= dt(lr * ratio) * change
        if self.ema is not None and self._ema_decay is not None:
            self.ema[i] += dt(1.0 - self._ema_decay) * (p - self.ema[i])
        copied = None if self._copies is None else self._copies[i]
        if copied is not None:
            copied[...] = p
        if self._zero_grads:
            g[...] = 0


def orthogonal(u: Array, a: float, b: float, c: float, steps: int, eps: float) -> Array:
    """``steps`` quintic Newton-Schulz iterations on u / |u|: singular values towards 1."""
    tall = u.shape[0] > u.shape[1]
    x = u.T if tall else u
    dt = u.dtype.type
    x = x / dt(max(float(np.linalg.norm(x)), eps))
    for _ in range(steps):
        gram = x @ x.T
        x = dt(a) * x + (dt(b) * gram + dt(c) * (gram @ gram)) @ x
    result: Array = x.T if tall else x
    return result
