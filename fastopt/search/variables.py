"""The kinds of variables that a search space is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from fastopt._options import flag, integer, number
from fastopt.errors import DTypeError, OptionError

__all__ = ["Bool", "Choice", "Float", "Int", "Permutation", "Variable", "Vector"]

# Condition of a variable: name of another variable -> values at which this one is active.
When: TypeAlias = "Mapping[str, Any] | None"


class _Conditional:
    """What all variables share: the condition under which they are active."""

    when: Any

    def _take_when(self) -> None:
        """Store ``when`` as name -> tuple of values."""
        if self.when is None:
            return
        if not isinstance(self.when, Mapping) or not self.when:
            raise DTypeError(f"when: expected a dict of values by name, got {self.when!r}")
        taken = {}
        for name, values in self.when.items():
            if not isinstance(name, str):
                raise DTypeError(f"when: expected names of variables, got {name!r}")
            taken[name] = tuple(values) if isinstance(values, (tuple, list)) else (values,)
            if not taken[name]:
                raise OptionError(f"when: expected at least one value of {name}")
        object.__setattr__(self, "when", taken)

    def __repr__(self) -> str:
        given = [f"{k}={v!r}" for k, v in vars(self).items() if k != "when"]
        if self.when is not None:
            given.append(f"when={self.when!r}")
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True, repr=False)
class Float(_Conditional):
    """A real number in [low, high]; uniform in its logarithm with ``log``, on a grid with
    ``step``.

    Parameters
    ----------
    low, high : float
        Both bounds can be reached (with ``step``, high only where the grid meets it).
    log : bool
        Search on a log scale; needs low > 0.
    step : float, optional
        Values are low, low + step, ...; not together with ``log``.
    when : dict, optional
        Other variables' names -> the value, or tuple of values, at which this variable is
        active; elsewhere the objective does not get it.

    Raises
    ------
    OptionError, DTypeError
        A bound is not finite, low > high, or a combination that makes no sense.

    Examples
    --------
    >>> Float(1e-5, 1, log=True)
    Float(low=1e-05, high=1.0, log=True, step=None)
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", number(self.low, "low"))
        object.__setattr__(self, "high", number(self.high, "high"))
        object.__setattr__(self, "log", flag(self.log, "log"))
        if self.low > self.high or not math.isfinite(self.high - self.low):
            raise OptionError(f"Float: expected low <= high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise OptionError(f"Float: a log scale needs low > 0, got {self.low}")
        if self.step is not None:
            if self.log:
                raise OptionError("Float: step and log cannot be combined")
            object.__setattr__(self, "step", number(self.step, "step", low=0, low_open=True))
        self._take_when()


@dataclass(frozen=True, repr=False)
class Int(_Conditional):
    """A whole number in low..high, both included; uniform in its logarithm with ``log``.

    Parameters
    ----------
    low, high : int
        Within +-2**53.
    log : bool
        Search on a log scale; needs low >= 1.
    when : dict, optional
        As for ``Float``.

    Raises
    ------
    OptionError, DTypeError
        A bound is no integer, low > high, or too large to be held exactly.

    Examples
    --------
    >>> Int(8, 512, log=True)
    Int(low=8, high=512, log=True)
    """

    low: int
    high: int
    log: bool = False
    when: When = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", integer(self.low, "low"))
        object.__setattr__(self, "high", integer(self.high, "high"))
        object.__setattr__(self, "log", flag(self.log, "log"))
        if self.low > self.high:
            raise OptionError(f"Int: expected low <= high, got {self.low} and {self.high}")
        if max(abs(self.low), abs(self.high)) > 2**53:
            raise OptionError("Int: bounds beyond 2**53 cannot be held exactly")
        if self.log and self.low < 1:
            raise OptionError(f"Int: a log scale needs low >= 1, got {self.low}")
        self._take_when()


@dataclass(frozen=True, init=False, repr=False)
class Choice(_Conditional):
    """One of some options, which have no order; an option can be any object.

    Parameters
    ----------
    *options : object
        At least one; a single list or tuple stands for its elements.
    when : dict, optional
        As for ``Float``.

    Raises
    ------
    OptionError
        There is no option.

    Notes
    -----
    Objectives get arrays, lists, dicts and sets as copies, every other option itself.

    Examples
    --------
    >>> Choice("relu", "tanh").options
    ('relu', 'tanh')
    """

    options: tuple[Any, ...]
    when: When = field(default=None, kw_only=True)

    def __init__(self, *options: Any, when: When = None) -> None:
        if len(options) == 1 and isinstance(options[0], (list, tuple)):
            options = tuple(options[0])  # Choice(["a", "b"]) means the same
        if not options:
            raise OptionError("Choice: expected at least one option")
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "when", when)
        self._take_when()

    def index(self, option: Any) -> int:
        """Position of ``option``: the same object, else equal and of its type, else equal.

        Raises
        ------
        OptionError
            It is not one of the options.
        """
        for i, known in enumerate(self.options):
            if known is option:
                return i
        for i, known in enumerate(self.options):
            if type(known) is type(option) and bool(np.all(known == option)):
                return i
        for i, known in enumerate(self.options):
            if not isinstance(known, bool) and bool(np.all(known == option)):
                return i
        raise OptionError(f"expected one of {', '.join(map(repr, self.options))}, got {option!r}")


@dataclass(frozen=True, repr=False)
class Bool(_Conditional):
    """True or False.

    Parameters
    ----------
    when : dict, optional
        As for ``Float``.

    Examples
    --------
    >>> Bool()
    Bool()
    """

    when: When = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._take_when()


@dataclass(frozen=True, repr=False)
class Permutation(_Conditional):
    """An order of 0..n-1; objectives get an int64 array.

    Parameters
    ----------
    n : int
    when : dict, optional
        As for ``Float``.

    Examples
    --------
    >>> Permutation(5)
    Permutation(n=5)
    """

    n: int
    when: When = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", integer(self.n, "n", low=1))
        self._take_when()


@dataclass(frozen=True, repr=False)
class Vector(_Conditional):
    """n real numbers, each in [low, high]; objectives get a float64 array.

    Parameters
    ----------
    n : int
    low, high : float
    when : dict, optional
        As for ``Float``.

    Examples
    --------
    >>> Vector(3, -1, 1)
    Vector(n=3, low=-1.0, high=1.0)
    """

    n: int
    low: float
    high: float
    when: When = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", integer(self.n, "n", low=1))
        object.__setattr__(self, "low", number(self.low, "low"))
        object.__setattr__(self, "high", number(self.high, "high"))
        if self.low > self.high or not math.isfinite(self.high - self.low):
            raise OptionError(f"Vector: expected low <= high, got {self.low} and {self.high}")
        self._take_when()


Variable: TypeAlias = "Float | Int | Choice | Bool | Permutation | Vector"
