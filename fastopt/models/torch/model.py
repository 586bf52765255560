"""A torch.nn module behind the model protocol: traced once, its parameters read in place."""

from __future__ import annotations

import copy
import io
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_ndarray
from fastopt._files import write_whole
from fastopt._optional import package
from fastopt._options import choice, integer
from fastopt._random import Seed
from fastopt.errors import ArrayError, OptionError, UnsupportedError
from fastopt.models.base import FLOAT32, Form, Group, Input, Layer, Model
from fastopt.models.given import (
    batch_of,
    feeds_of,
    first_batch,
    fitted_of,
    limit_of,
    n_rows_of,
    numbers,
    taken,
    taps_of,
    tried_of,
)
from fastopt.models.labels import Labels, groups_of, propagate
from fastopt.models.onnx.layers import Site, View
from fastopt.models.torch import edit, train
from fastopt.models.torch.trace import LAYERS, TORCH_RULES, graph_of, name_of
from fastopt.quantization import QuantizedArray

__all__ = ["TorchModel", "is_module"]

_FED = 4  # rows of the example that shapes are taken from
_CLOSE = 1e-3  # of the largest output: a cut module against the one with columns of zeros


def is_module(model: Any) -> bool:
    """Whether it is a torch.nn.Module; torch is not imported for that."""
    return any(f"{c.__module__}.{c.__name__}" == _MODULE for c in type(model).__mro__)


_MODULE = "torch.nn.modules.module.Module"


def _torch() -> Any:
    return package("torch", "a torch module", "fastopt[torch]")


