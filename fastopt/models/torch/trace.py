"""A traced module as operators in ONNX's vocabulary, for the rules that tie axes together.

Tensors that nodes make are named ``%node``; parameters by their module, a layer's weight by the
layer's own name. What has no rule gets its torch name, is frozen and reported.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from fastopt.models.labels import Labels, Rule
from fastopt.models.onnx.rules import RULES
from fastopt.models.operators import OPERATOR_RULES, Op

__all__ = ["LAYERS", "TORCH_RULES", "graph_of", "name_of"]

LAYERS = {"Linear": "dense", "Conv1d": "conv", "Conv2d": "conv", "Embedding": "embedding"}

_CONVS = ("Conv1d", "Conv2d", "Conv3d")
_POOLS = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool")
_ELEMENTWISE_MODULES = """
CELU Dropout Dropout1d Dropout2d AlphaDropout ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh
Identity LeakyReLU LogSigmoid Mish ReLU ReLU6 SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh
Tanhshrink Threshold
""".split()  # noqa: SIM905
_ELEMENTWISE = """
abs add cast celu clamp clip clone contiguous cos detach div dropout elu eq erf exp float floordiv
ge gelu gt hardsigmoid hardswish hardtanh iadd imul isub itruediv le leaky_relu log lt masked_fill
maximum minimum mish mul multiply ne neg pow reciprocal relu relu6 relu_ round rsqrt selu sigmoid
sigmoid_ sign silu sin softplus softsign sqrt square sub tanh tanh_ to truediv true_divide type
type_as where
""".split()  # noqa: SIM905
_REDUCTIONS = ("mean", "sum", "amax", "amin", "norm", "std", "var", "logsumexp", "prod")
_NOTHING = ("size", "dim", "getattr", "numel")


def name_of(node: Any) -> str:
    """The tensor that a node makes."""
    return f"%{node.name}"


def graph_of(gm: Any, parameters: Mapping[int, str], shapes: Mapping[str, Any]) -> Any:
    """The operators of a GraphModule, as far as ``propagate`` reads a graph.

    Parameters
    ----------
    parameters : mapping
        Name of each parameter and buffer by its id.
    shapes : mapping
        Of every tensor.
    """
    ops: list[Op] = []
    inputs, outputs = [], []
    modules = dict(gm.named_modules())
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            inputs.append(SimpleNamespace(name=name_of(node)))
        elif node.op == "output":
            outputs = [SimpleNamespace(name=name_of(n)) for n in node.all_input_nodes]
        elif node.op == "get_attr":
            value = operator.attrgetter(node.target)(gm)
            name = parameters.get(id(value))
            if name is not None:
                ops.append(Op("Identity", (name,), (name_of(node),), name=node.name))
        elif name_of(node) in shapes or _parts(node, shapes):
            ops.append(_op(node, modules, parameters, shapes))
    block = SimpleNamespace(inputs=inputs, outputs=outputs, nodes=ops)
    return SimpleNamespace(block=block, overridable=frozenset(), values={}, opset=18)


def _parts(node: Any, shapes: Mapping[str, Any]) -> list[Any]:
    """The nodes that take a tuple apart, in its order; None where one is left out."""
    found: dict[int, Any] = {}
    for user in node.users:
        taken = user.op == "call_function" and user.target is operator.getitem
        if taken and isinstance(user.args[1], int) and name_of(user) in shapes:
            found[user.args[1]] = user
    if not found or name_of(node) in shapes:
        return []
    return [found.get(k) for k in range(max(found) + 1)]


def _tensors(node: Any, shapes: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name_of(n) for n in node.all_input_nodes if name_of(n) in shapes)


def _op(
    node: Any, modules: Mapping[str, Any], parameters: Mapping[int, str], shapes: Mapping[str, Any]
) -> Op:
    ins, out = _tensors(node, shapes), (name_of(node),)
    rank = len(shapes[ins[0]]) if ins else 0
    if node.op == "call_module":
        return _module_op(node, modules[node.target], parameters, ins, out)
    name = node.target if isinstance(node.target, str) else node.target.__name__
    given = _arguments(node)

    def made(op: str, **attrs: Any) -> Op:
        return Op(op, ins, out, attrs, node.name)

    if name in _NOTHING:
        return Op("Shape", (), ())
    if name in _ELEMENTWISE:
        return made("Add")
    if name in ("view", "reshape", "flatten", "unsqueeze", "squeeze", "unflatten"):
        return Op("Reshape", ins[:1], out, {}, node.name)
    if name in ("transpose", "swapaxes") and len(ins) == 1:
        a, b = (int(k) % rank for k in given(("dim0", "dim1"), (0, 1)))
        perm = list(range(rank))
        perm[a], perm[b] = perm[b], perm[a]
        return made("Transpose", perm=perm)
    if name == "t":
        return made("Transpose", perm=list(range(rank))[::-1])
    if name == "permute":
        dims = node.args[1:] if isinstance(node.args[1], int) else node.args[1]
        return made("Transpose", perm=[int(k) % rank for k in dims])
    if name in ("matmul", "bmm") and len(ins) == 2:
        return made("MatMul")
    if name in ("softmax", "log_softmax"):
        return made("Softmax", axis=int(given(("dim",), (-1,))[0] or 0))
    if name in _REDUCTIONS:
        (dims,) = given(("dim",), (None,))
        axes = [dims] if isinstance(dims, int) else dims
        keep = bool(node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False))
        return made("ReduceMean", axes=None if axes is None else list(axes), keepdims=keep)
    if name in ("cat", "concat"):
        listed = tuple(name_of(n) for n in node.args[0])
        return Op("Concat", listed, out, {"axis": int(given(("dim",), (0,))[0])}, node.name)
    if name in ("chunk", "split") and _parts(node, shapes):
        axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        parts = _parts(node, shapes)
        sizes = sum(shapes[name_of(p)][axis] for p in parts if p is not None)
        if None in parts or sizes != shapes[ins[0]][axis]:
            return Op(name, ins, tuple(name_of(p) for p in parts if p is not None), {}, node.name)
        return Op("Split", ins, tuple(name_of(p) for p in parts), {"axis": axis}, node.name)
    if name == "getitem":
        if not ins:  # a part of a tuple, which Split has named
            return Op("Shape", (), ())
        return made("Index", index=node.args[1])
    if name == "scaled_dot_product_attention":
        return made("Attention")
    if any(word in name for word in ("max_pool", "avg_pool")):
        return made("MaxPool")
    return Op(f"torch.{name}", ins, out if out[0] in shapes else (), {}, node.name)


def _arguments(node: Any) -> Callable[[tuple[str, ...], tuple[Any, ...]], list[Any]]:
    """Reads arguments after the first by position or by name."""

    def given(names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
        found = []
        for k, (name, default) in enumerate(zip(names, defaults, strict=True), start=1):
            found.append(node.kwargs.get(name, node.args[k] if len(node.args) > k else default))
        return found

    return given


def _module_op(
    node: Any, module: Any, parameters: Mapping[int, str], ins: tuple[str, ...], out: tuple[str]
) -> Op:
    kind = type(module).__name__

    def own(*names: str) -> tuple[str, ...]:
        values = [getattr(module, name, None) for name in names]
        return tuple(parameters[id(v)] for v in values if v is not None)

    def made(op: str, more: tuple[str, ...] = (), **attrs: Any) -> Op:
        return Op(op, (*ins, *more), out, attrs, node.target)

    if not type(module).__module__.startswith("torch.nn"):
        return made(kind)
    if kind == "Linear":
        return made("Linear", own("weight", "bias"))
    if kind in _CONVS:
        return made("Conv", own("weight", "bias"), group=module.groups)
    if kind.startswith("BatchNorm"):
        return made("BatchNormalization", own("weight", "bias", "running_mean", "running_var"))
    if kind.startswith("InstanceNorm"):
        return made("InstanceNormalization", own("weight", "bias"))
    if kind in ("LayerNorm", "RMSNorm"):
        axis = -len(module.normalized_shape)
        return made("LayerNormalization", own("weight", "bias"), axis=axis)
    if kind == "Embedding" and module.max_norm is None:
        return Op("Gather", (*own("weight"), *ins), out, {"axis": 0}, node.target)
    if kind in _ELEMENTWISE_MODULES:
        return made("Relu")
    if kind.startswith(_POOLS):
        return made("MaxPool")
    if kind in ("Flatten", "Unflatten"):
        return made("Reshape")
    if kind in ("Softmax", "LogSoftmax"):
        return made("Softmax", axis=-1 if module.dim is None else module.dim)
    return made(kind, own(*(name for name, _ in module.named_parameters(recurse=False))))


# --- rules of operators that ONNX writes differently -----------------------------------------


def _index(node: Any, labels: Labels, graph: Any) -> None:
    """x[:, 0], x[..., 2:]: whole slices go on, everything else stays as it is."""
    x, y = node.inputs[0], node.outputs[0]
    index = node.get("index")
    index = list(index) if isinstance(index, tuple) else [index]
    simple = all(isinstance(k, (int, slice)) or k is None or k is Ellipsis for k in index)
    if len(node.inputs) > 1 or not simple or index.count(Ellipsis) > 1:
        for name in (*node.inputs, y):
            labels.freeze_all(name, f"{node.label} picks positions")
        return
    taken = sum(k is not None and k is not Ellipsis for k in index)
    whole = [slice(None)] * (labels.rank(x) - taken)
    place = index.index(Ellipsis) if Ellipsis in index else len(index)
    index[place : place + 1] = whole
    source = target = 0
    for k in index:
        if k is None:
            target += 1
        elif isinstance(k, int):
            labels.freeze(labels.axis(x, source), f"{node.label} picks a position")
            source += 1
        else:
            if k == slice(None):
                labels.tie(labels.axis(x, source), labels.axis(y, target))
            else:
                labels.freeze(labels.axis(x, source), f"{node.label} picks positions")
            source, target = source + 1, target + 1


TORCH_RULES: dict[str, Rule] = {**RULES, **OPERATOR_RULES, "Index": _index}
