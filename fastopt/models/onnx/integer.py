"""Operators that run in int8: MatMulInteger and DynamicQuantizeLSTM, the input quantised at each
call with one scale for the whole tensor.

    y = (x_q - x_zero) @ w_q.T * (x_scale * w_scale) + bias,    w_scale one value per row
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Graph, Node, new_node
from fastopt.models.onnx.layers import Site, View

__all__ = ["Rows8", "can_run_dynamic", "int8_rows", "put_rows", "rows_to_int8", "run_dynamic"]

_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Rows8:
    """A weight in int8 with one scale per row, as an int8 operator reads it.

    Attributes
    ----------
    codes : (n_out, n_in) int8
    scale : (n_out,) float32
    view : View
        The operator's tensor as a matrix.
    name : str
        The tensor; ``name + "/scale"`` holds the scales.
    """

    name: str
    codes: Array
    scale: Array
    view: View

    @property
    def scale_kept(self) -> Array:
        """The scales as the operator reads them: (n_out,), or (directions, n_out)."""
        if len(self.view.shape) == 3 and not self.view.plain:
            return self.scale.reshape(self.view.shape[0], -1)
        return self.scale

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape in which the scales meet the tensor."""
        shape = self.view.shape
        if self.view.plain:
            return (shape[0], *[1] * (len(shape) - 1))
        return (shape[0], 1, shape[2]) if len(shape) == 3 else (shape[-1],)

    def matrix(self) -> Array:
        """The values, (n_out, n_in) float32."""
        found: Array = self.codes.astype(np.float32) * self.scale[:, None]
        return found


def rows_to_int8(site: Site, matrix: Array) -> Rows8:
    """Round a matrix to int8 row by row, as Div, Round and Cast do it in a graph."""
    peak = np.abs(matrix).max(axis=1, initial=0.0)
    scale = np.where(peak > 0, peak / np.float32(127), np.float32(1)).astype(np.float32)
    codes = np.rint(matrix / scale[:, None]).astype(np.int8)
    return int8_rows(site, codes, scale)


def int8_rows(site: Site, codes: Array, scale: Array) -> Rows8:
    """Given codes (n_out, n_in) int8 and scales (n_out,) for the layer's int8 operator."""
    scale = np.where(scale > 0, scale, np.float32(1))  # a row of zeros
    return Rows8(f"{site.anchor}/int8", codes, scale, _int8_view(site))


def _int8_view(site: Site) -> View:
    """How the int8 operator wants the weight: (..., in, out), a convolution as it stands."""
    if site.kind == "conv":
        return site.view
    if site.kind == "recurrent":
        directions, n_out, n_in = site.view.shape
        return View(
            (directions, n_in, n_out), (directions, n_in, n_out), (0, 2, 1), directions * n_out
        )
    n_out = site.view.n_out
    shape = (int(np.prod(site.view.shape)) // n_out, n_out)
    return View(shape, shape, (1, 0), n_out)


def can_run_dynamic(graph: Graph, site: Site, *, portable: bool = False) -> bool:
    """Whether the layer's operator has an int8 form."""
    if site.dtype != "float32" or graph.opset < 11 or not site.direct or len(site.uses) != 1:
        return False
    use = site.uses[0]
    node = use.node
    if site.kind == "dense":
        plain = node.get("alpha", 1.0) == 1.0 and node.get("beta", 1.0) == 1.0
        plain = plain and node.op in ("MatMul", "Gemm") and not node.get("transA")
        return use.weight == 1 and len(site.view.shape) == 2 and plain
    if site.kind == "recurrent" and node.op == "LSTM" and not portable:
        known = {"direction", "hidden_size", "activations", "input_forget", "clip"}
        return not set(node.attrs) - known
    return False


def run_dynamic(graph: Graph, sites: Mapping[str, Site], weights: Mapping[str, Rows8]) -> None:
    """In place: the operators of those layers in int8; an LSTM where both weights are there."""
    change: dict[Node, list[Node]] = {}
    recurrent: dict[Node, dict[int, str]] = {}
    first: list[Node] = []
    for name in weights:
        use = sites[name].uses[0]
        if sites[name].kind == "recurrent":
            recurrent.setdefault(use.node, {})[use.weight] = name
            continue
        change[use.node] = _product(use.node, weights[name])
        put_rows(graph, weights[name])
    for node, pair in recurrent.items():
        if len(pair) < 2:  # the other weight is kept in float, so the operator runs in float
            (name,) = pair.values()
            first += _decoded(graph, sites[name], weights[name])
            continue
        w, r = weights[pair[1]], weights[pair[2]]
        inputs = [*node.inputs, *[""] * (8 - len(node.inputs))]
        inputs[1:3] = w.name, r.name
        directions = w.view.shape[0]
        for part in (w, r):
            put_rows(graph, part)
            zero = f"{part.name}/zero"
            graph.values[zero] = np.zeros((directions, part.view.shape[2]), np.int8)
            inputs += [f"{part.name}/scale", zero]
        made = Node(
            "DynamicQuantizeLSTM", _MICROSOFT, tuple(inputs), node.outputs, node.attrs,
            name=node.name,
        )  # fmt: skip
        change[node] = [made]
        if all(e.domain != _MICROSOFT for e in graph.head.opset_import):
            head = type(graph.head)()
            head.CopyFrom(graph.head)
            head.opset_import.add(domain=_MICROSOFT, version=1)
            graph.head = head
    graph.rewrite(change)
    graph.block = replace(graph.block, nodes=(*first, *graph.block.nodes))


def _decoded(graph: Graph, site: Site, weight: Rows8) -> list[Node]:
    """The float weight of a recurrent operator out of its int8 rows."""
    put_rows(graph, weight)
    del graph.values[site.anchor]
    name = weight.name
    graph.values[f"{name}/shape"] = np.array([weight.view.shape[0], 1, -1], np.int64)
    return [
        new_node("Cast", (name,), (f"{name}/wide",), to=1),
        new_node("Reshape", (f"{name}/scale", f"{name}/shape"), (f"{name}/rows",)),
        new_node("Mul", (f"{name}/wide", f"{name}/rows"), (f"{name}/decoded",)),
        new_node("Transpose", (f"{name}/decoded",), (site.anchor,), perm=[0, 2, 1]),
    ]


def put_rows(graph: Graph, weight: Rows8) -> None:
    """In place: the codes and scales as constants."""
    graph.values[weight.name] = weight.view.tensor(weight.codes)
    graph.values[f"{weight.name}/scale"] = weight.scale_kept


def _product(node: Node, weight: Rows8) -> list[Node]:
    """MatMul or Gemm in int8, in the operators that onnxruntime fuses."""
    stem = node.outputs[0]
    quantised = (f"{stem}/x", f"{stem}/xs", f"{stem}/xz")
    total, wide, scale = f"{stem}/sum", f"{stem}/wide", f"{stem}/scale"
    biased = len(node.inputs) > 2 and node.inputs[2]
    result = f"{stem}/product" if biased else stem
    nodes = [
        new_node("DynamicQuantizeLinear", node.inputs[:1], quantised),
        new_node("MatMulInteger", (quantised[0], weight.name, quantised[2]), (total,)),
        new_node("Cast", (total,), (wide,), to=1),
        new_node("Mul", (quantised[1], f"{weight.name}/scale"), (scale,)),
        new_node("Mul", (wide, scale), (result,)),
    ]
    if biased:
        nodes.append(new_node("Add", (result, node.inputs[2]), (stem,)))
    return nodes
