"""NAdam, RAdam, Adamax and LAMB: variants of Adam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastopt.optim.groups import Params, Shared, Validator, betas, flag, non_negative
from fastopt.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LAMB", "Adamax", "NAdam", "RAdam"]

_SHARED: dict[str, Validator] = {
    "lr": non_negative("lr"),
    "betas": betas,
    "eps": non_negative("eps"),
    "weight_decay": non_negative("weight_decay"),
    "maximize": flag("maximize"),
}


class _Moments(Optimizer):
    """Two moments of the gradient under torch.optim's names."""


class NAdam(_Moments):
    """In place: p <- p - lr (mu' m_hat + (1 - mu) g_hat) / (sqrt(v_hat) + eps): Adam, Nesterov.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``.
    lr : float
        Step size, >= 0.
    betas : (float, float)
        Share of the first and second moment that is kept a step, in [0, 1).
    eps : float
        Added to the root, >= 0.
    weight_decay : float
        weight_decay p is added to the gradient, or decoupled.
    momentum_decay : float
        psi in mu_t = beta1 (1 - 0.96^(t psi) / 2), >= 0.
    decoupled_weight_decay, maximize : bool
        Decay as AdamW does; climb instead of descend.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    One pass, 28 bytes a float32 element. Names, defaults and results are torch.optim.NAdam's, with
    the product of the mu kept in double (torch: in the default dtype). Dozat 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import NAdam
    >>> w = np.array([1.0, -2.0])
    >>> NAdam(w, lr=0.5).step(2 * w)
    >>> bool((np.abs(w) < [1, 2]).all())
    True
    """

    _options: ClassVar[dict[str, Validator]] = {
        **_SHARED,
        "momentum_decay": non_negative("momentum_decay"),
        "decoupled_weight_decay": flag("decoupled_weight_decay"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "nadam"


class RAdam(_Moments):
    """In place: Adam whose step is rectified by r_t, and plain momentum while v has too few steps.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``.
    lr, betas, eps, weight_decay, decoupled_weight_decay, maximize
        As for :class:`NAdam`.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    One pass, 28 bytes a float32 element. Names, defaults and results are torch.optim.RAdam's
    (eps is added to the root before the bias correction). Liu et al., ICLR 2020, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import RAdam
    >>> w = np.array([1.0, -2.0])
    >>> RAdam(w, lr=0.1).step(2 * w)
    >>> w.round(6)
    array([ 0.8, -1.6])
    """

    _options: ClassVar[dict[str, Validator]] = {
        **_SHARED,
        "decoupled_weight_decay": flag("decoupled_weight_decay"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "radam"


class Adamax(_Moments):
    """In place: u <- max(beta2 u, |g| + eps); p <- p - lr / (1 - beta1^t) m / u.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``.
    lr, betas, eps, weight_decay, maximize
        As for :class:`NAdam`; the decay is coupled.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    One pass, 28 bytes a float32 element. Names, defaults and results are torch.optim.Adamax's.
    Kingma and Ba, ICLR 2015, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import Adamax
    >>> w = np.array([1.0, -2.0])
    >>> Adamax(w, lr=0.5).step(2 * w)
    >>> w.round(6)
    array([ 0.5, -1.5])
    """

    _options: ClassVar[dict[str, Validator]] = dict(_SHARED)

    def __init__(
        self,
        params: Params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "adamax"


class LAMB(_Moments):
    """In place: u = m_hat / (sqrt(v_hat) + eps) + weight_decay p; p <- p - lr |p| / |u| u.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``; each array is a layer with its
        own ratio |p| / |u|, 1 where either norm is zero.
    lr, betas, eps, weight_decay, maximize
        As for :class:`NAdam`; the decay is decoupled.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    Two passes, 44 bytes a float32 element: moments and update are computed twice rather than
    stored; small arrays make both passes while they are cached. The norms are summed in double in
    a fixed order. Defaults and results are optax.lamb's. You et al., ICLR 2020, algorithm 2 with
    phi the identity.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import LAMB
    >>> w = np.array([3.0, -4.0])
    >>> LAMB(w, lr=0.1).step(2 * w)
    >>> w.round(4)
    array([ 2.6464, -3.6464])
    """

    _options: ClassVar[dict[str, Validator]] = dict(_SHARED)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "lamb"

    def _decoupled(self, group: Mapping[str, Any]) -> bool:
        return True
