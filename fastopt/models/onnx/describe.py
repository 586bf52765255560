"""A layer's place in the graph as the protocol's :class:`fastopt.models.Layer`."""

from __future__ import annotations

import numpy as np

from fastopt._arrays import Array
from fastopt.models.base import Layer
from fastopt.models.onnx.build import Stored
from fastopt.models.onnx.forms import forms_of, own_form
from fastopt.models.onnx.graph import Graph
from fastopt.models.onnx.integer import can_run_dynamic
from fastopt.models.onnx.layers import Site
from fastopt.models.onnx.static import can_run_static

__all__ = ["ends_of", "layer_of"]


def ends_of(site: Site) -> tuple[str | None, str | None]:
    """The tensors that feed a layer and that it makes."""
    if not site.uses:
        return None, None
    use = site.uses[0]
    made = use.node.outputs[0]
    if site.kind == "embedding":
        return None, made
    states = site.kind == "recurrent" and use.weight == 2  # R reads the states that are made
    return made if states else use.node.inputs[use.data], made


def layer_of(
    graph: Graph,
    site: Site,
    stored: Stored | None,
    value: Array,
    *,
    bias: Array | None,
    macs: int,
    tap: str | None,
    output: str | None,
    portable: bool,
) -> Layer:
    """What the protocol says of a site.

    Parameters
    ----------
    stored : Stored or None
        How it is kept, where that was changed.
    value : array
        The anchor's value in the graph.
    """
    matrix = site.view.matrix(value) if stored is None else stored.matrix
    matrix = np.ascontiguousarray(matrix, np.float32)
    matrix.flags.writeable = False
    forms = forms_of(
        matrix,
        dynamic=can_run_dynamic(graph, site, portable=portable),
        static=can_run_static(graph, site),
        portable=portable,
        by_row=not portable or site.view.row_axis is not None,
    )
    own = own_form(graph, site, matrix, forms)
    return Layer(
        site.anchor,
        site.kind,
        matrix,
        bias,
        macs,
        tap,
        own if stored is None else stored.form,
        forms if own in forms else (own, *forms),
        output,
        site.n_blocks,
        max(1, len(site.uses)),
        site.axes,
        None if stored is None else stored.codes,
        not site.uses or any(use.node in graph.block.nodes for use in site.uses),
    )
