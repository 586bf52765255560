"""Shapes of all tensors of a graph for one feed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import FastoptError, UnsupportedError
from fastopt.models.base import Input
from fastopt.models.onnx.files import load_onnx
from fastopt.models.onnx.graph import Graph
from fastopt.models.onnx.run import execute, session, tensor_info

__all__ = ["shapes_of", "synthetic_feed"]

_LARGE = 256  # elements; smaller constants may be shapes, which the inference must see


def shapes_of(graph: Graph, feed: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the main graph and of every constant.

    By onnx's shape inference; what it cannot tell is run.
    """
    onnx = load_onnx()
    light = graph.copy()
    large = {k: a for k, a in graph.values.items() if a.size > _LARGE}
    light.values = {k: a for k, a in graph.values.items() if k not in large}
    proto = light.to_proto()
    del proto.graph.input[:]
    proto.graph.input.extend([tensor_info(k, np.asarray(a)) for k, a in feed.items()])
    proto.graph.input.extend([tensor_info(k, a) for k, a in large.items()])
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    found: dict[str, tuple[int, ...]] = {k: np.shape(a) for k, a in feed.items()}
    found |= {k: a.shape for k, a in graph.values.items()}
    found |= {k: tuple(t.dims) for k, t in graph.opaque.items()}
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        for info in (*inferred.value_info, *inferred.output):
            tensor = info.type.tensor_type
            dims = tensor.shape.dim
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                found.setdefault(info.name, tuple(d.dim_value for d in dims))
    except Exception:  # an operator that onnx does not know: everything is run
        pass
    wanted = [name for node in graph.block.nodes for name in node.outputs if name]
    missing = [name for name in wanted if name not in found]
    if missing:
        found |= _measured(graph, feed, missing)
    return found


def _measured(
    graph: Graph, feed: Mapping[str, Array], names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    proto = graph.to_proto()
    known = set(graph.outputs)
    for name in names:
        if name not in known:
            proto.graph.output.add(name=name)
    values = execute(session(proto.SerializeToString()), names, feed)
    return {k: np.shape(a) for k, a in zip(names, values, strict=True) if not isinstance(a, list)}


def synthetic_feed(graph: Graph, inputs: Sequence[Input]) -> dict[str, Array]:
    """A feed that the model runs on, where no data are at hand.

    Raises
    ------
    UnsupportedError
        None of the sizes tried works.
    """
    loaded: Any = session(graph.to_proto().SerializeToString())
    for size in (32, 64, 16, 8, 128, 512, 4096, 1):
        feed = {}
        for i in inputs:
            shape = [size if n is None else n for n in i.shape]
            if i.shape and i.shape[0] is None:
                shape[0] = 2
            kind = np.dtype(i.dtype)
            feed[i.name] = np.ones(shape, kind)
        try:
            execute(loaded, list(graph.outputs), feed)
        except FastoptError:
            continue
        return feed
    raise UnsupportedError("the model's shapes cannot be told without data: run it on some first")
