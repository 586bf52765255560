"""`prune`: which connections go, for one array, a list or a dict of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, as_target, check_disjoint
from fastopt._options import choice, number
from fastopt.errors import DTypeError
from fastopt.pruning import magnitude

__all__ = ["Pruned", "prune"]


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What :func:`prune` made.

    Attributes
    ----------
    arrays : array, list or dict
        The pruned weights, structured as the input was.
    masks : array, list, dict or None
        True where a weight stays: bool of the weight's shape, or packed bits (``masks="packed"``:
        uint8, element i in bit i % 8 of byte i // 8 of the flattened array).
    threshold : float, list or dict
        The largest magnitude removed (0 where nothing was): one number under ``scope="global"``
        and for a single array, else structured as the input was.
    sparsity : float
        Fraction of all elements that were removed.
    """

    arrays: Any
    masks: Any
    threshold: Any
    sparsity: float


def prune(
    w: Any,
    sparsity: float = 0.8,
    *,
    pattern: str = "unstructured",
    scope: str = "global",
    masks: str = "bool",
    out: Any = None,
    threads: int | None = None,
) -> Pruned:
    """Set the k = round(sparsity * n) smallest magnitudes |w| to zero, exactly k of them.

    Parameters
    ----------
    w : array, list, tuple or dict of arrays
        Weights, float32 or float64, any shape. Not changed unless passed as ``out``.
    sparsity : float
        Fraction of the elements that become zero, 0..1.
    pattern : "unstructured"
        Any element may go.
    scope : "global" or "local"
        One threshold for all arrays together, or the same fraction of each array.
    masks : "bool", "packed" or "none"
        Form of the masks that come back: a byte or a bit per element, or nothing.
    out : array, list, tuple or dict, optional
        Where the result goes, structured and shaped as ``w``; ``out=w`` prunes in place.
    threads : int, optional
        Threads; the result does not depend on them.

    Returns
    -------
    Pruned
        ``.arrays``, ``.masks``, ``.threshold``, ``.sparsity``.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, or more elements are to go than are numbers. Nothing was written.

    Notes
    -----
    Rounding: k is rounded half to even, as in torch.nn.utils.prune. Ties: among equal magnitudes
    the earlier element goes first (earlier array, then C order), so the count is exact and the
    result is one for every machine and thread count. NaN counts as larger than infinity and is
    never removed. A removed element becomes +0; a kept one keeps its bits. Cost: one read of the
    data to select (a sampled bracket, then a partition of the about 3 % inside), one read and one
    write to apply; the extra memory is about 4 % of the data, plus the masks.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = fastopt.prune(np.array([3.0, -0.5, 0.1, 2.0]), sparsity=0.5)
    >>> p.arrays.tolist(), p.masks.tolist(), p.threshold
    ([3.0, 0.0, 0.0, 2.0], [True, False, False, True], 0.5)
    """
    fraction = number(sparsity, "sparsity", low=0.0, high=1.0)
    choice(pattern, "pattern", ("unstructured",))
    choice(scope, "scope", ("global", "local"))
    choice(masks, "masks", ("bool", "packed", "none"))
    names, given = _flatten(w, "w")
    arrays = [as_array(a, name) for name, a in zip(names, given, strict=True)]
    if scope == "global" and len({a.dtype for a in arrays}) > 1:
        raise DTypeError(
            "w: float32 and float64 arrays cannot share one threshold; "
            'use scope="local" or one dtype'
        )
    targets = _targets(out, w, names, arrays)
    used = _threads.resolve(threads, sum(a.size for a in arrays))
    if scope == "global":
        groups = [list(range(len(arrays)))] if arrays else []
    else:
        groups = [[i] for i in range(len(arrays))]
    counts = [round(fraction * sum(arrays[i].size for i in group)) for group in groups]
    cuts = [
        magnitude.cut_at([arrays[i] for i in group], k, used)
        for group, k in zip(groups, counts, strict=True)
    ]
    # every check is done: from here on only writes
    outs = targets if targets is not None else [np.empty(a.shape, a.dtype) for a in arrays]
    keeps: list[Array | None] = []
    for a in arrays:
        keeps.append(np.empty(a.shape, np.bool_) if masks != "none" else None)
    for group, cut in zip(groups, cuts, strict=True):
        magnitude.zero_below(
            [outs[i] for i in group],
            [keeps[i] for i in group],
            [arrays[i] for i in group],
            cut,
            used,
        )
    if masks == "packed":
        keeps = [None if k is None else np.packbits(k, bitorder="little") for k in keeps]
    thresholds = [
        magnitude.threshold_of(cut, arrays[group[0]].dtype)
        for group, cut in zip(groups, cuts, strict=True)
    ]
    one = scope == "global" or not isinstance(w, (list, tuple, Mapping))
    total = sum(a.size for a in arrays)
    return Pruned(
        arrays=_rebuild(w, outs),
        masks=None if masks == "none" else _rebuild(w, keeps),
        threshold=(thresholds[0] if thresholds else 0.0) if one else _rebuild(w, thresholds),
        sparsity=sum(counts) / total if total else 0.0,
    )


def _flatten(w: Any, name: str) -> tuple[list[str], list[Any]]:
    """Names for messages and the members, in order."""
    if isinstance(w, Mapping):
        return [f"{name}[{key!r}]" for key in w], list(w.values())
    if isinstance(w, (list, tuple)) and not _is_number_list(w):
        return [f"{name}[{i}]" for i in range(len(w))], list(w)
    return [name], [w]


def _is_number_list(w: Any) -> bool:
    """A nested list of numbers is one array, not a list of arrays."""
    while isinstance(w, (list, tuple)) and w:
        w = w[0]
    return isinstance(w, (int, float, np.generic))


def _rebuild(w: Any, members: list[Any]) -> Any:
    """``members`` in the structure of ``w``."""
    if isinstance(w, Mapping):
        return dict(zip(w, members, strict=True))
    if isinstance(w, (list, tuple)) and not _is_number_list(w):
        return tuple(members) if isinstance(w, tuple) else members
    return members[0]


def _targets(out: Any, w: Any, names: list[str], arrays: list[Array]) -> list[Array] | None:
    if out is None:
        return None
    if isinstance(w, Mapping) and isinstance(out, Mapping):
        if set(out) != set(w):
            raise DTypeError("out: expected the keys of w")
        given = [out[key] for key in w]
    else:
        given = _flatten(out, "out")[1]
    if len(given) != len(arrays) or isinstance(out, Mapping) != isinstance(w, Mapping):
        raise DTypeError(f"out: expected {len(arrays)} arrays structured as w, got {len(given)}")
    outs = [
        as_target(o, name.replace("w", "out", 1), dtypes=(a.dtype.name,), shape=a.shape)
        for name, o, a in zip(names, given, arrays, strict=True)
    ]
    written = [(name.replace("w", "out", 1), o) for name, o in zip(names, outs, strict=True)]
    for i, o in enumerate(outs):
        others = [(n, a) for j, (n, a) in enumerate(zip(names, arrays, strict=True)) if j != i]
        if o.__array_interface__["data"] != arrays[i].__array_interface__["data"]:
            others.append((names[i], arrays[i]))
        check_disjoint([written[i]], [*written[i + 1 :], *others])
    return outs
