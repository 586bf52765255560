"""Store a layer's weight in fewer bits: GPTQ where its input is known, else the best scales."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.calibration import Gram
from fastopt.compression.passes.calibration import Calibration
from fastopt.models import Form, Layer, Model
from fastopt.quantization import Factor, QuantizedArray, gptq, quantize
from fastopt.quantization.formats import Format
from fastopt.search import Choice

NAME = "quantize"
_SPARSE = 0.5  # share of zeros


def variables(model: Model, integer_runs: bool = False) -> dict[str, Choice]:
    """For each layer the form of its weight, its present one first.

    With ``integer_runs`` also forms whose products run in int8.
    """
    found = {}
    for name, layer in model.layers.items():
        forms = [f.name for f in layer.forms if integer_runs or f.activations is None]
        options = dict.fromkeys([layer.form.name, *forms])
        if len(options) > 1:
            found[name] = Choice(*options)
    return found


def start(share: float, variable: Choice) -> Any:
    """Eight bits, where there are any."""
    return "int8" if "int8" in variable.options else variable.options[-1]


def apply(model: Model, place: str, value: Any, calibration: Calibration) -> str | None:
    """Store the layer (or the two it was split into) as ``value``."""
    done = False
    for name in (place, f"{place}.a", f"{place}.b"):
        layer = calibration.model.layers.get(name)
        form = None if layer is None else layer.form_named(value)
        if layer is None or form is None or form.name == layer.form.name:
            continue
        done = True
        if not form.integer:
            model.store(name, form.name)
            continue
        codes, bias = coded(name, layer, form, calibration)
        if bias is not None:
            model.set_weight(name, layer.weight, bias)
        ranges = calibration.ranges(name) if form.activations == "static" else None
        model.store(name, form.name, codes, ranges)
    return f"stored as {value}" if done else None


def coded(
    name: str, layer: Layer, form: Form, calibration: Calibration
) -> tuple[QuantizedArray, Array | None]:
    """A layer's codes and its corrected bias; computed once per form that rounds alike."""
    key = (NAME, name, form.bits, form.group_size)
    if key not in calibration.memory:
        gram = calibration.grams([name]).get(name)
        codes = codes_of(layer, form, calibration.factor(name))
        calibration.memory[key] = codes, bias_for(layer, codes, gram)
    return calibration.memory[key]  # type: ignore[return-value]


def codes_of(layer: Layer, form: Form, factor: Factor | None) -> QuantizedArray:
    """The weight as symmetric codes of the form's width.

    A weight that is mostly zeros (a filter bank, a pruned layer) is rounded plainly: GPTQ would
    put the errors of other inputs where nothing was connected.
    """
    fmt = format_for(form.bits)
    zeros = 1.0 - np.count_nonzero(layer.weight) / max(1, layer.weight.size)
    if factor is not None and zeros <= _SPARSE:
        return gptq(layer.weight, factor, fmt, group_size=form.group_size)
    axis = 0 if form.group_size is None else 1
    return quantize(layer.weight, fmt, axis=axis, group_size=form.group_size, method="mse")


def format_for(bits: int) -> Format | str:
    """Integer codes of 2 to 8 bits, kept in int8 where there is no format of that width."""
    if bits in (4, 8):
        return f"int{bits}"
    return Format("int8", "int", bits, "int8", -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def bias_for(layer: Layer, codes: QuantizedArray, gram: Gram | None) -> Array | None:
    """The bias that keeps the mean output what it was; None where there is no bias or no data."""
    if gram is None or layer.bias is None:
        return None
    lost = (layer.weight - codes.dequantize()).astype(np.float64) @ gram.mean
    return np.asarray(layer.bias + lost, np.float32)
