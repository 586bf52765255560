"""Search spaces: named variables, the matrix of trials, and the genome that engines move in.

Three forms of one set of k trials:

* *values*, a (k, d) float64 matrix: a Float's value, an Int's value, a Choice's index, a Bool's
  0 or 1, a Permutation's or Vector's n columns. This is what is stored.
* *columns* or dicts: what objectives get.
* *genomes*, a (k, d) float64 matrix inside ``space.low``..``space.high``, in which a unit step
  means the same everywhere: the logarithm of a log variable, an interval of width 1 around each
  integer or index, keys whose order is the permutation. This is where engines move.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt._options import integer, number
from fastopt.errors import ArrayError, DTypeError, OptionError

__all__ = ["Bool", "Choice", "Float", "Int", "Permutation", "Space", "Variable", "Vector"]

Matrix: TypeAlias = NDArray[np.float64]
Trials: TypeAlias = "Matrix | dict[str, NDArray[Any]]"


@dataclass(frozen=True)
class Float:
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

    Examples
    --------
    >>> Float(1e-5, 1, log=True)
    Float(low=1e-05, high=1.0, log=True, step=None)
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", number(self.low, "low"))
        object.__setattr__(self, "high", number(self.high, "high"))
        if self.low > self.high or not math.isfinite(self.high - self.low):
            raise OptionError(f"Float: expected low <= high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise OptionError(f"Float: a log scale needs low > 0, got {self.low}")
        if self.step is not None:
            if self.log:
                raise OptionError("Float: step and log cannot be combined")
            object.__setattr__(self, "step", number(self.step, "step", low=0, low_open=True))


@dataclass(frozen=True)
class Int:
    """A whole number in low..high, both included; uniform in its logarithm with ``log``.

    Examples
    --------
    >>> Int(8, 512, log=True)
    Int(low=8, high=512, log=True)
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", integer(self.low, "low"))
        object.__setattr__(self, "high", integer(self.high, "high"))
        if self.low > self.high:
            raise OptionError(f"Int: expected low <= high, got {self.low} and {self.high}")
        if max(abs(self.low), abs(self.high)) > 2**53:
            raise OptionError("Int: bounds beyond 2**53 cannot be held exactly")
        if self.log and self.low < 1:
            raise OptionError(f"Int: a log scale needs low >= 1, got {self.low}")


@dataclass(frozen=True, init=False)
class Choice:
    """One of some options, which have no order; an option can be any object.

    Examples
    --------
    >>> Choice("relu", "tanh").options
    ('relu', 'tanh')
    """

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        if len(options) == 1 and isinstance(options[0], (list, tuple)):
            options = tuple(options[0])  # Choice(["a", "b"]) means the same
        if not options:
            raise OptionError("Choice: expected at least one option")
        object.__setattr__(self, "options", options)

    def index(self, option: Any) -> int:
        """Position of ``option``: the same object, else equal and of its type, else equal."""
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


@dataclass(frozen=True)
class Bool:
    """True or False."""


