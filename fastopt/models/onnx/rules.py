"""What each operator ties together, a short rule an operator (see ``labels``)."""

from __future__ import annotations

import math

import numpy as np

from fastopt._arrays import Array
from fastopt.models.labels import INSIDE, Labels, Rule, reshaped
from fastopt.models.onnx.graph import Graph, Node

__all__ = ["RULES"]

_ELEMENTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BiasGelu BitShift Cast Ceil Celu Clip Cos Cosh Div
Dropout Elu Equal Erf Exp FastGelu Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum
Swish Tan Tanh ThresholdedRelu Where Xor
""".split()  # noqa: SIM905
_REDUCTIONS = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare ArgMax ArgMin
""".split()  # noqa: SIM905


def _same(labels: Labels, a: str, b: str, axes: list[int] | range) -> None:
    for axis in axes:
        labels.tie(labels.axis(a, axis), labels.axis(b, axis))


def _elementwise(node: Node, labels: Labels, graph: Graph) -> None:
    out = node.outputs[0]
    rank = labels.rank(out)
    for name in node.inputs:
        if not name:
            continue
        shift = rank - labels.rank(name)
        for axis in range(labels.rank(name)):
            labels.tie(labels.axis(name, axis), labels.axis(out, axis + shift))
    for other in node.outputs[1:]:  # Dropout's mask
        if other:
            _same(labels, out, other, range(rank))


