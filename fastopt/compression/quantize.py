"""Store every layer of a model in one form."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from fastopt._options import choice, flag, names
from fastopt.compression.adapters import open_model
from fastopt.compression.data import open_rows
from fastopt.compression.job import feed_size
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.recipe import Recipe, Workbench

__all__ = ["quantize_model"]


def quantize_model(
    model: Any,
    form: str = "int8",
    *,
    data: Any = None,
    keep: Sequence[str] = (),
    portable: bool = False,
) -> tuple[Any, dict[str, str]]:
    """Store every layer that can be in one form; no drop is measured.

    Parameters
    ----------
    model : path, onnx.ModelProto or Network
    form : str
        For example "int8", "int4g", "float16"; layers that do not have it stay as they are.
    data : data, optional
        Rows that GPTQ calibrates on; without them weights are rounded with the best scales.

    Returns
    -------
    model : Model
    done : dict
        For each layer what was done, or why nothing.

    Examples
    --------
    >>> from fastopt.compression import quantize_model
    >>> from fastopt.models import Network
    >>> net = Network.mlp((32, 64, 2), seed=0)
    >>> small, done = quantize_model(net, "int8")
    >>> sorted(done), small.nbytes < net.nbytes
    (['dense0', 'dense1'], True)
    """
    kept = names(keep, "keep")
    original, give_back = open_model(model, flag(portable, "portable"), data)
    rows = None if data is None else open_rows(data, original.inputs)
    known = {f.name for layer in original.layers.values() for f in layer.forms}
    choice(form, "form", sorted(known) or [form])
    layers = {
        n: layer
        for n, layer in original.layers.items()
        if not any(fnmatch.fnmatchcase(n, p) for p in kept)
    }
    recipe = Recipe(
        {f"quantize.{n}": form for n, layer in layers.items() if layer.form_named(form)}
    )
    calibration = Calibration(original, rows, feed_size(original))
    applied = Workbench(calibration).apply(recipe)
    done = {place: what for _, place, what in applied.notes}
    return give_back(applied.model), {n: done.get(n, "left as it is") for n in original.layers}
