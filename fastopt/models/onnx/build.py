"""From a graph and the forms of its layers to the graph that runs and the one that is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import ArrayError, OptionError
from fastopt.models.base import Form
from fastopt.models.onnx.encode import (
    LARGEST_SCALE,
    Coded,
    Narrow,
    encode,
    encode_portable,
    scale_kept,
)
from fastopt.models.onnx.forms import round_plainly, unsigned_codes
from fastopt.models.onnx.graph import Graph, Node
from fastopt.models.onnx.integer import Rows8, int8_rows, rows_to_int8, run_dynamic
from fastopt.models.onnx.layers import Site, View, bias_of
from fastopt.models.onnx.static import Static, check_ranges, run_static
from fastopt.quantization import QuantizedArray

__all__ = ["Stored", "encoded", "half_biases", "put_values", "stored_as"]


@dataclass(frozen=True)
class Stored:
    """How a layer is kept, and the values that it computes with."""

    form: Form
    matrix: Array
    codes: QuantizedArray | None = None
    coded: Coded | None = None
    rows8: Rows8 | None = None
    ranges: Mapping[str, tuple[float, float]] | None = None


def stored_as(
    site: Site,
    form: Form,
    matrix: Array,
    codes: QuantizedArray | None,
    ranges: Mapping[str, tuple[float, float]] | None,
) -> Stored:
    """A layer's weight in one of its forms; rounded plainly where no codes are given.

    Raises
    ------
    OptionError, ArrayError
        Codes or ranges that do not belong to the form.
    """
    if not form.integer:
        if codes is not None:
            raise OptionError(f"codes: {form.name} takes none")
        if form.bits == 16:
            matrix = matrix.astype(np.float16).astype(np.float32)
        return Stored(form, matrix)
    if form.activations == "static":
        check_ranges(site, ranges)
    codes = round_plainly(matrix, form) if codes is None else codes
    unsigned, scale = unsigned_codes(codes, form, matrix.shape)
    if scale.size and not np.abs(scale).max() <= LARGEST_SCALE:
        raise ArrayError(f"codes: scales above {LARGEST_SCALE:.0f} cannot be stored")
    scale = scale_kept(scale)
    coded = Coded(site.anchor, site.view, site.dtype, form.bits, unsigned, scale)
    if form.activations is None:
        return Stored(form, coded.matrix(), codes, coded)
    bare = form.bits == 8 and form.group_size is None
    if bare:
        rows8 = int8_rows(site, (unsigned.astype(np.int16) - 128).astype(np.int8), scale[:, 0])
    else:
        rows8 = rows_to_int8(site, coded.matrix())
    coded = replace(
        coded,
        name=rows8.name,
        view=rows8.view,
        dtype="int8",
        rows=None if bare else rows8.scale_kept,
        rows_shape=rows8.scale_shape,
    )
    kept = dict(ranges or {}) if form.activations == "static" else None
    return Stored(form, rows8.matrix(), codes, coded, rows8, kept)


def half_biases(
    graph: Graph,
    sites: Mapping[str, Site],
    stored: Mapping[str, Stored],
    consumers: Mapping[str, list[tuple[Node, int]]],
) -> list[str]:
    """Biases of layers stored in fewer bits, which float16 holds well: it keeps them."""
    found = []
    for layer, entry in stored.items():
        bias = bias_of(graph, sites[layer], consumers)
        if entry.form.bits > 16 or bias is None:
            continue
        a = graph.values[bias[0]]
        if a.dtype == np.float32 and a.size >= 16 and np.abs(a).max() < 65504:
            found.append(bias[0])
    return found


def put_values(
    graph: Graph,
    sites: Mapping[str, Site],
    stored: Mapping[str, Stored],
    biases: Sequence[str] = (),
) -> None:
    """In place: the layers' values as plain constants, those that run in int8 in their operators.

    ``biases`` are rounded to float16.
    """
    maker = graph.producers()
    gone: dict[Node, list[Node]] = {maker[name]: [] for name in stored if name in maker}
    for name, entry in stored.items():
        tensor = sites[name].view.tensor(entry.matrix)
        graph.values[name] = tensor.astype(sites[name].dtype, copy=False)
    for name in biases:
        graph.values[name] = graph.values[name].astype(np.float16).astype(np.float32)
    graph.rewrite(gone)  # the expressions that made them
    integer = {k: s for k, s in stored.items() if s.rows8 is not None}
    dynamic = {k: s.rows8 for k, s in integer.items() if s.rows8 and not s.ranges}
    static = {k: Static(s.rows8, s.ranges) for k, s in integer.items() if s.rows8 and s.ranges}
    run_static(graph, sites, static)
    run_dynamic(graph, sites, dynamic)


def encoded(
    graph: Graph,
    sites: Mapping[str, Site],
    stored: Mapping[str, Stored],
    biases: Sequence[str] = (),
    *,
    portable: bool = False,
) -> Graph:
    """What :func:`put_values` made, with the constants in their forms."""
    coded = [s.coded for s in stored.values() if s.coded is not None]
    narrow = [
        Narrow(name, sites[name].view, entry.matrix)
        for name, entry in stored.items()
        if entry.form.name == "float16" and sites[name].dtype == "float32"
    ]
    for name in biases:
        if name in graph.values:
            narrow.append(Narrow(name, View.rows(graph.values[name].shape, 1), graph.values[name]))
    return (encode_portable if portable else encode)(graph, coded, narrow)
