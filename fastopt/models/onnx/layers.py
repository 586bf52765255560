"""Where the weights of an ONNX graph are: which constant feeds which operator, seen as a matrix.

An operator's weight is traced back through operators that only move values (Identity, Slice,
Concat, Transpose ...) to one tensor, the layer's *anchor*: a constant, or the end of a constant
expression that decodes integers (Cast and Mul, DequantizeLinear). The anchor alone is read and
replaced; whatever moves its values on stays as it is, so shared weights stay shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Graph, Node
from fastopt.models.onnx.moves import MOVES, moved

__all__ = ["Site", "Use", "View", "bias_of", "find_sites"]

CODED = 64  # elements; integers that a few operators decode are a weight from here on
_FLOATS = ("float32", "float16", "float64")
_DECODERS = {"Cast", "Mul", "Div", "Sub", "Add", "DequantizeLinear"}


@dataclass(frozen=True)
class View:
    """A tensor seen as a matrix: reshape to ``split``, transpose by ``perm``, (n_out, n_in)."""

    shape: tuple[int, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]
    n_out: int

    def matrix(self, tensor: Array) -> Array:
        """(n_out, n_in) out of the stored tensor."""
        moved: Array = tensor.reshape(self.split).transpose(self.perm).reshape(self.n_out, -1)
        return moved

    def tensor(self, matrix: Array) -> Array:
        """The stored tensor out of the matrix, whose n_in may have changed with n_out's."""
        moved = matrix.reshape([self.split[p] for p in self.perm])
        stored: Array = moved.transpose(np.argsort(self.perm)).reshape(self.shape)
        return np.ascontiguousarray(stored)

    @property
    def plain(self) -> bool:
        """Whether the matrix is the tensor's own order."""
        return self.perm == tuple(range(len(self.perm)))

    @property
    def row_axis(self) -> int | None:
        """The stored tensor's axis whose positions are the rows; None where there is none."""
        if self.plain and self.shape[0] == self.n_out:
            return 0
        return 1 if self.split == self.shape and self.perm == (1, 0) else None

    @staticmethod
    def rows(shape: tuple[int, ...], n_out: int) -> View:
        """The tensor's own order, cut into ``n_out`` rows."""
        return View(shape, shape, tuple(range(len(shape))), n_out)


@dataclass(frozen=True)
class Use:
    """An operator that works with a weight: its node, the weight's input, the data's input."""

    node: Node
    weight: int
    data: int


@dataclass(frozen=True)
class Site:
    """A layer's place in the graph.

    Attributes
    ----------
    anchor : str
        The tensor that holds the weight.
    kind : str
        As in ``Layer.kind``.
    view : View
        The anchor as a matrix.
    uses : tuple of Use
        The first one is tapped.
    n_blocks : int
    axes : tuple of str
    direct : bool
        The operator reads the anchor itself, in one place: its arithmetic can be replaced.
    dtype : str
        Of the anchor.
    whole : (View, (n_whole, n_in) array) or None
        Where the operator's weight repeats columns of the anchor, also with the other sign: that
        weight as a matrix, which is the anchor's times the array's transpose.
    """

    anchor: str
    kind: str
    view: View
    uses: tuple[Use, ...]
    n_blocks: int = 1
    axes: tuple[str, ...] = ("out", "in")
    direct: bool = True
    dtype: str = "float32"
    whole: tuple[View, Array] | None = None


def find_sites(graph: Graph, value: Callable[[str], Array]) -> tuple[dict[str, Site], set[str]]:
    """The layers by anchor in order of execution, and all tensors that are constant.

    Parameters
    ----------
    value : callable
        The value of a constant expression by its name.
    """
    finder = _Finder(graph, value)
    return finder.sites(), finder.constant


