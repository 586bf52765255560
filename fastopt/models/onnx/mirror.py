"""Kernels that are their own mirror image, kept by half.

The cosines and sines of a spectrogram by convolution are even and odd around their centre, with
a first value apart where the period is even: w[k] = +-w[n - k]. Half of the kernel is stored and
the graph turns it round when it is loaded, which run-times do once.
"""

from __future__ import annotations

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Graph, new_node

__all__ = ["halve_kernels"]

_SMALLEST = 1 << 14  # elements; below, the operators weigh more than the half
_SAME = 1e-6  # of the largest value


def halve_kernels(graph: Graph, locked: frozenset[str] = frozenset()) -> int:
    """In place: halve the weights of 1-D convolutions that are even or odd; how many."""
    readers = graph.consumers()
    first = []
    done = 0
    for name, weight in list(graph.values.items()):
        if weight.ndim != 3 or weight.size < _SMALLEST or weight.dtype != np.float32:
            continue
        if name in locked or name in graph.overridable or graph.opset < 10:
            continue
        if any((node.op, k) != ("Conv", 1) for node, k in readers.get(name, [])):
            continue
        found = _mirror(weight)
        if found is None:
            continue
        alone, sign = found
        n = weight.shape[2]
        kept = (n - alone + 1) // 2
        last = kept - 1 - (n - alone) % 2  # the middle of an odd number stands alone
        half, back, signed = (f"{name}/{part}" for part in ("half", "back", "signed"))
        bounds = {"starts": last, "ends": -n - 1, "axes": 2, "steps": -1}
        for key, value in bounds.items():
            graph.values[f"{name}/{key}"] = np.array([value], np.int64)
        graph.values[half] = np.ascontiguousarray(weight[..., alone : alone + kept])
        del graph.values[name]
        first.append(new_node("Slice", (half, *(f"{name}/{key}" for key in bounds)), (back,)))
        if sign < 0:
            first.append(new_node("Neg", (back,), (signed,)))
            back = signed
        parts: tuple[str, ...] = (half, back)
        if alone:
            graph.values[f"{name}/first"] = np.ascontiguousarray(weight[..., :1])
            parts = (f"{name}/first", *parts)
        first.append(new_node("Concat", parts, (name,), axis=2))
        done += 1
    if first:
        block = graph.block
        graph.block = type(block)(block.name, block.inputs, block.outputs, (*first, *block.nodes))
    return done


def _mirror(weight: Array) -> tuple[int, int] | None:
    """(values before the mirrored part, sign), or None."""
    limit = _SAME * float(np.abs(weight).max())
    for alone in (0, 1):
        part = weight[..., alone:]
        for sign in (1, -1):
            if np.abs(part - sign * part[..., ::-1]).max(initial=0.0) <= limit:
                return alone, sign
    return None
