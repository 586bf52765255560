"""Folding: operators merged into their neighbours where the function stays the same.

- BatchNormalization, Mul, Div, Add and Sub with one constant per channel into the convolution or
  product before them (rows of the weight, bias) or after them (columns, where nothing is padded);
- x * clip(x + 3, 0, 6) / 6 into x * HardSigmoid(x);
- two products without anything between them into one, where that is less work;
- kernels that are their own mirror image kept by half (:mod:`fastopt.models.onnx.mirror`);
- initial states of zeros left out (:mod:`fastopt.models.onnx.states`).

Sums are made in float64; outputs then differ by float32 rounding alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Graph, Node, new_node
from fastopt.models.onnx.mirror import halve_kernels
from fastopt.models.onnx.moves import MOVES
from fastopt.models.onnx.run import evaluate
from fastopt.models.onnx.states import drop_zero_states

__all__ = ["fold"]

_SMALL = 1 << 12  # elements: constants that are computed here and not at each load
_FOLDABLE = {*MOVES, "Add", "Sub", "Mul", "Div", "Cast", "Sqrt", "Reciprocal", "Neg"}


def fold(graph: Graph, locked: frozenset[str] = frozenset()) -> Counter[str]:
    """In place: fold what can be folded; what was done, with its number.

    Parameters
    ----------
    locked : frozenset of str
        Constants that must stay.
    """
    done: Counter[str] = Counter()
    rules: list[tuple[str, Callable[[_Folder], bool]]] = [
        ("constant expressions computed", _Folder.constant),
        ("hard swishes fused", _Folder.hard_swish),
        ("affine operators merged", _Folder.affine_pair),
        ("affine operators folded into the layer before", _Folder.behind),
        ("affine operators folded into the layer after", _Folder.before),
        ("products merged", _Folder.products),
    ]
    refused: set[str] = set()  # constant expressions that would be larger than they are
    again = True
    while again:
        again = False
        for name, rule in rules:
            while rule(_Folder(graph, locked, refused)):
                done[name] += 1
                again = True
    for name, change in (
        ("mirrored kernels kept by half", halve_kernels),
        ("initial states of zeros left out", drop_zero_states),
    ):
        if changed := change(graph, locked):
            done[name] = changed
    graph.prune()
    return done


@dataclass(frozen=True)
class _Affine:
    """y = x * scale + shift along ``axis`` of the tensor; size 1 or one value per channel."""

    node: Node
    x: str
    scale: Array
    shift: Array


class _Folder:
    def __init__(self, graph: Graph, locked: frozenset[str], refused: set[str]) -> None:
        self.graph, self.locked, self.refused = graph, locked, refused
        self.maker = graph.producers()
        self.readers = graph.consumers()
        self.fixed = graph.overridable | locked

    # --- looking --------------------------------------------------------------------------

    def value(self, name: str) -> Array | None:
        return None if name in self.fixed else self.graph.values.get(name)

    def alone(self, name: str) -> bool:
        """Whether one operator alone reads the tensor."""
        found = self.readers.get(name, [])
        return len(found) == 1 and found[0][0].op != "Output"

    def reader(self, name: str) -> Node | None:
        return self.readers[name][0][0] if self.alone(name) else None

    def layer(self, node: Node | None) -> tuple[Array, Array | None] | None:
        """(weight, bias) of an operator whose constants can be changed."""
        if node is None or node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        if node.domain or len(node.inputs) < 2:
            return None
        weight = self.value(node.inputs[1])
        if weight is None or not self.alone(node.inputs[1]) or weight.dtype.kind != "f":
            return None
        if node.op == "MatMul" and weight.ndim != 2:
            return None
        if node.op == "Gemm" and any(node.get(k, 1.0) != 1.0 for k in ("alpha", "beta")):
            return None
        if len(node.inputs) < 3 or not node.inputs[2]:
            return weight, None
        bias = self.value(node.inputs[2])
        if bias is None or bias.size != _n_out(node, weight):
            return None
        return weight, bias.reshape(-1)

    def affine(self, node: Node, axis: int, rank: int) -> _Affine | None:
        """The operator as an affine map along an axis; ``axis`` -1 or 1, the tensor's rank."""
        if node.domain:
            return None
        if node.op == "BatchNormalization":
            parts = [self.value(name) for name in node.inputs[1:]]
            if axis != 1 or len([o for o in node.outputs if o]) > 1 or node.get("training_mode"):
                return None
            if any(part is None for part in parts):
                return None
            gamma, beta, mean, var = (np.asarray(part, np.float64) for part in parts)
            scale = gamma / np.sqrt(var + node.get("epsilon", 1e-5))
            return _Affine(node, node.inputs[0], scale, beta - mean * scale)
        if node.op not in ("Mul", "Add", "Sub", "Div"):
            return None
        for k in (0, 1):
            other = self.value(node.inputs[1 - k])
            if other is None or other.dtype.kind != "f" or node.inputs[k] in self.graph.values:
                continue
            vector = _along(other, axis, rank)
            if vector is None:
                return None
            one, zero = np.ones(1), np.zeros(1)
            x = node.inputs[k]
            if node.op == "Mul":
                return _Affine(node, x, vector, zero)
            if node.op == "Add":
                return _Affine(node, x, one, vector)
            if node.op == "Sub":
                return _Affine(node, x, one, -vector) if k == 0 else _Affine(node, x, -one, vector)
            if k == 0 and (vector != 0).all():
                return _Affine(node, x, 1 / vector, zero)
        return None

    # --- rules: each changes one place and says whether it did -----------------------------

    def constant(self) -> bool:
        for node in self.graph.block.walk():
            inputs = [name for name in node.inputs if name]
            if node.op not in _FOLDABLE or node.domain or not inputs or len(node.outputs) != 1:
                continue
            parts = [self.value(name) for name in inputs]
            ends = any(
                reader.op == "Output" for reader, _ in self.readers.get(node.outputs[0], [])
            )
            if ends or node.outputs[0] in self.refused or any(part is None for part in parts):
                continue
            known = [part for part in parts if part is not None]
            if max(part.size for part in known) > _SMALL:
                continue
            if any(part.dtype.kind in "iu" and part.size >= 64 for part in known):
                continue  # integer weights on their way to floats
            found = evaluate(self.graph, node.outputs[0])
            if found.size > max(64, *(part.size for part in known)):
                self.refused.add(node.outputs[0])
                continue
            self.graph.values[node.outputs[0]] = found
            self.graph.rewrite({node: []})
            return True
        return False

    def hard_swish(self) -> bool:
        for node in self.graph.block.walk():
            if node.op != "Clip" or node.domain:
                continue
            low, high = self._bounds(node)
            added = self.maker.get(node.inputs[0])
            if (low, high) != (0.0, 6.0) or added is None or added.op != "Add":
                continue
            shifted = self.affine(added, -1, 99)
            if shifted is None or shifted.shift.tolist() != [3.0]:
                continue
            x = shifted.x
            after = self.reader(node.outputs[0])
            if after is None:
                continue
            if after.op == "Mul" and x in after.inputs:
                divided = self.reader(after.outputs[0])
                scaled = None if divided is None else self.affine(divided, -1, 99)
                if scaled is None or divided is None or not _is_sixth(scaled):
                    continue
                gate = f"{divided.outputs[0]}/gate"
                made = [
                    new_node("HardSigmoid", (x,), (gate,), alpha=1 / 6, beta=0.5),
                    new_node("Mul", (x, gate), divided.outputs),
                ]
                self.graph.rewrite({divided: made, after: [], node: []})
            else:
                scaled = self.affine(after, -1, 99)
                if scaled is None or not _is_sixth(scaled):
                    continue
                made = [new_node("HardSigmoid", (x,), after.outputs, alpha=1 / 6, beta=0.5)]
                self.graph.rewrite({after: made, node: []})
            self.graph.prune()
            return True
        return False

    def _bounds(self, node: Node) -> tuple[float | None, float | None]:
        if len(node.inputs) == 1:
            return node.get("min"), node.get("max")
        parts = [self.value(name) if name else None for name in (*node.inputs[1:], "", "")][:2]
        low, high = (None if p is None or p.size != 1 else float(p.reshape(-1)[0]) for p in parts)
        return low, high

    def affine_pair(self) -> bool:
        """x * a then * b, or + a then + b, with scalars: one operator."""
        for node in self.graph.block.walk():
            if node.op not in ("Mul", "Add", "Div", "Sub"):
                continue
            first = self.affine(node, -1, 99)
            after = self.reader(node.outputs[0])
            second = None if after is None else self.affine(after, -1, 99)
            if first is None or second is None or after is None:
                continue
            if any(a.size != 1 for a in (first.scale, first.shift, second.scale, second.shift)):
                continue
            scale = first.scale * second.scale
            shift = first.shift * second.scale + second.shift
            if scale != 1 and shift != 0:
                continue
            dtype = next(self.graph.values[i].dtype for i in node.inputs if i in self.graph.values)
            name = self.graph.fresh(f"{after.outputs[0]}/constant")
            op, found = ("Mul", scale) if shift == 0 else ("Add", shift)
            self.graph.values[name] = found.astype(dtype).reshape(())
            self.graph.rewrite({node: [], after: [new_node(op, (first.x, name), after.outputs)]})
            return True
        return False

    def behind(self) -> bool:
        for node in self.graph.block.walk():
            found = self.layer(node)
            after = self.reader(node.outputs[0]) if found else None
            if found is None or after is None:
                continue
            weight, bias = found
            axis, rank = (1, weight.ndim) if node.op.startswith("Conv") else (-1, 2)
            affine = self.affine(after, axis, rank)
            n_out = _n_out(node, weight)
            if affine is None or affine.x != node.outputs[0]:
                continue
            if affine.scale.size not in (1, n_out) or affine.shift.size not in (1, n_out):
                continue
            if node.op == "MatMul" and bool((affine.shift != 0).any()):
                continue  # MatMul has no bias; the addition stays, as onnxruntime fuses it
            scale = np.broadcast_to(affine.scale, n_out)
            old = np.zeros(n_out) if bias is None else bias.astype(np.float64)
            fresh = old * scale + affine.shift
            made = self._with(
                node,
                _scaled_rows(node, weight, scale),
                fresh if bias is not None or fresh.any() else None,
            )
            self.graph.rewrite({node: [replace(made, outputs=after.outputs)], after: []})
            return True
        return False

    def before(self) -> bool:
        for node in self.graph.block.walk():
            found = self.layer(node)
            if found is None or node.op == "ConvTranspose":
                continue
            source = self.maker.get(node.inputs[0])
            if source is None or not self.alone(node.inputs[0]):
                continue
            weight, bias = found
            axis, rank = (1, weight.ndim) if node.op == "Conv" else (-1, 2)
            affine = self.affine(source, axis, rank)
            if affine is None or node.get("transA"):
                continue
            shifted = bool((affine.shift != 0).any())
            if shifted and (node.op == "MatMul" or not _unpadded(node, weight)):
                continue
            group = int(node.get("group", 1)) if node.op == "Conv" else 1
            n_in = _n_in(node, weight) * group
            if affine.scale.size not in (1, n_in) or affine.shift.size not in (1, n_in):
                continue
            fresh = bias
            if shifted:
                more = _response(node, weight, np.broadcast_to(affine.shift, n_in), group)
                fresh = more if bias is None else bias.astype(np.float64) + more
            scaled = _scaled_columns(node, weight, np.broadcast_to(affine.scale, n_in), group)
            made = self._with(node, scaled, fresh)
            inputs = (affine.x, *made.inputs[1:])
            self.graph.rewrite({source: [], node: [replace(made, inputs=inputs)]})
            return True
        return False

    def products(self) -> bool:
        for node in self.graph.block.walk():
            first = self.layer(node) if node.op in ("MatMul", "Gemm") else None
            after = self.reader(node.outputs[0]) if first else None
            second = self.layer(after) if after and after.op in ("MatMul", "Gemm") else None
            if first is None or second is None or after is None or node.get("transA"):
                continue
            if after.inputs[0] != node.outputs[0] or after.get("transA"):
                continue
            (w, b), (v, c) = first, second
            if "Gemm" not in (node.op, after.op) and (b is not None or c is not None):
                continue
            if after.op == "MatMul" and node.op == "Gemm" and b is not None:
                continue  # the merged product needs a bias, which MatMul has not
            w2 = (w.T if node.get("transB") else w).astype(np.float64)
            v2 = (v.T if after.get("transB") else v).astype(np.float64)
            if w2.shape[0] * v2.shape[1] > w2.size + v2.size:
                continue
            bias = None if c is None else c.astype(np.float64)
            if b is not None:
                more = b.astype(np.float64) @ v2
                bias = more if bias is None else bias + more
            product = w2 @ v2
            made = self._with(after, product.T if after.get("transB") else product, bias)
            inputs = (node.inputs[0], *made.inputs[1:])
            self.graph.rewrite({node: [], after: [replace(made, inputs=inputs)]})
            return True
        return False

    def _with(self, node: Node, weight: Array, bias: Array | None) -> Node:
        """The operator with new constants."""
        old = self.graph.values[node.inputs[1]]
        self.graph.values[node.inputs[1]] = np.ascontiguousarray(weight.astype(old.dtype))
        if bias is None:
            return node
        had = len(node.inputs) > 2 and node.inputs[2]
        name = node.inputs[2] if had and self.alone(node.inputs[2]) else None
        name = name or self.graph.fresh(f"{node.inputs[1]}.bias")
        self.graph.values[name] = bias.astype(old.dtype)
        return replace(node, inputs=(*node.inputs[:2], name))


