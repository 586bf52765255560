"""Edits of a network's graph; each gives another graph, whose shapes have been checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array
from fastopt._options import choice
from fastopt.errors import ArrayError, OptionError, UnsupportedError
from fastopt.models.base import FLOAT32, Layer
from fastopt.models.given import codes_of, fitted_of
from fastopt.models.network.conv import Conv2d
from fastopt.models.network.coupling import KINDS, Coupling, cut
from fastopt.models.network.describe import matrix
from fastopt.models.network.graph import Graph
from fastopt.models.network.module import Module
from fastopt.quantization import QuantizedArray, quantize

__all__ = ["folded", "layer_named", "split", "stored_as", "units_kept", "with_weight"]


def layer_named(graph: Graph, name: str) -> Any:
    """The module, which has a weight."""
    names = [m.name for m in graph.modules.values() if m.kind in KINDS]
    return graph.modules[choice(name, "layer", names)]


def with_weight(module: Any, weight: Array, bias: Array | None = None) -> Any:
    """The module with another weight (n_out, n_in) of the same shape; None keeps the bias."""
    shape = matrix(module).shape
    fresh = as_array(weight, "weight", dtypes=("float32",), cast="float32")
    if fresh.shape != shape:
        raise ArrayError(f"weight: {module.name} needs shape {shape}, got {fresh.shape}")
    found = replace(module, weight=fresh.reshape(module.weight.shape), stored=None)
    if bias is None:
        return found
    if "bias" not in module.arrays:
        raise OptionError(f"bias: {module.name} has no place for one")
    return replace(found, bias=bias)


def stored_as(module: Any, layer: Layer, form: str, codes: QuantizedArray | None) -> Any:
    """The module with its weight in one of the layer's forms; rounded plainly without codes."""
    by_name = {f.name: f for f in layer.forms}
    wanted = by_name[choice(form, f"form of {layer.name}", by_name)]
    codes = codes_of(codes, layer)
    if form == FLOAT32:
        return replace(module, stored=None)
    if codes is None:
        axis = 0 if wanted.group_size is None else 1
        codes = quantize(
            layer.weight, f"int{wanted.bits}", axis=axis, group_size=wanted.group_size
        )
    values = np.asarray(codes.dequantize(), np.float32).reshape(module.weight.shape)
    fresh = replace(module, weight=values, stored=codes)
    if hasattr(fresh, "dynamic"):
        fresh.dynamic = wanted.activations is not None
    return fresh


def units_kept(
    graph: Graph,
    coupling: Coupling,
    group: str,
    index: Array,
    weights: Mapping[str, tuple[Array, Array | None]] | None,
) -> Graph:
    """Without the units of a group that are not in ``index``."""
    found = coupling.groups[choice(group, "group", coupling.groups)]
    kept = found.kept(index)
    fitted = fitted_of(weights, {m.tensor for m in (*found.producers, *found.consumers)})
    gone = coupling.gone(group, kept)
    touched = {tensor for tensor, _ in gone}
    change: dict[str, list[Module]] = {}
    for name, module in graph.modules.items():
        own = {name, *(f"{name}.{k}" for k in module.held()), f"%{name}/q/heads"}
        if own & touched:
            fresh: Any = copy.copy(module)
            cut(fresh, gone)
            if name in fitted:
                fresh = with_weight(fresh, *fitted[name])
            elif getattr(fresh, "stored", None) is not None:
                fresh.stored = None
            change[name] = [fresh]
    return graph.replaced(change)


def split(graph: Graph, layer: str, a: Array, b: Array) -> Graph:
    """With ``layer`` as two: ``layer.b`` (r, n_in), then ``layer.a`` (n_out, r)."""
    old = layer_named(graph, layer)
    a, b = (as_array(w, "a, b", dtypes=("float32",), cast="float32", ndim=2) for w in (a, b))
    if (len(a), b.shape[1]) != matrix(old).shape or a.shape[1] != len(b):
        raise ArrayError(f"a, b: {layer} needs outer shape {matrix(old).shape}")
    first_name, second_name = f"{layer}.b", f"{layer}.a"
    if old.kind == "dense":
        first = replace(old, weight=b, bias=None, stored=None, name=first_name)
        first.activation = "identity"
        second = replace(old, weight=a, stored=None, name=second_name)
    elif old.kind == "conv2d" and old.groups == 1:
        kernel = b.reshape(len(b), *old.weight.shape[1:])
        first = replace(old, weight=kernel, bias=None, stored=None, name=first_name)
        second = Conv2d(a[:, :, None, None], old.bias, name=second_name)
    else:
        raise UnsupportedError(f"layer: {layer} cannot become two")
    return graph.replaced({layer: [first, second]})


def folded(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """With every batch-norm that alone reads a convolution or a linear layer inside it."""
    readers: dict[str, list[str]] = {}
    for module in graph.modules.values():
        for name in module.inputs:
            readers.setdefault(name, []).append(module.name)
    change: dict[str, list[Module]] = {}
    done = []
    for norm in graph.modules.values():
        source: Any = graph.modules.get(norm.inputs[0])
        if norm.kind != "batch_norm" or source is None or len(readers[source.name]) != 1:
            continue
        flat = source.kind == "dense" and len(graph.shapes[source.name]) == 1
        linear = flat and source.activation == "identity"
        if not (linear or source.kind == "conv2d") or source.stored is not None:
            continue
        change |= {source.name: [_with_norm(source, norm)], norm.name: []}
        done.append(f"{norm.name} folded into {source.name}")
    return (graph.replaced(change) if change else graph), tuple(done)


def _with_norm(source: Any, norm: Any) -> Any:
    """slope * (W x + b) + shift as one layer (Jacob et al. 2018, equation 14)."""
    slope = norm.weight / np.sqrt(norm.running_var + np.float32(norm.eps))
    shift = norm.bias - slope * norm.running_mean
    bias = shift if source.bias is None else shift + slope * source.bias
    weight = source.weight * slope.reshape(-1, *[1] * (source.weight.ndim - 1))
    return replace(source, weight=weight, bias=bias, stored=None)
