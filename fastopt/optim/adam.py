"""Adam and its relatives: steps scaled by running moments of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastopt.optim.groups import Params, Shared, Validator, betas, flag, non_negative
from fastopt.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    """In place: p <- p - lr m_hat / (sqrt(v_hat) + eps), m and v the moments of the gradient.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, any shape, overwritten by ``step``. A group is a dict
        with the key ``"params"`` and any of the options below.
    lr : float
        Step size, >= 0.
    betas : (float, float)
        Share of the first and second moment that is kept a step, in [0, 1).
    eps : float
        Added to the root, >= 0.
    weight_decay : float
        L2 penalty: weight_decay p is added to the gradient; with ``decoupled_weight_decay`` p is
        multiplied by 1 - lr weight_decay instead.
    amsgrad : bool
        Divide by the largest second moment so far (Reddi et al. 2018).
    maximize : bool
        Climb instead of descend.
    decoupled_weight_decay : bool
        Decay as AdamW does.
    **shared
        ``state_dtype``, ``max_grad_norm`` and the other options of :class:`Optimizer`.

    Raises
    ------
    ArrayError, DTypeError, OptionError

    Notes
    -----
    m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, m_hat = m / (1 - beta1^t),
    v_hat = v / (1 - beta2^t). One pass: reads p, g, m, v and writes p, m, v: 28 bytes a float32
    element (36 with amsgrad). Bias corrections are computed in double. Names, defaults and results
    are torch.optim.Adam's. Kingma and Ba, ICLR 2015, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import Adam
    >>> w = np.array([1.0, -2.0], np.float32)
    >>> opt = Adam([w], lr=0.5)
    >>> opt.step([2 * w])
    >>> w
    array([ 0.5, -1.5], dtype=float32)
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "betas": betas,
        "eps": non_negative("eps"),
        "weight_decay": non_negative("weight_decay"),
        "amsgrad": flag("amsgrad"),
        "maximize": flag("maximize"),
        "decoupled_weight_decay": flag("decoupled_weight_decay"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "adam_amsgrad" if group["amsgrad"] else "adam"


class AdamW(Adam):
    """In place: p <- (1 - lr weight_decay) p - lr m_hat / (sqrt(v_hat) + eps): Adam, decoupled.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize, **shared
        As for :class:`Adam`; weight_decay defaults to 0.01.

    Notes
    -----
    Loshchilov and Hutter, ICLR 2019, algorithm 2. Names, defaults and results are
    torch.optim.AdamW's.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import AdamW
    >>> w = np.array([1.0, -2.0])
    >>> AdamW(w, lr=0.5, weight_decay=0.0).step(2 * w)
    >>> w.round(6)
    array([ 0.5, -1.5])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            **shared,
        )
