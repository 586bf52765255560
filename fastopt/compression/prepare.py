"""What each choice alone costs and does: measured once, before the search.

The effect of a choice is the relative squared error that it makes in the model's outputs before
their last Softmax or Sigmoid, where saturated outputs would hide it. Storage forms of one layer
differ by the error they make in that layer's own output, which its Gram gives; so one run of the
model per layer is enough for all of its forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.calibration import Gram
from fastopt.compression.data import Rows
from fastopt.compression.metric import collect, relative_error
from fastopt.compression.passes import quantize
from fastopt.compression.recipe import Recipe, Workbench
from fastopt.models import Form, Layer, Model
from fastopt.search import Float

__all__ = ["Option", "effects", "grid"]

_PROBE_BITS = 4  # an error that is neither rounding noise nor a wreck
_PROBE_MACS = 3e11  # multiply-adds of all probes together
_SHARES = (0.875, 0.75, 0.5, 0.375, 0.25, 0.125)


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


def grid(variable: Any) -> list[Any]:
    """The values of a variable that are measured: a Choice's options, shares of a Float."""
    if isinstance(variable, Float):
        return [1.0, *(s for s in _SHARES if s >= variable.low)]
    return list(variable.options)


def effects(
    bench: Workbench,
    places: Mapping[str, Any],
    start: Recipe,
    cost: Callable[[Model], float],
    rows: Rows,
    batch: int,
    progress: Callable[[int, int], object],
) -> dict[str, list[Option]]:
    """For every variable of ``places`` that acts on one place, the options of ``grid``.

    Parameters
    ----------
    start : Recipe
        What is done anyway.
    cost : callable
        What is made small, of a model.
    rows : Rows
        Probes run on some of them.
    progress : callable
        Called with (probes done, probes in all).
    """
    state = bench.apply(start)
    edited = [k for k in places if k.partition(".")[0] in ("prune", "merge", "layer")]
    stored = [k for k in places if k.partition(".")[0] == quantize.NAME]
    probes = sum(len(grid(places[k])) - 1 for k in edited) + len(stored)
    few = _probe_rows(rows, max(1, probes), state.model.macs)
    base, base_cost = collect(state.model, few, batch), cost(state.model)
    found: dict[str, list[Option]] = {}
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, probes)

    for key in edited:
        values = grid(places[key])
        found[key] = [Option(values[0], 0.0, 0.0)]
        for value in values[1:]:
            made = bench.apply(start.replaced({key: value})).model
            error = relative_error(collect(made, few, batch), base)
            found[key].append(Option(value, cost(made) - base_cost, error))
            step()
    layers = state.model.layers
    if stored:
        state.calibration.grams(layers)
    for key in stored:
        layer = layers.get(key.partition(".")[2])
        if layer is not None:

            def probe(weight: Array, name: str = layer.name) -> float:
                return relative_error(collect(state.model, few, batch, {name: weight}), base)

            found[key] = _forms(layer, state.calibration.grams([layer.name]), probe)
        step()
    return found


def _probe_rows(rows: Rows, probes: int, macs: int) -> Rows:
    """Evenly spaced rows, as many as the probes can afford."""
    n = int(min(len(rows), 64, max(1, _PROBE_MACS / (probes * max(1, macs)))))
    return rows.select(np.linspace(0, len(rows) - 1, n).round().astype(np.int64))


def _forms(
    layer: Layer, grams: Mapping[str, Gram], probe: Callable[[Array], float]
) -> list[Option]:
    """The forms of one layer: one is measured, the others follow from their rounding errors."""
    gram = grams.get(layer.name)
    found = [Option(layer.form.name, 0.0, 0.0)]
    forms = [f for f in layer.forms if f.activations is None and f.name != layer.form.name]
    coded = [f for f in forms if f.integer]
    if not coded:
        return found
    first = min(coded, key=lambda f: (abs(f.bits - _PROBE_BITS), f.group_size is None))
    weights = {f.name: rounded(layer, f) for f in forms}
    errors = {name: _output_error(layer.weight - w, gram) for name, w in weights.items()}
    error = probe(weights[first.name])
    unit = error / errors[first.name] if errors[first.name] > 0 else 0.0
    for form in forms:
        saved = float(form.nbytes - layer.form.nbytes)
        found.append(Option(form.name, saved, unit * errors[form.name]))
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
    """Mean squared error of the layer's own output; of its weight where no input is known."""
    if gram is None:
        return float((delta.astype(np.float64) ** 2).sum())
    return float(np.vdot(delta.T @ delta, gram.second)) / gram.count