class TorchModel(Model):
    """A torch.nn.Module on the CPU as compression sees it.

    Parameters
    ----------
    module : torch.nn.Module
        torch.fx must be able to trace it. Not changed; parameters are shared until they are
        replaced.
    feed : mapping of arrays
        A few rows (axis 0) by the names of ``forward``'s arguments: shapes are taken from them.

    Raises
    ------
    UnsupportedError
        It cannot be traced (control flow that depends on data), or runs in half precision.

    Notes
    -----
    Layers are Linear, Conv1d, Conv2d and Embedding modules. An operator without a rule keeps the
    units that it touches, and stands in ``notes``. Weights are stored as float32 only.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from fastopt.models.torch import TorchModel
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> model = TorchModel(net, {"input": np.zeros((2, 4), np.float32)})
    >>> model.keep_units("0", np.arange(4))
    >>> model.to_module()[0].out_features, net[0].out_features
    (4, 8)
    """

    def __init__(self, module: Any, feed: Mapping[str, Array]) -> None:
        torch = _torch()
        kinds = {p.dtype for p in module.parameters()}
        if not kinds <= {torch.float32, torch.float64} or not kinds:
            raise UnsupportedError(
                f"model: expected float32 parameters, got {sorted(map(str, kinds))}"
            )
        if any(p.device.type != "cpu" for p in module.parameters()):
            raise UnsupportedError("model: its parameters are not on the CPU; call .cpu()")
        self._training = {name: m.training for name, m in module.named_modules()}
        self.root = edit.shared_copy(module).eval()
        try:
            self.graph = torch.fx.symbolic_trace(self.root)
        except Exception as error:  # whatever the module's own code makes of a proxy
            raise UnsupportedError(
                f"model: torch.fx cannot trace {type(module).__name__}: {error}"
            ) from None
        self._feed = {k: np.asarray(a[:_FED]) for k, a in feed.items()}
        self._kept_graph = False  # whether numbers in the graph have changed: root is stale then
        self._checked: set[tuple[str, int]] = set()
        self._forget()

    # --- facts ------------------------------------------------------------------------------

    def _forget(self) -> None:
        """What is derived from modules and parameters is found again."""
        self._names = edit.parameter_names((self.root, self.graph), LAYERS)
        self._modules = {
            name: m for name, m in self.graph.named_modules() if type(m).__name__ in LAYERS
        }
        self._labels: tuple[Labels, dict[str, Group], dict[str, Array], tuple[str, ...]] | None
        self._labels = None
        self._shapes = self._measured()

    def _measured(self) -> dict[str, tuple[int, ...]]:
        torch = _torch()
        shapes: dict[str, tuple[int, ...]] = {}

        def seen(node: Any, value: Any) -> None:
            if isinstance(value, torch.Tensor):
                shapes[name_of(node)] = tuple(value.shape)

        self._interpret(self._feed, seen)
        for name, places in self._names.places.items():
            module, attribute = places[0]
            shapes[name] = tuple(getattr(module, attribute).shape)
        return shapes

    def _sites(self) -> dict[str, Site]:
        found = {}
        for node in self.graph.graph.nodes:
            name = node.target
            if node.op != "call_module" or name not in self._modules or name in found:
                continue
            module = self._modules[name]
            if self._names.by_id[id(module.weight)] != name:
                continue  # tied to a layer that has come before
            shape = tuple(module.weight.shape)
            kind = LAYERS[type(module).__name__]
            axes = ("row", "feature") if kind == "embedding" else ("out", "in")
            found[name] = Site(
                name, kind, View.rows(shape, shape[0]), (), getattr(module, "groups", 1),
                axes + ("k",) * (len(shape) - 2),
            )  # fmt: skip
        return found

    def _nodes(self, layer: str) -> list[Any]:
        """The places where a layer's weight works."""
        weight = self._modules[layer].weight
        alike = {n for n, m in self._modules.items() if m.weight is weight}
        nodes = self.graph.graph.nodes
        return [n for n in nodes if n.op == "call_module" and n.target in alike]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The arguments of ``forward`` that the example feeds; rows on axis 0."""
        return tuple(
            Input(name, "int64" if a.dtype.kind in "iub" else "float32", (None, *a.shape[1:]))
            for name, a in self._feed.items()
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """``output``, or ``output0`` ..., or the keys of what ``forward`` returns."""
        return tuple(next(self.run(self._feed))[0])

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers in order of execution, weights shared with the module."""
        found = {}
        for name, site in self._sites().items():
            module = self._modules[name]
            weight = _array(module.weight).reshape(site.view.n_out, -1)
            bias = None if getattr(module, "bias", None) is None else _array(module.bias)
            form = Form(FLOAT32, 32, nbytes=weight.nbytes)
            nodes = self._nodes(name)
            positions = [math.prod(self._positions(node, site)) for node in nodes]
            macs = 0 if site.kind == "embedding" else weight.size * sum(positions)
            seen = site.kind != "embedding" and edit.patches_known(module)
            found[name] = Layer(
                name, site.kind, weight, bias, macs // len(next(iter(self._feed.values()))),
                f"{name}.in" if seen else None, form, (form,), f"{name}.out", site.n_blocks,
                len(nodes), site.axes,
            )  # fmt: skip
        return found

    def _positions(self, node: Any, site: Site) -> tuple[int, ...]:
        """Lengths of the output's axes but that of the units: products with the weight."""
        shape = self._shapes[name_of(node)]
        if site.kind == "dense":
            return shape[:-1]
        channels = 1 if len(shape) == len(site.view.shape) else 0
        return (*shape[:channels], *shape[channels + 1 :])

    @property
    def groups(self) -> dict[str, Group]:
        """The coupling groups, by label propagation over the traced graph."""
        return self._labelled()[1]

    @property
    def notes(self) -> tuple[str, ...]:
        """Operators without a rule."""
        return self._labelled()[3]

    def _labelled(
        self,
    ) -> tuple[Labels, dict[str, Group], dict[str, Array], tuple[str, ...]]:
        if self._labels is None:
            traced = graph_of(self.graph, self._names.by_id, self._shapes)
            labels, notes = propagate(traced, self._shapes, TORCH_RULES)
            constants: Any = self._names.places
            groups, units = groups_of(labels, self._sites(), constants)
            self._labels = labels, groups, units, tuple(notes)
        return self._labels

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters and buffers, those in several places once."""
        return sum(_size(t) for t in self._tensors())

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.root.parameters())

    @property
    def macs(self) -> int:
        """Multiply-adds of the layers for one row."""
        return sum(layer.macs for layer in self.layers.values())

    def _tensors(self) -> list[Any]:
        return [getattr(*places[0]) for places in self._names.places.values()]

    # --- running ----------------------------------------------------------------------------

    def n_rows(self, data: Any) -> int:
        """The rows that data hold."""
        return n_rows_of(data, self._any_shape)

    def take(self, data: Any, index: Array) -> Any:
        """Those rows of ``data``, in that order."""
        return taken(data, index, self._any_shape)

    @property
    def _any_shape(self) -> tuple[Input, ...]:
        """The inputs, of whatever lengths: the example does not show which of them are fixed."""
        return tuple(replace(i, shape=(None,) * len(i.shape)) for i in self.inputs)

    def _arguments(self, feed: Mapping[str, Array]) -> dict[str, Any]:
        torch = _torch()
        double = any(t.dtype == torch.float64 for t in self.root.parameters())
        found = {}
        for i in self.inputs:
            if i.name not in feed:
                raise ArrayError(f"data: no array for the argument {i.name!r}")
            kind = np.float64 if double and i.dtype == "float32" else np.dtype(i.dtype)
            a = np.ascontiguousarray(feed[i.name], kind)
            found[i.name] = torch.from_numpy(a if a.flags.writeable else a.copy())
        return found

    def _interpret(self, feed: Mapping[str, Array], seen: Callable[[Any, Any], None]) -> Any:
        """Run node by node, showing each node's value."""
        torch = _torch()
        arguments = self._given(feed)

        class Watching(torch.fx.Interpreter):  # type: ignore[misc, name-defined]
            def run_node(self, n: Any) -> Any:
                value = super().run_node(n)
                seen(n, value)
                return value

        with torch.no_grad():
            return Watching(self.graph).run(*arguments)

    def _given(self, feed: Mapping[str, Array]) -> list[Any]:
        """Values of the traced arguments in order; their defaults where nothing is fed."""
        tensors = self._arguments(feed)
        found = []
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if node.target in tensors:
                    found.append(tensors[node.target])
                elif node.args:
                    found.append(node.args[0])
                else:
                    raise ArrayError(f"data: no array for the argument {node.target!r}")
        return found

    def run(
        self,
        data: Any,
        taps: Sequence[str] = (),
        batch_size: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Outputs and tapped activations (``<layer>.in``), batch by batch."""
        torch = _torch()
        wanted: dict[str, list[str]] = {}  # tensors by the name of the node that makes them
        known = [f"{name}.{end}" for name in self._modules for end in ("in", "out")]
        for tap in taps_of(taps, known):
            layer = tap.removesuffix(".in").removesuffix(".out")
            node = self._nodes(layer)[0]
            source = node if tap.endswith(".out") else node.args[0]
            wanted.setdefault(source.name, []).append(tap)
        others = tried_of(weights, self)
        size = batch_of(batch_size)
        for feed in feeds_of(data, self._any_shape):
            n = len(next(iter(feed.values())))
            step = size or max(n, 1)
            for start in range(0, n, step):
                part = {k: a[start : start + step] for k, a in feed.items()}
                tapped: dict[str, Array] = {}

                def seen(node: Any, value: Any, found: dict[str, Array] = tapped) -> None:
                    for tap in wanted.get(node.name, ()):
                        found[tap] = value.numpy().copy()

                with edit.other_weights(self._modules, others), torch.no_grad():
                    if wanted:
                        result = self._interpret(part, seen)
                    else:
                        result = self.graph(*self._given(part))
                yield _named(result), tapped

    def rows(self, layer: str, tapped: Array, limit: int | None = None) -> Array:
        """A layer's input rows out of its tapped tensor, (n_blocks, rows, n_in)."""
        module = self._modules[choice(layer, "layer", self._modules)]
        x, most = numbers(tapped, "tapped"), limit_of(limit)
        try:
            return edit.rows_of(module, x, most)
        except (ValueError, IndexError, RuntimeError) as error:
            raise ArrayError(f"tapped: not what feeds {layer}: {error}") from None

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once."""
        torch = _torch()
        arguments = self._given(first_batch(data, self._any_shape, batch_size))
        threads = _threads.resolve(integer(threads, "threads", low=1), 1)

        def once() -> object:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with torch.no_grad():
                    return self.graph(*arguments)
            finally:
                torch.set_num_threads(before)

        return once

    # --- training ---------------------------------------------------------------------------

    @property
    def params(self) -> dict[str, Array]:
        """In place: make the trainable parameters this model's own; their live arrays by name."""
        return train.own_params(self._names)

    def fit(
        self,
        x: Any,
        y: Any,
        optimizer: Any,
        epochs: int = 10,
        batch_size: int | None = 64,
        seed: Seed = 0,
    ) -> list[float]:
        """In place: train on mini-batches; the mean loss of each epoch.

        Cross-entropy of the first output for integer labels, else the mean squared error.
        Batch-norm and dropout stay as they are when the module is used.

        Parameters
        ----------
        x : (n, ...) array
            Of the only input.
        y : (n,) integer classes, or values
        optimizer
            One of ``fastopt.optim`` over ``params``, in their order.
        """
        if len(self._feed) != 1:
            raise UnsupportedError("x: a module of several inputs is not trained here")
        (name,) = self._feed
        held = list(train.trainable(self._names).values())
        wanted = as_ndarray(y, "y")
        if len(wanted) != len(x):
            raise ArrayError(f"y: expected {len(x)} rows, got {len(wanted)}")

        def loss(index: Array) -> Any:
            return train.loss_of(self.graph(*self._given({name: x[index]})), wanted[index])

        return train.epochs_of(loss, held, optimizer, len(x), epochs, batch_size, seed)

    # --- edits ------------------------------------------------------------------------------

    def set_weight(self, layer: str, weight: Array, bias: Array | None = None) -> None:
        """In place: new values of the same shape; None keeps the bias."""
        choice(layer, "layer", list(self._modules))
        module = self._modules[layer]
        shape = tuple(module.weight.shape)
        fresh = numbers(weight, "weight")
        if fresh.size != module.weight.numel() or fresh.shape[:1] != shape[:1]:
            raise ArrayError(f"weight: {layer} needs {shape}, got {fresh.shape}")
        if bias is not None and not hasattr(module, "bias"):
            raise OptionError(f"bias: {layer} ({type(module).__name__}) has no place for one")
        bias = (
            None if bias is None else numbers(bias, "bias", (self.layers[layer].weight.shape[0],))
        )
        self._names.put(layer, fresh.reshape(shape))
        if bias is None:
            return
        if module.bias is None:
            edit.add_bias(module, bias)
            self._forget()
        else:
            self._names.put(self._names.by_id[id(module.bias)], bias)

    def keep_units(
        self,
        group: str,
        index: Array,
        weights: Mapping[str, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """In place: keep the group's units ``index`` only.

        The first cut of each group is checked: the sliced module must compute what the whole one
        does with the units' columns set to zero.
        """
        labels, groups, units, _ = self._labelled()
        choice(group, "group", groups)
        found = groups[group]
        kept = found.kept(index)
        fitted = fitted_of(weights, {m.tensor for m in (*found.producers, *found.consumers)})
        trial = self.copy()
        gone = labels.removed(np.delete(units[group], kept))
        trial._names.take_out(gone)
        trial._kept_graph |= edit.mend(trial.graph, labels, gone)
        key = (group, found.n_units)
        try:
            trial._forget()
        except Exception as error:
            raise UnsupportedError(f"group {group}: the module cannot be cut: {error}") from None
        if key not in self._checked:
            self._check_cut(trial, found, np.delete(np.arange(found.n_units), kept))
            trial._checked.add(key)
        for layer, (weight, bias) in fitted.items():
            trial.set_weight(layer, weight, bias)
        vars(self).update(vars(trial))

    def _check_cut(self, trial: TorchModel, group: Group, removed: Array) -> None:
        layers = self.layers
        masked: dict[str, Array] = {}
        for member in group.consumers:
            weight = masked.get(member.tensor, layers[member.tensor].weight).copy()
            weight[:, member.index[removed].reshape(-1)] = 0
            masked[member.tensor] = weight
        (whole, _), *_ = self.run(self._feed, weights=masked)
        (cut, _), *_ = trial.run(self._feed)
        for name, a in whole.items():
            scale = max(float(np.abs(a).max(initial=0.0)), 1e-6)
            if cut[name].shape != a.shape or not np.allclose(cut[name], a, atol=_CLOSE * scale):
                raise UnsupportedError(
                    f"group {group.name}: the cut module differs from the masked one"
                )

    def split_layer(self, layer: str, a: Array, b: Array) -> None:
        """In place: the module becomes a Sequential of ``b`` and ``a``."""
        choice(layer, "layer", list(self.layers))
        nodes = self._nodes(layer)
        module = self._modules[layer]
        n_out, n_in = self.layers[layer].weight.shape
        if len(nodes) != 1 or type(module).__name__ == "Embedding" or edit.grouped(module):
            raise UnsupportedError(f"layer: {layer} cannot become two")
        a, b = numbers(a, "a", (None, None)), numbers(b, "b", (None, None))
        if a.shape[0] != n_out or b.shape[1] != n_in or a.shape[1] != b.shape[0]:
            raise ArrayError(f"a, b: {layer} needs outer shape {(n_out, n_in)}")
        pair = edit.halves(module, a, b)
        parts = _torch().nn.Sequential(OrderedDict(b=pair[0], a=pair[1]))
        for top in (self.root, self.graph):
            edit.put_module(top, layer, parts)
        edit.two_nodes(self.graph, nodes[0], layer)
        self._forget()

    def store(
        self,
        layer: str,
        form: str,
        codes: QuantizedArray | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """float32 is the only form."""
        choice(layer, "layer", list(self.layers))
        choice(form, "form", (FLOAT32,))

    def fold(self) -> tuple[str, ...]:
        """Nothing is folded: the module stays one that trains on."""
        return ()

    def copy(self) -> TorchModel:
        """An independent copy; parameters are shared until they are replaced."""
        made = copy.copy(self)
        made.root, made.graph = edit.shared_copy((self.root, self.graph))
        made._checked = set(self._checked)
        labels, shapes = self._labels, self._shapes
        made._names = edit.parameter_names((made.root, made.graph), LAYERS)
        made._modules = {n: made.graph.get_submodule(n) for n in self._modules}
        made._labels, made._shapes = labels, shapes
        return made

    # --- the way back -----------------------------------------------------------------------

    def to_module(self) -> Any:
        """A real module with these weights: of the original's class, or the traced GraphModule.

        A GraphModule where the module's own code holds numbers (of heads, of channels) that no
        longer fit. Parameters are its own, trainable where the original's were.
        """
        torch = _torch()
        root, graph = copy.deepcopy((self.root, self.graph))
        made = graph
        if not self._kept_graph:
            try:
                with torch.no_grad():
                    mine = _named(root(**self._arguments(self._feed)))
                (wanted, _), *_ = self.run(self._feed)
                if all(np.allclose(mine[k], a, atol=1e-5) for k, a in wanted.items()):
                    made = root
            except Exception:  # its own code does not run with the new shapes
                made = graph
        for name, module in made.named_modules():
            module.training = self._training.get(name, self._training[""])
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_module().state_dict()`` with torch.save, whole or not at all."""
        buffer = io.BytesIO()
        _torch().save(self.to_module().state_dict(), buffer)
        with write_whole(path) as file:
            file.write(buffer.getvalue())

    def __repr__(self) -> str:
        return f"TorchModel({type(self.root).__name__}, layers={len(self._modules)})"


def _array(tensor: Any) -> Array:
    """The values as float32, without a copy where they are."""
    a: Array = np.asarray(tensor.detach().numpy(), np.float32).view()
    a.flags.writeable = False
    return a


def _size(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _named(result: Any) -> dict[str, Array]:
    """Tensors of what a module returned, by name."""
    torch = _torch()
    if isinstance(result, torch.Tensor):
        return {"output": result.detach().numpy()}
    if isinstance(result, Mapping):
        pairs = [(str(k), v) for k, v in result.items()]
    else:
        pairs = [(f"output{k}", v) for k, v in enumerate(result)]
    return {k: v.detach().numpy() for k, v in pairs if isinstance(v, torch.Tensor)}
