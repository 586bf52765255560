"""What each choice alone costs and does: measured once, before the search.

The effect of a choice is the relative squared error that it makes in the model's outputs before
their last Softmax or Sigmoid, where saturated outputs would hide it. Storage forms of one layer
differ by the error they make in that layer's own output, which its Gram gives; so one run of the
model per layer is enough for all of its forms.

The data say nothing of a layer that hardly a row reaches, in a branch of an If for example: it is
stored in 6 bits or more, and it is not thinned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.calibration import Gram
from fastopt.compression.data import Rows
from fastopt.compression.metric import collect, relative_error, rows_changed
from fastopt.compression.passes import quantize
from fastopt.compression.recipe import Recipe, Workbench
from fastopt.compression.team import Team
from fastopt.errors import FastoptError
from fastopt.models import Form, Layer, Model
from fastopt.quantization import Factor
from fastopt.search import Choice, Float

__all__ = ["Option", "Prices", "Probe", "effects", "grid", "measured"]

_PROBE_BITS = 4  # an error that is neither rounding noise nor a wreck
_PROBE_MACS = 3e11  # multiply-adds of all probes together
_MOST_ROWS = 24
_SAMPLED = 256  # rows of a weight that tell how a form rounds it
_STRUCTURE = ("prune", "merge", "layer")
_MODES = ("dynamic", "static")
_USELESS = 0.2  # relative squared error that no budget has room for
_PAYS = 0.01  # share of the cost that running in int8 must save to be considered
_FEWEST_SEEN = 8  # rows that reach a layer
_SURE_BITS = 6
_SHARES = (0.875, 0.75, 0.5, 0.375, 0.25, 0.125)
_FEW_SHARES = (0.75, 0.5, 0.25)  # where a run takes long


@dataclass(frozen=True)
class Prices:
    """What a model costs.

    Attributes
    ----------
    exact : callable
        Of a model, as the search compares it: for the latency by a clock.
    rough : callable
        The same without a clock, of a model with fewer units or thinner layers.
    per_byte : float
        Of a byte of the file.
    """

    exact: Callable[[Model], float]
    rough: Callable[[Model], float]
    per_byte: float


@dataclass(frozen=True)
class Option:
    """A value of one choice.

    Attributes
    ----------
    value : object
    cost : float
        Of the target, against leaving the place as it is: negative where it saves.
    error : float
        Relative squared error of the outputs.
    """

    value: Any
    cost: float
    error: float


def grid(variable: Any, shares: Sequence[float] = _SHARES) -> list[Any]:
    """The values of a variable that are measured: a Choice's options, shares of a Float."""
    if isinstance(variable, Float):
        return [1.0, *(s for s in shares if s >= variable.low)]
    return list(variable.options)


