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

from fastopt.calibration import Gram
from fastopt.compression.data import Rows
from fastopt.compression.metric import collect, relative_error
from fastopt.compression.passes import quantize
from fastopt.compression.passes.calibration import Calibration
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
    calibration: Calibration,
    places: Mapping[str, Any],
    start: Recipe,
    cost: Callable[[Model], float],
    rows: Rows,
    batch: int,
    progress: Callable[[int, int], object],
) -> dict[str, list[Option]]:
    """For every variable of ``places`` that acts on one place, the options of ``grid``."""
    model = calibration.model
    keys = [k for k in places if k.partition(".")[0] in ("prune", "merge", "layer")]
    stored = [k for k in places if k.startswith("quantize.")]
    probes = sum(len(grid(places[k])) - 1 for k in keys) + len(stored)
    few = _probe_rows(rows, max(1, probes), model.macs)
    base = collect(bench.apply(start).model, few, batch)
    base_cost = cost(bench.apply(start).model)
    found: dict[str, list[Option]] = {}
    done = 0

    def probed(key: str, value: Any) -> tuple[Model, float]:
        nonlocal done
        made = bench.apply(start.replaced({key: value})).model
        done += 1
        progress(done, probes)
        return made, relative_error(collect(made, few, batch), base)

    for key in keys:
        found[key] = [Option(grid(places[key])[0], 0.0, 0.0)]
        for value in grid(places[key])[1:]:
            made, error = probed(key, value)
            found[key].append(Option(value, cost(made) - base_cost, error))
    for key in stored:
        layer = model.layers[key.partition(".")[2]]
        found[key] = _forms(key, layer, calibration, probed)
    return found


def _probe_rows(rows: Rows, probes: int, macs: int) -> Rows:
    """Evenly spaced rows, as many as the probes can afford."""
    n = int(min(len(rows), 64, max(1, _PROBE_MACS / (probes * max(1, macs)))))
    return rows.select(np.linspace(0, len(rows) - 1, n).round().astype(np.int64))


def _forms(
    key: str,
    layer: Layer,
    calibration: Calibration,
    probed: Callable[[str, Any], tuple[Model, float]],
) -> list[Option]:
    """The forms of one layer: one is measured, the others follow from their rounding errors."""
    name = layer.name
    gram = calibration.grams([name]).get(name)
    plain = [f for f in layer.forms if f.activations is None and f.integer]
    errors = {f.name: _rounding(layer, f, gram) for f in layer.forms if f.activations is None}
    found = [Option(layer.form.name, 0.0, 0.0)]
    if not plain:
        return found
    probe = min(plain, key=lambda f: (abs(f.bits - _PROBE_BITS), f.group_size is None))
    _, error = probed(key, probe.name)
    unit = error / errors[probe.name] if errors[probe.name] > 0 else 0.0
    for form in layer.forms:
        if form.activations is None and form.name != layer.form.name:
            saved = float(form.nbytes - layer.form.nbytes)
            found.append(Option(form.name, saved, unit * errors[form.name]))
    return found


def _rounding(layer: Layer, form: Form, gram: Gram | None) -> float:
    """Squared error that a form makes in the layer's own output, by plain rounding."""
    if form.bits == 32:
        return 0.0
    w = layer.weight
    if form.bits == 16:
        delta = w - w.astype(np.float16).astype(np.float32)
    else:
        delta = w - quantize.codes_of(layer, form, None).dequantize()
    if gram is None:
        return float((delta.astype(np.float64) ** 2).sum())
    return float(np.vdot(delta.T @ delta, gram.second)) / gram.count
