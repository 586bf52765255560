"""Coupling groups of a network: its modules as operators, for label propagation."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.models.base import Group
from fastopt.models.labels import groups_of, propagate
from fastopt.models.network.graph import INPUT, Graph
from fastopt.models.network.module import Module
from fastopt.models.onnx.layers import Site, View
from fastopt.models.onnx.rules import RULES
from fastopt.models.operators import OPERATOR_RULES, Op

__all__ = ["KINDS", "Coupling", "cut"]

# Modules whose weight is a layer of the protocol: its kind there.
KINDS = {"dense": "dense", "conv2d": "conv", "embedding": "embedding", "positions": "embedding"}
_ENDS = " is an input or output"


class Coupling:
    """What lives and dies together in a graph.

    Attributes
    ----------
    groups : dict of str to Group
        Those of inner units; a network's inputs and outputs are not among them.
    """

    def __init__(self, graph: Graph) -> None:
        shapes = {f"%{name}": (1, *shape) for name, shape in graph.shapes.items()}
        ops: list[Op] = []
        for module in graph.modules.values():
            shapes |= {_tensor(module, k): a.shape for k, a in module.held().items()}
            ops += _ops(module, shapes)
        block = SimpleNamespace(
            inputs=[SimpleNamespace(name=f"%{INPUT}")],
            outputs=[SimpleNamespace(name=f"%{graph.output}")],
            nodes=ops,
        )
        view: Any = SimpleNamespace(block=block, overridable=frozenset(), values={}, opset=18)
        self._labels, self.notes = propagate(view, shapes, {**RULES, **OPERATOR_RULES})
        sites = {m.name: _site(m) for m in graph.modules.values() if m.kind in KINDS}
        held = {_tensor(m, k): a for m in graph.modules.values() for k, a in m.held().items()}
        found, self._units = groups_of(self._labels, sites, held)
        self.groups: dict[str, Group] = {
            name: g for name, g in found.items() if not (g.frozen or "").endswith(_ENDS)
        }

    def gone(self, group: str, index: Array) -> dict[tuple[str, int], Array]:
        """For each (tensor, axis) a mask of the positions that go where ``index`` stays."""
        return self._labels.removed(np.delete(self._units[group], index))


def cut(module: Module, gone: dict[tuple[str, int], Array]) -> None:
    """In place: take the marked positions out of a module's arrays."""
    for name, a in module.held().items():
        for axis in range(a.ndim):
            mask = gone.get((_tensor(module, name), axis))
            if mask is not None:
                a = np.compress(~mask, a, axis=axis)
        setattr(module, name, np.ascontiguousarray(a))
    whole: Any = module
    if module.kind == "conv2d" and whole.groups > 1 and whole.weight.shape[1] == 1:
        heads = gone.get((module.name, 0))
        if heads is not None:
            whole.groups = whole.groups * len(whole.weight) // heads.size
    if module.kind == "attention":
        heads = gone.get((f"%{module.name}/q/heads", 2))
        whole.n_heads -= 0 if heads is None else int(heads.sum())


def _tensor(module: Module, name: str) -> str:
    """An array's name; a layer's weight has the layer's own."""
    whole = name == "weight" and module.kind in KINDS
    return module.name if whole else f"{module.name}.{name}"


def _site(module: Module) -> Site:
    weight: Array = module.held()["weight"]
    kind = KINDS[module.kind]
    axes = ("row", "feature") if kind == "embedding" else ("out", "in")
    return Site(
        module.name, kind, View.rows(weight.shape, len(weight)), (),
        getattr(module, "groups", 1), axes + ("k",) * (weight.ndim - 2),
    )  # fmt: skip


# --- one short entry a kind -------------------------------------------------------------------


def _ops(module: Module, shapes: dict[str, tuple[int, ...]]) -> list[Op]:
    ins, out = tuple(f"%{k}" for k in module.inputs), f"%{module.name}"
    own = tuple(_tensor(module, k) for k in module.held())
    made: Callable[[Module], tuple[str, dict[str, Any]]] | None = _OPERATORS.get(module.kind)
    if module.kind == "attention":
        return _attention_ops(module, ins, out, shapes)
    if module.kind == "embedding":
        return [Op("Gather", (*own, *ins), (out,), {"axis": 0}, module.name)]
    if made is None:
        return [Op(module.kind, (*ins, *own), (out,), {}, module.name)]
    op, attrs = made(module)
    return [Op(op, (*ins, *own), (out,), attrs, module.name)]


_OPERATORS: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    "dense": lambda m: ("Linear", {}),
    "conv2d": lambda m: ("Conv", {"group": m.groups}),
    "batch_norm": lambda m: ("BatchNormalization", {}),
    "layer_norm": lambda m: ("LayerNormalization", {"axis": -1}),
    "activation": lambda m: ("Relu", {}),
    "softmax": lambda m: ("Softmax", {"axis": -1}),
    "add": lambda m: ("Add", {}),
    "mul": lambda m: ("Mul", {}),
    "concat": lambda m: ("Concat", {"axis": m.axis + 1 if m.axis >= 0 else m.axis}),
    "flatten": lambda m: ("Reshape", {}),
    "max_pool2d": lambda m: ("MaxPool", {}),
    "avg_pool2d": lambda m: ("AveragePool", {}),
    "global_avg_pool2d": lambda m: ("GlobalAveragePool", {}),
    "mean": lambda m: ("ReduceMean", {"axes": [1], "keepdims": 0}),
    "positions": lambda m: ("Add", {}),
}


def _attention_ops(
    module: Any, ins: tuple[str, ...], out: str, shapes: dict[str, tuple[int, ...]]
) -> list[Op]:
    """Cut into heads, heads before tokens, attention, and all the way back."""
    ops, cuts = [], []
    for part, name in zip("qkv", ins, strict=True):
        _, tokens, width = shapes[name]
        heads, turned = f"{out}/{part}/heads", f"{out}/{part}"
        shapes[heads] = (1, tokens, module.n_heads, width // module.n_heads)
        shapes[turned] = tuple(shapes[heads][k] for k in (0, 2, 1, 3))
        ops.append(Op("Reshape", (name,), (heads,), {}, module.name))
        ops.append(Op("Transpose", (heads,), (turned,), {"perm": [0, 2, 1, 3]}, module.name))
        cuts.append(turned)
    mixed, back = f"{out}/mixed", f"{out}/back"
    shapes[mixed] = (1, module.n_heads, shapes[ins[0]][1], shapes[cuts[2]][3])
    shapes[back] = tuple(shapes[mixed][k] for k in (0, 2, 1, 3))
    return [
        *ops,
        Op("Attention", tuple(cuts), (mixed,), {}, module.name),
        Op("Transpose", (mixed,), (back,), {"perm": [0, 2, 1, 3]}, module.name),
        Op("Reshape", (back,), (out,), {}, module.name),
    ]
