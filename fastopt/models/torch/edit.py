"""Edits of modules and traced graphs: parameters replaced, units cut, layers made two."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import UnsupportedError
from fastopt.models.labels import Labels
from fastopt.models.torch.trace import name_of

__all__ = [
    "Names",
    "add_bias",
    "grouped",
    "halves",
    "mend",
    "other_weights",
    "parameter_names",
    "patches_known",
    "put_module",
    "rows_of",
    "shared_copy",
    "two_nodes",
]


def shared_copy(modules: Any) -> Any:
    """A deep copy whose parameters and buffers are those of the original."""
    tops = modules if isinstance(modules, tuple) else (modules,)
    memo: dict[int, Any] = {}
    for top in tops:
        for tensor in (*top.parameters(), *top.buffers()):
            memo[id(tensor)] = tensor
    return copy.deepcopy(modules, memo)


@dataclass
class Names:
    """Names of parameters and buffers, and the (module, attribute) pairs that hold each."""

    by_id: dict[int, str]
    places: dict[str, list[tuple[Any, str]]]

    def put(self, name: str, values: Array) -> None:
        """In place: other values, also of another shape."""
        import torch

        module, attribute = self.places[name][0]
        old = getattr(module, attribute)
        fresh: Any = torch.tensor(np.asarray(values), dtype=old.dtype)
        if isinstance(old, torch.nn.Parameter):
            fresh = torch.nn.Parameter(fresh, requires_grad=old.requires_grad)
        for holder, own in self.places[name]:
            setattr(holder, own, fresh)
        self.by_id[id(fresh)] = name

    def take_out(self, gone: Mapping[tuple[str, int], Array]) -> None:
        """In place: remove the marked positions, and set the modules' sizes after it."""
        for (name, axis), mask in gone.items():
            if name in self.places:
                module, attribute = self.places[name][0]
                values = getattr(module, attribute).detach().numpy()
                self.put(name, np.compress(~mask, values, axis=axis))
                for holder, _ in self.places[name]:
                    _resize(holder)


def parameter_names(tops: Sequence[Any], layers: Collection[str]) -> Names:
    """Names by module path; a layer's weight has the layer's own name."""
    by_id: dict[int, str] = {}
    places: dict[str, list[tuple[Any, str]]] = {}
    for path, module in (pair for top in tops for pair in top.named_modules()):
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            whole = attribute == "weight" and type(module).__name__ in layers
            name = path if whole else f"{path}.{attribute}".lstrip(".")
            name = by_id.setdefault(id(tensor), name)
            places.setdefault(name, []).append((module, attribute))
    return Names(by_id, places)


def _resize(module: Any) -> None:
    """The numbers that a module keeps beside its parameters."""
    kind = type(module).__name__
    weight: Any = getattr(module, "weight", None)
    if kind == "Linear":
        module.out_features, module.in_features = weight.shape
    elif kind == "Embedding":
        module.embedding_dim = weight.shape[1]
    elif kind.startswith("Conv") and "Transpose" not in kind:
        if 1 < module.groups == module.in_channels and weight.shape[1] == 1:  # depthwise
            module.groups = weight.shape[0] // (module.out_channels // module.in_channels)
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif kind.startswith("ConvTranspose"):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif hasattr(module, "num_features"):
        kept = weight if weight is not None else module.running_mean
        module.num_features = len(kept)


def add_bias(module: Any, bias: Array) -> None:
    """In place: a bias where there was none."""
    import torch

    values = torch.tensor(bias, dtype=module.weight.dtype)
    module.bias = torch.nn.Parameter(values, requires_grad=module.weight.requires_grad)


@contextlib.contextmanager
def other_weights(modules: Mapping[str, Any], weights: Mapping[str, Array]) -> Iterator[None]:
    """Layers have other weights inside the block."""
    import torch

    before = {name: modules[name]._parameters["weight"] for name in weights}
    try:
        for name, w in weights.items():
            old = before[name]
            values = torch.tensor(np.asarray(w), dtype=old.dtype).reshape(old.shape)
            for module in modules.values():
                if module._parameters["weight"] is old:
                    module._parameters["weight"] = torch.nn.Parameter(values, requires_grad=False)
        yield
    finally:
        for name, old in before.items():
            fresh = modules[name]._parameters["weight"]
            for module in modules.values():
                if module._parameters["weight"] is fresh:
                    module._parameters["weight"] = old


# --- the traced graph -----------------------------------------------------------------------