class Probe:
    """Measures single choices on a few rows.

    Parameters
    ----------
    bench : Workbench
    start : Recipe
        What is done anyway.
    prices : Prices
        What is made small.
    rows, batch : Rows, int
        Probes run on some of the rows.
    places : mapping
        What is probed: more of it runs on fewer rows.
    """

    def __init__(
        self,
        bench: Workbench,
        start: Recipe,
        prices: Prices,
        rows: Rows,
        batch: int,
        places: Mapping[str, Any],
    ) -> None:
        self.bench, self.start, self.prices, self.places = bench, start, prices, places
        self.state = bench.apply(start)
        stored = [k for k in places if _pass(k) == quantize.NAME]
        self.runs = [k for k in stored if any("+" in v for v in places[k].options)]
        self._shares = _FEW_SHARES if self.state.calibration.long else _SHARES
        self._sure: dict[str, bool] = {}
        values = sum(len(self.grid(k)) - 1 for k in places if _pass(k) in _STRUCTURE)
        probes = values + len(stored) + len(self.runs)
        self._rows = _probe_rows(rows, max(1, probes), self.state.model.macs)
        self._batch = batch
        self._base = collect(self.state.model, self._rows, batch)
        if stored:
            self.state.calibration.grams(self.state.model.layers)
        self.gains = self._gains()

    def grid(self, key: str) -> list[Any]:
        """The values of a variable that are measured."""
        return grid(self.places[key], self._shares)

    def error(self, model: Model, weights: Mapping[str, Array] | None = None) -> float:
        """Relative squared error of a model's outputs."""
        return relative_error(collect(model, self._rows, self._batch, weights), self._base)

    def edited(self, changes: Mapping[str, Any]) -> Model:
        """The model with some choices made."""
        return self.bench.apply(self.start.replaced(changes)).model

    def options(self, key: str) -> list[Option]:
        """What the values of one variable cost and do; none where the place is gone."""
        place = key.partition(".")[2]
        if _pass(key) in _STRUCTURE:
            return _edits(key, self) if all(map(self.sure, self._touched(key))) else []
        layer = self.state.model.layers.get(place)
        if _pass(key) != quantize.NAME or layer is None:
            return []
        found = _forms(layer, self)
        found += _runs(key, layer, self, found)
        return found if self.sure(place) else [o for o in found if _safe(layer, o.value)]

    def sure(self, name: str) -> bool:
        """Whether rows enough reach a layer: whether they show it when its weight is another."""
        layer = self.state.model.layers.get(name)
        if layer is None or layer.always:
            return True
        if name not in self._sure:
            run = partial(collect, self.state.model, self._rows, self._batch)
            ours = run({name: np.zeros_like(layer.weight)})
            changed = rows_changed(ours, run({name: layer.weight}))
            self._sure[name] = changed >= min(_FEWEST_SEEN, len(ours))
        return self._sure[name]

    def _touched(self, key: str) -> list[str]:
        """Layers that a change of structure changes."""
        name, _, place = key.partition(".")
        group = None if name == "layer" else self.state.model.groups.get(place)
        if group is None:
            return [place]
        return [member.tensor for member in (*group.producers, *group.consumers)]

    def _gains(self) -> dict[tuple[str, str], float]:
        """What a multiply-add in int8 saves, by kind of layer and mode: timed for all at once.

        One layer's share of the time is below the noise of a measurement; all layers of a kind
        together are not. A mode that does not pay is left out.
        """
        layers = self.state.model.layers
        found: dict[tuple[str, str], float] = {}
        base = self.prices.exact(self.state.model) if self.runs else 0.0
        for mode in _MODES:
            form = f"int8+{mode}"
            able = [k for k in self.runs if form in self.places[k].options]
            able = [k for k in able if k.partition(".")[2] in layers]
            for kind in sorted({layers[k.partition(".")[2]].kind for k in able}):
                group = [k for k in able if layers[k.partition(".")[2]].kind == kind]
                macs = sum(layers[k.partition(".")[2]].macs for k in group)
                saved = base - self.prices.exact(self.edited(dict.fromkeys(group, form)))
                if macs and saved > _PAYS * base:
                    found[kind, mode] = saved / macs
        return found


def effects(
    probe: Probe, team: Team, progress: Callable[[int, int], object] = lambda done, of: None
) -> dict[str, list[Option]]:
    """For every variable that acts on one place, the options of ``grid``.

    Parameters
    ----------
    probe : Probe
    team : Team
        Who measures.
    progress : callable
        Called with (variables done, variables in all).
    """
    keys = [k for k in probe.places if _pass(k) in (*_STRUCTURE, quantize.NAME)]
    found = {}
    for k, (key, options) in enumerate(zip(keys, team.map(probe.options, keys), strict=True)):
        if isinstance(options, FastoptError):
            raise options
        if options:
            found[key] = options
        progress(k + 1, len(keys))
    return found


def measured(places: Mapping[str, Any], effects: Mapping[str, Sequence[Option]]) -> dict[str, Any]:
    """The variables, and of their values those of which an effect is known."""
    found = {}
    for key, variable in places.items():
        if _pass(key) not in (*_STRUCTURE, quantize.NAME):
            found[key] = variable
        elif key in effects:
            values = [o.value for o in effects[key]]
            found[key] = Choice(*values) if isinstance(variable, Choice) else variable
    return found


def _pass(key: str) -> str:
    return key.partition(".")[0]


def _edits(key: str, probe: Probe) -> list[Option]:
    """The shares of a group or layer that stay."""
    values = probe.grid(key)
    found = [Option(values[0], 0.0, 0.0)]
    base = probe.prices.rough(probe.state.model)
    for value in values[1:]:
        try:
            made = probe.edited({key: value})
            error = probe.error(made)
        except FastoptError:  # what cannot be done here is no option
            continue
        if error > _USELESS:  # and fewer are worse
            break
        found.append(Option(value, probe.prices.rough(made) - base, error))
    return found


