"""RMSprop, Adagrad and Adadelta: each weight's step scaled by the size of its own gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastopt.optim.groups import Params, Shared, Validator, flag, fraction, non_negative
from fastopt.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


class RMSprop(Optimizer):
    """In place: v <- alpha v + (1 - alpha) g^2; p <- p - lr g / (sqrt(v) + eps).

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``.
    lr : float
        Step size, >= 0.
    alpha : float
        Share of v that is kept a step, in [0, 1).
    eps : float
        Added outside the root, >= 0.
    weight_decay : float
        weight_decay p is added to the gradient.
    momentum : float
        b <- momentum b + g / (sqrt(v) + eps) and p <- p - lr b; 0 keeps no b.
    centered : bool
        Subtract the square of the mean gradient from v.
    maximize : bool
        Climb instead of descend.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    One pass: 20 bytes a float32 element, 8 more each for momentum and centered. Names, defaults
    and results are torch.optim.RMSprop's (optax puts eps inside the root). Hinton 2012, lecture
    6e; centered: Graves 2013, eq. 38-45.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import RMSprop
    >>> w = np.array([1.0, -2.0])
    >>> RMSprop(w, lr=0.1, alpha=0.0).step(2 * w)
    >>> w.round(6)
    array([ 0.9, -1.9])
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "alpha": fraction("alpha"),
        "eps": non_negative("eps"),
        "weight_decay": non_negative("weight_decay"),
        "momentum": non_negative("momentum"),
        "centered": flag("centered"),
        "maximize": flag("maximize"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        centered = "_centered" if group["centered"] else ""
        return f"rmsprop{centered}{'_momentum' if group['momentum'] else ''}"


class Adagrad(Optimizer):
    """In place: s <- s + g^2; p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``.
    lr, lr_decay : float
        Step size and how fast it falls with the step count t, >= 0.
    weight_decay : float
        weight_decay p is added to the gradient.
    initial_accumulator_value : float
        What s begins with, >= 0.
    eps : float
        Added outside the root, >= 0.
    maximize : bool
        Climb instead of descend.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    One pass: 20 bytes a float32 element. Names, defaults and results are torch.optim.Adagrad's.
    Duchi, Hazan and Singer, JMLR 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import Adagrad
    >>> w = np.array([1.0, -2.0])
    >>> Adagrad(w, lr=0.5).step(2 * w)
    >>> w.round(6)
    array([ 0.5, -1.5])
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "lr_decay": non_negative("lr_decay"),
        "eps": non_negative("eps"),
        "weight_decay": non_negative("weight_decay"),
        "initial_accumulator_value": non_negative("initial_accumulator_value"),
        "maximize": flag("maximize"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "adagrad"

    def _first_value(self, group: Mapping[str, Any]) -> float:
        return float(group["initial_accumulator_value"])


class Adadelta(Optimizer):
    """In place: v, d <- averages of g^2, delta^2; delta = sqrt(d + eps) / sqrt(v + eps) g.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``: p <- p - lr delta.
    lr : float
        Factor on the step, >= 0.
    rho : float
        Share of both averages that is kept a step, in [0, 1).
    eps : float
        Added inside the roots, >= 0.
    weight_decay : float
        weight_decay p is added to the gradient.
    maximize : bool
        Climb instead of descend.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    One pass: 28 bytes a float32 element. Names, defaults and results are torch.optim.Adadelta's.
    Zeiler 2012, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import Adadelta
    >>> w = np.array([1.0, -2.0])
    >>> Adadelta(w, rho=0.0, eps=1.0).step(np.zeros(2))
    >>> w
    array([ 1., -2.])
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "rho": fraction("rho"),
        "eps": non_negative("eps"),
        "weight_decay": non_negative("weight_decay"),
        "maximize": flag("maximize"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "adadelta"