class _Finder:
    def __init__(self, graph: Graph, value: Callable[[str], Array]) -> None:
        self.graph, self.value = graph, value
        self.maker = graph.producers()
        self.constant = _constants(graph)

    def sites(self) -> dict[str, Site]:
        found: dict[str, list[tuple[Use, str, View, int, tuple[str, ...]]]] = {}
        moved_anchors: set[str] = set()
        for node in self.graph.block.walk():
            for use, kind in _weights_of(node, self.constant):
                name = node.inputs[use.weight]
                if not self._large(name):
                    continue
                for anchor in dict.fromkeys(self.anchors(name)):
                    seen = self.seen(anchor, name, use, kind)
                    if seen is not None:
                        found.setdefault(anchor, []).append((use, *seen))
                        if anchor != name:
                            moved_anchors.add(anchor)
        consumers = self.graph.consumers()
        sites = {}
        for anchor, entries in found.items():
            use, kind, view, blocks, axes = entries[0]
            if any((e[2].n_out, e[2].perm) != (view.n_out, view.perm) for e in entries):
                view, blocks = self._table(anchor), 1  # uses that disagree: rows as they stand
            alone = len(consumers.get(anchor, [])) == len(entries)
            sites[anchor] = Site(
                anchor, kind, view, tuple(e[0] for e in entries), blocks, axes,
                direct=anchor not in moved_anchors and alone, dtype=self.value(anchor).dtype.name,
                whole=self.whole(anchor, use, view) if kind == "conv" else None,
            )  # fmt: skip
        for name in self.graph.values:  # tables that no known operator multiplies with
            if name not in found and self._large(name, 1024) and self._leaf(name):
                sites[name] = Site(
                    name, "embedding", self._table(name), (), axes=("row", "feature"),
                    direct=False, dtype=self.graph.values[name].dtype.name,
                )  # fmt: skip
        return sites

    def whole(self, anchor: str, use: Use, view: View) -> tuple[View, Array] | None:
        """See :class:`Site`."""
        name = use.node.inputs[use.weight]
        if name == anchor:
            return None
        value, own = self.value(name), self.value(anchor)
        wide = View.rows(value.shape, value.shape[0])
        index = moved(self.graph, self.maker, name, anchor, own.shape)
        if index is None:
            return None
        columns = _repeated(wide.matrix(index), wide.matrix(value), view.matrix(own))
        return None if columns is None else (wide, columns)

    def _table(self, name: str) -> View:
        shape = self.value(name).shape
        return View.rows(shape, math.prod(shape[:-1]) if len(shape) > 1 else 1)

    def _leaf(self, name: str) -> bool:
        """Whether a constant is a float table: with rows, and a few features at least."""
        a = self.graph.values[name]
        return a.dtype.name in _FLOATS and a.ndim > 1 and 1 < a.shape[-1] < a.size

    def _large(self, name: str, smallest: int = 1) -> bool:
        if name in self.graph.values:
            a = self.graph.values[name]
            return a.size >= smallest and name not in self.graph.overridable
        return name in self.constant and name in self.maker

    def anchors(self, name: str) -> list[str]:
        """The tensors whose values end up in ``name``, moves undone; none if it is not pure."""
        if name in self.graph.values:
            a = self.graph.values[name]
            fits = a.dtype.name in _FLOATS and name not in self.graph.overridable
            return [name] if fits and a.size else []
        node = self.maker.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return []
        if node.op in MOVES:
            sources = node.inputs if node.op == "Concat" else node.inputs[:1]
            return [a for source in dict.fromkeys(sources) for a in self.anchors(source)]
        if node.op in _DECODERS and self._decodes(name):
            return [name]
        return []

    def _decodes(self, name: str) -> bool:
        """Whether a constant expression decodes integers or narrow floats, value by value."""
        stack, integers = [name], 0
        total = self.value(name).size
        if total < CODED:
            return False
        while stack:
            node = self.maker.get(stack[-1])
            current = stack.pop()
            if node is None:
                a = self.graph.values.get(current)
                if a is None or current in self.graph.overridable:
                    return False
                narrow = a.dtype.kind in "iu" or a.dtype.name == "float16"
                integers += narrow and a.size == total
            elif node.op in _DECODERS | set(MOVES):
                stack += (
                    [i for i in node.inputs if i] if node.op in _DECODERS else [node.inputs[0]]
                )
            else:
                return False
        return integers == 1 and self.value(name).dtype.name in _FLOATS

    def seen(
        self, anchor: str, name: str, use: Use, kind: str
    ) -> tuple[str, View, int, tuple[str, ...]] | None:
        """The anchor as the use sees it: kind, view, blocks, axes."""
        shape = self.value(name).shape if name not in self.graph.values else None
        shape = self.graph.values[name].shape if shape is None else shape
        view, blocks, axes = _view(use, kind, shape)
        if anchor == name:
            return kind, view, blocks, axes
        own = self.value(anchor)
        index = moved(self.graph, self.maker, name, anchor, own.shape)
        if index is None:
            return None
        used = view.matrix(index)
        used = used[(used >= 0).all(axis=1)]
        n_in = view.n_out and index.size // view.n_out
        if kind == "conv" and blocks == 1 and own.ndim and own.shape[0] == view.n_out:
            table = self._table(anchor)
            known = view.matrix(index), view.matrix(self.value(name)), table.matrix(own)
            if _repeated(*known) is not None:
                return kind, table, 1, axes
        if kind == "embedding" or used.size == 0:
            return "embedding", self._table(anchor), 1, ("row", "feature")
        step = used[:, 1:] - used[:, :-1]
        if (step == 1).all() and own.size % n_in == 0 and (used[:, 0] % n_in == 0).all():
            return kind, View.rows(own.shape, own.size // n_in), 1, axes
        if own.ndim == 2 and own.shape[0] == n_in and (step == own.shape[1]).all():
            return kind, View(own.shape, own.shape, (1, 0), own.shape[1]), 1, axes
        return "embedding", self._table(anchor), 1, ("row", "feature")


def _repeated(index: Array, weight: Array, own: Array) -> Array | None:
    """E, (columns of weight, columns of own) of -1, 0, 1, with weight = own @ E.T; else None.

    ``index`` has the flat position in ``own`` of each element of ``weight``, -1 for others, whose
    columns of E are 0.
    """
    n, kept = weight.shape[1], own.shape[1]
    if len(weight) != len(own):
        return None
    found = np.zeros((n, kept), np.float32)
    for k, places in enumerate(index.T):
        if (places < 0).all():
            continue
        column = int(places[0])
        if not 0 <= column < kept or (places - column != np.arange(len(own)) * kept).any():
            return None
        same = np.array_equal(weight[:, k], own[:, column])
        if not same and not np.array_equal(weight[:, k], -own[:, column]):
            return None
        found[k, column] = 1 if same else -1
    return found


def _constants(graph: Graph) -> set[str]:
    """Names of constants and of everything computed from constants alone."""
    found = (set(graph.values) | set(graph.opaque)) - graph.overridable
    for node in graph.block.walk():
        if (node.op in ("Constant",) and not node.blocks) or (
            node.inputs
            and not node.blocks
            and not node.op.startswith(("Random", "Multinomial", "Bernoulli", "Dropout"))
            and all(name in found for name in node.inputs if name)
        ):
            found |= set(node.outputs)
    return found


def _weights_of(node: Node, constant: set[str]) -> list[tuple[Use, str]]:
    """The weights of one operator: which inputs, of which kind."""
    standard = node.domain in ("", "ai.onnx")
    inputs = node.inputs

    def fixed(k: int) -> bool:
        return len(inputs) > k and inputs[k] in constant

    if node.op in ("MatMul", "Gemm") and standard:
        if fixed(1) and not fixed(0):
            return [(Use(node, 1, 0), "dense")]
        if fixed(0) and not fixed(1):
            return [(Use(node, 0, 1), "dense")]
    elif node.op == "Conv" and standard and fixed(1):
        return [(Use(node, 1, 0), "conv")]
    elif node.op == "ConvTranspose" and standard and fixed(1):
        return [(Use(node, 1, 0), "conv_transpose")]
    elif node.op in ("LSTM", "GRU", "RNN") and standard:
        return [(Use(node, k, 0), "recurrent") for k in (1, 2) if fixed(k)]
    elif node.op == "Gather" and standard and fixed(0) and not fixed(1):
        return [(Use(node, 0, 1), "embedding")]
    elif node.op in ("FusedMatMul", "FusedGemm", "FusedConv", "NhwcFusedConv") and fixed(1):
        return [(Use(node, 1, 0), "embedding")]
    elif node.op == "Einsum" and standard and len(inputs) == 2:
        return [
            (Use(node, k, 1 - k), "embedding" if _einsum_order(node, k) is None else "dense")
            for k in (0, 1)
            if fixed(k)
        ]
    return []


def _einsum_order(node: Node, weight: int) -> str | None:
    """ "in out" or "out in" where an Einsum is a product with a matrix over the last axis."""
    terms, arrow, result = str(node.get("equation")).replace(" ", "").partition("->")
    parts = terms.split(",")
    if (
        not arrow
        or len(parts) != 2
        or len(parts[weight]) != 2
        or len(set(terms)) != len(terms) - 1
    ):
        return None
    matrix, data = parts[weight], parts[1 - weight]
    (shared,) = set(matrix) & set(data) or {""}
    other = matrix.replace(shared, "") if shared else ""
    if not shared or data[-1] != shared or result != data[:-1] + other:
        return None
    return "in out" if matrix[0] == shared else "out in"


def _view(use: Use, kind: str, shape: tuple[int, ...]) -> tuple[View, int, tuple[str, ...]]:
    """A weight of that shape as its operator sees it: (view, blocks, axes)."""
    node = use.node
    kernel = tuple("k" * (len(shape) - 2))
    if kind == "conv":
        return View.rows(shape, shape[0]), int(node.get("group", 1)), ("out", "in", *kernel)
    if kind == "conv_transpose":
        g = int(node.get("group", 1))
        split = (g, shape[0] // g, *shape[1:])
        perm = (0, *range(2, len(split)), 1)
        n_out = g * math.prod(shape[1:])
        return View(shape, split, perm, n_out), g, ("in", "out", *kernel)
    if kind == "recurrent":
        blocks = shape[0] if use.weight == 2 else 1
        return View.rows(shape, shape[0] * shape[1]), blocks, ("direction", "out", "in")
    if kind == "dense" and len(shape) >= 2:
        turned = use.weight == 1 and not (node.op == "Gemm" and node.get("transB", 0))
        if node.op == "Einsum":
            turned = _einsum_order(node, use.weight) == "in out"
        elif use.weight == 0:
            turned = bool(node.op == "Gemm" and node.get("transA", 0))
        if not turned:
            blocks = math.prod(shape[:-2])
            return View.rows(shape, math.prod(shape[:-1])), blocks, ("out", "in")
        last = len(shape) - 1
        perm = (*range(last - 1), last, last - 1)
        n_out = math.prod(shape[:-2]) * shape[-1]
        return View(shape, shape, perm, n_out), math.prod(shape[:-2]), ("in", "out")
    n_out = math.prod(shape[:-1]) if len(shape) > 1 else 1
    return View.rows(shape, n_out), 1, ("row", "feature")


def bias_of(
    graph: Graph, site: Site, consumers: Mapping[str, list[tuple[Node, int]]]
) -> tuple[str, Node, int] | None:
    """(constant, node, input) that is added to the layer's output, one value per row."""
    if not site.direct or len(site.uses) != 1 or site.kind not in ("dense", "conv"):
        return None
    (use,) = site.uses
    node, k = use.node, 2
    if node.op == "MatMul":
        if use.weight == 0:
            return None
        readers = consumers.get(node.outputs[0], [])
        if len(readers) != 1 or readers[0][0].op != "Add":
            return None
        node, k = readers[0][0], 1 - readers[0][1]
    if len(node.inputs) <= k or node.inputs[k] not in graph.values:
        return None
    name = node.inputs[k]
    a: Any = graph.values[name]
    n_out = site.view.n_out
    fits = a.dtype.name in _FLOATS and a.size == n_out and a.shape[-1:] == (n_out,)
    if not fits or name in graph.overridable or len(consumers.get(name, [])) > 1:
        return None
    scaled = node.op == "Gemm" and (node.get("beta", 1.0) != 1.0 or node.get("alpha", 1.0) != 1.0)
    return None if scaled else (name, node, k)
