"""A NumPy network of dense layers: it trains with ``fastopt.optim`` and compresses.

h_k = act_k(h_{k-1} @ W_k^T + b_k),   loss = mean cross-entropy or mean squared error / 2
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_labels, as_numbers
from fastopt._options import choice, integer
from fastopt._random import Seed, generator_of
from fastopt.errors import ArrayError, OptionError
from fastopt.models.base import FLOAT32, Group, Input, Layer, Member
from fastopt.models.network.activations import ACTIVATIONS
from fastopt.models.network.dense import Dense
from fastopt.models.network.describe import described
from fastopt.models.network.files import read_network, write_network
from fastopt.models.network.loss import LOSSES, labels_for, loss_and_slope
from fastopt.models.network.training import epochs_of, matched
from fastopt.quantization import QuantizedArray, quantize

__all__ = ["Network"]

_INPUT, _OUTPUT = "X", "output"


class Network:
    """A chain of dense layers with a loss.

    Parameters
    ----------
    layers : sequence of Dense
        Each layer's n_in is the n_out of the one before. Unnamed layers are named
        ``dense0``, ``dense1``, ...
    loss : {"cross_entropy", "squared"}
        ``cross_entropy``: mean over rows of -log softmax(output)[y], y integer classes.
        ``squared``: mean over rows of sum((output - y)^2) / 2.
    classes : array-like, optional
        Labels that ``predict`` returns for class 0, 1, ...; by default the integers.

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
        layers: Sequence[Dense],
        loss: str = "cross_entropy",
        classes: Any = None,
    ) -> None:
        if not layers:
            raise OptionError("layers: expected at least one layer, got none")
        self._layers = list(layers)
        self._loss = choice(loss, "loss", LOSSES)
        self.classes = None if classes is None else as_labels(classes, "classes")
        for k, layer in enumerate(self._layers):
            layer.name = layer.name or f"dense{k}"
        names = [layer.name for layer in self._layers]
        if len(set(names)) != len(names):
            raise OptionError(f"layers: names must differ, got {names}")
        for before, after in pairwise(self._layers):
            if before.weight.shape[0] != after.weight.shape[1]:
                raise ArrayError(
                    f"layers: {before.name} gives {before.weight.shape[0]} columns, "
                    f"{after.name} takes {after.weight.shape[1]}"
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
        widths = [integer(n, "sizes", low=1) for n in sizes]
        if len(widths) < 2:
            raise OptionError(f"sizes: expected at least two numbers, got {list(sizes)}")
        rng = generator_of(seed)
        layers = []
        for k, (n_in, n_out) in enumerate(pairwise(widths)):
            act = activation if k + 2 < len(widths) else "identity"
            bound = np.sqrt(6 / n_in) if act == "relu" else np.sqrt(6 / (n_in + n_out))
            weight = rng.uniform(-bound, bound, (n_out, n_in)).astype(np.float32)
            layers.append(Dense(weight, np.zeros(n_out, np.float32), act))
        return cls(layers, loss, classes)

    # --- training -------------------------------------------------------------------------

    @property
    def params(self) -> dict[str, Array]:
        """The live arrays that an optimiser updates in place, by ``layer.weight``/``.bias``."""
        found = {}
        for layer in self._layers:
            found[f"{layer.name}.weight"] = layer.weight
            if layer.bias is not None:
                found[f"{layer.name}.bias"] = layer.bias
        return found

    def forward(self, x: Any) -> Array:
        """Output of the last layer, (n, n_out) float32: logits for cross-entropy."""
        h = self._input(x)
        for layer in self._layers:
            h = layer(h)
        return h

    __call__ = forward

    def loss(self, x: Any, y: Any) -> float:
        """Mean loss over the rows of ``x`` (see the class)."""
        z = self.forward(x)
        return loss_and_slope(self._loss, z, self._labels(y, len(z)))[0]

    def value_and_grad(self, x: Any, y: Any) -> tuple[float, dict[str, Array]]:
        """The loss and its gradient for every entry of ``params``, by back-propagation."""
        rows = self._input(x)
        return self._backward(rows, self._labels(y, len(rows)))

    def _backward(self, rows: Array, labels: Array) -> tuple[float, dict[str, Array]]:
        inputs = [rows]
        for layer in self._layers:
            inputs.append(layer(inputs[-1]))
        loss, delta = loss_and_slope(self._loss, inputs[-1], labels)
        grads: dict[str, Array] = {}
        for k in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[k]
            if layer.activation != "identity":
                delta = delta * ACTIVATIONS[layer.activation][1](inputs[k + 1])
            if layer.bias is not None:
                grads[f"{layer.name}.bias"] = delta.sum(axis=0)
            grads[f"{layer.name}.weight"] = delta.T @ inputs[k]
            if k:
                delta = delta @ layer.weight
        return loss, {name: grads[name] for name in self.params}

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
        size = len(rows) if batch_size is None else integer(batch_size, "batch_size", low=1)
        return epochs_of(
            lambda index: self._backward(rows[index], labels[index]),
            self.params, optimizer, len(rows), integer(epochs, "epochs", low=0), size, seed,
            callback,
        )  # fmt: skip

    def match(self, x: Any, outputs: Any, max_iter: int = 25) -> tuple[float, float]:
        """In place: fit every parameter so that the outputs on ``x`` come close to ``outputs``.

        L-BFGS on mean(sum((forward(x) - outputs)^2)) / 2; all layers are float32 afterwards.

        Returns
        -------
        before, after : float
            That loss; the parameters change only where it falls.
        """
        twin = Network([Dense(d.weight, d.bias, d.activation, d.name) for d in self._layers])
        twin._loss = "squared"
        rows = self._input(x)
        targets = twin._labels(outputs, len(rows))
        params = list(self.params.values())
        for layer in self._layers:  # what is fitted is stored in full again
            layer.stored = None

        return matched(lambda: twin._backward(rows, targets), params, max_iter)

    def predict_proba(self, x: Any) -> Array:
        """Softmax of the output, (n, n_classes)."""
        z = self.forward(x)
        p: Array = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p

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
        return (Input(_INPUT, "float32", (None, self._layers[0].weight.shape[1])),)

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
        """Nothing is left out."""
        return ()

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers in order of execution (arrays are the live ones)."""
        return {d.name: described(d) for d in self._layers}

    @property
    def groups(self) -> dict[str, Group]:
        """One group for the units between two neighbouring layers, named after the first."""
        found = {}
        for a, b in pairwise(self._layers):
            n = a.weight.shape[0]
            index = np.arange(n)[:, None]
            makes, reads = Member(a.name, 0, index), Member(b.name, 1, index)
            found[a.name] = Group(a.name, n, (makes,), (reads,))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as they are saved."""
        return sum(layer.nbytes for layer in self.layers.values())

    @property
    def n_params(self) -> int:
        """Number of weights and biases."""
        return sum(a.size for a in self.params.values())

    @property
    def macs(self) -> int:
        """Multiply-adds for one input row."""
        return sum(d.weight.size for d in self._layers)

    def n_rows(self, data: Any) -> int:
        """Rows of ``data``, a mapping of ``X`` or a sequence of such mappings."""
        return len(data) if not isinstance(data, Mapping) else len(self._input(data[_INPUT]))

    def take(self, data: Any, index: Array) -> Any:
        """Those rows of ``data``, in that order."""
        if isinstance(data, Mapping):
            return {_INPUT: self._input(data[_INPUT])[index]}
        return [data[int(k)] for k in index]

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
        given = dict(weights or {})
        layers = [
            Dense(given[d.name], d.bias, d.activation, d.name) if d.name in given else d
            for d in self._layers
        ]
        unknown = set(taps) - {f"{d.name}.in" for d in self._layers}
        if unknown:
            raise OptionError(f"taps: no tensor named {sorted(unknown)}")
        for feed in [data] if isinstance(data, Mapping) else data:
            x = self._input(feed[_INPUT])
            step = batch_size or max(len(x), 1)
            for start in range(0, len(x), step):
                yield _forward(layers, x[start : start + step], taps)

    def rows(self, layer: str, tapped: Array, limit: int | None = None) -> Array:
        """A layer's input rows out of its tapped tensor, (1, rows, n_in)."""
        if limit is not None and len(tapped) > limit:
            tapped = tapped[np.linspace(0, len(tapped) - 1, limit).round().astype(np.intp)]
        return tapped[None]

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once; BLAS has its own threads."""
        feed = data if isinstance(data, Mapping) else next(iter(data))
        x = self._input(feed[_INPUT])[:batch_size]
        return lambda: self.forward(x)

    def set_weight(self, layer: str, weight: Array, bias: Array | None = None) -> None:
        """In place: new values of the same shape, stored as float32; None keeps the bias."""
        found = self._find(layer)
        fresh = Dense(weight, found.bias if bias is None else bias, found.activation)
        if fresh.weight.shape != found.weight.shape:
            raise ArrayError(
                f"weight: {layer} needs shape {found.weight.shape}, got {fresh.weight.shape}"
            )
        found.weight, found.bias, found.stored = fresh.weight, fresh.bias, None

    def keep_units(
        self,
        group: str,
        index: Array,
        weights: Mapping[str, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """In place: keep the units ``index`` of a group; ``weights`` replaces its two layers."""
        if group not in self.groups:
            raise OptionError(f"group: no group named {group!r}; there are {list(self.groups)}")
        k = self._index(group)
        first, second = self._layers[k], self._layers[k + 1]
        sliced = {
            first.name: (first.weight[index], None if first.bias is None else first.bias[index]),
            second.name: (second.weight[:, index], second.bias),
        }
        given = dict(weights or {})
        if set(given) - set(sliced):
            raise OptionError(f"weights: {group} has the layers {list(sliced)}, got {list(given)}")
        fresh = [
            Dense(*(sliced | given)[d.name], d.activation, d.name) if d.name in sliced else d
            for d in self._layers
        ]
        Network(fresh)  # the shapes must chain
        self._layers[:] = fresh

    def split_layer(self, layer: str, a: Array, b: Array) -> None:
        """In place: ``layer`` becomes ``layer.b`` (no bias, no activation), then ``layer.a``."""
        k = self._index(layer)
        old = self._layers[k]
        pair = [
            Dense(b, None, "identity", f"{layer}.b"),
            Dense(a, old.bias, old.activation, f"{layer}.a"),
        ]
        if (pair[1].weight.shape[0], pair[0].weight.shape[1]) != old.weight.shape:
            raise ArrayError(f"a, b: {layer} needs outer shape {old.weight.shape}")
        fresh = [*self._layers[:k], *pair, *self._layers[k + 1 :]]
        Network(fresh)
        self._layers[:] = fresh

    def store(
        self,
        layer: str,
        form: str,
        codes: QuantizedArray | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """In place: store the weight in one of the layer's forms; it computes with their values.

        Without ``codes`` the weight is rounded plainly. No form needs ``ranges``.
        """
        found = self._find(layer)
        wanted = described(found).form_named(form)
        if wanted is None:
            names = [f.name for f in described(found).forms]
            raise OptionError(f"form: {layer} can be stored as {', '.join(names)}, not {form!r}")
        if form == FLOAT32:
            found.stored = None
            return
        if codes is None:
            axis = 0 if wanted.group_size is None else 1
            codes = quantize(
                found.weight, f"int{wanted.bits}", axis=axis, group_size=wanted.group_size
            )
        if tuple(codes.shape) != found.weight.shape:
            raise ArrayError(f"codes: {layer} needs shape {found.weight.shape}, got {codes.shape}")
        found.weight = np.asarray(codes.dequantize(), np.float32)
        found.stored = codes

    def fold(self) -> tuple[str, ...]:
        """Nothing to fold."""
        return ()

    def copy(self) -> Network:
        """An independent copy: no array is shared, for training writes into them."""
        layers = [
            Dense(
                d.weight.copy(),
                None if d.bias is None else d.bias.copy(),
                d.activation,
                d.name,
                d.stored,  # immutable
            )
            for d in self._layers
        ]
        return Network(layers, self._loss, self.classes)

    # --- files ----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to ``path``: .npz with NumPy alone, .safetensors with its package.

        Quantised layers are written as codes and scales, so the file is as small as ``nbytes``
        says, and :meth:`load` gives a network that predicts the same bits.
        """
        write_network(path, self._layers, self._loss, self.classes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Network:
        """Read what :meth:`save` wrote; FormatError where the file is not that."""
        return read_network(path, cls)

    def __repr__(self) -> str:
        widths = [self._layers[0].weight.shape[1], *(d.weight.shape[0] for d in self._layers)]
        return f"Network({'-'.join(map(str, widths))}, loss={self._loss!r})"

    # --- inside ---------------------------------------------------------------------------

    def _index(self, name: str) -> int:
        for k, layer in enumerate(self._layers):
            if layer.name == name:
                return k
        raise OptionError(f"name: no layer named {name!r}; there are {list(self.layers)}")

    def _find(self, name: str) -> Dense:
        return self._layers[self._index(name)]

    def _input(self, x: Any) -> Array:
        n_in = self._layers[0].weight.shape[1]
        return as_array(x, "x", dtypes=("float32",), cast="float32", shape=(None, n_in))

    def _labels(self, y: Any, n: int) -> Array:
        return labels_for(self._loss, self.classes, self._layers[-1].weight.shape[0], y, n)


def _forward(
    layers: Sequence[Dense], h: Array, taps: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    tapped = {}
    for layer in layers:
        if f"{layer.name}.in" in taps:
            tapped[f"{layer.name}.in"] = h
        h = layer(h)
    return {_OUTPUT: h}, tapped
