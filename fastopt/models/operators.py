"""Operators of formats other than ONNX, as the rules that tie axes together read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastopt.models.labels import Labels, Rule

__all__ = ["OPERATOR_RULES", "Op"]


@dataclass(frozen=True, eq=False)
class Op:
    """An operator as the rules read it (see ``fastopt.models.onnx.graph.Node``)."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    blocks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The operator as messages name it."""
        return f"{self.op} {self.name}"

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return self.attrs.get(name, default)


def _linear(node: Any, labels: Labels, graph: Any) -> None:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    labels.tie(labels.axis(x, -1), labels.axis(w, 1))
    labels.tie(labels.axis(y, -1), labels.axis(w, 0))
    for bias in node.inputs[2:]:
        labels.tie(labels.axis(bias, 0), labels.axis(y, -1))
    for axis in range(labels.rank(x) - 1):
        labels.tie(labels.axis(x, axis), labels.axis(y, axis))


def _attention(node: Any, labels: Labels, graph: Any) -> None:
    """softmax(q k^T / sqrt(d)) v over (..., rows, d); other leading axes go together."""
    q, k, v = node.inputs[:3]
    y = node.outputs[0]
    for name in (q, k):
        labels.freeze(labels.axis(name, -1), f"{node.label} divides by its root")
    labels.tie(labels.axis(q, -1), labels.axis(k, -1))
    labels.tie(labels.axis(v, -1), labels.axis(y, -1))
    labels.tie(labels.axis(q, -2), labels.axis(y, -2))
    labels.tie(labels.axis(k, -2), labels.axis(v, -2))
    for axis in range(labels.rank(q) - 2):
        for name in (k, v, y):
            labels.tie(labels.axis(q, axis), labels.axis(name, axis))
    for mask in node.inputs[3:]:
        for axis in range(-labels.rank(mask), -2):
            labels.tie(labels.axis(mask, axis), labels.axis(y, axis))


OPERATOR_RULES: dict[str, Rule] = {"Linear": _linear, "Attention": _attention}