@dataclass(frozen=True)
class Permutation:
    """An order of 0..n-1; objectives get an int64 array.

    Examples
    --------
    >>> Permutation(5)
    Permutation(n=5)
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", integer(self.n, "n", low=1))


@dataclass(frozen=True)
class Vector:
    """n real numbers, each in [low, high]; objectives get a float64 array.

    Examples
    --------
    >>> Vector(3, -1, 1)
    Vector(n=3, low=-1.0, high=1.0)
    """

    n: int
    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", integer(self.n, "n", low=1))
        object.__setattr__(self, "low", number(self.low, "low"))
        object.__setattr__(self, "high", number(self.high, "high"))
        if self.low > self.high or not math.isfinite(self.high - self.low):
            raise OptionError(f"Vector: expected low <= high, got {self.low} and {self.high}")


Variable: TypeAlias = "Float | Int | Choice | Bool | Permutation | Vector"


class Space:
    """Named variables, in order.

    Parameters
    ----------
    **variables : Float, Int, Choice, Bool, Permutation or Vector

    Attributes
    ----------
    names : tuple of str
    variables : dict of str to variable
    n_columns : int
        Columns of the matrix of trials: one a variable, n for a Permutation or Vector.
    numeric : bool
        True if every variable is a Float, Int or Vector, so that trials are a plain matrix.
    size : float
        How many different points there are; infinite with a Float (without step) or Vector.

    Examples
    --------
    >>> space = Space(lr=Float(1e-5, 1, log=True), width=Int(8, 512, log=True))
    >>> space.n_columns, space.numeric, space.size
    (2, True, inf)
    """

    def __init__(self, **variables: Variable) -> None:
        if not variables:
            raise OptionError("Space: expected at least one variable")
        for name, v in variables.items():
            if not isinstance(v, (Float, Int, Choice, Bool, Permutation, Vector)):
                raise DTypeError(
                    f"{name}: expected Float, Int, Choice, Bool, Permutation or Vector, "
                    f"got {type(v).__name__}"
                )
        self.variables: dict[str, Variable] = dict(variables)
        self.names: tuple[str, ...] = tuple(variables)
        self.numeric: bool = all(isinstance(v, (Float, Int, Vector)) for v in variables.values())
        self.slices: dict[str, slice] = {}
        low: list[float] = []
        high: list[float] = []
        kinds: list[str] = []
        self.size: float = 1.0
        for name, v in variables.items():
            n = v.n if isinstance(v, (Permutation, Vector)) else 1
            self.slices[name] = slice(len(low), len(low) + n)
            lo, hi, kind, size = _column_of(v)
            low += [lo] * n
            high += [hi] * n
            kinds += [kind] * n
            self.size *= size
        self.n_columns: int = len(low)
        self.low: Matrix = np.array(low)
        self.high: Matrix = np.array(high)
        self.low.flags.writeable = self.high.flags.writeable = False
        kind_of = np.array(kinds)
        self.categorical: NDArray[np.intp] = np.flatnonzero(kind_of == "category")
        self.ordered: NDArray[np.intp] = np.flatnonzero(
            (kind_of == "int") | (kind_of == "log int") | (kind_of == "step")
        )
        self.identity: bool = bool((kind_of == "real").all())
        self._log: NDArray[np.intp] = np.flatnonzero((kind_of == "log") | (kind_of == "log int"))
        self._whole: NDArray[np.intp] = np.flatnonzero(
            (kind_of == "int") | (kind_of == "log int") | (kind_of == "category")
        )
        # The values' own bounds: rounding of exp and log must not step over them.
        self._value_low: Matrix = np.empty(self.n_columns)
        self._value_high: Matrix = np.empty(self.n_columns)
        self._cell: Matrix = np.ones(self.n_columns)  # of grid and integer columns
        for name, v in variables.items():
            if isinstance(v, Float) and v.step is not None:
                self._cell[self.slices[name]] = v.step
            self._value_low[self.slices[name]], self._value_high[self.slices[name]] = _limits(v)

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.variables.items())
        return f"Space({inside})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    # --- genomes and values

    def values_of(self, genomes: Matrix) -> Matrix:
        """Values of genomes; the same array where every variable is a plain Float or Vector."""
        if self.identity:
            return genomes
        values: Matrix = genomes.copy()
        if len(self._log):
            values[:, self._log] = np.exp(values[:, self._log])
        if len(self._whole):
            values[:, self._whole] = np.rint(values[:, self._whole])
        for name, v in self.variables.items():
            where = self.slices[name]
            if isinstance(v, Float) and v.step is not None:
                values[:, where] = v.low + v.step * np.rint((values[:, where] - v.low) / v.step)
            elif isinstance(v, Permutation):
                values[:, where] = np.argsort(genomes[:, where], axis=1, kind="stable")
        np.clip(values, self._value_low, self._value_high, out=values)
        return values

    def genomes_of(self, values: Matrix) -> Matrix:
        """The genome in the middle of each value's cell."""
        if self.identity:
            return values
        genomes: Matrix = values.copy()
        if len(self._log):
            genomes[:, self._log] = np.log(genomes[:, self._log])
        for name, v in self.variables.items():
            if isinstance(v, Permutation):
                where = self.slices[name]
                keys = np.empty((len(values), v.n))
                order = values[:, where].astype(np.intp)
                np.put_along_axis(keys, order, (np.arange(v.n) + 0.5) / v.n, axis=1)
                genomes[:, where] = keys
        np.clip(genomes, self.low, self.high, out=genomes)
        return genomes

    def cell(self, genomes: Matrix, columns: NDArray[np.intp]) -> Matrix:
        """Width of the cell of an integer or grid value, in the genome's unit."""
        width: Matrix = np.broadcast_to(self._cell[columns], genomes.shape).copy()
        log = np.isin(columns, self._log)
        if log.any():
            width[:, log] = np.log1p(np.exp(-genomes[:, log])) * (1 + 1e-9)
        return width

    # --- what objectives get

    def present(self, values: Matrix) -> Trials:
        """Trials as a vectorised objective gets them: the matrix if numeric, else columns."""
        return values if self.numeric else self.columns_of(values)

    def columns_of(self, values: Matrix) -> dict[str, NDArray[Any]]:
        """name -> array of k values (k, n for Permutation and Vector)."""
        columns: dict[str, NDArray[Any]] = {}
        for name, v in self.variables.items():
            part = values[:, self.slices[name]]
            if isinstance(v, Float):
                columns[name] = part[:, 0].copy()
            elif isinstance(v, Int):
                columns[name] = part[:, 0].astype(np.int64)
            elif isinstance(v, Bool):
                columns[name] = part[:, 0] != 0
            elif isinstance(v, Choice):
                columns[name] = _options_array(v)[part[:, 0].astype(np.intp)]
            elif isinstance(v, Permutation):
                columns[name] = part.astype(np.int64)
            else:
                columns[name] = part.copy()
        return columns

    def dicts_of(self, values: Matrix) -> list[dict[str, Any]]:
        """One dict of plain Python values a trial (arrays for Permutation and Vector)."""
        columns: list[Iterable[Any]] = []
        for name, v in self.variables.items():
            part = values[:, self.slices[name]]
            if isinstance(v, Float):
                columns.append(part[:, 0].tolist())
            elif isinstance(v, Int):
                columns.append(part[:, 0].astype(np.int64).tolist())
            elif isinstance(v, Bool):
                columns.append((part[:, 0] != 0).tolist())
            elif isinstance(v, Choice):
                options = v.options
                columns.append([options[i] for i in part[:, 0].astype(np.intp).tolist()])
            elif isinstance(v, Permutation):
                columns.append(list(part.astype(np.int64)))
            else:
                columns.append(list(part.copy()))
        names = self.names
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    # --- what users hand in

    def parse(self, trials: Any, name: str = "X") -> Matrix:
        """Values of trials given as ``present`` or ``dicts_of`` gives them, checked."""
        if isinstance(trials, Mapping):
            missing = [n for n in self.names if n not in trials]
            extra = [str(n) for n in trials if n not in self.variables]
            if missing or extra:
                raise ArrayError(f"{name}: missing {missing}, unknown {extra}")
            lengths = {len(trials[n]) for n in self.names}
            if len(lengths) != 1:
                raise ArrayError(f"{name}: columns of different lengths {sorted(lengths)}")
            rows = zip(*(trials[n] for n in self.names), strict=True)
            return self._rows([dict(zip(self.names, r, strict=True)) for r in rows], name)
        if isinstance(trials, (list, tuple)) and trials and isinstance(trials[0], Mapping):
            return self._rows(trials, name)
        if not self.numeric:
            raise DTypeError(f"{name}: expected a dict of columns or a list of dicts")
        try:
            values = np.array(trials, dtype=np.float64, ndmin=2)
        except (TypeError, ValueError) as error:
            raise DTypeError(f"{name}: cannot be read as a matrix: {error}") from None
        if values.ndim != 2 or values.shape[1] != self.n_columns:
            raise ArrayError(f"{name}: expected shape (k, {self.n_columns}), got {values.shape}")
        self._check(values, name)
        return values

    def _rows(self, dicts: Iterable[Mapping[str, Any]], name: str) -> Matrix:
        dicts = list(dicts)
        values = np.empty((len(dicts), self.n_columns))
        for i, trial in enumerate(dicts):
            missing = [n for n in self.names if n not in trial]
            extra = [str(n) for n in trial if n not in self.variables]
            if missing or extra:
                raise ArrayError(f"{name}[{i}]: missing {missing}, unknown {extra}")
            for key, v in self.variables.items():
                try:
                    if isinstance(v, Choice):
                        values[i, self.slices[key]] = v.index(trial[key])
                    else:
                        values[i, self.slices[key]] = trial[key]
                except (TypeError, ValueError) as error:
                    raise ArrayError(f"{name}[{i}].{key}: {error}") from None
        self._check(values, name)
        return values

    def _check(self, values: Matrix, name: str) -> None:
        """Inside the bounds; whole where they must be; permutations are permutations."""
        fits = (values >= self._value_low) & (values <= self._value_high)
        fits[:, self._whole] &= values[:, self._whole] == np.rint(values[:, self._whole])
        for key, v in self.variables.items():
            if isinstance(v, Permutation):
                part = np.sort(values[:, self.slices[key]], axis=1)
                fits[:, self.slices[key]] &= part == np.arange(v.n)
        if not fits.all():
            i, j = np.argwhere(~fits)[0]
            key = next(n for n, s in self.slices.items() if s.start <= j < s.stop)
            raise ArrayError(
                f"{name}[{i}].{key}: {values[i, j]:g} is not a value of {self.variables[key]!r}"
            )


