"""The columns of the matrix of trials: where each variable stands, its bounds, when it is active,
and the way between genomes and values (see ``space``)."""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt.search.columns import column_of, conditions_of, limits_of
from fastopt.search.variables import Float, Int, Permutation, Variable, Vector

__all__ = ["LISTED", "Layout", "Mask", "Matrix"]

Matrix: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

# Points up to which a finite space is listed, to see that it was searched.
LISTED = 1 << 16


class Layout:
    """Columns of variables, in order.

    Parameters
    ----------
    variables : dict of str to variable

    Attributes
    ----------
    names : tuple of str
    slices : dict of str to slice
        Each variable's columns.
    low, high : (d,) float64
        Bounds of genomes, not writable.
    value_low, value_high : (d,) float64
        Bounds of values: rounding of exp and log must not step over them.
    cells : (d,) float64
        Distance of neighbouring values in the columns of integers and grids, 1 elsewhere.
    inactive : (d,) float64
        What an inactive variable holds.
    categorical, ordered, log, whole : (n,) intp
        Columns of categories; of integers and grids; that are logarithms in genomes; that hold
        whole numbers.
    identity : bool
        True if a genome is its values.
    """

    def __init__(self, variables: dict[str, Variable]) -> None:
        self.variables: dict[str, Variable] = variables
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
        self.log: NDArray[np.intp] = np.flatnonzero((kind_of == "log") | (kind_of == "log int"))
        self.whole: NDArray[np.intp] = np.flatnonzero(
            (kind_of == "int") | (kind_of == "log int") | (kind_of == "category")
        )
        # The values' own bounds: rounding of exp and log must not step over them.
        self.value_low: Matrix = np.empty(self.n_columns)
        self.value_high: Matrix = np.empty(self.n_columns)
        self.cells: Matrix = np.ones(self.n_columns)  # of grid and integer columns
        for name, v in variables.items():
            if isinstance(v, Float) and v.step is not None:
                self.cells[self.slices[name]] = v.step
            self.value_low[self.slices[name]], self.value_high[self.slices[name]] = limits_of(v)
        self.conditions = conditions_of(self.variables)
        self.conditional: bool = bool(self.conditions)
        self.identity: bool = bool((kind_of == "real").all()) and not self.conditional
        self.inactive: Matrix = self.value_low.copy()  # what an inactive variable holds
        for name, v in variables.items():
            if isinstance(v, Permutation):
                self.inactive[self.slices[name]] = np.arange(v.n)
        if self.conditional and self.size <= LISTED:
            self.size = float(len(self.points()))

    def values_of(self, genomes: Matrix) -> Matrix:
        """Values of genomes; the same array where every variable is a plain Float or Vector."""
        if self.identity:
            return genomes
        values: Matrix = genomes.copy()
        if len(self.log):
            values[:, self.log] = np.exp(values[:, self.log])
        if len(self.whole):
            values[:, self.whole] = np.rint(values[:, self.whole])
        for name, v in self.variables.items():
            where = self.slices[name]
            if isinstance(v, Float) and v.step is not None:
                values[:, where] = v.low + v.step * np.rint((values[:, where] - v.low) / v.step)
            elif isinstance(v, Permutation):
                values[:, where] = np.argsort(genomes[:, where], axis=1, kind="stable")
        np.clip(values, self.value_low, self.value_high, out=values)
        values += 0.0  # one zero: rint makes -0.0 of small negative numbers
        if self.conditional:
            values = np.where(self.active(values), values, self.inactive)
        return values

    def genomes_of(self, values: Matrix) -> Matrix:
        """The genome in the middle of each value's cell."""
        if self.identity:
            return values
        genomes: Matrix = values.copy()
        if len(self.log):
            genomes[:, self.log] = np.log(genomes[:, self.log])
        for name, v in self.variables.items():
            if isinstance(v, Permutation):
                where = self.slices[name]
                keys = np.empty((len(values), v.n))
                order = values[:, where].astype(np.intp)
                np.put_along_axis(keys, order, (np.arange(v.n) + 0.5) / v.n, axis=1)
                genomes[:, where] = keys
        np.clip(genomes, self.low, self.high, out=genomes)
        return genomes

    def active(self, values: Matrix) -> Mask:
        """Which columns of each trial count: (k, d), False for those of inactive variables."""
        mask = np.ones(values.shape, dtype=bool)
        for name, conditions in self.conditions.items():
            fits = np.ones(len(values), dtype=bool)
            for parent, wanted in conditions:  # parents come first in the dict
                column = self.slices[parent].start
                fits &= mask[:, column] & np.isin(values[:, column], wanted)
            mask[:, self.slices[name]] = fits[:, None]
        return mask

    def cell(self, genomes: Matrix, columns: NDArray[np.intp]) -> Matrix:
        """Width of the cell of an integer or grid value, in the genome's unit."""
        width: Matrix = np.broadcast_to(self.cells[columns], genomes.shape).copy()
        log = np.isin(columns, self.log)
        if log.any():
            width[:, log] = np.log1p(np.exp(-genomes[:, log])) * (1 + 1e-9)
        return width

    def points(self) -> Matrix:
        """Every point of a finite space, one row of values each: for small spaces."""
        levels: list[list[tuple[float, ...]]] = []
        for name, v in self.variables.items():
            low, high = self.value_low[self.slices[name]], self.value_high[self.slices[name]]
            if isinstance(v, Permutation):
                levels.append([tuple(map(float, p)) for p in itertools.permutations(range(v.n))])
            elif isinstance(v, Vector) or low[0] == high[0]:
                levels.append([tuple(low)])
            else:
                cell = self.cells[self.slices[name]][0]
                count = round((high[0] - low[0]) / cell) + 1
                levels.append([(low[0] + cell * i,) for i in range(count)])
        rows = [[x for part in row for x in part] for row in itertools.product(*levels)]
        values: Matrix = np.clip(np.array(rows), self.value_low, self.value_high)
        if self.conditional:
            values = np.where(self.active(values), values, self.inactive)
            first = np.sort(np.unique(values, axis=0, return_index=True)[1])
            values = values[first]
        return values
