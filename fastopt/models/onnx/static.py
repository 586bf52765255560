"""Operators that run in int8 with ranges known beforehand: QLinearConv, and MatMulInteger on an
input that one QuantizeLinear rounds.

    x_q = round(x / x_scale) + x_zero
    y_q = round(sum((x_q - x_zero) * w_q) * x_scale * w_scale / y_scale) + y_zero

A convolution hands its quantised output on to those that read it with the same range; a Relu or
Clip between them is the clipping of the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import OptionError
from fastopt.models.onnx.graph import Graph, Node, new_node
from fastopt.models.onnx.integer import Rows8, put_rows
from fastopt.models.onnx.layers import Site, bias_of

__all__ = ["Static", "can_run_static", "check_ranges", "run_static"]


@dataclass(frozen=True)
class Static:
    """A layer's int8 weight and the ranges around it, by tensor name."""

    weight: Rows8
    ranges: Mapping[str, tuple[float, float]]


def can_run_static(graph: Graph, site: Site) -> bool:
    """Whether the layer's operator has a static int8 form."""
    if site.dtype != "float32" or graph.opset < 11 or not site.direct or len(site.uses) != 1:
        return False
    node = site.uses[0].node
    if node not in graph.block.nodes:
        return False
    if site.kind == "conv":
        return len(site.view.shape) == 4 and (
            len(node.inputs) < 3 or not node.inputs[2] or node.inputs[2] in graph.values
        )
    plain = node.get("alpha", 1.0) == 1.0 and node.get("beta", 1.0) == 1.0
    return (
        node.op in ("MatMul", "Gemm")
        and site.uses[0].weight == 1
        and len(site.view.shape) == 2
        and plain
        and not node.get("transA")
    )


def check_ranges(site: Site, ranges: Mapping[str, tuple[float, float]] | None) -> None:
    """OptionError unless the ranges that the layer's operator needs are there and finite."""
    node = site.uses[0].node
    wanted = [node.inputs[0], node.outputs[0]] if site.kind == "conv" else [node.inputs[0]]
    for name in wanted:
        found = (ranges or {}).get(name)
        if found is None or not (np.isfinite(found).all() and found[0] <= found[1]):
            raise OptionError(
                f"ranges: {site.anchor} needs the least and largest value of {name!r}, got {found}"
            )


def run_static(graph: Graph, sites: Mapping[str, Site], layers: Mapping[str, Static]) -> None:
    """In place: those layers' operators in int8."""
    if layers:
        _Writer(graph, sites, layers).write()