def _column_of(v: Variable) -> tuple[float, float, str, float]:
    """Genome bounds, kind of column, number of points."""
    if isinstance(v, Float):
        if v.log:
            return math.log(v.low), math.log(v.high), "log", 1.0 if v.low == v.high else math.inf
        if v.step is not None:
            steps = math.floor((v.high - v.low) / v.step * (1 + 1e-12))
            half = 0.5 * v.step * (1 - 1e-9)
            return v.low - half, v.low + steps * v.step + half, "step", float(steps + 1)
        return v.low, v.high, "real", 1.0 if v.low == v.high else math.inf
    if isinstance(v, Int):
        if v.log:
            return math.log(v.low - 0.5), math.log(v.high + 0.5), "log int", v.high - v.low + 1.0
        return v.low - 0.5, v.high + 0.5, "int", v.high - v.low + 1.0
    if isinstance(v, Choice):
        return -0.5, len(v.options) - 0.5, "category", float(len(v.options))
    if isinstance(v, Bool):
        return -0.5, 1.5, "category", 2.0
    if isinstance(v, Permutation):
        return 0.0, 1.0, "key", math.factorial(v.n) if v.n < 171 else math.inf
    return v.low, v.high, "real", 1.0 if v.low == v.high else math.inf


def _limits(v: Variable) -> tuple[float, float]:
    if isinstance(v, Float) and v.step is not None:
        return v.low, v.low + v.step * math.floor((v.high - v.low) / v.step * (1 + 1e-12))
    if isinstance(v, (Float, Int, Vector)):
        return float(v.low), float(v.high)
    if isinstance(v, Choice):
        return 0.0, len(v.options) - 1.0
    if isinstance(v, Permutation):
        return 0.0, v.n - 1.0
    return 0.0, 1.0


def _options_array(v: Choice) -> NDArray[Any]:
    """Options as an array: str, bool or number dtype where all are of one such type."""
    kinds = {type(o) for o in v.options}
    if len(kinds) == 1 and kinds <= {str, bool, int, float}:
        return np.array(v.options)
    options = np.empty(len(v.options), dtype=object)
    for i, option in enumerate(v.options):
        options[i] = option
    return options
