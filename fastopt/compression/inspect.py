"""Looking at models without changing them: their parts, and how two of them differ."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._options import integer
from fastopt.compression.adapters import open_model
from fastopt.compression.data import open_rows
from fastopt.compression.explain import latencies
from fastopt.compression.job import feed_size
from fastopt.compression.metric import batches_ok, collect, metric_of
from fastopt.compression.passes import quantize
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.prepare import Prices, Probe, effects
from fastopt.compression.recipe import Recipe, Workbench
from fastopt.compression.team import Team
from fastopt.errors import OptionError
from fastopt.models import Model

__all__ = ["compare_models", "inspect_model"]


def inspect_model(model: Any, data: Any = None) -> dict[str, Any]:
    """Layers, groups and sizes of a model as plain data.

    Parameters
    ----------
    model : path, onnx.ModelProto or Network
    data : data, optional
        Rows to run; gives multiply-adds where shapes are dynamic, and each layer's
        ``sensitivity``: the relative squared error of the outputs when it alone has 4 bits.

    Returns
    -------
    dict
        "layers", "groups" and sizes; JSON takes it.

    Examples
    --------
    >>> from fastopt.compression import inspect_model
    >>> from fastopt.models import Network
    >>> [layer["name"] for layer in inspect_model(Network.mlp((4, 8, 2), seed=0))["layers"]]
    ['dense0', 'dense1']
    """
    found, _ = open_model(model, data=data)
    sensitivity: dict[str, float] = {}
    if data is not None:
        rows = open_rows(data, found.inputs)
        next(rows.select(np.arange(1)).run(found, 1))  # shapes, so multiply-adds
        rows = replace(rows, single=rows.single or not batches_ok(found, rows))
        calibration = Calibration(found, rows, feed_size(found))
        places = {f"{quantize.NAME}.{n}": v for n, v in quantize.variables(found).items()}
        prices = Prices(lambda m: float(m.nbytes), lambda m: float(m.nbytes), 1.0)
        bench = Workbench(calibration)
        probe = Probe(bench, Recipe(), prices, rows, feed_size(found), places)
        measured = effects(probe, Team(1))
        for key, options in measured.items():
            four = [o.error for o in options if str(o.value).startswith("int4")]
            if four:
                sensitivity[key.partition(".")[2]] = min(four)
    return {
        "nbytes": found.nbytes,
        "n_params": found.n_params,
        "macs": found.macs,
        "layers": [
            {
                "name": name,
                "kind": layer.kind,
                "shape": list(layer.weight.shape),
                "form": layer.form.name,
                "forms": [f.name for f in layer.forms],
                "nbytes": layer.nbytes,
                "macs": layer.macs,
                "sensitivity": sensitivity.get(name),
            }
            for name, layer in found.layers.items()
        ],
        "groups": [
            {
                "name": name,
                "n_units": group.n_units,
                "producers": [m.tensor for m in group.producers],
                "consumers": [m.tensor for m in group.consumers],
                "frozen": group.frozen,
            }
            for name, group in found.groups.items()
        ],
        "notes": list(found.notes),
    }


def compare_models(
    a: Any,
    b: Any,
    data: Any,
    *,
    metric: str | Callable[..., float] | None = None,
    labels: str | None = None,
    classes_axis: int | None = None,
    batch: int = 1,
    threads: int = 1,
) -> dict[str, Any]:
    """Metric, size and interleaved latency of two models on the same data; ``a`` is the reference.

    Parameters
    ----------
    a, b : path, onnx.ModelProto or Network
    data : data
        As :func:`compress` takes it.
    metric, labels, classes_axis, batch, threads
        As in :func:`compress`.

    Returns
    -------
    dict
        Metric, bytes and median seconds of both.

    Raises
    ------
    OptionError
        The models' inputs or outputs have other names.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.compression import compare_models, quantize_model
    >>> from fastopt.models import Network
    >>> net = Network.mlp((32, 64, 2), seed=0)
    >>> small, _ = quantize_model(net, "int8")
    >>> found = compare_models(net, small, np.eye(32, dtype=np.float32))
    >>> found["b"]["nbytes"] < found["a"]["nbytes"]
    True
    """
    batch, threads = integer(batch, "batch", low=1), integer(threads, "threads", low=1)
    first, _ = open_model(a)
    second, _ = open_model(b)
    if [i.name for i in first.inputs] != [i.name for i in second.inputs]:
        raise OptionError("b: has other inputs than a")
    if set(first.outputs) != set(second.outputs):
        raise OptionError("b: has other outputs than a")
    rows = open_rows(data, first.inputs, "data", labels)
    judge = metric_of(metric, first, rows, classes_axis)
    rows = replace(rows, single=rows.single or not batches_ok(first, rows))
    feed = feed_size(first)
    outputs = [collect(m, rows, feed) for m in (first, second)]
    timed = latencies([first, second], rows, batch, threads)
    largest = {}
    for name in first.outputs:
        parts = zip(outputs[0].parts, outputs[1].parts, strict=True)
        gaps = [_gap(x[name], y[name]) for x, y in parts]
        largest[name] = max(gaps)
    return {
        "metric": judge.name,
        "n_rows": len(rows),
        "max_error": largest,
        **{
            key: _facts(m, given, judge.score(out, rows, outputs[0]), seconds.median_s)
            for key, given, m, out, seconds in zip(
                "ab", (a, b), (first, second), outputs, timed, strict=True
            )
        },
    }


def _gap(x: Any, y: Any) -> float:
    if x.shape != y.shape:
        return float("inf")
    return float(np.abs(np.subtract(x, y, dtype=np.float64)).max()) if x.size else 0.0


def _facts(model: Model, given: Any, score: float, latency_s: float) -> dict[str, Any]:
    size = model.nbytes
    if isinstance(given, (str, os.PathLike)):  # the file as it is, not as it would be written
        files = (Path(given), Path(f"{os.fspath(given)}.data"))
        size = sum(file.stat().st_size for file in files if file.is_file())
    return {
        "metric": score,
        "nbytes": size,
        "n_params": model.n_params,
        "macs": model.macs,
        "latency_s": latency_s,
    }