def _batch_norm(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    _same(labels, x, y, range(labels.rank(x)))
    for name in node.inputs[1:]:
        labels.tie(labels.axis(name, 0), labels.axis(x, 1))


def _conv(node: Node, labels: Labels, graph: Graph) -> None:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    g = int(node.get("group", 1))
    turned = node.op == "ConvTranspose"
    _same(labels, x, y, [0])
    ins, outs = labels.axis(x, 1), labels.axis(y, 1)
    w_in, w_out = labels.axis(w, 0 if turned else 1), labels.axis(w, 1 if turned else 0)
    if len(node.inputs) > 2 and node.inputs[2]:
        labels.tie(labels.axis(node.inputs[2], 0), outs)
    if g == 1:
        labels.tie(ins, w_in)
        labels.tie(outs, w_out)
    elif not turned and labels.shapes[w][1] == 1 and ins.size == g:  # depthwise
        labels.tie(outs, w_out)
        each = outs.size // g
        labels.tie(np.repeat(ins, each), outs)
    else:  # the same units in every block
        per_in, per_out = ins.reshape(g, -1), outs.reshape(g, -1)
        for block in range(1, g):
            labels.tie(per_in[0], per_in[block])
            labels.tie(per_out[0], per_out[block])
        labels.tie(np.tile(w_in, g) if not turned else w_in, ins)
        labels.tie(np.tile(w_out, g) if turned else w_out, outs)


def _matmul(node: Node, labels: Labels, graph: Graph) -> None:
    if any(node.get(k) for k in ("transA", "transB", "transBatchA", "transBatchB")):
        return _unknown(node, labels)
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    ra, rb, ry = labels.rank(a), labels.rank(b), labels.rank(y)
    labels.tie(labels.axis(a, ra - 1), labels.axis(b, max(rb - 2, 0)))
    if ra > 1:
        labels.tie(labels.axis(a, ra - 2), labels.axis(y, ry - 2 if rb > 1 else ry - 1))
    if rb > 1:
        labels.tie(labels.axis(b, rb - 1), labels.axis(y, ry - 1))
    for name, rank in ((a, ra), (b, rb)):
        for k in range(3, rank + 1):
            labels.tie(labels.axis(name, rank - k), labels.axis(y, ry - k))
    return None


def _gemm(node: Node, labels: Labels, graph: Graph) -> None:
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    ta, tb = int(bool(node.get("transA", 0))), int(bool(node.get("transB", 0)))
    labels.tie(labels.axis(a, 1 - ta), labels.axis(b, tb))
    labels.tie(labels.axis(a, ta), labels.axis(y, 0))
    labels.tie(labels.axis(b, 1 - tb), labels.axis(y, 1))
    if len(node.inputs) > 2 and node.inputs[2]:
        c = node.inputs[2]
        for axis in range(labels.rank(c)):
            labels.tie(labels.axis(c, axis), labels.axis(y, axis + 2 - labels.rank(c)))


def _gather(node: Node, labels: Labels, graph: Graph) -> None:
    x, index, y = node.inputs[0], node.inputs[1], node.outputs[0]
    axis = int(node.get("axis", 0)) % max(1, labels.rank(x))
    more = labels.rank(index)
    labels.freeze(labels.axis(x, axis), f"{node.label} picks positions")
    for k in range(labels.rank(x)):
        if k != axis:
            to = k if k < axis else k + more - 1
            labels.tie(labels.axis(x, k), labels.axis(y, to))
    for k in range(more):
        labels.tie(labels.axis(index, k), labels.axis(y, axis + k))


def _transpose(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    perm = node.get("perm") or list(range(labels.rank(x)))[::-1]
    for to, axis in enumerate(perm):
        labels.tie(labels.axis(x, axis), labels.axis(y, to))


def _reshape(node: Node, labels: Labels, graph: Graph) -> None:
    """Axes that stay are tied; others are products of common factors, and each is tied to one of
    its factors while the rest of them stay whole.
    """
    x, y = node.inputs[0], node.outputs[0]
    sx, sy = labels.shapes[x], labels.shapes[y]
    if math.prod(sx) != math.prod(sy) or 0 in sx:
        return _unknown(node, labels)
    for number, (left, right) in enumerate(reshaped(sx, sy)):
        if len(left) == len(right) == 1:
            labels.tie(labels.axis(x, left[0]), labels.axis(y, right[0]))
            continue
        axes = [(x, k) for k in left] + [(y, k) for k in right]
        spans = _spans([sx[k] for k in left]) + _spans([sy[k] for k in right])
        marks = sorted({end for _, end in spans})
        if any(b % a for a, b in zip([1, *marks], marks, strict=False)):
            for name, axis in axes:
                labels.freeze(labels.axis(name, axis), f"{node.label} mixes axes")
            continue
        factors = [b // a for a, b in zip([1, *marks], marks, strict=False)]
        inside = f"{y}/factors/{number}"
        labels.shapes[inside] = tuple(factors)
        for (name, axis), (start, end) in zip(axes, spans, strict=True):
            own = [k for k, mark in enumerate(marks) if start < mark <= end]
            key = (node, name, axis)
            chosen = own[labels.pick.get(key, 0)]
            elements, along = labels.axis(name, axis), labels.axis(inside, chosen)
            if along.size == 0:
                labels.freeze(elements, f"{node.label} cuts it")
                continue
            within = math.prod(factors[k] for k in own if k > chosen)
            labels.tie(along[np.arange(elements.size) // within % along.size], elements)
            if len(own) > 1:
                labels.cuts.append((key, along, len(own)))
                for k in own:
                    if k != chosen:
                        labels.freeze(labels.axis(inside, k), f"{node.label}: {INSIDE}")
    return None


def _spans(sizes: list[int]) -> list[tuple[int, int]]:
    """For each axis the product of the sizes before it, and with it."""
    found, total = [], 1
    for n in sizes:
        found.append((total, total * n))
        total *= n
    return found


def _concat(node: Node, labels: Labels, graph: Graph) -> None:
    y = node.outputs[0]
    axis = int(node.get("axis", 0)) % max(1, labels.rank(y))
    place, whole = 0, labels.axis(y, axis)
    for name in node.inputs:
        _same(labels, name, y, [k for k in range(labels.rank(y)) if k != axis])
        size = labels.shapes[name][axis]
        part = whole[place : place + size]
        if size == 1:
            labels.freeze(part, f"{node.label}: one position alone")
        else:
            labels.tie(labels.axis(name, axis), part)
        place += size


def _split(node: Node, labels: Labels, graph: Graph) -> None:
    x = node.inputs[0]
    axis = int(node.get("axis", 0)) % labels.rank(x)
    place, whole = 0, labels.axis(x, axis)
    for name in node.outputs:
        if not name:
            labels.freeze(whole, f"{node.label} leaves a part out")
            continue
        _same(labels, x, name, [k for k in range(labels.rank(x)) if k != axis])
        size = labels.shapes[name][axis]
        part = whole[place : place + size]
        if size == 1:
            labels.freeze(part, f"{node.label}: one position alone")
        else:
            labels.tie(part, labels.axis(name, axis))
        place += size


def slice_bounds(node: Node, graph: Graph) -> dict[int, tuple[int, int, int]] | None:
    """Axis -> (start, end, step) where all of them are constant."""
    if len(node.inputs) == 1:
        starts, ends = node.get("starts"), node.get("ends")
        axes = node.get("axes") or list(range(len(starts)))
        return {a: (s, e, 1) for a, s, e in zip(axes, starts, ends, strict=True)}
    given: list[Array | None] = []
    for name in node.inputs[1:]:
        if name and name not in graph.values:
            return None
        given.append(graph.values[name].reshape(-1) if name else None)
    starts, ends = given[0], given[1]
    if starts is None or ends is None:
        return None
    axes = given[2] if len(given) > 2 and given[2] is not None else np.arange(len(starts))
    steps = given[3] if len(given) > 3 and given[3] is not None else np.ones(len(starts), int)
    return {
        int(a): (int(s), int(e), int(t))
        for a, s, e, t in zip(axes, starts, ends, steps, strict=True)
    }


def _slice(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    bounds = slice_bounds(node, graph)
    if bounds is None:
        # only axes that are cut differ in size; others may be cut too, so nothing may shrink
        return _unknown(node, labels)
    cut = {a % labels.rank(x): b for a, b in bounds.items()}
    for axis in range(labels.rank(x)):
        whole, part = labels.axis(x, axis), labels.axis(y, axis)
        if axis not in cut:
            labels.tie(whole, part)
            continue
        n = labels.shapes[x][axis]
        start, end, step = cut[axis]
        if step == 1 and start == 0 and end >= n:
            labels.tie(whole, part)
        elif step == 1 and part.size:
            first = start + n if start < 0 else min(start, n)
            labels.tie(whole[first : first + part.size], part)
        else:
            labels.freeze(whole, f"{node.label} picks positions")
    return None


def _softmax(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    rank = labels.rank(x)
    old = graph.opset < 13 and not node.domain
    axis = int(node.get("axis", 1 if old else -1)) % max(1, rank)
    _same(labels, x, y, range(rank))
    for k in range(axis, rank) if old else [axis]:
        labels.freeze(labels.axis(x, k), f"{node.label} normalises over it")


def _reduce(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    rank = labels.rank(x)
    axes = node.get("axes")
    if node.op in ("ArgMax", "ArgMin"):
        axes = [node.get("axis", 0)]
    elif axes is None and len(node.inputs) > 1 and node.inputs[1]:
        if node.inputs[1] not in graph.values:
            return _unknown(node, labels)
        axes = graph.values[node.inputs[1]].reshape(-1).tolist()
    if not axes:
        axes = [] if node.get("noop_with_empty_axes") else list(range(rank))
    gone = {int(a) % rank for a in axes}
    to = 0
    for axis in range(rank):
        if axis in gone:
            labels.freeze(labels.axis(x, axis), f"{node.label} reduces it")
            to += int(node.get("keepdims", 1))
        else:
            labels.tie(labels.axis(x, axis), labels.axis(y, to))
            to += 1
    return None


def _pool(node: Node, labels: Labels, graph: Graph) -> None:
    for y in node.outputs:
        if y:
            _same(labels, node.inputs[0], y, [0, 1])


def _resize(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    sizes = len(node.inputs) > 3 and node.inputs[3]
    for axis in range(labels.rank(x)):
        same = labels.shapes[x][axis] == labels.shapes[y][axis]
        if same and not (sizes and axis == 1):
            labels.tie(labels.axis(x, axis), labels.axis(y, axis))
        else:
            labels.freeze(labels.axis(x, axis), f"{node.label} resizes it")
            labels.freeze(labels.axis(y, axis), f"{node.label} resizes it")


def _pad(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    for axis in range(labels.rank(x)):
        if labels.shapes[x][axis] == labels.shapes[y][axis]:
            labels.tie(labels.axis(x, axis), labels.axis(y, axis))
        else:
            labels.freeze(labels.axis(x, axis), f"{node.label} pads it")
            labels.freeze(labels.axis(y, axis), f"{node.label} pads it")


def _layer_norm(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    rank = labels.rank(x)
    axis = int(node.get("axis", -1)) % rank
    _same(labels, x, y, range(rank))
    for k in range(axis, rank):
        labels.freeze(labels.axis(x, k), f"{node.label} normalises over it")
    for name in (*node.inputs[1:], *node.outputs[1:]):
        labels.freeze_all(name, f"{node.label} normalises over it")


def _instance_norm(node: Node, labels: Labels, graph: Graph) -> None:
    x = node.inputs[0]
    _same(labels, x, node.outputs[0], range(labels.rank(x)))
    for name in node.inputs[1:]:
        labels.tie(labels.axis(name, 0), labels.axis(x, 1))


def _recurrent(node: Node, labels: Labels, graph: Graph) -> None:
    x, w = node.inputs[0], node.inputs[1]
    labels.tie(labels.axis(x, 2), labels.axis(w, 2))
    for axis in (0, 1):
        labels.freeze(labels.axis(w, axis), f"{node.label}: hidden units stay")
    for name in (*node.inputs[2:], *node.outputs):
        labels.freeze_all(name, f"{node.label}: hidden units stay")
    for axis in (0, 1):
        labels.freeze(labels.axis(x, axis), f"{node.label}: time and batch stay")


def _einsum(node: Node, labels: Labels, graph: Graph) -> None:
    equation = str(node.get("equation")).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if not arrow or "." in equation or len(set(result)) < len(result):
        return _unknown(node, labels)
    first: dict[str, Array] = {}
    for term, name in zip(
        [*terms.split(","), result], [*node.inputs, node.outputs[0]], strict=True
    ):
        if len(set(term)) < len(term):
            return _unknown(node, labels)
        for axis, letter in enumerate(term):
            elements = labels.axis(name, axis)
            labels.tie(first.setdefault(letter, elements), elements)
    return None


def _expand(node: Node, labels: Labels, graph: Graph) -> None:
    x, y = node.inputs[0], node.outputs[0]
    shift = labels.rank(y) - labels.rank(x)
    for axis in range(labels.rank(y)):
        if axis >= shift and labels.shapes[x][axis - shift] == labels.shapes[y][axis]:
            labels.tie(labels.axis(x, axis - shift), labels.axis(y, axis))
        else:
            labels.freeze(labels.axis(y, axis), f"{node.label} repeats it")


def _quantize(node: Node, labels: Labels, graph: Graph) -> None:
    """To codes and back: scales and zero points go with their axis."""
    x, rank = node.inputs[0], labels.rank(node.inputs[0])
    _same(labels, x, node.outputs[0], range(rank))
    for name in node.inputs[1:]:
        if name and labels.rank(name) == 1:
            axis = int(node.get("axis", 1)) % max(1, rank)
            labels.tie(labels.axis(name, 0), labels.axis(x, axis))
        elif name:
            labels.freeze_all(x, f"{node.label} has blocks")
            labels.freeze_all(name, f"{node.label} has blocks")


def _integer_product(node: Node, labels: Labels, graph: Graph) -> None:
    _matmul(node, labels, graph)
    for name in node.inputs[2:]:
        if name and labels.rank(name):
            labels.tie(labels.axis(name, -1), labels.axis(node.outputs[0], -1))


def _nothing(node: Node, labels: Labels, graph: Graph) -> None:
    """Shape and Size: they follow by themselves."""


def _unknown(node: Node, labels: Labels) -> None:
    for name in (*node.inputs, *node.outputs):
        labels.freeze_all(name, f"{node.label} cannot be followed")


def _each(rule: Rule, ops: list[str]) -> dict[str, Rule]:
    return dict.fromkeys(ops, rule)


RULES: dict[str, Rule] = {
    **_each(_elementwise, _ELEMENTWISE),
    **_each(_reduce, _REDUCTIONS),
    **_each(_conv, ["Conv", "ConvTranspose"]),
    **_each(_matmul, ["MatMul", "FusedMatMul"]),
    **_each(_softmax, ["Softmax", "LogSoftmax", "Hardmax"]),
    **_each(_reshape, ["Reshape", "Flatten", "Squeeze", "Unsqueeze"]),
    **_each(
        _pool,
        ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"],
    ),
    **_each(_resize, ["Resize", "Upsample"]),
    **_each(_recurrent, ["LSTM", "GRU", "RNN"]),
    **_each(
        _layer_norm, ["LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"]
    ),
    **_each(_nothing, ["Shape", "Size", "Constant"]),
    **_each(_quantize, ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"]),
    "MatMulInteger": _integer_product,
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "Gather": _gather,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "InstanceNormalization": _instance_norm,
    "Einsum": _einsum,
    "Expand": _expand,
}
