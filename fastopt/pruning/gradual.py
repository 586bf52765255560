"""Pruning during training: masks that grow by a schedule and stay applied after every step."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_target
from fastopt._options import integer, number
from fastopt.errors import ArrayError, DTypeError, FormatError
from fastopt.pruning.schedule import cubic_sparsity
from fastopt.pruning.weights import prune

__all__ = ["GradualPruning"]


class GradualPruning:
    """Keep more and more weights at zero while an optimiser trains the rest.

    Call :meth:`step` after each ``opt.step(grads)``. At step ``begin`` and every ``every`` steps
    until ``end`` the smallest magnitudes are pruned to the sparsity of :func:`cubic_sparsity`;
    after every step the pruned weights are set to zero again, whatever momentum or decay did.

    Parameters
    ----------
    params : array, list or dict of arrays
        The weights that are pruned, float32 or float64, C-contiguous; overwritten. The same
        arrays as the optimiser's, without the biases.
    final : float
        Sparsity at the end, 0..1.
    begin, end : int
        First and last step of the ramp.
    every : int
        Steps between two prunings.
    initial : float
        Sparsity at ``begin``.
    **options
        ``pattern``, ``scope`` and ``axis`` of :func:`fastopt.prune`. A pattern "N:M" has its
        own sparsity, which it gets at ``begin``.

    Attributes
    ----------
    masks : array, list or dict of bool arrays
        True where a weight stays, structured as ``params``.
    sparsity : float
        Share of zeros in the masks.
    n_steps : int
        Steps taken.

    Raises
    ------
    ArrayError, DTypeError, OptionError
        A bad argument.

    Notes
    -----
    Zhu and Gupta, "To prune, or not to prune" (2017). A step costs one pass over the masks and
    the weights. Zeros are the smallest magnitudes, so a
    weight that was pruned stays pruned.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import optim
    >>> from fastopt.pruning import GradualPruning
    >>> w = np.linspace(1, 2, 8)
    >>> opt, pruning = optim.SGD(w, lr=0.1), GradualPruning(w, 0.5, begin=1, end=3, every=1)
    >>> for _ in range(4):
    ...     opt.step(np.ones(8))
    ...     pruning.step()
    >>> pruning.sparsity, w.round(2).tolist()
    (0.5, [0.0, 0.0, 0.0, 0.0, 1.17, 1.31, 1.46, 1.6])
    """

    def __init__(
        self,
        params: Any,
        final: float = 0.8,
        *,
        begin: int = 0,
        end: int,
        every: int = 100,
        initial: float = 0.0,
        **options: Any,
    ) -> None:
        self._names, self._arrays = _named(params)
        self._kind = type(params) if isinstance(params, (list, tuple, dict)) else None
        self.final = number(final, "final", low=0.0, high=1.0)
        self.initial = number(initial, "initial", low=0.0, high=1.0)
        self.begin, self.end = integer(begin, "begin", low=0), integer(end, "end")
        cubic_sparsity(0, begin=self.begin, end=self.end, final=self.final, initial=self.initial)
        self.every = integer(every, "every", low=1)
        unknown = set(options) - {"pattern", "scope", "axis"}
        if unknown:
            raise TypeError(f"GradualPruning: unexpected option {', '.join(sorted(unknown))}")
        self._options = options
        prune([a.copy() for a in self._arrays], self.final, **options)  # checks the options
        self._masks = [np.ones(a.shape, np.bool_) for a in self._arrays]
        self.n_steps = 0

    def __repr__(self) -> str:
        return (
            f"GradualPruning({len(self._arrays)} arrays, sparsity {self.sparsity:.3g} of "
            f"{self.final:.3g}, step {self.n_steps})"
        )

    @property
    def masks(self) -> Any:
        """True where a weight stays."""
        return self._structured(self._masks)

    @property
    def sparsity(self) -> float:
        """Share of zeros in the masks."""
        total = sum(m.size for m in self._masks)
        return 1.0 - sum(int(m.sum()) for m in self._masks) / total if total else 0.0

    def step(self) -> None:
        """In place: prune where the schedule says so, and set pruned weights to zero."""
        at = self.n_steps
        due = self.begin <= at <= self.end and (at - self.begin) % self.every == 0
        if due or at == self.end:
            share = cubic_sparsity(
                at, begin=self.begin, end=self.end, final=self.final, initial=self.initial
            )
            self._masks = prune(self._arrays, share, out=self._arrays, **self._options).masks
        else:
            self.apply()
        self.n_steps += 1

    def apply(self) -> None:
        """In place: set pruned weights to zero."""
        for a, mask in zip(self._arrays, self._masks, strict=True):
            np.copyto(a, a.dtype.type(0), where=~mask)

    def rewind(self, values: Any) -> None:
        """In place: the weights become ``values`` where the masks are True, else zero.

        Parameters
        ----------
        values : arrays structured and shaped as ``params``
            For example copies from the first steps of training.

        Raises
        ------
        ArrayError, DTypeError
            Another structure, shape or dtype; nothing has changed.

        Notes
        -----
        Frankle and Carbin, "The lottery ticket hypothesis" (2019); Frankle et al., "Stabilizing
        the lottery ticket hypothesis" (2019) rewinds to an early step instead of the start. Make
        a new optimiser too: its momentum belongs to the old weights.
        """
        names, given = _listed(values)
        if names != self._names or isinstance(values, dict) != (self._kind is dict):
            raise ArrayError(
                f"values: expected the structure of params ({len(self._names)} arrays)"
            )
        checked = [
            as_array(v, f"values[{n!r}]", dtypes=(a.dtype.name,), cast=a.dtype.name, shape=a.shape)
            for n, v, a in zip(names, given, self._arrays, strict=True)
        ]
        for a, value, mask in zip(self._arrays, checked, self._masks, strict=True):
            a[...] = np.where(mask, value, a.dtype.type(0))

    def state_dict(self) -> dict[str, Any]:
        """The step and the masks as packed bits, copies."""
        return {"n_steps": self.n_steps, "masks": [np.packbits(m) for m in self._masks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """In place: continue from :meth:`state_dict`; the weights are set to zero where pruned.

        Raises
        ------
        FormatError
            Not such a state, or of other arrays; nothing has changed.
        """
        try:
            steps = integer(state["n_steps"], "n_steps", low=0)
            packed = [as_array(m, "masks", dtypes=("uint8",), ndim=1) for m in state["masks"]]
            if [len(m) for m in packed] != [-(-a.size // 8) for a in self._arrays]:
                raise ArrayError("masks: do not fit the arrays")
        except (ArrayError, DTypeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"state: not one of GradualPruning: {error}") from None
        self.n_steps = steps
        self._masks = [
            np.unpackbits(m, count=a.size).view(np.bool_).reshape(a.shape)
            for m, a in zip(packed, self._arrays, strict=True)
        ]
        self.apply()

    def _structured(self, arrays: list[Array]) -> Any:
        if self._kind is None:
            return arrays[0]
        if issubclass(self._kind, dict):
            return dict(zip(self._names, arrays, strict=True))
        return arrays


def _listed(params: Any) -> tuple[list[Any], list[Any]]:
    """Names and arrays of an array, a list or a dict."""
    if isinstance(params, dict):
        return list(params), list(params.values())
    if isinstance(params, (list, tuple)):
        return list(range(len(params))), list(params)
    return [0], [params]


def _named(params: Any) -> tuple[list[Any], list[Array]]:
    names, given = _listed(params)
    arrays = [
        as_target(p, f"params[{n!r}]", dtypes=("float32", "float64"))
        for n, p in zip(names, given, strict=True)
    ]
    return names, arrays
