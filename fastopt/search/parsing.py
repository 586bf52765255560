"""Trials that users hand in, checked, as rows of the matrix of trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastopt._arrays import as_array, as_ndarray
from fastopt._options import number, short
from fastopt.errors import ArrayError, DTypeError
from fastopt.search.columns import is_absent
from fastopt.search.layout import Layout, Matrix
from fastopt.search.variables import Choice, Float, Permutation, Vector

__all__ = ["checked", "complete", "parse"]


def parse(layout: Layout, trials: Any, name: str = "X") -> Matrix:
    """Values of trials given as ``present`` or ``dicts_of`` gives them, checked.

    Raises
    ------
    ArrayError, DTypeError
        A value outside its bounds, off its grid, missing, unknown, or of another kind.
    """
    if isinstance(trials, Mapping):
        _check_names(layout, trials, name, partial=False)
        columns = [_column(trials[n], f"{name}.{n}") for n in layout.names]
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise ArrayError(f"{name}: columns of different lengths {sorted(lengths)}")
        rows = zip(*columns, strict=True)
        return _rows(layout, [dict(zip(layout.names, r, strict=True)) for r in rows], name)
    if isinstance(trials, (list, tuple)) and trials and isinstance(trials[0], Mapping):
        return _rows(layout, trials, name)
    if not layout.numeric:
        raise DTypeError(f"{name}: expected a dict of columns or a list of dicts")
    values = np.atleast_2d(as_array(trials, name, dtypes=("float64",), cast="float64"))
    if values.ndim != 2 or values.shape[1] != layout.n_columns:
        raise ArrayError(f"{name}: expected shape (k, {layout.n_columns}), got {values.shape}")
    return checked(layout, values, name)


def complete(layout: Layout, trials: Iterable[Any], drawn: Matrix, name: str) -> Matrix:
    """Values of dicts that may lack variables: those are taken from the rows ``drawn``."""
    full = []
    for i, (trial, values) in enumerate(zip(trials, drawn, strict=True)):
        if not isinstance(trial, Mapping):
            raise DTypeError(f"{name}[{i}]: expected a dict, got {type(trial).__name__}")
        _check_names(layout, trial, f"{name}[{i}]", partial=True)
        row = values.copy()
        for key in trial:
            row[layout.slices[key]] = _value(layout, key, trial[key], f"{name}[{i}]")
        if layout.conditional:  # a drawn value may make a given variable inactive, or active
            row = _consistent(layout, row, set(trial), f"{name}[{i}]")
        full.append(row)
    return checked(layout, np.array(full).reshape(-1, layout.n_columns), name)


def _consistent(layout: Layout, row: Matrix, given: set[str], name: str) -> Matrix:
    """A row in which every given variable is active; parents that were drawn follow."""
    for key in reversed(layout.conditions):  # children before their parents
        if key not in given:
            continue
        for parent, wanted in layout.conditions[key]:
            value = row[layout.slices[parent].start]
            if parent not in given:
                given.add(parent)
                if value not in wanted:
                    row[layout.slices[parent].start] = wanted[0]
    mask = layout.active(row[None])[0]
    for key in given:
        if not mask[layout.slices[key].start]:
            raise ArrayError(f"{name}.{key}: is inactive here, see when= of {key}")
    return np.where(mask, row, layout.inactive)


def _check_names(layout: Layout, trial: Mapping[Any, Any], name: str, *, partial: bool) -> None:
    missing = [] if partial else [n for n in layout.names if n not in trial]
    extra = [str(n) for n in trial if n not in layout.variables]
    if missing or extra:
        raise ArrayError(f"{name}: missing {missing}, unknown {extra}")


def _rows(layout: Layout, dicts: Iterable[Any], name: str) -> Matrix:
    dicts = list(dicts)
    values = np.tile(layout.inactive, (len(dicts), 1))
    for i, trial in enumerate(dicts):
        if not isinstance(trial, Mapping):
            raise DTypeError(f"{name}[{i}]: expected a dict, got {type(trial).__name__}")
        _check_names(layout, trial, f"{name}[{i}]", partial=layout.conditional)
        for key in trial:
            v = layout.variables[key]
            if v.when is not None and is_absent(trial[key], v):
                continue
            values[i, layout.slices[key]] = _value(layout, key, trial[key], f"{name}[{i}]")
    if layout.conditional:
        mask = layout.active(values)
        for i, trial in enumerate(dicts):
            for key, where in layout.slices.items():
                here = key in trial and not (
                    layout.variables[key].when is not None
                    and is_absent(trial[key], layout.variables[key])
                )
                if here != mask[i, where.start]:
                    what = "is inactive here" if here else "is missing"
                    raise ArrayError(f"{name}[{i}].{key}: {what}")
    return checked(layout, values, name)


def _value(layout: Layout, key: str, value: Any, name: str) -> Any:
    """What a user gave for one variable, as the number or numbers of its columns."""
    v = layout.variables[key]
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


def checked(layout: Layout, values: Matrix, name: str) -> Matrix:
    """A copy inside the bounds; whole where they must be; on the grid; orders are orders."""
    if layout.numeric and layout.conditional:
        mask = layout.active(values)
        values = np.where(np.isnan(values) & ~mask, layout.inactive, values)
    values = values + 0.0  # one zero
    if layout.identity:
        lowest, highest = values.min(axis=0, initial=np.inf), values.max(axis=0, initial=-np.inf)
        if ((lowest >= layout.value_low) & (highest <= layout.value_high)).all():  # NaN is not
            return values
    fits = (values >= layout.value_low) & (values <= layout.value_high)
    fits[:, layout.whole] &= values[:, layout.whole] == np.rint(values[:, layout.whole])
    for key, v in layout.variables.items():
        where = layout.slices[key]
        if isinstance(v, Permutation):
            fits[:, where] &= np.sort(values[:, where], axis=1) == np.arange(v.n)
        elif isinstance(v, Float) and v.step is not None:
            # A value that is written otherwise than low + i step may differ by rounding.
            near = v.low + v.step * np.rint((values[:, where] - v.low) / v.step)
            near = np.clip(near, v.low, layout.value_high[where])
            close = np.abs(values[:, where] - near) <= 1e-9 * v.step
            fits[:, where] = close
            values[:, where] = np.where(close, near, values[:, where])
    if not fits.all():
        i, j = np.argwhere(~fits)[0]
        key = next(n for n, s in layout.slices.items() if s.start <= j < s.stop)
        raise ArrayError(
            f"{name}[{i}].{key}: {values[i, j]:g} is not a value of {layout.variables[key]!r}"
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
