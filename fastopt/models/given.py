"""What a caller hands to a model: checked here, once for every adapter."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_ndarray
from fastopt._options import choice, integer, items, mapping, names
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.models.base import Input, Layer, Model
from fastopt.quantization import QuantizedArray

__all__ = [
    "batch_of",
    "codes_of",
    "feeds_of",
    "first_batch",
    "fitted_of",
    "index_of",
    "limit_of",
    "n_rows_of",
    "numbers",
    "taken",
    "taps_of",
    "tried_of",
]


def feeds_of(data: Any, inputs: Sequence[Input]) -> list[dict[str, Array]]:
    """Data as feeds: for each the arrays of the inputs by name, rows on axis 0.

    Parameters
    ----------
    data : mapping of arrays by input name, or a sequence of such mappings
    inputs : sequence of Input

    Raises
    ------
    DTypeError
        No mapping; an array that NumPy cannot read.
    ArrayError
        An array is missing, has another rank or row shape, or another number of rows.
    """
    parts = [data] if isinstance(data, Mapping) else items(data, "data")
    return [_feed(part, inputs) for part in parts]


def _feed(part: Any, inputs: Sequence[Input]) -> dict[str, Array]:
    given = mapping(part, "data")
    found: dict[str, Array] = {}
    for i in inputs:
        if i.name not in given:
            raise ArrayError(f"data: no array named {i.name!r}; it has {sorted(given)}")
        a = as_ndarray(given[i.name], f"data[{i.name!r}]")
        if a.dtype.kind not in "fiub":
            raise DTypeError(f"data[{i.name!r}]: expected real numbers, got dtype {a.dtype}")
        fits = a.ndim == len(i.shape) and all(
            want is None or want == n for want, n in zip(i.shape, a.shape, strict=True)
        )
        if not fits or a.ndim == 0:
            wanted = ", ".join("any" if n is None else str(n) for n in i.shape)
            raise ArrayError(f"data[{i.name!r}]: expected shape ({wanted}), got {a.shape}")
        found[i.name] = a
    if len({len(a) for a in found.values()}) > 1:
        raise ArrayError(f"data: arrays differ in rows: {[len(a) for a in found.values()]}")
    return found


def first_batch(data: Any, inputs: Sequence[Input], batch_size: Any) -> dict[str, Array]:
    """The first rows of the first feed."""
    feeds, size = feeds_of(data, inputs), batch_of(batch_size)
    if not feeds or not len(next(iter(feeds[0].values()), ())):
        raise ArrayError("data: expected at least one row, got none")
    return {name: a[:size] for name, a in feeds[0].items()}


def n_rows_of(data: Any, inputs: Sequence[Input]) -> int:
    """Rows of a mapping, or the number of feeds of a sequence."""
    return _count(data, feeds_of(data, inputs))


def _count(data: Any, feeds: Sequence[Mapping[str, Array]]) -> int:
    return len(next(iter(feeds[0].values()), ())) if isinstance(data, Mapping) else len(feeds)


def taken(data: Any, index: Any, inputs: Sequence[Input]) -> Any:
    """The rows of a mapping, or the feeds of a sequence, of those numbers, in that order."""
    feeds = feeds_of(data, inputs)
    at = index_of(index, _count(data, feeds))
    if isinstance(data, Mapping):
        return {name: a[at] for name, a in feeds[0].items()}
    return [feeds[k] for k in at]


def index_of(index: Any, n: int, name: str = "index") -> Array:
    """Row numbers below ``n``, (k,) intp; negative ones count from the end."""
    a = as_ndarray(index, name)
    if a.ndim != 1 or (a.size and a.dtype.kind not in "iu"):
        raise ArrayError(f"{name}: expected row numbers, got {a.dtype} of shape {a.shape}")
    if a.size and not (-n <= int(a.min()) and int(a.max()) < n):
        raise ArrayError(f"{name}: expected row numbers below {n}, got {a.min()}..{a.max()}")
    found: Array = a.astype(np.intp)
    return found


def batch_of(batch_size: Any) -> int | None:
    """Rows per batch; None for all at once."""
    return None if batch_size is None else integer(batch_size, "batch_size", low=1)


def limit_of(limit: Any) -> int | None:
    """Rows at most; None for all."""
    return None if limit is None else integer(limit, "limit", low=1)


def taps_of(taps: Any, known: Collection[str]) -> tuple[str, ...]:
    """Names of tensors that can be observed, each once."""
    found = tuple(dict.fromkeys(names(taps, "taps")))
    if unknown := [tap for tap in found if tap not in known]:
        raise OptionError(f"taps: no tensor named {unknown[0]!r}")
    return found


def numbers(a: Any, name: str, shape: Sequence[int | None] | None = None) -> Array:
    """Weights or activations: float32, C-contiguous, of that shape."""
    return as_array(a, name, dtypes=("float32",), cast="float32", shape=shape)


def tried_of(weights: Any, model: Model) -> dict[str, Array]:
    """Other weights of layers for one run: name -> (n_out, n_in) float32."""
    given = {} if weights is None else mapping(weights, "weights")
    if not given:
        return {}  # layers, which a changed model describes anew, are not asked for
    found, layers = {}, model.layers
    for name, w in given.items():
        shape = layers[choice(name, "weights", layers)].weight.shape
        found[name] = numbers(w, f"weights[{name!r}]", shape)
    return found


def fitted_of(weights: Any, members: Collection[str]) -> dict[str, tuple[Array, Array | None]]:
    """New (weight, bias) of a group's layers, in whatever shape they have after the edit."""
    if weights is None:
        return {}
    found: dict[str, tuple[Array, Array | None]] = {}
    for name, given in mapping(weights, "weights").items():
        if name not in members:
            raise OptionError(f"weights: the group has {sorted(members)}, got {name!r}")
        pair = items(given, f"weights[{name!r}]")
        if len(pair) != 2:
            raise OptionError(f"weights[{name!r}]: expected (weight, bias), got {len(pair)} items")
        weight, bias = pair
        found[name] = (
            numbers(weight, f"weights[{name!r}]", (None, None)),
            None if bias is None else numbers(bias, f"weights[{name!r}]: bias", (None,)),
        )
    return found


def codes_of(codes: Any, layer: Layer) -> QuantizedArray | None:
    """The codes for a layer's weight, or None."""
    if codes is None:
        return None
    if not isinstance(codes, QuantizedArray):
        raise DTypeError(f"codes: expected a QuantizedArray, got {type(codes).__name__}")
    if tuple(codes.shape) != layer.weight.shape:
        raise ArrayError(
            f"codes: {layer.name} needs shape {layer.weight.shape}, got {tuple(codes.shape)}"
        )
    return codes
