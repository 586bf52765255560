"""Operators that move values without changing them, followed by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Graph, Node

__all__ = ["MOVES", "moved"]


def moved(
    graph: Graph, maker: Mapping[str, Node], name: str, anchor: str, shape: tuple[int, ...]
) -> Array | None:
    """For each value of ``name`` its flat position in ``anchor``, -1 if it comes from elsewhere.

    None where that cannot be told.
    """
    if name == anchor:
        return np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    if name in graph.values:
        return np.full(graph.values[name].shape, -1)
    node = maker.get(name)
    if node is not None and node.op == "Neg":  # the same places
        return moved(graph, maker, node.inputs[0], anchor, shape)
    if node is None or node.op not in MOVES:
        return None
    sources = node.inputs if node.op == "Concat" else node.inputs[:1]
    parts = [moved(graph, maker, source, anchor, shape) for source in sources]
    others = [graph.values.get(i) if i else None for i in node.inputs[len(sources) :]]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    try:
        return MOVES[node.op](node, known, others, name)
    except (ValueError, IndexError, TypeError, AttributeError):
        return None


def _axes(node: Node, others: list[Array | None], k: int = 0) -> tuple[int, ...] | None:
    """The axes of Squeeze and Unsqueeze: an attribute before opset 13, an input since."""
    if len(others) > k:
        given = others[k]
        if given is None:
            raise ValueError("axes are not constant")
        return tuple(int(a) for a in given.reshape(-1))
    axes = node.get("axes")
    return None if axes is None else tuple(axes)


def _identity(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    return parts[0]


def _transpose(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    turned: Array = parts[0].transpose(node.get("perm"))
    return turned


def _reshape(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    (target,) = others
    if target is None:
        raise ValueError("the shape is not constant")
    a = parts[0]
    shape = [int(n) for n in target]
    if not node.get("allowzero", 0):
        shape = [a.shape[k] if n == 0 else n for k, n in enumerate(shape)]
    return a.reshape(shape)


def _flatten(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    a = parts[0]
    axis = int(node.get("axis", 1)) % (a.ndim + 1)
    return a.reshape(int(np.prod(a.shape[:axis], dtype=np.int64)), -1)


def _squeeze(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    return parts[0].squeeze(_axes(node, others))


def _unsqueeze(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    axes = _axes(node, others)
    if axes is None:
        raise ValueError("no axes")
    return np.expand_dims(parts[0], axes)


def _concat(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    return np.concatenate(parts, axis=int(node.get("axis", 1)))


def _slice(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    a = parts[0]
    if others:
        given: list[list[int] | None] = []
        for k in range(4):
            entry = others[k] if k < len(others) else None
            if k < 2 and entry is None:
                raise ValueError("bounds are not constant")
            if len(node.inputs) > k + 1 and node.inputs[k + 1] and entry is None:
                raise ValueError("bounds are not constant")
            given.append(None if entry is None else [int(n) for n in entry])
        starts, ends, axes, steps = given
    else:
        starts, ends, axes, steps = node.get("starts"), node.get("ends"), node.get("axes"), None
    if starts is None or ends is None:
        raise ValueError("no bounds")
    cut = [slice(None)] * a.ndim
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[k] if axes else k) % a.ndim
        step = steps[k] if steps else 1
        n = a.shape[axis]
        stop: int | None = max(-n - 1, min(int(end), n))
        if step < 0 and stop is not None and (stop == -n - 1):
            stop = None
        cut[axis] = slice(max(-n, min(int(start), n)), stop, step)
    return a[tuple(cut)]


def _split(node: Node, parts: list[Array], others: list[Array | None], name: str) -> Array:
    a = parts[0]
    axis = int(node.get("axis", 0))
    sizes = node.get("split") if not others else others[0]
    count = len(node.outputs)
    if sizes is None:
        if others:
            raise ValueError("sizes are not constant")
        each = -(-a.shape[axis] // count)
        sizes = [each] * (count - 1) + [a.shape[axis] - each * (count - 1)]
    place = node.outputs.index(name)
    start = int(sum(sizes[:place]))
    return np.take(a, range(start, start + int(sizes[place])), axis=axis)


MOVES: dict[str, Callable[[Node, list[Array], list[Array | None], str], Array]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
}