def _n_out(node: Node, weight: Array) -> int:
    if node.op == "ConvTranspose":
        return int(weight.shape[1] * node.get("group", 1))
    if node.op == "Conv" or (node.op == "Gemm" and node.get("transB")):
        return int(weight.shape[0])
    return int(weight.shape[-1])


def _n_in(node: Node, weight: Array) -> int:
    if node.op == "Conv" or (node.op == "Gemm" and node.get("transB")):
        return int(weight.shape[1])
    return int(weight.shape[0])


def _along(a: Array, axis: int, rank: int) -> Array | None:
    """A constant as a vector along one axis of a tensor of that rank; None if it is no such."""
    if a.size == 1 and a.ndim <= rank:
        return a.astype(np.float64).reshape(1)
    if a.ndim > rank or (rank == 99 and a.size > 1):
        return None
    shape = [1] * (rank - a.ndim) + list(a.shape)
    if any(n != 1 for k, n in enumerate(shape) if k != axis % rank):
        return None
    return a.astype(np.float64).reshape(-1)


def _is_sixth(affine: _Affine) -> bool:
    return affine.shift.tolist() == [0.0] and np.allclose(affine.scale, 1 / 6, rtol=1e-6)


def _scaled_rows(node: Node, weight: Array, scale: Array) -> Array:
    w: Array = weight.astype(np.float64)
    if node.op == "Conv" or (node.op == "Gemm" and node.get("transB")):
        w *= scale.reshape(-1, *[1] * (w.ndim - 1))
        return w
    if node.op == "ConvTranspose":
        g = int(node.get("group", 1))
        split = w.reshape(g, w.shape[0] // g, *w.shape[1:])
        w = (split * scale.reshape(g, 1, -1, *[1] * (w.ndim - 2))).reshape(w.shape)
        return w
    w *= scale
    return w


def _scaled_columns(node: Node, weight: Array, scale: Array, group: int) -> Array:
    w: Array = weight.astype(np.float64)
    if node.op == "Conv":
        split = w.reshape(group, w.shape[0] // group, *w.shape[1:])
        w = (split * scale.reshape(group, 1, -1, *[1] * (w.ndim - 2))).reshape(w.shape)
        return w
    if node.op == "Gemm" and node.get("transB"):
        w *= scale
        return w
    w *= scale[:, None]
    return w


def _response(node: Node, weight: Array, x: Array, group: int) -> Array:
    """The layer's output for a constant input."""
    w = weight.astype(np.float64)
    if node.op == "Conv":
        split = w.reshape(group, w.shape[0] // group, w.shape[1], -1).sum(axis=3)
        found: Array = (split @ x.reshape(group, -1, 1)).reshape(-1)
        return found
    found = w @ x if node.get("transB") else x @ w
    return found


def _unpadded(node: Node, weight: Array) -> bool:
    if node.op != "Conv":
        return True
    if node.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return bool(all(k == 1 for k in weight.shape[2:]))
    return not any(node.get("pads") or [])
