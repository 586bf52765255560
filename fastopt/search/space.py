"""Search spaces: named variables, the matrix of trials, and the genome that engines move in.

Three forms of one set of k trials:

* *values*, a (k, d) float64 matrix: a Float's value, an Int's value, a Choice's index, a Bool's
  0 or 1, a Permutation's or Vector's n columns. This is what is stored. An inactive variable
  holds one fixed value of its own, so that trials that differ in nothing else are equal.
* *columns* or dicts: what objectives get; inactive variables are absent from dicts.
* *genomes*, a (k, d) float64 matrix inside ``space.low``..``space.high``, in which a unit step
  means the same everywhere: the logarithm of a log variable, an interval of width 1 around each
  integer or index, keys whose order is the permutation. This is where engines move.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt._arrays import as_array, as_ndarray
from fastopt._options import number, short
from fastopt.errors import ArrayError, DTypeError, FastoptError, FormatError, OptionError
from fastopt.search import interchange
from fastopt.search.columns import (
    column_of,
    conditions_of,
    is_absent,
    limits_of,
    mutable_rows,
    objects_of,
    options_array,
)
from fastopt.search.identity import describe, digest_of
from fastopt.search.variables import Bool, Choice, Float, Int, Permutation, Variable, Vector

__all__ = ["Bool", "Choice", "Float", "Int", "Permutation", "Space", "Variable", "Vector"]

Matrix: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Trials: TypeAlias = "Matrix | dict[str, NDArray[Any]]"

# Points up to which a finite space is listed, to see that it was searched.
LISTED = 1 << 16


class Space:
    """Named variables, in order.

    Parameters
    ----------
    **variables : Float, Int, Choice, Bool, Permutation or Vector
        A variable with ``when`` is active where all the variables named there are active and
        have one of the given values.

    Attributes
    ----------
    names : tuple of str
    variables : dict of str to variable
    n_columns : int
        Columns of the matrix of trials: one per variable, n for a Permutation or Vector.
    numeric : bool
        True if every variable is a Float, Int or Vector, so that trials are a plain matrix.
    conditional : bool
        True if a variable has a condition.
    size : float
        How many different points there are; infinite with a Float (without step) or Vector. With
        conditions an upper bound beyond 65,536.
    digest : str
        Equal for equal spaces in any process: variables, bounds, the content of options.

    Raises
    ------
    OptionError, DTypeError
        No variable, something that is no variable, or a condition on an unknown variable or
        value.

    Examples
    --------
    >>> space = Space(lr=Float(1e-5, 1, log=True), width=Int(8, 512, log=True))
    >>> space.n_columns, space.numeric, space.size
    (2, True, inf)
    >>> space = Space(opt=Choice("sgd", "adam"), momentum=Float(0, 1, when={"opt": "sgd"}))
    >>> space.dicts_of(space.parse([{"opt": "adam"}]))
    [{'opt': 'adam'}]
    """

    def __init__(self, /, **variables: Variable) -> None:
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
            lo, hi, kind, size = column_of(v)
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
            self._value_low[self.slices[name]], self._value_high[self.slices[name]] = limits_of(v)
        self._conditions = conditions_of(self.variables)
        self.conditional: bool = bool(self._conditions)
        self.identity: bool = bool((kind_of == "real").all()) and not self.conditional
        self._inactive: Matrix = self._value_low.copy()  # what an inactive variable holds
        for name, v in variables.items():
            if isinstance(v, Permutation):
                self._inactive[self.slices[name]] = np.arange(v.n)
        if self.conditional and self.size <= LISTED:
            self.size = float(len(self.points()))

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Space:
        """Space of ``{"lr": {"type": "float", "low": 1e-5, "high": 1, "log": True}, ...}``.

        Parameters
        ----------
        description : dict
            Variable's name -> its "type" ("float", "int", "choice", "bool", "permutation",
            "vector") and the parameters of that variable by name, "when" among them.

        Raises
        ------
        FormatError
            An unknown type or parameter, or one that is missing.

        Examples
        --------
        >>> Space.from_dict({"n": {"type": "int", "low": 1, "high": 9}})
        Space(n=Int(low=1, high=9, log=False))
        """
        return cls._described(description)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Space:
        """Space of a .json or .toml file that holds what ``from_dict`` takes.

        Raises
        ------
        FormatError
            The file is neither, or does not describe a space.
        """
        where, description = interchange.read(path)
        return cls._described(description, where)

    @classmethod
    def from_optuna(cls, distributions: Mapping[str, Any]) -> Space:
        """Space of a dict of Optuna distributions (``trial.distributions``).

        Raises
        ------
        UnsupportedError
            A distribution that is no float, int or categorical one.
        """
        return cls(**interchange.from_optuna(distributions))

    @classmethod
    def from_scipy(cls, distributions: Mapping[str, Any]) -> Space:
        """Space of what scikit-learn's RandomizedSearchCV takes: lists of options, and frozen
        scipy distributions with bounds (uniform, loguniform, randint, and others by their
        0.001 and 0.999 quantiles).

        Raises
        ------
        UnsupportedError
            Neither a list nor a univariate distribution.
        """
        return cls(**interchange.from_scipy(distributions))

    def to_dict(self) -> dict[str, Any]:
        """What ``from_dict`` takes, JSON values only.

        Raises
        ------
        UnsupportedError
            An option that JSON cannot hold.
        """
        return interchange.to_dict(self.variables)

    @classmethod
    def _described(cls, description: Any, path: str | None = None) -> Space:
        variables = interchange.variables_of(description, path)
        try:
            return cls(**variables)
        except FastoptError as error:
            raise FormatError(f"space: {error}", path) from None

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.variables.items())
        return f"Space({inside})"

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Space):
            return self is other
        try:
            return self.digest == other.digest
        except OptionError:  # options that only their address tells apart
            return False

    def __hash__(self) -> int:
        return hash((self.names, self.n_columns))

    @cached_property
    def digest(self) -> str:
        described = [
            [name, type(v).__name__, [[k, describe(x)] for k, x in vars(v).items()]]
            for name, v in self.variables.items()
        ]
        return digest_of(described)

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
        values += 0.0  # one zero: rint makes -0.0 of small negative numbers
        if self.conditional:
            values = np.where(self._active(values), values, self._inactive)
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

    def active(self, genomes: Matrix) -> Mask:
        """Which columns of each genome count: (k, d), False for those of inactive variables."""
        if not self.conditional:
            return np.ones(genomes.shape, dtype=bool)
        return self._active(self.values_of(genomes))

    def _active(self, values: Matrix) -> Mask:
        mask = np.ones(values.shape, dtype=bool)
        for name, conditions in self._conditions.items():
            fits = np.ones(len(values), dtype=bool)
            for parent, wanted in conditions:  # parents come first in the dict
                column = self.slices[parent].start
                fits &= mask[:, column] & np.isin(values[:, column], wanted)
            mask[:, self.slices[name]] = fits[:, None]
        return mask

    def cell(self, genomes: Matrix, columns: NDArray[np.intp]) -> Matrix:
        """Width of the cell of an integer or grid value, in the genome's unit."""
        width: Matrix = np.broadcast_to(self._cell[columns], genomes.shape).copy()
        log = np.isin(columns, self._log)
        if log.any():
            width[:, log] = np.log1p(np.exp(-genomes[:, log])) * (1 + 1e-9)
        return width

    def points(self) -> Matrix:
        """Every point of a finite space, one row of values each: for small spaces."""
        levels: list[list[tuple[float, ...]]] = []
        for name, v in self.variables.items():
            low, high = self._value_low[self.slices[name]], self._value_high[self.slices[name]]
            if isinstance(v, Permutation):
                levels.append([tuple(map(float, p)) for p in itertools.permutations(range(v.n))])
            elif isinstance(v, Vector) or low[0] == high[0]:
                levels.append([tuple(low)])
            else:
                cell = self._cell[self.slices[name]][0]
                count = round((high[0] - low[0]) / cell) + 1
                levels.append([(low[0] + cell * i,) for i in range(count)])
        rows = [[x for part in row for x in part] for row in itertools.product(*levels)]
        values: Matrix = np.clip(np.array(rows), self._value_low, self._value_high)
        if self.conditional:
            values = np.where(self._active(values), values, self._inactive)
            first = np.sort(np.unique(values, axis=0, return_index=True)[1])
            values = values[first]
        return values

    # --- what objectives get

    def present(self, values: Matrix) -> Trials:
        """Trials as a vectorised objective gets them: the matrix if numeric (NaN where a
        variable is inactive), else columns."""
        if not self.numeric:
            return self.columns_of(values)
        return np.where(self._active(values), values, np.nan) if self.conditional else values

    def columns_of(self, values: Matrix) -> dict[str, NDArray[Any]]:
        """name -> array of k values (k, n for Permutation and Vector).

        Of a variable with a condition where it is inactive: NaN in a float64 column (Float, Int,
        Vector), None in an object column (the others).
        """
        columns: dict[str, NDArray[Any]] = {}
        mask = self._active(values) if self.conditional else None
        for name, v in self.variables.items():
            part = values[:, self.slices[name]]
            if isinstance(v, Float):
                column: NDArray[Any] = part[:, 0].copy()
            elif isinstance(v, Int):
                column = part[:, 0].astype(np.int64)
            elif isinstance(v, Bool):
                column = part[:, 0] != 0
            elif isinstance(v, Choice):
                codes = part[:, 0].astype(np.intp)
                column = options_array(v)[codes]
                for i in mutable_rows(v, codes):
                    column[i] = copy.deepcopy(column[i])
            elif isinstance(v, Permutation):
                column = part.astype(np.int64)
            else:
                column = part.copy()
            if mask is not None and v.when is not None:
                off = ~mask[:, self.slices[name].start]
                if isinstance(v, (Float, Int, Vector)):
                    column = column.astype(np.float64)
                    column[off] = np.nan
                else:
                    column = objects_of(list(column))
                    column[off] = None
            columns[name] = column
        return columns

    def dicts_of(self, values: Matrix) -> list[dict[str, Any]]:
        """One dict of plain Python values per trial (arrays for Permutation and Vector), without
        the inactive variables."""
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
                codes, options = part[:, 0].astype(np.intp), v.options
                column = [options[i] for i in codes.tolist()]
                for row in mutable_rows(v, codes):
                    column[row] = copy.deepcopy(column[row])
                columns.append(column)
            elif isinstance(v, Permutation):
                columns.append(list(part.astype(np.int64)))
            else:
                columns.append(list(part.copy()))
        names = self.names
        rows = zip(*columns, strict=True)
        if not self.conditional:
            return list(map(dict, map(zip, itertools.repeat(names), rows)))
        starts = [self.slices[name].start for name in names]
        mask = self._active(values)[:, starts].tolist()
        return [
            {name: x for name, x, on in zip(names, row, ons, strict=True) if on}
            for row, ons in zip(rows, mask, strict=True)
        ]

    # --- what users hand in

    def parse(self, trials: Any, name: str = "X") -> Matrix:
        """Values of trials given as ``present`` or ``dicts_of`` gives them, checked.

        Raises
        ------
        ArrayError, DTypeError
            A value outside its bounds, off its grid, missing, unknown, or of another kind.
        """
        if isinstance(trials, Mapping):
            self._check_names(trials, name, partial=False)
            columns = [_column(trials[n], f"{name}.{n}") for n in self.names]
            lengths = {len(column) for column in columns}
            if len(lengths) != 1:
                raise ArrayError(f"{name}: columns of different lengths {sorted(lengths)}")
            rows = zip(*columns, strict=True)
            return self._rows([dict(zip(self.names, r, strict=True)) for r in rows], name)
        if isinstance(trials, (list, tuple)) and trials and isinstance(trials[0], Mapping):
            return self._rows(trials, name)
        if not self.numeric:
            raise DTypeError(f"{name}: expected a dict of columns or a list of dicts")
        values = np.array(as_array(trials, name, dtypes=("float64",), cast="float64"), ndmin=2)
        if values.ndim != 2 or values.shape[1] != self.n_columns:
            raise ArrayError(f"{name}: expected shape (k, {self.n_columns}), got {values.shape}")
        return self.checked(values, name)

    def complete(self, trials: Iterable[Any], drawn: Matrix, name: str) -> Matrix:
        """Values of dicts that may lack variables: those are taken from the rows ``drawn``."""
        full = []
        for i, (trial, values) in enumerate(zip(trials, drawn, strict=True)):
            if not isinstance(trial, Mapping):
                raise DTypeError(f"{name}[{i}]: expected a dict, got {type(trial).__name__}")
            self._check_names(trial, f"{name}[{i}]", partial=True)
            row = values.copy()
            for key in trial:
                row[self.slices[key]] = self._value(key, trial[key], f"{name}[{i}]")
            if self.conditional:  # a drawn value may make a given variable inactive, or active
                row = self._consistent(row, set(trial), f"{name}[{i}]")
            full.append(row)
        return self.checked(np.array(full).reshape(-1, self.n_columns), name)

    def _consistent(self, row: Matrix, given: set[str], name: str) -> Matrix:
        """A row in which every given variable is active; parents that were drawn follow."""
        for key in reversed(self._conditions):  # children before their parents
            if key not in given:
                continue
            for parent, wanted in self._conditions[key]:
                value = row[self.slices[parent].start]
                if parent not in given:
                    given.add(parent)
                    if value not in wanted:
                        row[self.slices[parent].start] = wanted[0]
        mask = self._active(row[None])[0]
        for key in given:
            if not mask[self.slices[key].start]:
                raise ArrayError(f"{name}.{key}: is inactive here, see when= of {key}")
        return np.where(mask, row, self._inactive)

    def _check_names(self, trial: Mapping[Any, Any], name: str, *, partial: bool) -> None:
        missing = [] if partial else [n for n in self.names if n not in trial]
        extra = [str(n) for n in trial if n not in self.variables]
        if missing or extra:
            raise ArrayError(f"{name}: missing {missing}, unknown {extra}")

    def _rows(self, dicts: Iterable[Any], name: str) -> Matrix:
        dicts = list(dicts)
        values = np.tile(self._inactive, (len(dicts), 1))
        for i, trial in enumerate(dicts):
            if not isinstance(trial, Mapping):
                raise DTypeError(f"{name}[{i}]: expected a dict, got {type(trial).__name__}")
            self._check_names(trial, f"{name}[{i}]", partial=self.conditional)
            for key in trial:
                v = self.variables[key]
                if v.when is not None and is_absent(trial[key], v):
                    continue
                values[i, self.slices[key]] = self._value(key, trial[key], f"{name}[{i}]")
        if self.conditional:
            mask = self._active(values)
            for i, trial in enumerate(dicts):
                for key, where in self.slices.items():
                    here = key in trial and not (
                        self.variables[key].when is not None
                        and is_absent(trial[key], self.variables[key])
                    )
                    if here != mask[i, where.start]:
                        what = "is inactive here" if here else "is missing"
                        raise ArrayError(f"{name}[{i}].{key}: {what}")
        return self.checked(values, name)

    def _value(self, key: str, value: Any, name: str) -> Any:
        """What a user gave for one variable, as the number or numbers of its columns."""
        v = self.variables[key]
        try:
            if isinstance(v, Choice):
                return v.index(value)
            if isinstance(v, (Permutation, Vector)):
                return as_array(value, key, dtypes=("float64",), cast="float64", shape=(v.n,))
            if isinstance(value, np.ndarray) and value.ndim == 0:
                value = value[()]
            return number(value, key)
        except (ValueError, TypeError) as error:
            raise ArrayError(f"{name}.{key}: {error}") from None

    def checked(self, values: Matrix, name: str) -> Matrix:
        """Inside the bounds; whole where they must be; on the grid; orders are orders."""
        if self.numeric and self.conditional:
            mask = self._active(values)
            values = np.where(np.isnan(values) & ~mask, self._inactive, values)
        values += 0.0  # one zero
        fits = (values >= self._value_low) & (values <= self._value_high)
        fits[:, self._whole] &= values[:, self._whole] == np.rint(values[:, self._whole])
        for key, v in self.variables.items():
            where = self.slices[key]
            if isinstance(v, Permutation):
                fits[:, where] &= np.sort(values[:, where], axis=1) == np.arange(v.n)
            elif isinstance(v, Float) and v.step is not None:
                # A value that is written otherwise than low + i step may differ by rounding.
                near = v.low + v.step * np.rint((values[:, where] - v.low) / v.step)
                near = np.clip(near, v.low, self._value_high[where])
                close = np.abs(values[:, where] - near) <= 1e-9 * v.step
                fits[:, where] = close
                values[:, where] = np.where(close, near, values[:, where])
        if not fits.all():
            i, j = np.argwhere(~fits)[0]
            key = next(n for n, s in self.slices.items() if s.start <= j < s.stop)
            raise ArrayError(
                f"{name}[{i}].{key}: {values[i, j]:g} is not a value of {self.variables[key]!r}"
            )
        return values


def _column(values: Any, name: str) -> Any:
    """One value per trial; lists and tuples stay as they are, since options may be any object."""
    if isinstance(values, (list, tuple)):
        return values
    column = as_ndarray(values, name)
    if column.ndim == 0:
        raise ArrayError(f"{name}: expected one value per trial, got {short(values)}; pass a list")
    return column
