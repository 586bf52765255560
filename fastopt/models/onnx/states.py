"""Initial states of recurrent layers that are zeros, left out.

Exporters compute them at each run from the batch's size, with half a dozen small operators per
layer. ONNX takes zeros where an initial state is not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fastopt.models.onnx.files import constant_of
from fastopt.models.onnx.graph import Graph, Node

__all__ = ["drop_zero_states"]

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_KEEP_ZEROS = {
    "Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


def drop_zero_states(graph: Graph, locked: frozenset[str] = frozenset()) -> int:
    """In place: leave out initial states that are always zeros; how many."""
    fixed = graph.overridable | locked
    makers = graph.producers()
    change: dict[Node, list[Node]] = {}
    done = 0
    for node in graph.block.walk():
        gone = {
            k
            for k in (() if node.domain else _STATES.get(node.op, ()))
            if k < len(node.inputs) and node.inputs[k]
            if _zeros(graph, makers, fixed, node.inputs[k])
        }
        if gone:
            inputs = ["" if k in gone else name for k, name in enumerate(node.inputs)]
            while not inputs[-1]:
                inputs.pop()
            change[node] = [replace(node, inputs=tuple(inputs))]
            done += len(gone)
    graph.rewrite(change)
    return done


def _zeros(graph: Graph, makers: Mapping[str, Node], fixed: frozenset[str], name: str) -> bool:
    """Whether a tensor holds zeros alone, whatever its shape."""
    if name in graph.values:
        return name not in fixed and not graph.values[name].any()
    node = makers.get(name)
    if node is None or node.domain:
        return False
    if node.op == "ConstantOfShape":
        value = node.get("value")
        found = 0 if value is None else constant_of(value, None)
        return isinstance(found, (int, np.ndarray)) and not np.any(found)
    parts = node.inputs if node.op == "Concat" else node.inputs[:1]
    if node.op != "Concat" and node.op not in _KEEP_ZEROS:
        return False
    return all(_zeros(graph, makers, fixed, part) for part in parts)
