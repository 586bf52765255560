"""The protocol: what compression needs of a model, and nothing more.

A pass reads ``layers`` and ``groups``, runs the model for activations, and edits it; it never
learns the format. An adapter (a NumPy network, an ONNX graph ...) never learns a method.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastopt._arrays import Array, as_ndarray
from fastopt.errors import ArrayError, UnsupportedError
from fastopt.quantization import QuantizedArray

__all__ = ["FLOAT32", "Form", "Group", "Input", "Layer", "Member", "Model"]


@dataclass(frozen=True)
class Form:
    """A way to store a layer's weight, and to run it.

    Attributes
    ----------
    name : str
        For example "float32", "float16", "int8", "int4g32", "int4g32+dynamic", "int8+static".
        The same name means the same thing in every layer and model.
    bits : int
        Bits of one weight, without its scale: 32, 16, or 2 to 8 for integer codes.
    group_size : int or None
        Integer codes: neighbours along n_in that share one scale (a divisor of n_in); None is one
        scale per row. Scales are kept in float16.
    activations : {None, "dynamic", "static"}
        None: the weight is decoded when the model is loaded and multiplied in float. "dynamic":
        the product runs in int8, the input quantised at each call. "static": in int8 with the
        input's and output's ranges given to ``store``.
    nbytes : int
        Bytes of weight and scales in a file (the bias not counted).
    """

    name: str
    bits: int
    group_size: int | None = None
    activations: str | None = None
    nbytes: int = 0

    @property
    def integer(self) -> bool:
        """Whether ``store`` takes codes."""
        return self.bits <= 8


FLOAT32 = "float32"


@dataclass(frozen=True)
class Layer:
    """One place where a weight tensor works: y = x @ weight.T + bias.

    Attributes
    ----------
    name : str
    kind : {"dense", "conv", "conv_transpose", "embedding", "recurrent"}
    weight : (n_out, n_in) float32, read-only
        The values that the layer computes with, also where it is stored in fewer bits.
        A convolution's n_in is (channels per block) * kernel size; an embedding's matrix is its
        table (n_rows, n_features), each row one output.
    bias : (n_out,) float32 or None
    macs : int
        Multiply-adds for one input row, all uses together; 0 for an embedding.
    tap : str or None
        Tensor that feeds the layer: ``Model.run(data, taps=(tap,))`` yields it and
        ``Model.rows`` makes the layer's input rows of it. None: it cannot be observed, so the
        layer has no Gram.
    output : str or None
        Tensor that the layer makes (before its bias where that is an operator of its own).
    n_blocks : int
        Equal blocks of rows of the weight that read different inputs (a grouped convolution);
        1 for most layers.
    uses : int
        Operators that share the weight; only one of them is tapped.
    axes : tuple of str
        Meaning of the stored tensor's axes, for example ("in", "out") or ("out", "in", "k", "k").
    form : Form
        How it is stored now.
    forms : tuple of Form
        How it can be stored here, ``form`` among them.
    stored : QuantizedArray or None
        Its codes, where it is stored as integers.
    always : bool
        Every run uses it; False in a branch that not every input reaches.
    """

    name: str
    kind: str
    weight: Array
    bias: Array | None
    macs: int
    tap: str | None
    form: Form
    forms: tuple[Form, ...]
    output: str | None = None
    n_blocks: int = 1
    uses: int = 1
    axes: tuple[str, ...] = ("out", "in")
    stored: QuantizedArray | None = None
    always: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes that the layer takes in a file."""
        return self.form.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def form_named(self, name: str) -> Form | None:
        """The form of that name, where the layer has it."""
        return next((f for f in self.forms if f.name == name), None)


@dataclass(frozen=True)
class Member:
    """The place of a group's units on one axis of one tensor.

    Attributes
    ----------
    tensor : str
        A layer (``axis`` 0 its rows, 1 its columns) or another parameter of the model.
    axis : int
    index : (n_units, unit_size) intp
        Positions of each unit along the axis; unit sizes of members may differ (a channel has
        k * k columns in the convolution that reads it).
    """

    tensor: str
    axis: int
    index: Array


