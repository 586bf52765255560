"""A journal as a result, without its search: for looking at it from outside."""

from __future__ import annotations

import math
from os import PathLike, fspath
from typing import Any

import numpy as np

from fastopt.errors import DTypeError, FastoptError, FormatError, UnsupportedError
from fastopt.search.journal import Record, read
from fastopt.search.layout import Matrix
from fastopt.search.parsing import checked
from fastopt.search.result import Result
from fastopt.search.space import Space

__all__ = ["load_result"]


def load_result(path: str | PathLike[str], space: Space | None = None) -> Result:
    """What the journal of a search holds so far; its search may still be running.

    Parameters
    ----------
    path : path
    space : Space, optional
        Needed where options or values are not in the journal: options that JSON cannot hold, more
        than 64 columns.

    Returns
    -------
    Result
        ``message`` is "journal", ``elapsed_s`` NaN.

    Raises
    ------
    FormatError
        The file is no journal of ``minimize``, or of another space.
    DTypeError
        ``space`` is no Space.
    UnsupportedError
        The journal does not hold the space, and none was given.

    Examples
    --------
    >>> import tempfile
    >>> from fastopt import Float, minimize
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     res = minimize(lambda x: x, {"x": Float(0, 1)}, max_evals=9, storage=folder + "/j")
    ...     load_result(folder + "/j").fun == res.fun
    True
    """
    if space is not None and not isinstance(space, Space):
        raise DTypeError(f"space: expected a Space, got {type(space).__name__}")
    header, trials = read(path)
    path = fspath(path)
    needed = {"space", "variables", "method", "signs", "constraints"}
    if not needed <= set(header) or not _is_signs(header["signs"]):
        raise FormatError("not the journal of a search by minimize", path, 0)
    if space is None:
        try:
            space = Space.from_dict(header["variables"])
        except FormatError:
            raise UnsupportedError(
                f"{path}: the options of its space are not in the file; pass space="
            ) from None
    if space.digest != header["space"]:
        raise FormatError("belongs to another space", path, 0)
    numbers = sorted(trials) if header.get("mode") != "async" else list(trials)
    return _result(space, header, numbers, [trials[n] for n in numbers], path)


def _result(
    space: Space, header: dict[str, Any], numbers: list[int], records: list[Record], path: str
) -> Result:
    signs = np.array(header["signs"], dtype=np.float64)
    found = [len(r.outcome.y) for r in records if isinstance(r.outcome.y, tuple)]
    m = max([len(signs), *found])
    if len(signs) not in (1, m) or len(set(found)) > 1:
        raise FormatError("trials of different numbers of objectives", path)
    values = np.empty((len(records), space.n_columns))
    y = np.full((len(records), m), math.nan)
    violations = np.zeros(len(records))
    for i, record in enumerate(records):
        if record.values is None or len(record.values) != space.n_columns:
            raise UnsupportedError(f"{path}: trial {numbers[i]} is recorded without its values")
        values[i] = record.values
        y[i] = record.outcome.y
        violations[i] = sum(max(c, 0.0) for c in record.outcome.constraints)
    try:
        values = checked(space.layout, values, "trial") if len(values) else values
    except FastoptError as error:
        raise FormatError(f"values of another space: {error}", path) from None
    failed = np.isnan(y).any(axis=1)
    history = y * signs
    stopped = {n for n, r in zip(numbers, records, strict=True) if r.outcome.stopped}
    errors = {n: r.outcome.message for n, r in zip(numbers, records, strict=True)}
    best = _best(y, violations, failed | np.isin(numbers, list(stopped)))
    maximize = tuple(bool(s < 0) for s in signs)
    result = Result(
        x=None if best is None else space.dicts_of(values[best][None])[0],
        fun=math.nan if best is None else float(history[best, 0]),
        n_evals=len(records),
        n_failed=int(failed.sum()),
        history=history[:, 0] if m == 1 else history,
        message="journal",
        method=str(header["method"]),
        method_reason="",
        elapsed_s=math.nan,
        space=space,
        maximize=maximize[0] if len(maximize) == 1 else maximize,
        violation=math.nan if best is None else float(violations[best]),
        violations=violations if header["constraints"] else None,
        errors={n: e for n, e in errors.items() if e is not None},
        stopped=stopped,
        numbers=np.array(numbers, dtype=np.int64),
        values=values,
    )
    return result if m == 1 else result.with_compromise()


def _best(y: Matrix, violations: Matrix, out: Any) -> int | None:
    """Row of the best trial of one objective, by Deb's rules."""
    if y.shape[1] > 1 or not len(y) or out.all():
        return None
    order = np.lexsort((np.where(np.isnan(y[:, 0]), math.inf, y[:, 0]), violations, out))
    return int(order[0])


def _is_signs(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(v in (1.0, -1.0) for v in value)
