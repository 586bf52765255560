"""Weights in 2 to 16 bits, decoded when the model is loaded by operators that run-times fold.

Codes of one width share a buffer, in planes of 8, 4, 2 and 1 bits (3 = 2 + 1, 5 = 4 + 1,
6 = 4 + 2). A plane's byte looks its codes up in a table (Gather), planes are added, and

    weight = (sum of planes) * scale,    scale = float16 * 2**-8

A DequantizeLinear would run at every call; Gather, Mul, Split, Reshape and Transpose on constants
are evaluated once, so the model then runs at the speed of its float original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Block, Graph, Node, new_node
from fastopt.models.onnx.layers import View

__all__ = ["LARGEST_SCALE", "Coded", "Narrow", "encode", "encode_portable", "scale_kept"]

SCALE_UNIT = 2.0**-8  # keeps small scales out of float16's subnormal range
LARGEST_SCALE = 65504 * SCALE_UNIT
_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
_TABLED = 1 << 18  # codes; a table costs bytes, arithmetic costs time when the model is loaded
_FLOAT, _FLOAT16, _INT8, _INT32 = 1, 10, 3, 6


@dataclass(frozen=True)
class Coded:
    """A tensor to be decoded from integer codes.

    Attributes
    ----------
    name : str
        The constant that the nodes make.
    view : View
        The tensor as a matrix.
    dtype : str
        Of the tensor: "float32", "float16" or "int8".
    bits : int
    codes : (n_out, n_in) uint8
        0 to 2**bits - 1, the middle stands for 0.
    scale : (n_out, n_groups) float32
        As :func:`scale_kept` leaves it.
    rows : array or None
        int8 tensors: one scale per row, by which the values are divided and rounded; without it
        the codes themselves, signed, are the tensor.
    rows_shape : tuple of int
        Shape in which the scales meet the tensor.
    """

    name: str
    view: View
    dtype: str
    bits: int
    codes: Array
    scale: Array
    rows: Array | None = None
    rows_shape: tuple[int, ...] = ()

    @property
    def bare(self) -> bool:
        """Whether the tensor is made of the codes alone."""
        return self.dtype == "int8" and self.rows is None

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return int(self.codes.shape[1] // self.scale.shape[1])

    def matrix(self) -> Array:
        """The (n_out, n_in) float32 values that the nodes decode."""
        n_out, n_groups = self.scale.shape
        signed = self.codes.astype(np.float32) - np.float32(1 << (self.bits - 1))
        values = signed.reshape(n_out, n_groups, -1) * self.scale[:, :, None]
        found: Array = values.reshape(n_out, -1)
        return found


@dataclass(frozen=True)
class Narrow:
    """A float32 tensor to be kept in float16."""

    name: str
    view: View
    matrix: Array


def scale_kept(scale: Array) -> Array:
    """Scales rounded to what the file holds."""
    kept: Array = (scale / np.float32(SCALE_UNIT)).astype(np.float16).astype(np.float32)
    kept *= np.float32(SCALE_UNIT)
    return kept


def encode(graph: Graph, coded: Sequence[Coded], narrow: Sequence[Narrow]) -> Graph:
    """The graph with those constants made by nodes; their places in ``values`` are taken out."""
    writer = _Writer(graph)
    if coded:
        writer.codes(coded)
    if narrow:
        writer.halves(narrow)
    made = graph.copy()
    made.values.update(writer.values)
    for name in [*(c.name for c in coded), *(n.name for n in narrow)]:
        made.values.pop(name, None)
    block = graph.block
    made.block = Block(block.name, block.inputs, block.outputs, (*writer.nodes, *block.nodes))
    return made


def encode_portable(graph: Graph, coded: Sequence[Coded], narrow: Sequence[Narrow]) -> Graph:
    """As :func:`encode`, tensor by tensor: DequantizeLinear with one scale per row, or Cast."""
    made, nodes = graph.copy(), []
    for n in narrow:
        half = f"{n.name}/float16"
        made.values[half] = made.values.pop(n.name).astype(np.float16)
        nodes.append(new_node("Cast", (half,), (n.name,), to=_FLOAT))
    for c in coded:
        if c.bare:
            made.values[c.name] = c.view.tensor(_signed(c.codes))
            continue
        axis = c.view.row_axis
        assert axis is not None  # forms_of offers nothing else
        del made.values[c.name]
        codes, scale = f"{c.name}/codes", f"{c.name}/scale"
        made.values[codes] = c.view.tensor(_signed(c.codes))
        made.values[scale] = c.scale[:, 0]
        wide = c.name if c.dtype == "float32" else f"{c.name}/wide"
        if graph.opset >= 13:
            zero = f"{c.name}/zero"  # optional, but some run-times want it
            made.values[zero] = np.zeros(len(c.scale), np.int8)
            nodes.append(new_node("DequantizeLinear", (codes, scale, zero), (wide,), axis=axis))
        else:
            shape = [1] * len(c.view.shape)
            shape[axis] = -1
            made.values[scale] = made.values[scale].reshape(shape)
            nodes.append(new_node("Cast", (codes,), (f"{codes}/wide",), to=_FLOAT))
            nodes.append(new_node("Mul", (f"{codes}/wide", scale), (wide,)))
        if wide != c.name:
            nodes.append(new_node("Cast", (wide,), (c.name,), to=_FLOAT16))
    block = graph.block
    made.block = Block(block.name, block.inputs, block.outputs, (*nodes, *block.nodes))
    return made


@dataclass
class _Writer:
    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Array] = field(default_factory=dict)
    count: int = 0

    def fresh(self) -> str:
        self.count += 1
        return f"/decoded/{self.count}"

    def constant(self, value: Array) -> str:
        name = self.fresh()
        self.values[name] = value
        return name

    def add(self, op: str, *inputs: str, name: str | None = None, **attrs: Any) -> str:
        made = name or self.fresh()
        self.nodes.append(new_node(op, inputs, (made,), **attrs))
        return made

    def shape(self, *sizes: int) -> str:
        return self.constant(np.array(sizes, np.int64))

    def split(
        self, source: str, sizes: Sequence[int], axis: int = 0, names: Sequence[str] = ()
    ) -> list[str]:
        """Pieces along an axis; an empty name gets a fresh one."""
        if len(sizes) == 1:
            return [source]
        names = [name or self.fresh() for name in names or [""] * len(sizes)]
        given = np.array(sizes, np.int64)
        if self.graph.opset < 13:
            node = new_node("Split", (source,), names, axis=axis, split=[int(n) for n in sizes])
        else:
            node = new_node("Split", (source, self.constant(given)), names, axis=axis)
        self.nodes.append(node)
        return names

    def codes(self, coded: Sequence[Coded]) -> None:
        self.bare([c for c in coded if c.bare])
        ordered = sorted((c for c in coded if not c.bare), key=lambda c: (c.bits, c.group))
        if not ordered:
            return
        sections: dict[tuple[int, int], list[Coded]] = {}
        for c in ordered:
            sections.setdefault((c.bits, c.group), []).append(c)
        scales = [np.concatenate([c.scale.reshape(-1) for c in s]) for s in sections.values()]
        kept = (np.concatenate(scales) / np.float32(SCALE_UNIT)).astype(np.float16)
        wide = self.add("Cast", self.constant(kept), to=_FLOAT)
        wide = self.add("Mul", wide, self.constant(np.array(SCALE_UNIT, np.float32)))
        steps = dict(zip(sections, self.split(wide, [len(s) for s in scales]), strict=True))
        for bits in sorted({c.bits for c in ordered}):
            inside = {key: s for key, s in sections.items() if key[0] == bits}
            flat = np.concatenate([c.codes.reshape(-1) for s in inside.values() for c in s])
            values, padded = self.unpacked(flat, bits)
            sizes = [sum(c.codes.size for c in s) for s in inside.values()]
            if padded:
                sizes.append(padded)
            if len(sizes) > 1 and bits != 8:
                values = self.add("Reshape", values, self.shape(-1))
            for key, piece in zip(inside, self.split(values, sizes), strict=False):
                self.section(piece, steps[key], inside[key], key[1])

    def bare(self, coded: Sequence[Coded]) -> None:
        """Tensors that are 8-bit codes as they stand."""
        if not coded:
            return
        flat = np.concatenate([_signed(c.codes.reshape(-1)) for c in coded])
        pieces = self.split(self.constant(flat), [c.codes.size for c in coded])
        for c, piece in zip(coded, pieces, strict=True):
            self.finish(piece, c.name, c.view)

    def section(self, values: str, steps: str, coded: Sequence[Coded], group: int) -> None:
        values = self.add("Reshape", values, self.shape(-1, group))
        steps = self.add("Reshape", steps, self.shape(-1, 1))
        values = self.add("Mul", values, steps)
        pieces = self.split(values, [c.scale.size for c in coded])
        for c, piece in zip(coded, pieces, strict=True):
            if c.dtype == "float32":
                self.finish(piece, c.name, c.view)
                continue
            wide = self.fresh()
            self.finish(piece, wide, c.view)
            if c.rows is None:
                self.add("Cast", wide, name=c.name, to=_FLOAT16)
                continue
            rows = self.constant(c.rows)
            if c.rows.shape != c.rows_shape:
                rows = self.add("Reshape", rows, self.shape(*c.rows_shape))
            rounded = self.add("Round", self.add("Div", wide, rows))
            self.add("Cast", rounded, name=c.name, to=_INT8)

    def finish(self, piece: str, to: str, view: View) -> None:
        """From a flat matrix to the tensor ``to``."""
        if view.plain:
            self.add("Reshape", piece, self.shape(*view.shape), name=to)
        else:
            turned = self.add("Reshape", piece, self.shape(*(view.split[p] for p in view.perm)))
            back = [int(p) for p in np.argsort(view.perm)]
            if view.split == view.shape:
                self.add("Transpose", turned, name=to, perm=back)
            else:
                turned = self.add("Transpose", turned, perm=back)
                self.add("Reshape", turned, self.shape(*view.shape), name=to)

    def unpacked(self, codes: Array, bits: int) -> tuple[str, int]:
        """Nodes that give the codes, signed, as float32; and how many were added at the end."""
        half = 1 << (bits - 1)
        if bits == 8:
            return self.add("Cast", self.constant(_signed(codes)), to=_FLOAT), 0
        padded = -len(codes) % (8 // min(_PLANES[bits]))
        codes = np.concatenate([codes, np.zeros(padded, np.uint8)])
        total, shift = "", bits
        for k, plane in enumerate(_PLANES[bits]):
            shift -= plane
            part = (codes >> shift) & ((1 << plane) - 1)
            packed = self.constant(_packed(part, plane))
            low = half if k == 0 else 0  # the codes' middle, taken off once
            if len(codes) < _TABLED:
                found = self.computed(packed, plane, shift, low)
            else:
                found = self.looked_up(packed, plane, shift, low)
            if len(_PLANES[bits]) > 1:
                found = self.add("Reshape", found, self.shape(-1))
            total = self.add("Add", total, found) if total else found
        return total, padded

    def looked_up(self, packed: str, plane: int, shift: int, low: int) -> str:
        """A plane's codes by a table of 256 rows: one operator over all bytes."""
        table = _table(plane).astype(np.int16) * (1 << shift) - low
        wide = self.add("Cast", self.constant(table.astype(np.int8)), to=_FLOAT)
        index = self.add("Cast", packed, to=_INT32)
        return self.add("Gather", wide, index, axis=0)

    def computed(self, packed: str, plane: int, shift: int, low: int) -> str:
        """A plane's codes by arithmetic: no table in a small file.

        floor(x) - floor(x / 2**plane) * 2**plane for x = byte / 2**0, byte / 2**plane ...
        """
        width = np.float32(1 << plane)
        scales = width ** -np.arange(8 // plane, dtype=np.float32)[None]
        wide = self.add("Cast", packed, to=_FLOAT)
        wide = self.add("Reshape", wide, self.shape(-1, 1))
        whole = self.add("Floor", self.add("Mul", wide, self.constant(scales)))
        above = self.add(
            "Floor", self.add("Mul", whole, self.constant(np.array(1 / width, np.float32)))
        )
        found = self.add(
            "Sub", whole, self.add("Mul", above, self.constant(np.array(width, np.float32)))
        )
        if shift:
            found = self.add("Mul", found, self.constant(np.array(1 << shift, np.float32)))
        if low:
            found = self.add("Sub", found, self.constant(np.array(low, np.float32)))
        return found

    def halves(self, narrow: Sequence[Narrow]) -> None:
        flat = np.concatenate([n.matrix.reshape(-1) for n in narrow]).astype(np.float16)
        wide = self.add("Cast", self.constant(flat), to=_FLOAT)
        # a vector is a piece as it stands
        names = [n.name if len(n.view.shape) == 1 else "" for n in narrow]
        pieces = self.split(wide, [n.matrix.size for n in narrow], names=names)
        for n, piece in zip(narrow, pieces, strict=True):
            if piece != n.name:
                self.finish(piece, n.name, n.view)


def _signed(codes: Array) -> Array:
    """8-bit codes with the middle at 0, int8."""
    found: Array = (codes.astype(np.int16) - 128).astype(np.int8)
    return found


def _table(plane: int) -> Array:
    """(256, codes per byte): the codes in each byte, the first in the lowest bits."""
    shifts = np.arange(0, 8, plane)
    found: Array = (np.arange(256)[:, None] >> shifts) & ((1 << plane) - 1)
    return found


def _packed(codes: Array, plane: int) -> Array:
    """Codes of ``plane`` bits, several to a byte, the first in the lowest bits."""
    parts = codes.reshape(-1, 8 // plane).astype(np.uint8) << np.arange(0, 8, plane).astype(
        np.uint8
    )
    packed: Array = np.bitwise_or.reduce(parts, axis=1)
    return packed
