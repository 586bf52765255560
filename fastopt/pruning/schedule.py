"""Sparsity over the steps of a training run."""

from __future__ import annotations

from fastopt._options import integer, number
from fastopt.errors import OptionError

__all__ = ["cubic_sparsity"]


def cubic_sparsity(
    step: int, *, begin: int = 0, end: int, final: float = 0.8, initial: float = 0.0
) -> float:
    """s = final + (initial - final) (1 - (step - begin) / (end - begin))^3, held outside.

    Zhu and Gupta, "To prune, or not to prune" (2017), eq. 1: much goes early, while the network
    can still recover.

    Parameters
    ----------
    step : int
        The step now.
    begin, end : int
        First and last step of the ramp, begin < end.
    final, initial : float
        Sparsity at both ends, 0..1.

    Returns
    -------
    float
        For ``prune(w, cubic_sparsity(step, ...), out=w)``.

    Raises
    ------
    OptionError, DTypeError
        A bad argument.

    Examples
    --------
    >>> from fastopt.pruning import cubic_sparsity
    >>> [round(cubic_sparsity(t, end=100, final=0.8), 3) for t in (0, 50, 100, 200)]
    [0.0, 0.7, 0.8, 0.8]
    """
    at, first, last = integer(step, "step"), integer(begin, "begin"), integer(end, "end")
    if last <= first:
        raise OptionError(f"end: expected more than begin ({first}), got {last}")
    top = number(final, "final", low=0.0, high=1.0)
    start = number(initial, "initial", low=0.0, high=1.0)
    share = min(1.0, max(0.0, (at - first) / (last - first)))
    return top + (start - top) * (1.0 - share) ** 3
