"""Edits of a graph's structure: units taken out, layers split in two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import OptionError, UnsupportedError
from fastopt.models.labels import Labels
from fastopt.models.onnx.graph import Graph, Node, attribute, new_node
from fastopt.models.onnx.layers import Site
from fastopt.models.onnx.rules import slice_bounds

__all__ = ["can_split", "set_bias", "split_site", "take_out"]


def take_out(
    graph: Graph, labels: Labels, gone: Mapping[tuple[str, int], Array]
) -> dict[str, tuple[int, ...]]:
    """In place: remove the marked positions from constants, and mend the nodes around them.

    Returns the shapes of all tensors after it.
    """

    def size(tensor: str, axis: int) -> int:
        found = labels.shapes[tensor][axis]
        mask = gone.get((tensor, axis))
        return found if mask is None else int(found - mask.sum())

    for (tensor, axis), mask in gone.items():
        if tensor in graph.values:
            graph.values[tensor] = np.compress(~mask, graph.values[tensor], axis=axis)
        elif tensor in graph.opaque:
            raise UnsupportedError(f"constant {tensor!r} of another type cannot be cut")
    change: dict[Node, list[Node]] = {}
    touched = {tensor for tensor, _ in gone}
    for node in graph.block.nodes:
        if not touched.isdisjoint((*node.inputs, *node.outputs)):
            mended = _mended(graph, labels, node, gone, size)
            if mended is not None:
                change[node] = mended
    graph.rewrite(change)
    shapes = {
        tensor: tuple(size(tensor, axis) for axis in range(len(shape)))
        for tensor, shape in labels.shapes.items()
    }
    return shapes | {name: a.shape for name, a in graph.values.items()}


def _mended(
    graph: Graph,
    labels: Labels,
    node: Node,
    gone: Mapping[tuple[str, int], Array],
    size: Callable[[str, int], int],
) -> list[Node] | None:
    y = node.outputs[0]
    if node.op in ("Reshape", "Expand"):
        axes = [k for k in range(labels.rank(y)) if (y, k) in gone]
        if not axes:
            return None
        return _new_shape(graph, labels, node, {k: size(y, k) for k in axes}, gone)
    if node.op == "Conv" and int(node.get("group", 1)) > 1:
        x, w = node.inputs[:2]
        if labels.shapes[w][1] == 1 and (x, 1) in gone:
            return [replace(node, attrs={**node.attrs, "group": attribute("group", size(x, 1))})]
        return None
    if node.op == "Split":
        x = node.inputs[0]
        axis = int(node.get("axis", 0)) % labels.rank(x)
        if (x, axis) not in gone:
            return None
        sizes = [size(name, axis) for name in node.outputs]
        attrs = {k: v for k, v in node.attrs.items() if k not in ("split", "num_outputs")}
        if graph.opset < 13:
            return [replace(node, attrs={**attrs, "split": attribute("split", sizes)})]
        name = _constant(graph, f"{y}/sizes", np.array(sizes, np.int64))
        return [replace(node, inputs=(x, name), attrs=attrs)]
    if node.op == "Slice":
        return _new_slice(graph, labels, node, gone)
    return None


def _constant(graph: Graph, stem: str, value: Array) -> str:
    name = graph.fresh(stem)
    graph.values[name] = value
    return name


def _follows(
    graph: Graph,
    labels: Labels,
    maker: Mapping[str, Node],
    gone: Mapping[tuple[str, int], Array],
    name: str,
    entry: int,
) -> bool:
    """Whether an entry of a computed shape is the size of an axis that is cut."""
    node = maker.get(name)
    if node is None or name in graph.values:
        return False
    if node.op == "Shape":
        rank = labels.rank(node.inputs[0])
        start = int(node.get("start", 0))
        return (node.inputs[0], (start + rank if start < 0 else start) + entry) in gone
    source = node.inputs[0]
    if node.op == "Concat":
        for source in node.inputs:
            length = math.prod(labels.shapes[source])
            if entry < length:
                break
            entry -= length
    elif node.op == "Slice":
        bounds = slice_bounds(node, graph)
        if bounds is None:
            return False
        start, _, step = next(iter(bounds.values()))
        n = math.prod(labels.shapes[source])
        entry = min(max(start + n if start < 0 else start, 0), n) + entry * step
    elif node.op == "Gather":
        if node.inputs[1] not in graph.values:
            return False
        entry = int(graph.values[node.inputs[1]].reshape(-1)[entry])
        entry += math.prod(labels.shapes[source]) if entry < 0 else 0
    elif node.op not in ("Unsqueeze", "Squeeze", "Identity", "Cast", "Reshape"):
        return any(
            _follows(graph, labels, maker, gone, i, min(entry, math.prod(labels.shapes[i]) - 1))
            for i in node.inputs
            if i in labels.shapes
        )
    return _follows(graph, labels, maker, gone, source, entry)


def _new_shape(
    graph: Graph,
    labels: Labels,
    node: Node,
    sizes: Mapping[int, int],
    gone: Mapping[tuple[str, int], Array],
) -> list[Node]:
    """Reshape or Expand with other entries of its shape, constant or computed."""
    y, shape = node.outputs[0], node.inputs[1]
    rank = labels.rank(y)
    if shape in graph.values:
        target = graph.values[shape].copy()
        for axis, n in sizes.items():
            if target[axis] > 0:
                target[axis] = n
        name = _constant(graph, f"{y}/shape", target)
        return [replace(node, inputs=(node.inputs[0], name))]
    # a computed shape may hold a factor that only a run knows, such as the batch: it is scaled,
    # where it does not come from the shape of something that has been cut itself
    maker = graph.producers()
    old, new = np.ones(rank, np.int64), np.ones(rank, np.int64)
    for axis, n in sizes.items():
        if not _follows(graph, labels, maker, gone, shape, axis):
            old[axis], new[axis] = labels.shapes[y][axis], n
    if (old == new).all():
        return [node]
    zero = _constant(graph, f"{y}/zero", np.array(0, np.int64))
    names = [graph.fresh(f"{y}/{k}") for k in ("times", "scaled", "open", "shape")]
    times, scaled, is_open, name = names
    labels.shapes |= dict.fromkeys(names, (rank,))
    return [
        new_node("Mul", (shape, _constant(graph, f"{y}/new", new)), (times,)),
        new_node("Div", (times, _constant(graph, f"{y}/old", old)), (scaled,)),
        new_node("Less", (shape, zero), (is_open,)),  # -1 stays
        new_node("Where", (is_open, shape, scaled), (name,)),
        replace(node, inputs=(node.inputs[0], name)),
    ]


def _new_slice(
    graph: Graph, labels: Labels, node: Node, gone: Mapping[tuple[str, int], Array]
) -> list[Node] | None:
    x, y = node.inputs[0], node.outputs[0]
    bounds = slice_bounds(node, graph)
    if bounds is None or not any((x, a % labels.rank(x)) in gone for a in bounds):
        return None
    new: dict[int, tuple[int, int, int]] = {}
    for a, (start, end, step) in bounds.items():
        axis = a % labels.rank(x)
        mask = gone.get((x, axis))
        if mask is not None:
            n = mask.size
            start, end = (min(max(b + n if b < 0 else b, 0), n) for b in (start, end))
            start, end = (b - int(mask[:b].sum()) for b in (start, end))
        new[axis] = (start, end, step)
    columns = [list(new), *map(list, zip(*new.values(), strict=True))]
    axes, starts, ends, steps = (np.array(c, np.int64) for c in columns)
    if graph.opset < 10:
        attrs = {"axes": axes.tolist(), "starts": starts.tolist(), "ends": ends.tolist()}
        return [new_node("Slice", (x,), (y,), **attrs)]
    names = [
        _constant(graph, f"{y}/{k}", v)
        for k, v in (("starts", starts), ("ends", ends), ("axes", axes), ("steps", steps))
    ]
    return [replace(node, inputs=(x, *names))]


def set_bias(graph: Graph, site: Site, bias: Array, found: tuple[str, Node, int] | None) -> bool:
    """In place: replace the layer's bias, where it has one, or add one.

    Returns True where the graph's nodes change; OptionError where there is no place for it.
    """
    n_out = site.view.n_out
    if found is not None:
        name = found[0]
        graph.values[name] = bias.astype(site.dtype).reshape(graph.values[name].shape)
        return False
    if not site.direct or len(site.uses) != 1 or site.kind not in ("dense", "conv"):
        raise OptionError(f"bias: {site.anchor} ({site.kind}) has no place for one")
    node = site.uses[0].node
    name = graph.fresh(f"{site.anchor}.bias")
    change: dict[Node, list[Node]]
    plain = node.get("alpha", 1.0) == 1.0 and node.get("beta", 1.0) == 1.0
    if node.op in ("Conv", "Gemm") and plain and len(node.inputs) == 2:
        change = {node: [replace(node, inputs=(*node.inputs, name))]}
    else:
        inner = graph.fresh(f"{node.outputs[0]}.unbiased")
        shape = (n_out, *[1] * (len(site.view.shape) - 2)) if node.op == "Conv" else (n_out,)
        if site.uses[0].weight == 0 and node.op != "Einsum":
            shape = (n_out, 1)
        bias = bias.reshape(shape)
        added = new_node("Add", (inner, name), node.outputs)
        change = {node: [replace(node, outputs=(inner,)), added]}
    graph.values[name] = bias.astype(site.dtype)
    graph.rewrite(change)
    return True


def can_split(site: Site) -> bool:
    """Whether the layer can become two."""
    if not site.direct or len(site.uses) != 1 or site.uses[0].weight != 1:
        return False
    node = site.uses[0].node
    if site.kind == "dense":
        plain = node.op in ("MatMul", "Gemm") and node.get("alpha", 1.0) == 1.0
        return plain and len(site.view.shape) == 2 and not node.get("transA")
    return site.kind == "conv" and site.n_blocks == 1


def split_site(graph: Graph, site: Site, a: Array, b: Array) -> str:
    """In place: the layer as two, ``b`` (r, n_in) first, then ``a`` (n_out, r) with the bias.

    Returns the name of the tensor between them.
    """
    node = site.uses[0].node
    old = graph.values.get(site.anchor)
    dtype = np.dtype(np.float32) if old is None else old.dtype
    rank = b.shape[0]
    shape = site.view.shape
    if site.kind == "conv":
        first, second = b.reshape(rank, *shape[1:]), a.reshape(-1, rank, *[1] * (len(shape) - 2))
        early = dict(node.attrs)
        late = {"kernel_shape": attribute("kernel_shape", [1] * (len(shape) - 2))}
    elif node.op == "Gemm" and node.get("transB"):
        first, second, early, late = b, a, {"transB": node.attrs["transB"]}, dict(node.attrs)
    else:
        first, second, early, late = b.T, a.T, {}, dict(node.attrs)
    names = graph.fresh(f"{site.anchor}.b"), graph.fresh(f"{site.anchor}.a")
    for name, value in zip(names, (first, second), strict=True):
        graph.values[name] = np.ascontiguousarray(value.astype(dtype))
    middle = graph.fresh(f"{node.outputs[0]}/thin")
    nodes = [
        Node(node.op, node.domain, (node.inputs[0], names[0]), (middle,), early),
        replace(node, inputs=(middle, names[1], *node.inputs[2:]), attrs=late),
    ]
    graph.rewrite({node: nodes})
    return middle
