"""Named arrays (a dict, a .safetensors file) as a model: what is coupled stands in a spec."""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_ndarray
from fastopt._files import path_of, storage_errors, write_whole
from fastopt._optional import package
from fastopt._options import choice, function, items, mapping, names
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError, UnsupportedError
from fastopt.models.base import FLOAT32, Form, Group, Input, Layer, Member, Model
from fastopt.models.given import (
    batch_of,
    feeds_of,
    first_batch,
    fitted_of,
    limit_of,
    n_rows_of,
    numbers,
    taken,
    taps_of,
    tried_of,
)
from fastopt.quantization import QuantizedArray

__all__ = ["ArrayModel"]

_KEYS = {"layers", "groups", "independent"}
_GROUP_KEYS = {"name", "makes", "reads", "with"}
_FLOAT16 = "float16"


class ArrayModel(Model):
    """Named weights as compression sees them.

    Parameters
    ----------
    arrays : mapping of float arrays by name, or path of a .safetensors file
        Not changed; shared until they are replaced.
    spec : mapping, or path of a JSON file
        ``"layers"``: patterns of the weights, stored (n_out, n_in) or (n_out, n_in, k, k).
        ``"groups"``: for each family of units ``"makes"`` (rows of layers), ``"reads"`` (columns
        of layers) and ``"with"`` (biases, normalisation), each a list of ``"pattern:axis"`` or
        ``"pattern:axis:unit_size"``, where ``*`` stands for the same part of the name in all of a
        group's patterns; and a ``"name"``. ``"independent"``: ``"pattern:axis"`` that may look
        coupled but are not.
    forward : callable, optional
        ``forward(arrays, feed)``, or ``forward(arrays, feed, tap)`` which calls ``tap(layer, x)``
        with each layer's input: an array or a dict of arrays. Without it the model can be edited
        and saved, but not run.
    feed : mapping of arrays, optional
        A few rows that ``forward`` takes: names, dtypes and shapes of the inputs.

    Raises
    ------
    OptionError
        A pattern that matches nothing, or a coupling that the spec does not name: an array beside
        a layer whose axis has the length of the units.
    ArrayError
        Members of a group that differ in their number of units.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.models import ArrayModel
    >>> arrays = {"fc1.weight": np.ones((6, 4)), "fc1.bias": np.zeros(6), "fc2.weight": np.ones((2, 6))}
    >>> spec = {"layers": ["*.weight"], "groups": [
    ...     {"name": "hidden", "makes": ["fc1.weight:0"], "with": ["fc1.bias:0"],
    ...      "reads": ["fc2.weight:1"]}]}
    >>> model = ArrayModel(arrays, spec)
    >>> model.keep_units("hidden", np.array([0, 2]))
    >>> {name: a.shape for name, a in model.arrays.items()}
    {'fc1.weight': (2, 4), 'fc1.bias': (2,), 'fc2.weight': (2, 2)}
    """  # noqa: E501

    def __init__(
        self,
        arrays: Any,
        spec: Any,
        forward: Callable[..., Any] | None = None,
        feed: Mapping[str, Array] | None = None,
    ) -> None:
        self.arrays = _loaded(arrays) if isinstance(arrays, (str, os.PathLike)) else _own(arrays)
        self.spec = _spec(spec)
        self._forward = forward
        self._feed = _example(feed)
        taken = (
            () if forward is None else inspect.signature(function(forward, "forward")).parameters
        )
        self._tapped = len(taken) > 2
        self._layers = [n for p in self.spec["layers"] for n in self._matching(p)]
        if any(self.arrays[n].ndim < 2 for n in self._layers):
            raise ArrayError("layers: a weight needs two axes or more")
        self._find_groups()

    def _matching(self, pattern: str) -> dict[str, tuple[str, ...]]:
        """Names that fit a pattern, with what its stars stand for."""
        regex = re.compile("([^.]+)".join(map(re.escape, pattern.split("*"))) + r"\Z")
        found = {n: m.groups() for n in self.arrays if (m := regex.match(n))}
        if not found:
            raise OptionError(f"spec: no array is called {pattern!r}")
        return found

    def _find_groups(self) -> None:
        free = {
            (name, axis)
            for text in self.spec["independent"]
            for pattern, axis, _ in [_place(text)]
            for name in self._matching(pattern)
        }
        self._groups: dict[str, Group] = {}
        taken: dict[tuple[str, int], str] = {}
        for entry in self.spec["groups"]:
            for name, members in self._instances(entry).items():
                sizes = {n for *_, n in members}
                if len(sizes) != 1:
                    told = ", ".join(f"{a}:{axis} has {n}" for _, a, axis, _, n in members)
                    raise ArrayError(f"spec: group {name}: units differ in number: {told}")
                for _, array, axis, _, _ in members:
                    if (array, axis) in taken:
                        raise OptionError(
                            f"spec: {array}:{axis} is in {taken[(array, axis)]} and in {name}"
                        )
                    taken[(array, axis)] = name
                self._groups[name] = self._group(name, members, sizes.pop())
        for name, group in self._groups.items():
            self._check_neighbours(name, group, set(taken) | free)

    def _instances(
        self, entry: Mapping[str, Any]
    ) -> dict[str, list[tuple[str, str, int, int, int]]]:
        """Name of each group of a family -> (role, array, axis, unit size, number of units)."""
        found: dict[tuple[str, ...], list[tuple[str, str, int, int, int]]] = {}
        for role in ("makes", "reads", "with"):
            for text in entry.get(role, ()):
                pattern, axis, size = _place(text)
                for array, stars in self._matching(pattern).items():
                    a = self.arrays[array]
                    if axis >= a.ndim or a.shape[axis] % size:
                        raise ArrayError(
                            f"spec: {array} {a.shape} has no axis {axis} of units of {size}"
                        )
                    found.setdefault(stars, []).append(
                        (role, array, axis, size, a.shape[axis] // size)
                    )
        roles = {role for role in ("makes", "reads") if entry.get(role)}
        for stars, members in found.items():
            if missing := roles - {m[0] for m in members}:
                raise OptionError(
                    f"spec: group {entry['name']} of {stars}: nothing that {missing.pop()} it"
                )
        return {".".join((entry["name"], *stars)): members for stars, members in found.items()}

    def _group(
        self, name: str, members: Sequence[tuple[str, str, int, int, int]], n: int
    ) -> Group:
        sides: dict[str, list[Member]] = {"makes": [], "reads": [], "with": []}
        for role, array, axis, size, _ in members:
            wanted = {"makes": 0, "reads": 1}.get(role)
            if wanted is not None and (array not in self._layers or axis != wanted):
                raise OptionError(
                    f"spec: group {name}: {array}:{axis} is no {('row', 'column')[wanted]} axis "
                    "of a layer"
                )
            inner = size
            if wanted == 1:  # a channel has k * k columns
                inner *= int(np.prod(self.arrays[array].shape[2:]))
            index = np.arange(n * inner).reshape(n, inner)
            sides[role].append(Member(array, axis, index))
        why = None if sides["makes"] and sides["reads"] else "the spec names one side only"
        return Group(
            name, n, tuple(sides["makes"]), tuple(sides["reads"]), tuple(sides["with"]), why
        )

    def _check_neighbours(self, name: str, group: Group, known: set[tuple[str, int]]) -> None:
        """Refuse arrays beside a producer that have as many entries and stand nowhere."""
        for member in group.producers:
            stem = member.tensor.rpartition(".")[0]
            length = member.index.size
            for other, a in self.arrays.items():
                if other == member.tensor or other.rpartition(".")[0] != stem:
                    continue
                for axis, n in enumerate(a.shape):
                    if n == length and (other, axis) not in known:
                        raise OptionError(
                            f"spec: group {name}: {other}:{axis} has {n} entries beside "
                            f"{member.tensor} and is in no group; add it to 'with', or to "
                            "'independent'"
                        )

    # --- facts ------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What ``feed`` shows; rows on axis 0."""
        return tuple(Input(k, a.dtype.name, (None, *a.shape[1:])) for k, a in self._feed.items())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what ``forward`` returns."""
        return tuple(next(self.run(first_batch(self._feed, self.inputs, None)))[0])

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers in the spec's order."""
        found = {}
        for name in self._layers:
            a = self.arrays[name]
            weight = np.ascontiguousarray(a.reshape(len(a), -1), np.float32)
            forms = tuple(
                Form(kind, bits, nbytes=a.size * bits // 8)
                for kind, bits in ((FLOAT32, 32), (_FLOAT16, 16))
            )
            tap = f"{name}.in" if self._tapped and a.ndim == 2 else None
            kind = "dense" if a.ndim == 2 else "conv"
            form = forms[a.dtype == np.float16]
            found[name] = Layer(name, kind, weight, None, a.size, tap, form, forms)
        return found

    @property
    def groups(self) -> dict[str, Group]:
        """The groups of the spec."""
        return dict(self._groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays.values())

    @property
    def n_params(self) -> int:
        """Numbers in all arrays."""
        return sum(a.size for a in self.arrays.values())

    @property
    def macs(self) -> int:
        """Numbers in the layers: one multiply-add each, for one row."""
        return sum(self.arrays[name].size for name in self._layers)

    # --- running ----------------------------------------------------------------------------

    def n_rows(self, data: Any) -> int:
        """The rows that data hold."""
        return n_rows_of(data, self.inputs)

    def take(self, data: Any, index: Array) -> Any:
        """Those rows of ``data``, in that order."""
        return taken(data, index, self.inputs)

    def run(
        self,
        data: Any,
        taps: Sequence[str] = (),
        batch_size: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Outputs and tapped activations (``<layer>.in``), batch by batch."""
        if self._forward is None:
            raise UnsupportedError("forward: these arrays have no function that runs them")
        arrays = dict(self.arrays)
        for name, w in tried_of(weights, self).items():
            arrays[name] = w.reshape(arrays[name].shape)
        wanted = taps_of(taps, [f"{name}.in" for name in self._layers])
        size = batch_of(batch_size)
        for feed in feeds_of(data, self.inputs):
            n = len(next(iter(feed.values()), ()))
            step = size or max(n, 1)
            for start in range(0, n, step):
                part = {k: a[start : start + step] for k, a in feed.items()}
                tapped: dict[str, Array] = {}

                def tap(layer: str, x: Array, found: dict[str, Array] = tapped) -> None:
                    if f"{layer}.in" in wanted:
                        found[f"{layer}.in"] = np.asarray(x)

                result = self._forward(arrays, part, *([tap] if self._tapped else []))
                if not isinstance(result, Mapping):
                    result = {"output": result}
                yield {k: np.asarray(v) for k, v in result.items()}, tapped

    def rows(self, layer: str, tapped: Array, limit: int | None = None) -> Array:
        """A layer's input rows out of its tapped tensor, (1, rows, n_in)."""
        a = self.arrays[choice(layer, "layer", self._layers)]
        limit = limit_of(limit)
        found = numbers(tapped, "tapped")
        if found.shape[-1:] != (a.size // len(a),):
            raise ArrayError(
                f"tapped: {layer} reads {a.size // len(a)} columns, got {found.shape}"
            )
        flat = found.reshape(-1, found.shape[-1])
        if limit is not None and len(flat) > limit:
            flat = flat[np.linspace(0, len(flat) - 1, limit).round().astype(np.intp)]
        return flat[None]

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once."""
        part = first_batch(data, self.inputs, batch_size)
        return lambda: next(self.run(part))

    # --- edits ------------------------------------------------------------------------------

    def set_weight(self, layer: str, weight: Array, bias: Array | None = None) -> None:
        """In place: new values of the same shape, stored as float32."""
        choice(layer, "layer", self._layers)
        if bias is not None and numbers(bias, "bias").any():
            raise UnsupportedError(f"bias: the spec does not say where {layer} has one")
        shape = self.arrays[layer].shape
        fresh = numbers(weight, "weight")
        if fresh.size != self.arrays[layer].size or fresh.shape[:1] != shape[:1]:
            raise ArrayError(f"weight: {layer} needs {shape}, got {fresh.shape}")
        self.arrays[layer] = fresh.reshape(shape).copy()

    def keep_units(
        self,
        group: str,
        index: Array,
        weights: Mapping[str, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """In place: keep the group's units ``index`` only."""
        choice(group, "group", list(self._groups))
        found = self._groups[group]
        kept = found.kept(index)
        fitted = fitted_of(weights, {m.tensor for m in (*found.producers, *found.consumers)})
        fresh = dict(self.arrays)
        for member in (*found.producers, *found.consumers, *found.others):
            a = fresh[member.tensor]
            size = a.shape[member.axis] // found.n_units
            places = (kept[:, None] * size + np.arange(size)).ravel()
            fresh[member.tensor] = np.take(a, places, axis=member.axis)
        trial = copy.copy(self)
        trial.arrays = fresh
        for layer, (weight, bias) in fitted.items():
            trial._set_with_bias(layer, weight, bias)
        trial._find_groups()
        vars(self).update(vars(trial))

    def _set_with_bias(self, layer: str, weight: Array, bias: Array | None) -> None:
        """The refitted weight; a shift of the bias goes to ``<stem>.bias`` where that exists."""
        name = f"{layer.rpartition('.')[0]}.bias"
        if bias is not None and name in self.arrays and self.arrays[name].shape == bias.shape:
            self.arrays[name] = np.asarray(self.arrays[name] + bias, np.float32)
            bias = None
        self.set_weight(layer, weight, bias)

    def split_layer(self, layer: str, a: Array, b: Array) -> None:
        """Refused: ``forward`` knows one array of that name."""
        raise UnsupportedError(f"layer: {layer} cannot become two arrays under one name")

    def store(
        self,
        layer: str,
        form: str,
        codes: QuantizedArray | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """In place: store the layer as float32 or float16."""
        choice(layer, "layer", self._layers)
        choice(form, "form", (FLOAT32, _FLOAT16))
        self.arrays[layer] = self.arrays[layer].astype(form)

    def fold(self) -> tuple[str, ...]:
        """Nothing to fold."""
        return ()

    def copy(self) -> ArrayModel:
        """An independent copy; arrays are shared until they are replaced."""
        made = copy.copy(self)
        made.arrays = dict(self.arrays)
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the arrays as safetensors, whole or not at all."""
        kept = {name: np.ascontiguousarray(a) for name, a in self.arrays.items()}
        data = package("safetensors.numpy", "a .safetensors file", "fastopt[safetensors]").save(
            kept
        )
        with write_whole(path) as file:
            file.write(data)


# --- what comes in --------------------------------------------------------------------------


def _own(arrays: Any) -> dict[str, Array]:
    if not isinstance(arrays, Mapping):
        raise DTypeError(f"arrays: expected a mapping or a path, got {type(arrays).__name__}")
    floats = ("float16", "float32", "float64")
    others = ("int8", "uint8", "int16", "int32", "int64", "bool")
    return {
        str(k): as_array(a, f"arrays[{k!r}]", dtypes=(*floats, *others)) for k, a in arrays.items()
    }


def _example(feed: Any) -> dict[str, Array]:
    """The rows that show the inputs."""
    given = {} if feed is None else mapping(feed, "feed")
    found = {k: as_ndarray(a, f"feed[{k!r}]") for k, a in given.items()}
    if scalar := [k for k, a in found.items() if not a.ndim]:
        raise ArrayError(f"feed[{scalar[0]!r}]: expected rows, got a scalar")
    return found


def _loaded(path: Any) -> dict[str, Array]:
    where = path_of(path)
    store = package("safetensors.numpy", "a .safetensors file", "fastopt[safetensors]")
    with storage_errors(where), open(where, "rb") as file:
        data = file.read()
    try:
        return dict(store.load(data))
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise FormatError(f"cannot be read as safetensors: {error}", where) from None


def _spec(spec: Any) -> dict[str, Any]:
    """The spec with all its keys, checked."""
    if isinstance(spec, (str, os.PathLike)):
        where = path_of(spec, "spec")
        try:
            with storage_errors(where), open(where, encoding="utf-8") as file:
                spec = json.load(file)
        except ValueError as error:
            raise FormatError(f"expected JSON: {error}", where) from None
    if not isinstance(spec, Mapping) or set(spec) - _KEYS or not spec.get("layers"):
        raise OptionError(f"spec: expected a mapping of {', '.join(sorted(_KEYS))}, with layers")
    groups = items(spec.get("groups", ()), "spec: groups")
    for group in groups:
        if (
            not isinstance(group, Mapping)
            or set(group) - _GROUP_KEYS
            or not isinstance(group.get("name"), str)
        ):
            raise OptionError(
                f"spec: a group needs a name and some of makes, reads, with; got {group!r}"
            )
        for role in sorted(_GROUP_KEYS - {"name"}):
            names(group.get(role, ()), f"spec: {role}")
    return {
        "layers": names(spec["layers"], "spec: layers"),
        "groups": groups,
        "independent": names(spec.get("independent", ()), "spec: independent"),
    }


def _place(text: Any) -> tuple[str, int, int]:
    """(pattern, axis, unit size) of "pattern:axis" or "pattern:axis:unit_size"."""
    parts = str(text).split(":")
    if len(parts) not in (2, 3) or not all(p.isdigit() for p in parts[1:]):
        raise OptionError(f"spec: expected 'pattern:axis' or 'pattern:axis:size', got {text!r}")
    size = int(parts[2]) if len(parts) == 3 else 1
    if size < 1:
        raise OptionError(f"spec: a unit has one entry or more, got {text!r}")
    return parts[0], int(parts[1]), size
