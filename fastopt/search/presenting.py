"""Trials as objectives get them: columns, or one dict each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt.search.columns import mutable_rows, objects_of, options_array
from fastopt.search.layout import Layout, Matrix
from fastopt.search.variables import Bool, Choice, Float, Int, Permutation, Vector

__all__ = ["columns_of", "dicts_of"]


def columns_of(layout: Layout, values: Matrix) -> dict[str, NDArray[Any]]:
    """name -> array of k values (k, n for Permutation and Vector).

    Of a variable with a condition where it is inactive: NaN in a float64 column (Float, Int,
    Vector), None in an object column (the others).
    """
    columns: dict[str, NDArray[Any]] = {}
    if not layout.conditional and all(isinstance(v, Bool) for v in layout.variables.values()):
        return dict(zip(layout.names, np.ascontiguousarray((values != 0).T), strict=True))
    mask = layout.active(values) if layout.conditional else None
    for name, v in layout.variables.items():
        part = values[:, layout.slices[name]]
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
            off = ~mask[:, layout.slices[name].start]
            if isinstance(v, (Float, Int, Vector)):
                column = column.astype(np.float64)
                column[off] = np.nan
            else:
                column = objects_of(list(column))
                column[off] = None
        columns[name] = column
    return columns


def dicts_of(layout: Layout, values: Matrix) -> list[dict[str, Any]]:
    """One dict of plain Python values per trial (arrays for Permutation and Vector), without
    the inactive variables."""
    columns: list[Iterable[Any]] = []
    for name, v in layout.variables.items():
        part = values[:, layout.slices[name]]
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
    names = layout.names
    rows = zip(*columns, strict=True)
    if not layout.conditional:
        return list(map(dict, map(zip, itertools.repeat(names), rows)))
    starts = [layout.slices[name].start for name in names]
    mask = layout.active(values)[:, starts].tolist()
    return [
        {name: x for name, x, on in zip(names, row, ons, strict=True) if on}
        for row, ons in zip(rows, mask, strict=True)
    ]