def mend(graph: Any, labels: Labels, gone: Mapping[tuple[str, int], Array]) -> bool:
    """In place: numbers in view, reshape and split that follow from what is cut.

    Returns whether any did.
    """
    changed = False

    def size(node: Any, axis: int) -> int:
        mask = gone.get((name_of(node), axis))
        found = labels.shapes[name_of(node)][axis]
        return found if mask is None else int(found - mask.sum())

    for node in graph.graph.nodes:
        target = node.target if isinstance(node.target, str) else node.target.__name__
        if node.op not in ("call_method", "call_function"):
            continue
        if target in ("view", "reshape") and name_of(node) in labels.shapes:
            rank = labels.rank(name_of(node))
            axes = [k for k in range(rank) if (name_of(node), k) in gone]
            if not axes:
                continue
            listed = len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
            shape = list(node.args[1] if listed else node.args[1:])
            if len(shape) != rank:
                raise UnsupportedError(f"{node.name}: its shape cannot be changed")
            for k in axes:
                if not (isinstance(shape[k], int) and shape[k] == -1):
                    shape[k] = size(node, k)
            fresh = (node.args[0], tuple(shape)) if listed else (node.args[0], *shape)
            changed = changed or fresh != node.args
            node.args = fresh
        elif target == "split":
            axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
            axis %= labels.rank(name_of(node.args[0]))
            if (name_of(node.args[0]), axis) in gone:
                parts = sorted(node.users, key=lambda user: user.args[1])
                sizes = [size(p, axis) for p in parts]
                number = isinstance(node.args[1], int)
                node.args = (node.args[0], sizes[0] if number else sizes, *node.args[2:])
                changed = True
    if changed:
        graph.recompile()
    return changed


def put_module(top: Any, path: str, module: Any) -> None:
    """In place: another module at a path."""
    parent, _, name = path.rpartition(".")
    setattr(top.get_submodule(parent), name, module)


def two_nodes(graph: Any, node: Any, path: str) -> None:
    """In place: the node's module has become a Sequential of ``b`` and ``a``."""
    with graph.graph.inserting_before(node):
        first = graph.graph.call_module(f"{path}.b", node.args, node.kwargs)
        second = graph.graph.call_module(f"{path}.a", (first,))
    node.replace_all_uses_with(second)
    graph.graph.erase_node(node)
    graph.recompile()


# --- layers ---------------------------------------------------------------------------------


def grouped(module: Any) -> bool:
    """Whether a convolution has blocks."""
    return getattr(module, "groups", 1) > 1


def halves(module: Any, a: Array, b: Array) -> tuple[Any, Any]:
    """Two modules: b (r, n_in) with the place's kernel, then a (n_out, r) with the bias."""
    import torch

    rank, n_out = len(b), len(a)
    bias = module.bias
    if type(module).__name__ == "Linear":
        first = torch.nn.Linear(module.in_features, rank, bias=False)
        second = torch.nn.Linear(rank, n_out, bias=bias is not None)
    else:
        conv = type(module)
        first = conv(
            module.in_channels, rank, module.kernel_size, module.stride, module.padding,
            module.dilation, bias=False, padding_mode=module.padding_mode,
        )  # fmt: skip
        second = conv(rank, n_out, 1, bias=bias is not None)
    needs = module.weight.requires_grad
    for half, values in ((first, b), (second, a)):
        shape = half.weight.shape
        fresh = torch.tensor(np.asarray(values), dtype=module.weight.dtype).reshape(shape)
        half.weight = torch.nn.Parameter(fresh, requires_grad=needs)
        half.train(module.training)
    if bias is not None:
        second.bias = bias
    return first, second


def patches_known(module: Any) -> bool:
    """Whether :func:`rows_of` can make the layer's input rows."""
    return type(module).__name__ == "Linear" or (
        type(module).__name__ in ("Conv1d", "Conv2d") and module.padding_mode == "zeros"
    )


def rows_of(module: Any, tapped: Array, limit: int | None) -> Array:
    """Input rows of a layer, (n_blocks, rows, n_in): patches of a convolution."""
    import torch

    if type(module).__name__ == "Linear":
        return _some(tapped.reshape(-1, tapped.shape[-1]), limit)[None]
    x = torch.from_numpy(np.ascontiguousarray(tapped))
    flat = len(module.kernel_size) == 1
    if x.dim() == len(module.kernel_size) + 1:  # one sample without its batch axis
        x = x[None]
    if flat:
        x = x[:, :, None]
    pads = module.padding
    if isinstance(pads, str):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        total = total if pads == "same" else [0] * len(total)
        around = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        x, pads = torch.nn.functional.pad(x, around), (0,) * len(total)
    one: tuple[int, ...] = (1,) if flat else ()
    none: tuple[int, ...] = (0,) if flat else ()
    found = torch.nn.functional.unfold(
        x, (*one, *module.kernel_size), (*one, *module.dilation), (*none, *pads),
        (*one, *module.stride),
    )  # fmt: skip
    groups = module.groups
    rows = found.permute(0, 2, 1).reshape(-1, groups, found.shape[1] // groups)
    blocks = rows.permute(1, 0, 2).contiguous().numpy()
    return np.stack([_some(block, limit) for block in blocks])


def _some(rows: Array, limit: int | None) -> Array:
    if limit is None or len(rows) <= limit:
        return rows
    picked: Array = rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.intp)]
    return picked
