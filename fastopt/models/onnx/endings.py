"""How a graph ends: which outputs are distributions over classes, and what stands before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Graph, Node

__all__ = ["Ending", "ending_of"]


@dataclass(frozen=True)
class Ending:
    """By output: the axis of its classes, and the tensor before its last activation."""

    axes: Mapping[str, int] = field(default_factory=dict)
    logits: Mapping[str, str] = field(default_factory=dict)
    labels: Array | None = None


def ending_of(graph: Graph) -> Ending:
    """Follow each output back through operators that keep the order of its values."""
    maker = {name: node for node in graph.block.nodes for name in node.outputs}
    axes: dict[str, int] = {}
    logits: dict[str, str] = {}
    labels: Array | None = None
    for output in graph.outputs:
        name = output
        while name in maker and maker[name].op in ("Identity", "Cast"):
            name = maker[name].inputs[0]
        node = maker.get(name)
        if node is None:
            continue
        if node.op in ("Softmax", "LogSoftmax"):
            axes[output] = int(node.get("axis", -1 if graph.opset >= 13 else 1))
            logits[output] = node.inputs[0]
        elif node.op == "Sigmoid" or node.op == "ArgMax":
            logits[output] = node.inputs[0]
        elif node.op == "Div":
            source = _softmax_by_hand(node, maker)
            if source is not None:
                logits[output], axes[output] = source
        elif node.op in ("LinearClassifier", "TreeEnsembleClassifier", "SVMClassifier"):
            labels = _labels(node)
            if node.outputs[1:2] == (name,):
                axes[output] = -1
        elif node.op == "ZipMap":
            labels = _labels(node)
            axes[output] = -1
    return Ending(axes, logits, labels)


def _softmax_by_hand(node: Node, maker: Mapping[str, Node]) -> tuple[str, int] | None:
    """exp(z) / sum(exp(z)) in single operators: (z, axis)."""
    top, below = maker.get(node.inputs[0]), maker.get(node.inputs[1])
    while below is not None and below.op in ("Reshape", "Expand", "Unsqueeze", "Identity"):
        below = maker.get(below.inputs[0])
    if top is None or below is None or top.op != "Exp" or below.op != "ReduceSum":
        return None
    return (top.inputs[0], -1) if below.inputs[0] == node.inputs[0] else None


def _labels(node: Node) -> Array | None:
    for key in (
        "classlabels_int64s", "classlabels_ints", "classlabels_strings",
        "cats_int64s", "cats_strings",
    ):  # fmt: skip
        values = node.get(key)
        if values:
            return np.array([v.decode() if isinstance(v, bytes) else v for v in values])
    return None
