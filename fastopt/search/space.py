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

from collections.abc import Iterable, Mapping
from functools import cached_property
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt.errors import DTypeError, FastoptError, FormatError, OptionError
from fastopt.search import interchange
from fastopt.search.identity import describe, digest_of
from fastopt.search.layout import Layout, Mask, Matrix
from fastopt.search.parsing import complete, parse
from fastopt.search.presenting import columns_of, dicts_of
from fastopt.search.variables import Bool, Choice, Float, Int, Permutation, Variable, Vector

__all__ = ["Bool", "Choice", "Float", "Int", "Permutation", "Space", "Variable", "Vector"]

Trials: TypeAlias = "Matrix | dict[str, NDArray[Any]]"


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
        self.layout = Layout(dict(variables))
        self.variables: dict[str, Variable] = self.layout.variables
        self.names: tuple[str, ...] = self.layout.names
        self.slices: dict[str, slice] = self.layout.slices
        self.n_columns: int = self.layout.n_columns
        self.size: float = self.layout.size
        self.low: Matrix = self.layout.low
        self.high: Matrix = self.layout.high
        self.categorical: NDArray[np.intp] = self.layout.categorical
        self.ordered: NDArray[np.intp] = self.layout.ordered
        self.numeric: bool = self.layout.numeric
        self.conditional: bool = self.layout.conditional
        self.identity: bool = self.layout.identity

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
        return self.layout.values_of(genomes)

    def genomes_of(self, values: Matrix) -> Matrix:
        """The genome in the middle of each value's cell."""
        return self.layout.genomes_of(values)

    def active(self, genomes: Matrix) -> Mask:
        """Which columns of each genome count: (k, d), False for those of inactive variables."""
        if not self.conditional:
            return np.ones(genomes.shape, dtype=bool)
        return self.layout.active(self.values_of(genomes))

    def cell(self, genomes: Matrix, columns: NDArray[np.intp]) -> Matrix:
        """Width of the cell of an integer or grid value, in the genome's unit."""
        return self.layout.cell(genomes, columns)

    def points(self) -> Matrix:
        """Every point of a finite space, one row of values each: for small spaces."""
        return self.layout.points()

    # --- what objectives get

    def present(self, values: Matrix) -> Trials:
        """Trials as a vectorised objective gets them: the matrix if numeric (NaN where a
        variable is inactive), else columns."""
        if not self.numeric:
            return self.columns_of(values)
        return np.where(self.layout.active(values), values, np.nan) if self.conditional else values

    def columns_of(self, values: Matrix) -> dict[str, NDArray[Any]]:
        """name -> array of k values (k, n for Permutation and Vector).

        Of a variable with a condition where it is inactive: NaN in a float64 column (Float, Int,
        Vector), None in an object column (the others).
        """
        return columns_of(self.layout, values)

    def dicts_of(self, values: Matrix) -> list[dict[str, Any]]:
        """One dict of plain Python values per trial (arrays for Permutation and Vector), without
        the inactive variables."""
        return dicts_of(self.layout, values)

    # --- what users hand in

    def parse(self, trials: Any, name: str = "X") -> Matrix:
        """Values of trials given as ``present`` or ``dicts_of`` gives them, checked.

        Raises
        ------
        ArrayError, DTypeError
            A value outside its bounds, off its grid, missing, unknown, or of another kind.
        """
        return parse(self.layout, trials, name)

    def complete(self, trials: Iterable[Any], drawn: Matrix, name: str) -> Matrix:
        """Values of dicts that may lack variables: those are taken from the rows ``drawn``."""
        return complete(self.layout, trials, drawn, name)
