"""A NumPy network: a graph of modules that trains with ``fastopt.optim`` and compresses."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_labels, as_numbers
from fastopt._options import choice, flag, integer, items, shape
from fastopt._random import Seed, generator_of
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.models.base import Group, Input, Layer
from fastopt.models.given import (
    batch_of,
    feeds_of,
    first_batch,
    limit_of,
    n_rows_of,
    numbers,
    taken,
    taps_of,
    tried_of,
)
from fastopt.models.network import edit
from fastopt.models.network.activations import ACTIVATIONS, softmax
from fastopt.models.network.coupling import Coupling
from fastopt.models.network.dense import Dense
from fastopt.models.network.describe import layers_of, macs_of, matrix, rows_of
from fastopt.models.network.files import read_network, write_network
from fastopt.models.network.graph import INPUT, Graph
from fastopt.models.network.graph import input_shape as _shape_of
from fastopt.models.network.loss import LOSSES, labels_for, loss_and_slope
from fastopt.models.network.module import Module, own_copy
from fastopt.models.network.training import epochs_of, in_parts, matched
from fastopt.quantization import QuantizedArray

__all__ = ["Network"]

_OUTPUT = "output"
# Multiply-adds of a fit at most, some tens of seconds, but with this many rows at least; and those
# of a part of the rows whose activations stay in the cache.
_MATCH_MACS, _FEWEST, _PART_MACS = 2e11, 256, 1 << 27


class Network:
    """A graph of layers with a loss.

    Parameters
    ----------
    layers : sequence of modules
        ``Dense``, or any of ``fastopt.models.network``, in order of execution. Each reads the one
        before it, or those that its ``inputs`` names ("X" is the network's input). Unnamed ones
        are named by their kind and place: ``dense0``, ``conv2d1``, ... The last one's output is
        the network's. They are copied; their arrays are shared.
    loss : {"cross_entropy", "squared"}
        ``cross_entropy``: mean over rows of -log softmax(output)[y], y integer classes.
        ``squared``: mean over rows of sum((output - y)^2) / 2.
    classes : array-like, optional
        Labels that ``predict`` returns for class 0, 1, ...; by default the integers.
    input_shape : tuple of int, optional
        Shape of one input row; needed where the first layer is not dense, such as (1, 28, 28).

    Raises
    ------
    OptionError
        No layer, names that are not different, inputs that are not there, an unknown loss.
    ArrayError
        Shapes that do not fit; another number of ``classes`` than the network has outputs.
    DTypeError
        One of ``layers`` is no module.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.models import Network
    >>> from fastopt.optim import SGD
    >>> net = Network.mlp((2, 16, 2), seed=0)
    >>> x = np.random.default_rng(0).standard_normal((64, 2), dtype=np.float32)
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> opt = SGD(list(net.params.values()), lr=0.5)
    >>> before = net.loss(x, y)
    >>> for _ in range(200):
    ...     loss, grads = net.value_and_grad(x, y)
    ...     opt.step(list(grads.values()))
    >>> bool(net.loss(x, y) < 0.3 * before)
    True
    """

    def __init__(
        self,
        layers: Sequence[Module],
        loss: str = "cross_entropy",
        classes: Any = None,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        modules = items(layers, "layers")
        if not modules:
            raise OptionError("layers: expected at least one layer, got none")
        for k, module in enumerate(modules):
            if not isinstance(module, Module):
                raise DTypeError(f"layers[{k}]: expected a module, got {type(module).__name__}")
        given = _shape_of(modules[0]) if input_shape is None else shape(input_shape, "input_shape")
        self._graph = Graph(modules, given)
        self._coupling: Coupling | None = None
        self._loss = choice(loss, "loss", LOSSES)
        self.classes = None if classes is None else as_labels(classes, "classes")
        if self.classes is not None and self.classes.shape != (self._n_out,):
            raise ArrayError(
                f"classes: expected {self._n_out} labels, got shape {self.classes.shape}"
            )

    @classmethod
    def mlp(
        cls,
        sizes: Sequence[int],
        activation: str = "relu",
        loss: str = "cross_entropy",
        seed: Seed = None,
        classes: Any = None,
    ) -> Network:
        """A fresh network of ``sizes`` (n_in, hidden..., n_out).

        Weights are uniform in +-sqrt(6 / n_in) before a ReLU (He et al. 2015, eq. 10) and
        +-sqrt(6 / (n_in + n_out)) elsewhere (Glorot and Bengio 2010, eq. 16); biases are 0.
        """
        choice(activation, "activation", ACTIVATIONS)
        widths = [integer(n, "sizes", low=1) for n in items(sizes, "sizes")]
        if len(widths) < 2:
            raise OptionError(f"sizes: expected at least two numbers, got {widths}")
        rng = generator_of(seed)
        layers = []
        for k, (n_in, n_out) in enumerate(pairwise(widths)):
            act = activation if k + 2 < len(widths) else "identity"
            layers.append(Dense.random(n_in, n_out, act, rng))
        return cls(layers, loss, classes)

    # --- training -------------------------------------------------------------------------

    @property
    def params(self) -> dict[str, Array]:
        """The live arrays that an optimiser updates in place, by ``layer.weight``/``.bias``."""
        return self._graph.params

    def forward(self, x: Any) -> Array:
        """Output of the last layer, (n, n_out) float32: logits for cross-entropy."""
        rows = self._input(x)
        size = self._part
        if len(rows) <= size:
            return self._graph.forward(rows)[0]
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate([self._graph.forward(part)[0] for part in parts])

    __call__ = forward

    def loss(self, x: Any, y: Any) -> float:
        """Mean loss over the rows of ``x`` (see the class)."""
        z = self.forward(x)
        return loss_and_slope(self._loss, self._flat(z), self._labels(y, len(z)))[0]

    def value_and_grad(
        self, x: Any, y: Any, training: bool = True
    ) -> tuple[float, dict[str, Array]]:
        """The loss and its gradient for every entry of ``params``, by back-propagation.

        In training a batch-norm normalises with the rows of ``x`` and moves its running
        statistics; with ``training=False`` it uses those, as :meth:`loss` does.
        """
        rows = self._input(x)
        labels = self._labels(y, len(rows))
        return self._backward(rows, labels, flag(training, "training"))

    def _backward(
        self, rows: Array, labels: Array, training: bool = True, loss: str | None = None
    ) -> tuple[float, dict[str, Array]]:
        if not len(rows):
            raise ArrayError("x: expected at least one row, got none")
        z, saved = self._graph.forward_saved(rows, training)
        value, delta = loss_and_slope(loss or self._loss, self._flat(z), labels)
        return value, self._graph.backward(delta.reshape(z.shape), saved)

    def backward(self, x: Any, y: Any) -> dict[str, Array]:
        """The gradient of the loss for every entry of ``params``."""
        return self.value_and_grad(x, y)[1]

    def fit(
        self,
        x: Any,
        y: Any,
        optimizer: Any,
        epochs: int = 10,
        batch_size: int | None = 64,
        seed: Seed = 0,
        callback: Callable[[int, float], object] | None = None,
    ) -> list[float]:
        """In place: train on mini-batches; returns the mean loss of each epoch.

        Layers are float32 afterwards.

        Parameters
        ----------
        optimizer
            An optimiser of ``fastopt.optim`` that holds arrays of ``self.params``, in any order
            and any groups; parameters that it does not hold stay as they are.
        batch_size : int or None
            Rows a step; None for full batches (plain gradient descent).
        callback : callable, optional
            Called with (epoch, mean loss) after each epoch; returning True stops.
        """
        rows = self._input(x)
        if not len(rows):
            raise ArrayError("x: expected at least one row to train on, got none")
        labels = self._labels(y, len(rows))
        size = batch_of(batch_size) or len(rows)
        self._unstore()
        return epochs_of(
            lambda index: self._backward(rows[index], labels[index]),
            self.params, optimizer, len(rows), integer(epochs, "epochs", low=0), size, seed,
            callback,
        )  # fmt: skip

    def match(self, x: Any, outputs: Any, max_iter: int = 25) -> tuple[float, float]:
        """In place: fit every parameter so that the outputs on ``x`` come close to ``outputs``.

        L-BFGS on mean(sum((forward(x) - outputs)^2)) / 2, batch-norm with its running statistics;
        all layers are float32 afterwards. Of very many rows for the network's size evenly spaced
        ones are taken.

        Returns
        -------
        before, after : float
            That loss; the parameters change only where it falls.
        """
        rows = self._input(x)
        targets = labels_for("squared", None, self._n_out, outputs, len(rows))
        max_iter = integer(max_iter, "max_iter", low=0)
        self._unstore()
        most = max(_FEWEST, int(_MATCH_MACS / (3 * max(1, self.macs) * max(1, max_iter))))
        if len(rows) > most:
            index = np.linspace(0, len(rows) - 1, most).round().astype(np.intp)
            rows, targets = rows[index], targets[index]
        return matched(
            lambda: in_parts(
                lambda at: self._backward(rows[at], targets[at], training=False, loss="squared"),
                len(rows), self._part,
            ),
            list(self.params.values()), max_iter,
        )  # fmt: skip

    def _unstore(self) -> None:
        """What is trained is stored in full again."""
        for module in self._graph.modules.values():
            if getattr(module, "stored", None) is not None:
                module.stored = None  # type: ignore[attr-defined]

    def predict_proba(self, x: Any) -> Array:
        """Softmax of the output, (n, n_classes)."""
        return softmax(self.forward(x))

    def predict(self, x: Any) -> Array:
        """Class labels for cross-entropy, the outputs themselves for squared loss."""
        z = self.forward(x)
        if self._loss == "squared":
            return z[:, 0] if z.shape[1] == 1 else z
        k: Array = z.argmax(axis=1)
        labels: Array = k if self.classes is None else self.classes[k]
        return labels

    def score(self, x: Any, y: Any) -> float:
        """Accuracy for cross-entropy, R^2 for squared loss."""
        found = self.predict(x)
        if self._loss == "cross_entropy":
            y = as_labels(y, "y")
            if y.shape != found.shape:
                raise ArrayError(f"y: expected shape {found.shape}, got {y.shape}")
            return float(np.mean(found == y))
        y = as_numbers(y, "y")
        if y.size != found.size:
            raise ArrayError(f"y: expected shape {found.shape}, got {y.shape}")
        y = y.reshape(found.shape)
        spread = float(((y - y.mean(axis=0)) ** 2).sum())
        return 1.0 - float(((y - found) ** 2).sum()) / spread

    # --- the model protocol ---------------------------------------------------------------

    @property
    def inputs(self) -> tuple[Input, ...]:
        """One input, ``X``."""
        return (Input(INPUT, self._dtype, (None, *self._graph.shapes[INPUT])),)

    @property
    def outputs(self) -> tuple[str, ...]:
        """One output, the last layer's."""
        return (_OUTPUT,)

    @property
    def classes_axis(self) -> dict[str, int]:
        """Nothing: a loss says how the network was trained, not what its outputs are used for."""
        return {}

    @property
    def logits(self) -> dict[str, str]:
        """Nothing: the outputs are the logits."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Modules without a rule for their units."""
        return tuple(self._coupled().notes)

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers in order of execution (arrays are the live ones)."""
        return layers_of(self._graph)

    @property
    def groups(self) -> dict[str, Group]:
        """The coupling groups by label propagation, each named after its first producer."""
        return self._coupled().groups

    def _coupled(self) -> Coupling:
        if self._coupling is None:
            self._coupling = Coupling(self._graph)
        return self._coupling

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as they are saved."""
        layers = self.layers
        held = [(m, name, a) for m in self._graph.modules.values() for name, a in m.held().items()]
        rest = sum(a.nbytes for m, name, a in held if not (m.name in layers and name == "weight"))
        return rest + sum(layer.form.nbytes for layer in layers.values())

    @property
    def n_params(self) -> int:
        """Number of weights and biases."""
        return sum(a.size for a in self.params.values())

    @property
    def macs(self) -> int:
        """Multiply-adds for one input row."""
        return sum(macs_of(self._graph, m) for m in self._graph.modules.values())

    def n_rows(self, data: Any) -> int:
        """Rows of ``data``, a mapping of ``X`` or a sequence of such mappings."""
        return n_rows_of(data, self.inputs)

    def take(self, data: Any, index: Array) -> Any:
        """Those rows of ``data``, in that order."""
        return taken(data, index, self.inputs)

    def run(
        self,
        data: Any,
        taps: Sequence[str] = (),
        batch_size: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Outputs and tapped activations (``<layer>.in``), batch by batch.

        ``weights`` gives layers other weights for this run alone.
        """
        names = {f"{name}.in": name for name in self.layers}
        tapped = [names[t] for t in taps_of(taps, names)]
        others = {
            name: edit.with_weight(self._graph.modules[name], w)
            for name, w in tried_of(weights, self).items()
        }
        size = batch_of(batch_size)
        for feed in feeds_of(data, self.inputs):
            x = self._input(feed[INPUT])
            step = size or max(len(x), 1)
            for start in range(0, len(x), step):
                y, seen = self._graph.forward(x[start : start + step], tapped, others)
                yield {_OUTPUT: y}, {f"{name}.in": a for name, a in seen.items()}

    def rows(self, layer: str, tapped: Array, limit: int | None = None) -> Array:
        """A layer's input rows out of its tapped tensor, (n_blocks, rows, n_in)."""
        module = edit.layer_named(self._graph, layer)
        source = self._graph.shapes[module.inputs[0]]
        return rows_of(module, numbers(tapped, "tapped", (None, *source)), limit_of(limit))

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once; BLAS has its own threads."""
        x = self._input(first_batch(data, self.inputs, batch_size)[INPUT])
        return lambda: self.forward(x)

    def set_weight(self, layer: str, weight: Array, bias: Array | None = None) -> None:
        """In place: new values of the same shape, stored as float32; None keeps the bias."""
        found = edit.layer_named(self._graph, layer)
        self._graph.modules[layer] = edit.with_weight(found, weight, bias)

    def keep_units(
        self,
        group: str,
        index: Array,
        weights: Mapping[str, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """In place: keep the units ``index`` of a group; ``weights`` are its layers' new ones."""
        self._put(edit.units_kept(self._graph, self._coupled(), group, index, weights))

    def split_layer(self, layer: str, a: Array, b: Array) -> None:
        """In place: ``layer`` becomes ``layer.b`` (no bias, no activation), then ``layer.a``."""
        self._put(edit.split(self._graph, layer, a, b))

    def store(
        self,
        layer: str,
        form: str,
        codes: QuantizedArray | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """In place: store the weight in one of the layer's forms; it computes with their values.

        With a ``+dynamic`` form the layer multiplies in integers, its input quantised row by row
        as it arrives. Without ``codes`` the weight is rounded plainly. No form needs ``ranges``.
        """
        found = edit.layer_named(self._graph, layer)
        self._graph.modules[layer] = edit.stored_as(found, self.layers[layer], form, codes)

    def fold(self) -> tuple[str, ...]:
        """In place: put every batch-norm into the convolution or dense layer that feeds it."""
        graph, done = edit.folded(self._graph)
        self._put(graph)
        return done

    def copy(self) -> Network:
        """An independent copy: no array is shared, for training writes into them."""
        modules = [own_copy(m) for m in self._graph.modules.values()]
        made = Network(modules, self._loss, self.classes, self._graph.shapes[INPUT])
        made._coupling = self._coupling
        return made

    def _put(self, graph: Graph) -> None:
        self._graph, self._coupling = graph, None

    # --- files ----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to ``path``: .npz with NumPy alone, .safetensors with its package.

        Quantised layers are written as codes and scales, so the file is as small as ``nbytes``
        says, and :meth:`load` gives a network that predicts the same bits.
        """
        write_network(path, self._graph, self._loss, self.classes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Network:
        """Read what :meth:`save` wrote; FormatError where the file is not that."""
        return read_network(path, cls)

    def __repr__(self) -> str:
        modules = list(self._graph.modules.values())
        if all(m.kind == "dense" for m in modules):
            widths = [*self._graph.shapes[INPUT], *(len(matrix(m)) for m in modules)]
            return f"Network({'-'.join(map(str, widths))}, loss={self._loss!r})"
        return f"Network({len(modules)} modules, {self.n_params} parameters, loss={self._loss!r})"

    # --- inside ---------------------------------------------------------------------------

    @property
    def _part(self) -> int:
        """Rows at a time where they need not be whole: activations stay in the cache."""
        return max(64, int(_PART_MACS / max(1, self.macs)))

    @property
    def _n_out(self) -> int:
        return math.prod(self._graph.shapes[self._graph.output])

    def _flat(self, z: Array) -> Array:
        """Outputs as the loss takes them."""
        return z.reshape(len(z), self._n_out)

    @property
    def _dtype(self) -> str:
        readers = [m for m in self._graph.modules.values() if INPUT in m.inputs]
        return "int64" if any(m.kind == "embedding" for m in readers) else "float32"

    def _input(self, x: Any) -> Array:
        dtype, wanted = self._dtype, (None, *self._graph.shapes[INPUT])
        if dtype == "int64":
            return as_array(x, "x", dtypes=("int32", "int64"), shape=wanted)
        return as_array(x, "x", dtypes=("float32",), cast="float32", shape=wanted)

    def _labels(self, y: Any, n: int) -> Array:
        return labels_for(self._loss, self.classes, self._n_out, y, n)
