"""Layers as the protocol shows them, and the forms that they can be stored in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.models.base import FLOAT32, Form, Layer
from fastopt.models.network.coupling import KINDS
from fastopt.models.network.graph import Graph
from fastopt.models.network.module import Module
from fastopt.models.network.patches import to_planes

__all__ = ["layers_of", "macs_of", "matrix", "rows_of"]

_GROUP = 32  # neighbours that share a scale in four-bit codes


def layers_of(graph: Graph) -> dict[str, Layer]:
    """The modules with a weight, in order of execution; arrays are the live ones."""
    return {m.name: _described(m, graph) for m in graph.modules.values() if m.kind in KINDS}


def macs_of(graph: Graph, module: Module) -> int:
    """Multiply-adds of a module for one row."""
    return module.macs(graph.shapes[module.name], *(graph.shapes[k] for k in module.inputs))


def matrix(module: Module) -> Array:
    """A module's weight as (n_out, n_in), without a copy."""
    weight: Array = module.held()["weight"]
    return weight.reshape(len(weight), -1)


def _described(m: Any, graph: Graph) -> Layer:
    weight, kind = matrix(m), KINDS[m.kind]
    n_out, n_in = weight.shape
    forms = [Form(FLOAT32, 32, nbytes=4 * n_out * n_in)]
    forms.append(Form("int8", 8, nbytes=n_out * n_in + 4 * n_out))
    if n_in % _GROUP == 0:
        groups = n_out * (n_in // _GROUP)
        forms.append(Form("int4g", 4, _GROUP, nbytes=(n_out * n_in + 1) // 2 + 4 * groups))
    if kind == "dense" or (kind == "conv" and m.groups == 1):
        able = forms[1:] if kind == "dense" else forms[1:2]  # patches are read channels last
        forms += [replace(f, name=f"{f.name}+dynamic", activations="dynamic") for f in able]
    now = forms[0]
    if m.stored is not None:
        mode = "dynamic" if getattr(m, "dynamic", False) else None
        seen = m.stored.group_size, mode
        alike = [f for f in forms[1:] if (f.group_size, f.activations) == seen]
        now = alike[0] if alike else Form(m.stored.dtype, m.stored.format.bits)
        now = replace(now, nbytes=m.stored.nbytes)
    axes = ("row", "feature") if kind == "embedding" else ("out", "in")
    return Layer(
        m.name, kind, weight, getattr(m, "bias", None), macs_of(graph, m),
        None if kind == "embedding" else f"{m.name}.in", now, tuple(forms),
        n_blocks=getattr(m, "groups", 1), axes=axes + ("k",) * (m.weight.ndim - 2),
        stored=m.stored,
    )  # fmt: skip


def rows_of(module: Any, tapped: Array, limit: int | None) -> Array:
    """A layer's input rows, (n_blocks, rows, n_in): a convolution's patches, evenly spaced."""
    if module.kind != "conv2d":
        flat = tapped.reshape(-1, tapped.shape[-1])
        return flat[_spaced(len(flat), limit)][None]
    window = module.window
    lines, width = window.places(tapped.shape[2:])
    seen = window.seen(window.padded(to_planes(tapped)), lines, width)
    n = seen.shape[-1]
    place, k = np.divmod(_spaced(lines * width * n, limit), n)
    found = seen[:, :, :, place // width, place % width, k]
    n_in = math.prod(found.shape[:-1]) // module.groups  # not -1: there may be no rows
    blocks = found.reshape(module.groups, n_in, len(k)).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks)


def _spaced(n: int, limit: int | None) -> Array:
    if limit is None or n <= limit:
        return np.arange(n)
    spaced: Array = np.linspace(0, n - 1, limit).round().astype(np.intp)
    return spaced