def _probe_rows(rows: Rows, probes: int, macs: int) -> Rows:
    """Evenly spaced rows, as many as the probes can afford."""
    n = int(min(len(rows), _MOST_ROWS, max(1, _PROBE_MACS / (probes * max(1, macs)))))
    return rows.select(np.linspace(0, len(rows) - 1, n).round().astype(np.int64))


def _forms(layer: Layer, probe: Probe) -> list[Option]:
    """The forms of one layer: one is measured, the others follow from their rounding errors."""
    calibration = probe.state.calibration
    gram = calibration.grams([layer.name]).get(layer.name)
    factor = calibration.factor(layer.name)
    found = [Option(layer.form.name, 0.0, 0.0)]
    forms = [f for f in layer.forms if f.activations is None and f.name != layer.form.name]
    coded = [f for f in forms if f.integer]
    if not coded:
        return found
    first = min(coded, key=lambda f: (abs(f.bits - _PROBE_BITS), f.group_size is None))
    weight = rounded(layer, first)
    own = _output_error(layer.weight - weight, gram)
    error = probe.error(probe.state.model, {layer.name: weight})
    unit = error / own if own > 0 else 0.0
    some = _some_rows(layer)
    for form in forms:
        cost = probe.prices.per_byte * (form.nbytes - layer.form.nbytes)
        found.append(Option(form.name, cost, unit * _rounding_error(some, form, factor)))
    return found


def _safe(layer: Layer, name: str) -> bool:
    """Whether a form is right for a layer that the data say nothing of."""
    form = layer.form_named(name)
    known = form is not None and form.bits >= _SURE_BITS and form.activations != "static"
    return known or name == layer.form.name


def _some_rows(layer: Layer) -> Layer:
    """The layer with some of its rows: enough to tell what rounding does to them."""
    n = len(layer.weight)
    if n <= _SAMPLED:
        return layer
    picked = np.arange(_SAMPLED) * n // _SAMPLED
    return replace(layer, weight=np.ascontiguousarray(layer.weight[picked]), bias=None)


def _rounding_error(layer: Layer, form: Form, factor: Factor | None) -> float:
    """Mean squared error that a form makes per row of the layer's output.

    Rounding errors of different inputs are next to independent, so their squares add up, each
    weighed by what GPTQ leaves of it; without an input to look at, by one.
    """
    lost = (layer.weight - rounded(layer, form)).astype(np.float64) ** 2
    columns = lost.sum(axis=0)
    return float(columns.sum() if factor is None else columns @ factor.pivots) / len(lost)


def _runs(
    key: str,
    layer: Layer,
    probe: Probe,
    stored: Sequence[Option],
) -> list[Option]:
    """The forms of one layer that run in int8."""
    errors = {o.value: o.error for o in stored}
    found = []
    for mode in _MODES:
        gain = probe.gains.get((layer.kind, mode))
        if gain is None or layer.form_named(f"int8+{mode}") is None:
            continue
        error = probe.error(probe.edited({key: f"int8+{mode}"}))
        for form in layer.forms:
            if form.activations == mode:
                fewer = errors.get(form.name.partition("+")[0], 0.0) - errors.get("int8", 0.0)
                cost = (
                    probe.prices.per_byte * (form.nbytes - layer.form.nbytes) - gain * layer.macs
                )
                found.append(Option(form.name, cost, error + max(0.0, fewer)))
    return found


def rounded(layer: Layer, form: Form) -> Array:
    """The weight as a form keeps it, rounded plainly."""
    if form.bits == 32:
        return layer.weight
    if form.bits == 16:
        return layer.weight.astype(np.float16).astype(np.float32)
    found: Array = quantize.codes_of(layer, form, None).dequantize()
    return found


def _output_error(delta: Array, gram: Gram | None) -> float:
    """Mean squared error per row of the layer's own output; of its weight without an input."""
    if gram is None:
        return float((delta.astype(np.float64) ** 2).sum()) / len(delta)
    second = gram.second.astype(np.float32) / np.float32(gram.count)
    return max(0.0, float(np.vdot(delta @ second, delta))) / len(delta)
