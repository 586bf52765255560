"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastopt.errors import OptionError
from fastopt.optim.groups import Params, Shared, Validator, flag, non_negative, real
from fastopt.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SGD"]


class SGD(Optimizer):
    """In place: b <- momentum b + (1 - dampening) g; p <- p - lr b (Nesterov: g + momentum b).

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, any shape, overwritten by ``step``. A group is a dict
        with the key ``"params"`` and any of the options below.
    lr : float
        Step size, >= 0.
    momentum : float
        Share of the last step's direction that is kept, >= 0; 0 keeps no state.
    dampening : float
        Share of the gradient left out of the momentum, after the first step.
    weight_decay : float
        L2 penalty: weight_decay p is added to the gradient.
    nesterov : bool
        Nesterov's look-ahead; needs momentum > 0 and dampening = 0.
    maximize : bool
        Climb instead of descend.
    **shared
        ``state_dtype``, ``max_grad_norm`` and the other options of :class:`Optimizer`.

    Raises
    ------
    ArrayError, DTypeError, OptionError

    Notes
    -----
    One pass: reads p, g (and b), writes p (and b): 12 (20) bytes a float32 element. The first
    step takes the gradient itself as b, as torch.optim.SGD does, whose names, defaults and
    results these are. Momentum: Polyak 1964; Nesterov form: Sutskever et al., ICML 2013, eq. 3-4.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import SGD
    >>> w = np.array([1.0, -2.0])
    >>> opt = SGD([w], lr=0.1, momentum=0.9)
    >>> opt.step([2 * w])
    >>> w
    array([ 0.8, -1.6])
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "momentum": non_negative("momentum"),
        "dampening": real("dampening"),
        "weight_decay": non_negative("weight_decay"),
        "nesterov": flag("nesterov"),
        "maximize": flag("maximize"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _check_groups(self, groups: Iterable[Mapping[str, Any]]) -> None:
        for group in groups:
            if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
                raise OptionError("nesterov: needs momentum > 0 and dampening = 0")

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "sgd_momentum" if group["momentum"] else "sgd"

    def _counts_steps(self) -> bool:
        return False