@dataclass
class _Writer:
    graph: Graph
    sites: Mapping[str, Site]
    layers: Mapping[str, Static]
    nodes: list[Node] = field(default_factory=list)
    known: dict[tuple[str, float, int], str] = field(default_factory=dict)  # quantised tensors

    def write(self) -> None:
        graph = self.graph
        self.consumers = graph.consumers()
        by_node = {self.sites[name].uses[0].node: name for name in self.layers}
        wanted = {
            node.inputs[0]: self.layers[name].ranges[node.inputs[0]]
            for node, name in by_node.items()
        }
        skipped: set[Node] = set()
        for node in graph.block.nodes:
            if node in skipped:
                continue
            if node not in by_node:
                self.nodes.append(node)
                continue
            layer, site = self.layers[by_node[node]], self.sites[by_node[node]]
            scale, zero = _parameters(layer.ranges[node.inputs[0]])
            x = self.quantised(node.inputs[0], scale, zero)
            if site.kind == "dense":
                self.product(node, layer.weight, x, scale, zero)
            else:
                skipped |= self.convolution(node, site, layer, (x, scale, zero), wanted)
        graph.block = type(graph.block)(
            graph.block.name, graph.block.inputs, graph.block.outputs, tuple(self.nodes)
        )

    def constant(self, stem: str, value: Array) -> str:
        self.graph.values[stem] = value
        return stem

    def parameters(self, name: str, scale: float, zero: int) -> tuple[str, str]:
        """Scale and zero point as constants."""
        return (
            self.constant(f"{name}/qs", np.array(scale, np.float32)),
            self.constant(f"{name}/qz", np.array(zero, np.uint8)),
        )

    def quantised(self, name: str, scale: float, zero: int) -> str:
        """The tensor in uint8, rounded once for all that read it with this range."""
        key = (name, scale, zero)
        if key not in self.known:
            made = f"{name}/q{len(self.known)}"
            self.nodes.append(
                new_node("QuantizeLinear", (name, *self.parameters(made, scale, zero)), (made,))
            )
            self.known[key] = made
        return self.known[key]

    def product(self, node: Node, weight: Rows8, x: str, scale: float, zero: int) -> None:
        stem = node.outputs[0]
        put_rows(self.graph, weight)
        zero_name = self.constant(f"{stem}/xz", np.array(zero, np.uint8))
        step = self.constant(f"{weight.name}/step", weight.scale * np.float32(scale))
        biased = len(node.inputs) > 2 and node.inputs[2]
        result = f"{stem}/product" if biased else stem
        self.nodes += [
            new_node("MatMulInteger", (x, weight.name, zero_name), (f"{stem}/sum",)),
            new_node("Cast", (f"{stem}/sum",), (f"{stem}/wide",), to=1),
            new_node("Mul", (f"{stem}/wide", step), (result,)),
        ]
        if biased:
            self.nodes.append(new_node("Add", (result, node.inputs[2]), (stem,)))

    def convolution(
        self,
        node: Node,
        site: Site,
        layer: Static,
        source: tuple[str, float, int],
        wanted: Mapping[str, tuple[float, float]],
    ) -> set[Node]:
        """Write the convolution; the activation that went into it."""
        x, x_scale, x_zero = source
        weight, y = layer.weight, node.outputs[0]
        low, high = layer.ranges[y]
        gone: set[Node] = set()
        readers = self.consumers.get(y, [])
        clip = self.clipping(readers[0][0]) if len(readers) == 1 else None
        if clip is not None:
            (activation,) = {reader for reader, _ in readers}
            gone, y = {activation}, activation.outputs[0]
            low, high = max(low, clip[0]), min(high, clip[1])
        scale, zero = _parameters(wanted.get(y, (low, high)))
        put_rows(self.graph, weight)
        inputs = [
            x, *self.parameters(f"{node.outputs[0]}/x", x_scale, x_zero),
            weight.name, f"{weight.name}/scale",
            self.constant(f"{weight.name}/zero", np.zeros(len(weight.scale), np.int8)),
            *self.parameters(f"{y}/y", scale, zero),
        ]  # fmt: skip
        bias = bias_of(self.graph, site, self.consumers)
        if bias is not None:
            step = weight.scale.astype(np.float64) * x_scale
            codes = np.rint(self.graph.values[bias[0]].reshape(-1) / step)
            limit = 2**31 - 1
            inputs.append(
                self.constant(
                    f"{weight.name}/bias", np.clip(codes, -limit, limit).astype(np.int32)
                )
            )
        made = f"{y}/q"
        self.nodes.append(Node("QLinearConv", "", tuple(inputs), (made,), node.attrs))
        self.nodes.append(new_node("DequantizeLinear", (made, *inputs[6:8]), (y,)))
        self.known[(y, scale, zero)] = made
        return gone

    def clipping(self, node: Node) -> tuple[float, float] | None:
        """The bounds of a Relu or Clip."""
        if node.op == "Relu" and not node.domain:
            return 0.0, float("inf")
        if node.op != "Clip" or node.domain or len(node.inputs) < 2:
            return None
        bounds = []
        for name, default in zip((*node.inputs[1:], "")[:2], ("-inf", "inf"), strict=True):
            if name and name not in self.graph.values:
                return None
            bounds.append(float(self.graph.values[name].reshape(())) if name else float(default))
        return (bounds[0], bounds[1]) if bounds[0] <= 0 <= bounds[1] else None


def _parameters(bounds: tuple[float, float]) -> tuple[float, int]:
    """Scale and zero point of uint8 codes for a range, 0 among its values."""
    low, high = min(0.0, bounds[0]), max(0.0, bounds[1])
    scale = float(np.float32((high - low) / 255)) or 1.0
    return scale, int(np.clip(round(-low / scale), 0, 255))
