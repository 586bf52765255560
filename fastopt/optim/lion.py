"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastopt.optim.groups import Params, Shared, Validator, betas, flag, non_negative
from fastopt.optim.optimizer import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Lion"]


class Lion(Optimizer):
    """In place: p <- (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g).

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``.
    lr : float
        Step size, >= 0; 3 to 10 times smaller than for AdamW.
    betas : (float, float)
        Weights of the momentum in the step and in its own average, in [0, 1).
    weight_decay : float
        Decoupled decay; 3 to 10 times larger than for AdamW.
    maximize : bool
        Climb instead of descend.
    **shared
        The options of :class:`Optimizer`.

    Notes
    -----
    m <- beta2 m + (1 - beta2) g after the step. One pass, 20 bytes a float32 element. sign(0) is
    0, NaN stays NaN. Same results as optax.lion. Chen et al. 2023, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import Lion
    >>> w = np.array([1.0, -2.0])
    >>> Lion(w, lr=0.5).step(2 * w)
    >>> w
    array([ 0.5, -1.5])
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "betas": betas,
        "weight_decay": non_negative("weight_decay"),
        "maximize": flag("maximize"),
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "lion"

    def _decoupled(self, group: Mapping[str, Any]) -> bool:
        return True

    def _counts_steps(self) -> bool:
        return False
