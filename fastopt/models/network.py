"""A NumPy network of dense layers: it trains with ``fastopt.optim`` and compresses.

h_k = act_k(h_{k-1} @ W_k^T + b_k),   loss = mean cross-entropy or mean squared error / 2
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, as_labels, as_ndarray, as_numbers
from fastopt._files import load_arrays, save_arrays
from fastopt._options import choice, integer
from fastopt._random import Seed, generator_of
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError
from fastopt.models.base import FLOAT32, Form, Group, Input, Layer, Member
from fastopt.optim import descend
from fastopt.quantization import QuantizedArray, quantize

__all__ = ["Dense", "Network"]

_LOSSES = ("cross_entropy", "squared")
_INPUT, _OUTPUT = "X", "output"
_KEY, _VERSION = "fastopt", 2  # version 1 had weights (n_in, n_out)
_GROUP = 32  # neighbours that share a scale in four-bit codes
_CODE_ARRAYS = ("codes", "scale", "zero_point")
_CODE_CONFIG = ("dtype", "shape", "axis", "group_size", "symmetric")


def _relu(z: Array) -> Array:
    return np.maximum(z, 0)


def _relu_slope(y: Array) -> Array:
    slope: Array = y > 0
    return slope


def _tanh_slope(y: Array) -> Array:
    return 1 - y * y


def _sigmoid(z: Array) -> Array:
    y: Array = 0.5 * (np.tanh(0.5 * z) + 1)  # no overflow for any z
    return y


def _sigmoid_slope(y: Array) -> Array:
    slope: Array = y * (1 - y)
    return slope


def _same(z: Array) -> Array:
    return z


# name -> (function, its derivative written in the function's own output)
_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Any]]] = {
    "identity": (_same, lambda y: 1.0),
    "relu": (_relu, _relu_slope),
    "tanh": (np.tanh, _tanh_slope),
    "sigmoid": (_sigmoid, _sigmoid_slope),
}


@dataclass
class Dense:
    """One layer: ``activation(x @ weight.T + bias)``.

    Attributes
    ----------
    weight : (n_out, n_in) float32
    bias : (n_out,) float32 or None
    activation : {"identity", "relu", "tanh", "sigmoid"}
    stored : QuantizedArray or None
        Set by ``Network.store``; ``weight`` then holds its dequantised values.
    """

    weight: Array
    bias: Array | None
    activation: str = "identity"
    name: str = ""
    stored: QuantizedArray | None = None

    def __post_init__(self) -> None:
        self.weight = as_array(self.weight, "weight", dtypes=("float32",), cast="float32", ndim=2)
        if self.bias is not None:
            self.bias = as_array(
                self.bias,
                "bias",
                dtypes=("float32",),
                cast="float32",
                shape=(self.weight.shape[0],),
            )
        choice(self.activation, "activation", _ACTIVATIONS)

    def __call__(self, x: Array) -> Array:
        z: Array = x @ self.weight.T
        if self.bias is not None:
            z += self.bias
        return _ACTIVATIONS[self.activation][0](z)


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

    Raises
    ------
    OptionError
        No layer, or two of one name.
    ArrayError
        A layer gives another number of columns than the next one takes.

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
        self._loss = choice(loss, "loss", _LOSSES)
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
        return self._loss_and_slope(z, self._labels(y, len(z)))[0]

    def value_and_grad(self, x: Any, y: Any) -> tuple[float, dict[str, Array]]:
        """The loss and its gradient for every entry of ``params``, by back-propagation."""
        rows = self._input(x)
        return self._backward(rows, self._labels(y, len(rows)))

    def _backward(self, rows: Array, labels: Array) -> tuple[float, dict[str, Array]]:
        inputs = [rows]
        for layer in self._layers:
            inputs.append(layer(inputs[-1]))
        loss, delta = self._loss_and_slope(inputs[-1], labels)
        grads: dict[str, Array] = {}
        for k in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[k]
            if layer.activation != "identity":
                delta = delta * _ACTIVATIONS[layer.activation][1](inputs[k + 1])
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
        names = self._bound_names(optimizer)
        rng = generator_of(seed)
        history = []
        for epoch in range(integer(epochs, "epochs", low=0)):
            order = rng.permutation(len(rows)) if size < len(rows) else np.arange(len(rows))
            total = 0.0
            for start in range(0, len(rows), size):
                index = order[start : start + size]
                loss, grads = self._backward(rows[index], labels[index])
                optimizer.step([grads[name] for name in names])
                total += loss * len(index)
            history.append(total / len(rows))
            if callback is not None and callback(epoch, history[-1]) is True:
                break
        return history

    def _bound_names(self, optimizer: Any) -> list[str]:
        """For each array of the optimiser, in its order, the parameter that it is."""
        if not hasattr(type(optimizer), "step") or not hasattr(optimizer, "param_groups"):
            raise DTypeError(
                f"optimizer: expected one of fastopt.optim over the network's params, "
                f"got {optimizer!r}"
            )
        mine = {a.__array_interface__["data"][0]: (name, a) for name, a in self.params.items()}
        found = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                name, a = mine.get(p.__array_interface__["data"][0], ("", None))
                if a is None or a.shape != p.shape:
                    raise OptionError(
                        f"optimizer: holds an array of shape {p.shape} that is none of this "
                        "network's parameters; make it from network.params"
                    )
                found.append(name)
        return found

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

        def put(flat: Array) -> None:
            start = 0
            for p in params:
                p[...] = flat[start : start + p.size].reshape(p.shape)
                start += p.size

        def value_and_grad(flat: Array) -> tuple[float, Array]:
            put(flat)
            loss, grads = twin._backward(rows, targets)
            return loss, np.concatenate([g.ravel() for g in grads.values()], dtype=np.float64)

        first = np.concatenate([p.ravel() for p in params], dtype=np.float64)
        before = value_and_grad(first)[0]
        found = descend(value_and_grad, first, optimizer="lbfgs", max_iter=max_iter)
        after = float(found.fun)
        put(found.x if after < before else first)
        return before, min(before, after)

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
        return {d.name: _described(d) for d in self._layers}

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
        wanted = _described(found).form_named(form)
        if wanted is None:
            names = [f.name for f in _described(found).forms]
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
        arrays: dict[str, Array] = {}
        described = []
        for d in self._layers:
            entry: dict[str, Any] = {"name": d.name, "activation": d.activation}
            if d.stored is None:
                arrays[f"{d.name}.weight"] = np.ascontiguousarray(d.weight)
            else:
                q = d.stored
                entry["quantized"] = {name: getattr(q, name) for name in _CODE_CONFIG}
                arrays.update({f"{d.name}.weight.{k}": getattr(q, k) for k in _CODE_ARRAYS})
            if d.bias is not None:
                arrays[f"{d.name}.bias"] = np.ascontiguousarray(d.bias)
            described.append(entry)
        config = {
            "version": _VERSION,
            "loss": self._loss,
            "classes": None if self.classes is None else self.classes.tolist(),
            "layers": described,
        }
        save_arrays(path, _KEY, config, arrays, npz=_is_npz(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Network:
        """Read what :meth:`save` wrote; FormatError where the file is not that."""
        _is_npz(path)  # refuses other names
        config, arrays = load_arrays(path, _KEY, _check_config)
        try:
            layers = [_layer_from(entry, arrays) for entry in config["layers"]]
            return cls(layers, config["loss"], config["classes"])
        except Exception as error:  # well-formed, but not a network
            raise FormatError(f"cannot be read as a network: {error}", os.fspath(path)) from None

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
        """y as the loss needs it: class indices (n,), or targets (n, n_out) float32."""
        n_out = self._layers[-1].weight.shape[0]
        if self._loss == "squared":
            targets = as_array(y, "y", dtypes=("float32",), cast="float32")
            if targets.size != n * n_out:
                raise ArrayError(f"y: expected ({n}, {n_out}) targets, got shape {targets.shape}")
            shaped: Array = targets.reshape(n, n_out)
            return shaped
        y = as_ndarray(y, "y") if self.classes is None else as_labels(y, "y")
        if y.shape != (n,):
            raise ArrayError(f"y: expected ({n},) labels, got shape {y.shape}")
        if self.classes is not None:
            order = np.argsort(self.classes)
            place = np.searchsorted(self.classes, y, sorter=order)
            k: Array = order[np.minimum(place, len(order) - 1)]
            if not (self.classes[k] == y).all():
                raise ArrayError("y: holds labels that are not in the network's classes")
            return k
        if y.dtype.kind not in "iu":
            raise ArrayError(f"y: expected integer classes, got dtype {y.dtype}; pass classes=")
        if n and (y.min() < 0 or y.max() >= n_out):
            raise ArrayError(
                f"y: expected classes 0..{n_out - 1}, got {y.min()}..{y.max()}; name them with "
                "Network(..., classes=)"
            )
        labels: Array = y
        return labels

    def _loss_and_slope(self, z: Array, labels: Array) -> tuple[float, Array]:
        """The mean loss and its derivative by the output."""
        n = len(z)
        if n == 0:
            raise ArrayError("x: expected at least one row, got none")
        if self._loss == "squared":
            delta = z - labels
            return float((delta * delta).sum(dtype=np.float64)) / (2 * n), delta / np.float32(n)
        shifted = z - z.max(axis=1, keepdims=True)
        p = np.exp(shifted)
        total = p.sum(axis=1, keepdims=True)
        rows = np.arange(n)
        loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels], dtype=np.float64))
        p /= total
        p[rows, labels] -= 1
        p /= np.float32(n)
        return loss, p


def _forward(
    layers: Sequence[Dense], h: Array, taps: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    tapped = {}
    for layer in layers:
        if f"{layer.name}.in" in taps:
            tapped[f"{layer.name}.in"] = h
        h = layer(h)
    return {_OUTPUT: h}, tapped


def _is_npz(path: str | os.PathLike[str]) -> bool:
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise OptionError(f"path: expected a name ending in .npz or .safetensors, got {path}")
    return suffix == ".npz"


def _check_config(config: Any, declared: Mapping[str, Any]) -> None:
    """Refuse another version, and arrays that the description does not ask for."""
    if config.get("version") != _VERSION:
        raise FormatError(f"not a network of format version {_VERSION}")
    wanted = set()
    for entry in config["layers"]:
        parts = [f"weight.{k}" for k in _CODE_ARRAYS] if "quantized" in entry else ["weight"]
        wanted |= {f"{entry['name']}.{part}" for part in [*parts, "bias"]}
    unknown = set(declared) - wanted
    if unknown:
        raise FormatError(f"holds arrays that are no part of it: {sorted(unknown)}")


def _described(d: Dense) -> Layer:
    """A layer as the protocol shows it."""
    n_out, n_in = d.weight.shape
    forms = [Form(FLOAT32, 32, nbytes=4 * n_out * n_in)]
    forms.append(Form("int8", 8, nbytes=n_out * n_in + 4 * n_out))
    if n_in % _GROUP == 0:
        groups = n_out * (n_in // _GROUP)
        forms.append(Form("int4g", 4, _GROUP, nbytes=(n_out * n_in + 1) // 2 + 4 * groups))
    now = forms[0]
    if d.stored is not None:
        grouped = [f for f in forms[1:] if f.group_size == d.stored.group_size]
        now = grouped[0] if grouped else Form(d.stored.dtype, d.stored.format.bits)
        now = replace(now, nbytes=d.stored.nbytes)
    name = f"{d.name}.in"
    return Layer(
        d.name, "dense", d.weight, d.bias, d.weight.size, name, now, tuple(forms), stored=d.stored
    )


def _layer_from(entry: dict[str, Any], arrays: dict[str, Array]) -> Dense:
    name = entry["name"]
    stored = None
    if "quantized" in entry:
        parts = {k: arrays[f"{name}.weight.{k}"] for k in _CODE_ARRAYS}
        config: dict[str, Any] = {k: entry["quantized"][k] for k in _CODE_CONFIG}
        config["shape"] = tuple(config["shape"])
        stored = QuantizedArray(**{**parts, **config})
        weight = np.asarray(stored.dequantize(), np.float32)
    else:
        weight = arrays[f"{name}.weight"]
    return Dense(weight, arrays.get(f"{name}.bias"), entry["activation"], name, stored)
