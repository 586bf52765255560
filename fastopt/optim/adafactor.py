"""Adafactor: second moments of matrices kept as the means of their rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastopt._arrays import Array
from fastopt._options import number
from fastopt.errors import DTypeError
from fastopt.optim.groups import Params, Shared, Validator, flag, non_negative
from fastopt.optim.optimizer import Optimizer
from fastopt.optim.state import Kept

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adafactor"]


def _eps(value: Any) -> tuple[float | None, float]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise DTypeError(f"eps: expected two numbers, got {value!r}") from None
    return (
        None if first is None else number(first, "eps[0]", low=0.0),
        number(second, "eps[1]", low=0.0),
    )


class Adafactor(Optimizer):
    """In place: p <- (1 - lr weight_decay) p - alpha u / max(1, rms(u) / d), u = g / sqrt(v).

    alpha = max(eps2, rms(p)) min(lr, 1 / sqrt(t)); v_ij = R_i C_j / mean(R) for matrices.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, overwritten by ``step``. An array of more than two
        dimensions is a stack of matrices over its last two.
    lr : float
        Largest relative step size, >= 0, and the factor on weight_decay.
    beta2_decay : float
        v keeps 1 - t^beta2_decay of itself at step t, <= 0.
    eps : (float or None, float)
        eps1, below which neither sqrt(v) nor mean(R) is taken (None: the machine epsilon of the
        parameter's dtype), and eps2, the smallest size of an array that its step is relative to.
    d : float
        The root mean square of u that is not cut down, >= 1.
    weight_decay : float
        Decoupled decay.
    maximize : bool
        Climb instead of descend.
    **shared
        The options of :class:`Optimizer`; the state stays in full precision.

    Notes
    -----
    R and C are the running means of g^2 over each row and each column: a (r, c) matrix has
    r + c numbers of state; vectors and scalars keep a full v. Passes over a matrix: g (sums of
    squares), p and g (the two norms), p and g with p written: 24 bytes a float32 element (AdamW:
    28, and 8 of state). Sums run in double in a fixed order. Names, defaults and results are
    torch.optim.Adafactor's. Shazeer and Stern, ICML 2018, algorithms 4 to 6.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import Adafactor
    >>> w = np.array([[3.0, 1.0], [1.0, 3.0]])
    >>> opt = Adafactor(w, lr=0.1)
    >>> opt.step(2 * w)
    >>> w.round(3)
    array([[2.7, 0.9],
           [0.9, 2.7]])
    >>> opt.state_dict()["state"][0]["row_var"].shape
    (2, 1)
    """

    _options: ClassVar[dict[str, Validator]] = {
        "lr": non_negative("lr"),
        "beta2_decay": lambda value: number(value, "beta2_decay", high=0.0),
        "eps": _eps,
        "d": lambda value: number(value, "d", low=1.0),
        "weight_decay": non_negative("weight_decay"),
        "maximize": flag("maximize"),
    }
    _narrow_state = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(params, locals(), **shared)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "adafactor"

    def _kept(self, rule: str, p: Array) -> Kept:
        if p.ndim < 2:
            return super()._kept(rule, p)
        rows, columns = (*p.shape[:-1], 1), (*p.shape[:-2], 1, p.shape[-1])
        return [("row_var", False, rows), ("col_var", False, columns)]

    def _decoupled(self, group: Mapping[str, Any]) -> bool:
        return True

    def _named(self, group: Mapping[str, Any]) -> dict[str, Any]:
        eps1, eps2 = group["eps"]
        return {**group, "eps1": -1.0 if eps1 is None else eps1, "eps2": eps2}