@dataclass(frozen=True)
class Group:
    """A coupling group: units that live and die together.

    Attributes
    ----------
    name : str
    n_units : int
    producers : tuple of Member
        Layers whose rows make the units.
    consumers : tuple of Member
        Layers whose columns read the units.
    others : tuple of Member
        Parameters with one value or more per unit between them (biases, normalisation).
    frozen : str or None
        Why the units cannot be removed; None where they can.

    Notes
    -----
    Consumers with equal columns of the same input (query, key, value) can be refitted as one
    stacked weight: see :meth:`stacks`.
    """

    name: str
    n_units: int
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    others: tuple[Member, ...] = field(default=())
    frozen: str | None = None

    def kept(self, index: Array) -> Array:
        """The units of an edit, ascending.

        Raises
        ------
        ArrayError
            Not the numbers of different units, at least one.
        UnsupportedError
            The group is frozen.
        """
        given = as_ndarray(index, "index")
        whole = given.dtype.kind in "iu" and given.ndim == 1
        kept: Array = np.unique(given) if whole else given
        if not whole or not 0 < kept.size == given.size:
            raise ArrayError("index: expected the numbers of different units, at least one")
        if kept[0] < 0 or kept[-1] >= self.n_units:
            raise ArrayError(f"index: expected units 0..{self.n_units - 1}")
        if self.frozen is not None:
            raise UnsupportedError(f"group {self.name} is frozen: {self.frozen}")
        return kept

    def stacks(self, layers: Mapping[str, Layer]) -> list[tuple[Member, ...]]:
        """Consumers in sets that share one Gram: same tap, same columns, one block."""
        found: dict[Any, list[Member]] = {}
        for member in self.consumers:
            layer = layers[member.tensor]
            key: Any = (layer.tap, layer.kind, layer.weight.shape[1], member.index.tobytes())
            if layer.tap is None or layer.n_blocks > 1 or layer.kind.startswith("conv"):
                key = (member.tensor,)  # kernels, strides and pads may differ
            found.setdefault(key, []).append(member)
        return [tuple(members) for members in found.values()]

    def stack(
        self, members: Sequence[Member], layers: Mapping[str, Layer]
    ) -> tuple[Array, Array, int]:
        """The consumers of one of :meth:`stacks` as one weight, the units' columns first.

        Returns
        -------
        weight : (sum of n_out, n_in) float32
            Columns reordered by ``columns``.
        columns : (n_in,) intp
            The units' columns, unit by unit, then the others: ``gram.take(columns)`` fits.
        n_columns : int
            How many of them belong to units: ``n_units * unit_size``.
        """
        index = members[0].index
        units = index.reshape(-1)
        n_in = layers[members[0].tensor].weight.shape[1]
        columns = np.concatenate([units, np.setdiff1d(np.arange(n_in), units)])
        weight = np.vstack([layers[m.tensor].weight[:, columns] for m in members])
        return weight, columns, units.size

    def unstack(
        self,
        members: Sequence[Member],
        layers: Mapping[str, Layer],
        index: Array,
        weight: Array,
        bias_shift: Array | None = None,
    ) -> dict[str, tuple[Array, Array | None]]:
        """The consumers' new (weight, bias) out of a refitted stack.

        Parameters
        ----------
        members : sequence of Member
            The set that :meth:`stack` was given.
        index : (n_keep,) intp
            Units that stay, ascending.
        weight : (sum of n_out, n_keep * unit_size + other columns) float32
            The columns in :meth:`stack`'s order, removed units left out.
        bias_shift : (sum of n_out,) float32, optional
            Added to the biases.
        """
        place = members[0].index
        n_in = layers[members[0].tensor].weight.shape[1]
        units = place[index].reshape(-1)
        columns = np.concatenate([units, np.setdiff1d(np.arange(n_in), place.reshape(-1))])
        total = sum(layers[m.tensor].weight.shape[0] for m in members)
        if weight.shape != (total, columns.size):
            raise ArrayError(f"weight: expected {(total, columns.size)}, got {weight.shape}")
        ordered = weight[:, np.argsort(columns, kind="stable")]
        found: dict[str, tuple[Array, Array | None]] = {}
        start = 0
        for m in members:
            layer = layers[m.tensor]
            stop = start + layer.weight.shape[0]
            bias = layer.bias
            if bias_shift is not None:
                shift = bias_shift[start:stop]
                bias = np.asarray(shift if bias is None else bias + shift, np.float32)
            rows = self._rows_left(m.tensor, index, stop - start)
            kept = np.ascontiguousarray(ordered[start:stop][rows], np.float32)
            found[m.tensor] = (kept, None if bias is None else bias[rows])
            start = stop
        return found

    def _rows_left(self, tensor: str, index: Array, n_out: int) -> Array:
        """Rows of a layer that stay: not all where it makes the units that it reads too."""
        gone = np.delete(np.arange(self.n_units), index)
        made = [m.index[gone].reshape(-1) for m in self.producers if m.tensor == tensor]
        return np.delete(np.arange(n_out), np.concatenate(made)) if made else np.arange(n_out)


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes
    ----------
    name, dtype : str
        dtype as NumPy names it.
    shape : tuple of int or None
        None where any length goes.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Model(Protocol):
    """A model as compression sees it. Every edit changes this object; ``copy`` before.

    ``data`` is a mapping of arrays by input name, or a sequence of such mappings (each one feed,
    lengths may differ). An array with its input's rank has the rows on axis 0; with one rank
    more, axis 0 counts samples that are fed whole; a scalar input takes a scalar.
    """

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that data must hold."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        ...

    @property
    def classes_axis(self) -> Mapping[str, int]:
        """Axis of the classes, for each output known to hold a distribution or logits."""
        return {}

    @property
    def classes(self) -> Array | None:
        """Labels of class 0, 1 ..., where the model knows them; default None."""
        return None

    @property
    def logits(self) -> Mapping[str, str]:
        """For each output the tensor before its last Softmax or Sigmoid; default none."""
        return {}

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers in order of execution."""
        ...

    @property
    def groups(self) -> Mapping[str, Group]:
        """The coupling groups in order of execution, frozen ones with their reason."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the adapter leaves as it is and why, such as operators it does not know."""
        return ()

    @property
    def nbytes(self) -> int:
        """Bytes of the file that ``save`` would write."""
        ...

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        ...

    @property
    def macs(self) -> int:
        """Multiply-adds for one input row."""
        ...

    def n_rows(self, data: Any) -> int:
        """Check data against the inputs; the number of rows, samples or feeds that it holds."""
        ...

    def take(self, data: Any, index: Array) -> Any:
        """The rows, samples or feeds of that number, in that order."""
        ...

    def run(
        self,
        data: Any,
        taps: Sequence[str] = (),
        batch_size: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Outputs and tapped activations by name, batch by batch, in constant memory.

        ``weights`` gives layers other weights (n_out, n_in) for this run alone: to try many of
        them is quicker than to edit copies.
        """
        ...

    def rows(self, layer: str, tapped: Array, limit: int | None = None) -> Array:
        """A layer's input rows out of its tapped tensor, (n_blocks, rows, n_in) float32.

        A convolution's rows are its patches; where there are more than ``limit``, evenly spaced
        ones. y = rows @ weight.T holds block by block.
        """
        ...

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once, for timing, as the saved file will."""
        ...

    def set_weight(self, layer: str, weight: Array, bias: Array | None = None) -> None:
        """In place: new values of the same shape, stored as float32; None keeps the bias."""
        ...

    def keep_units(
        self,
        group: str,
        index: Array,
        weights: Mapping[str, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """In place: keep the group's units ``index`` only.

        ``weights`` gives new (weight, bias) of layers in their new shape; all other members are
        sliced.
        """
        ...

    def split_layer(self, layer: str, a: Array, b: Array) -> None:
        """In place: ``layer`` becomes ``layer.b`` (r, n_in), then ``layer.a`` (n_out, r).

        The bias stays with ``layer.a``.
        """
        ...

    def store(
        self,
        layer: str,
        form: str,
        codes: QuantizedArray | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """In place: store (and run) the layer in one of its forms.

        Parameters
        ----------
        form : str
            Name of one of ``layers[layer].forms``.
        codes : QuantizedArray of shape (n_out, n_in), optional
            Symmetric codes, ``axis=0`` for one scale per row, or ``axis=1`` with the form's
            ``group_size``; None rounds the weight plainly.
        ranges : mapping, optional
            For static forms: least and largest value of ``tap`` (and of ``output``).
        """
        ...

    def fold(self) -> tuple[str, ...]:
        """In place: merge operators where the function stays the same; what was done."""
        ...

    def copy(self) -> Model:
        """An independent copy; arrays are shared until they are replaced."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a new file, whole or not at all."""
        ...
