"""A layer's input rows out of the tensor that feeds it: patches of a convolution, states of a
recurrent layer, the plain rows of a product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Node
from fastopt.models.onnx.layers import Site

__all__ = ["input_rows", "multiply_adds"]


def input_rows(site: Site, tapped: Array, limit: int | None) -> Array:
    """(n_blocks, rows, n_in) float32; at most about ``limit`` evenly spaced rows."""
    use = site.uses[0]
    node = use.node
    x: Array = np.asarray(tapped, np.float32)
    if site.kind == "conv" and site.whole is not None:
        view, columns = site.whole
        return _patches(x, node, replace(site, view=view), limit) @ columns
    if site.kind == "conv":
        return _patches(x, node, site, limit)
    if site.kind == "conv_transpose":
        g = site.n_blocks
        rows = np.moveaxis(x, 1, -1).reshape(-1, g, x.shape[1] // g)
        return np.ascontiguousarray(_thin(rows, limit).transpose(1, 0, 2))
    if site.kind == "recurrent":
        return _steps(x, node, use.weight, limit)
    if node.op != "Einsum" and (use.weight == 0 or node.get("transA", 0)):
        x = x.swapaxes(-1, -2)
    if site.n_blocks > 1:  # one matrix for each leading index
        rows = x.reshape(-1, site.n_blocks, *x.shape[-2:]).swapaxes(0, 1)
        rows = rows.reshape(site.n_blocks, -1, x.shape[-1])
        return np.ascontiguousarray(rows[:, _spaced(rows.shape[1], limit)])
    return _thin(x.reshape(-1, x.shape[-1]), limit)[None]


def multiply_adds(site: Site, shapes: Mapping[str, tuple[int, ...]], size: int) -> int:
    """Multiply-adds of all uses together in one run, from tensors' shapes.

    ``size`` is the number of the anchor's elements.
    """
    total = 0
    for use in site.uses:
        node = use.node
        source = node.inputs[use.data]
        positions = 0
        if site.kind == "conv":
            shape = shapes.get(node.outputs[0])
            positions = 0 if shape is None else shape[0] * math.prod(shape[2:])
        elif source in shapes and site.kind == "conv_transpose":
            shape = shapes[source]
            positions = shape[0] * math.prod(shape[2:])
        elif source in shapes and site.kind == "recurrent":
            positions = math.prod(shapes[source][:2])
        elif source in shapes and site.kind == "dense":
            shape = shapes[source]
            turned = node.op != "Einsum" and (use.weight == 0 or node.get("transA", 0))
            inner = shape[-2] if turned and len(shape) > 1 else shape[-1]
            positions = math.prod(shape) // max(1, inner) // site.n_blocks
        total += positions
    if site.whole is not None:  # columns that serve several times
        size = site.view.n_out * int(np.count_nonzero(site.whole[1]))
    return total * size


def _spaced(n: int, limit: int | None) -> Array:
    if limit is None or n <= limit:
        return np.arange(n)
    return np.arange(limit) * n // limit


def _thin(rows: Array, limit: int | None) -> Array:
    return rows if limit is None or len(rows) <= limit else rows[_spaced(len(rows), limit)]


def _steps(x: Array, node: Node, weight: int, limit: int | None) -> Array:
    if weight == 1:
        return _thin(x.reshape(-1, x.shape[-1]), limit)[None]
    # Y is (time, direction, batch, units), or (batch, time, direction, units) with layout 1;
    # a step reads the state of the step before it, zeros at first.
    y = x.transpose(1, 2, 0, 3) if node.get("layout", 0) else x
    start = np.zeros_like(y[:1])
    states = []
    for k in range(y.shape[1]):
        backward = node.get("direction", "forward") == "reverse" or k == 1
        state = [y[1:, k], start[:, k]] if backward else [start[:, k], y[:-1, k]]
        states.append(np.concatenate(state).reshape(-1, y.shape[-1]))
    rows = np.stack(states)
    return np.ascontiguousarray(rows[:, _spaced(rows.shape[1], limit)])


def _patches(x: Array, node: Node, site: Site, limit: int | None) -> Array:
    """Patches of a convolution's input, in the order of the weight's columns."""
    kernel = site.view.shape[2:]
    n_dims = len(kernel)
    strides = node.get("strides") or [1] * n_dims
    dilations = node.get("dilations") or [1] * n_dims
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    pads = _pads(node, x.shape[2:], strides, spans)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    sizes = x.shape[2:]
    outs = [(n - s) // t + 1 for n, s, t in zip(sizes, spans, strides, strict=True)]
    place = np.unravel_index(_spaced(x.shape[0] * math.prod(outs), limit), (x.shape[0], *outs))
    offsets = np.unravel_index(np.arange(math.prod(kernel)), kernel)
    flat: Any = 0
    for n, t, d, p, o in zip(sizes, strides, dilations, place[1:], offsets, strict=True):
        flat = flat * n + p[:, None] * t + o[None, :] * d
    found = x.reshape(*x.shape[:2], -1)[place[0][:, None], :, flat]  # (rows, k, channels)
    g = site.n_blocks
    rows = found.transpose(0, 2, 1).reshape(len(found), g, -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


def _pads(
    node: Node, sizes: tuple[int, ...], strides: list[int], spans: list[int]
) -> list[tuple[int, int]]:
    auto = node.get("auto_pad", "NOTSET")
    n_dims = len(sizes)
    if auto in ("NOTSET", ""):
        pads = node.get("pads") or [0] * (2 * n_dims)
        return list(zip(pads[:n_dims], pads[n_dims:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * n_dims
    found = []
    for n, t, s in zip(sizes, strides, spans, strict=True):
        total = max(0, (-(-n // t) - 1) * t + s - n)
        small = total // 2
        found.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    return found
