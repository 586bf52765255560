"""Small ONNX graphs for the tests, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return RNG([seed, *shape]).standard_normal(shape, dtype=np.float32) / np.float32(
        np.sqrt(shape[-1])
    )


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks, "-" is an input left out."""
    left = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, left, outputs.split(), **attrs)


def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[str],
    constants: dict[str, Any],
    opset: int = 17,
    ir: int = 8,
    domains: tuple[tuple[str, int], ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    ids = [helper.make_opsetid("", opset), *(helper.make_opsetid(*d) for d in domains)]
    made = helper.make_model(graph, opset_imports=ids, ir_version=ir)
    inferred = onnx.shape_inference.infer_shapes(made)
    for k, out in enumerate(inferred.graph.output):
        made.graph.output[k].CopyFrom(out)
    return made


def mlp(opset: int = 17, **kwargs: Any) -> onnx.ModelProto:
    """MatMul, Add, Relu, Gemm with transB, Softmax."""
    return model(
        [
            node("MatMul", "x w1", "h1", name="first"),
            node("Add", "h1 b1", "h2"),
            node("Relu", "h2", "h3"),
            node("Gemm", "h3 w2 b2", "z", transB=1, name="last"),
            node("Softmax", "z", "y", axis=1),
        ],
        [value("x", ["n", 40])],
        ["y"],
        {"w1": weights(40, 96), "b1": weights(96), "w2": weights(10, 96), "b2": weights(10)},
        opset,
        **kwargs,
    )


def cnn() -> onnx.ModelProto:
    """A convolution, a depthwise one with dilation, a strided one, a transposed one."""
    return model(
        [
            node("Conv", "x c1 d1", "h1", pads=[2, 1, 2, 1], dilations=[2, 1]),
            node("Relu", "h1", "h2"),
            node("Conv", "h2 c2", "h3", group=16, auto_pad="SAME_UPPER"),
            node("Conv", "h3 c3 d3", "h4", strides=[2, 2], group=2),
            node("ConvTranspose", "h4 c4", "h5", strides=[2, 2], group=2),
            node("GlobalAveragePool", "h5", "y"),
        ],
        [value("x", ["n", 4, 12, 10])],
        ["y"],
        {
            "c1": weights(16, 4, 3, 3),
            "d1": weights(16),
            "c2": weights(16, 1, 3, 3, seed=1),
            "c3": weights(24, 8, 1, 2),
            "d3": weights(24),
            "c4": weights(24, 6, 2, 2),
        },
    )


def recurrent(op: str = "LSTM", direction: str = "bidirectional") -> onnx.ModelProto:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    n = 2 if direction == "bidirectional" else 1
    return model(
        [node(op, "x w r b", "y h", hidden_size=8, direction=direction)],
        [value("x", [5, "n", 12])],
        ["y"],
        {
            "w": weights(n, gates * 8, 12),
            "r": weights(n, gates * 8, 8),
            "b": weights(n, 2 * gates * 8),
        },
    )


def branches() -> onnx.ModelProto:
    """Weights inside both branches of an If, one captured from outside, one in a Constant."""

    def branch(name: str, constants: dict[str, Any], nodes: list[onnx.NodeProto]) -> Any:
        held = [numpy_helper.from_array(a, k) for k, a in constants.items()]
        return helper.make_graph(nodes, name, [], [value("out", ["n", 16])], held)

    then = branch("then", {"w": weights(32, 16)}, [node("MatMul", "h w", "out")])
    other = branch(
        "other",
        {},
        [
            helper.make_node(
                "Constant", [], ["w"], value=numpy_helper.from_array(weights(32, 32, seed=2))
            ),
            node("MatMul", "h w", "g"),
            node("MatMul", "g outer", "out"),
        ],
    )
    return model(
        [
            node("MatMul", "x first", "h"),
            helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        ],
        [value("x", ["n", 24]), value("c", [], TensorProto.BOOL)],
        ["y"],
        {"first": weights(24, 32), "outer": weights(32, 16, seed=3)},
    )


def moved() -> onnx.ModelProto:
    """Weights behind Identity (shared), Transpose, Slice and Concat, Cast and Mul."""
    codes = RNG(0).integers(-127, 128, (32, 16)).astype(np.int8)
    return model(
        [
            node("Identity", "shared", "same"),
            node("MatMul", "x shared", "h1"),
            node("MatMul", "h1 same", "h2"),
            node("Transpose", "turned", "straight", perm=[1, 0]),
            node("MatMul", "h2 straight", "h3"),
            node("Slice", "gates zero two axis0", "g1"),
            node("Slice", "gates two four axis0", "g2"),
            node("Concat", "g2 g1", "gates2", axis=0),
            node("Gemm", "h3 gates2", "h4", transB=1),
            node("Cast", "codes", "wide", to=TensorProto.FLOAT),
            node("Mul", "wide step", "decoded"),
            node("MatMul", "h4 decoded", "y"),
        ],
        [value("x", ["n", 32])],
        ["y"],
        {
            "shared": weights(32, 32),
            "turned": weights(32, 32, seed=1),
            "gates": weights(32, 32, seed=2),
            "zero": np.array([0]),
            "two": np.array([16]),
            "four": np.array([32]),
            "axis0": np.array([0]),
            "codes": codes,
            "step": np.full(16, 0.01, np.float32),
        },
    )


def embedding() -> onnx.ModelProto:
    """A table read by Gather, then a product with the same table's transpose (tied)."""
    return model(
        [
            node("Gather", "table ids", "e", axis=0),
            node("ReduceMean", "e", "m", axes=[1], keepdims=0),
            node("MatMul", "m w", "y"),
        ],
        [value("ids", ["n", "t"], TensorProto.INT64)],
        ["y"],
        {"table": weights(50, 64), "w": weights(64, 64)},
    )


def ranges_of(loaded: Any, data: Any) -> dict[str, tuple[float, float]]:
    """Least and largest value of the tensors around the layers."""
    taps = {t for layer in loaded.layers.values() for t in (layer.tap, layer.output) if t}
    found: dict[str, tuple[float, float]] = {}
    for _, tapped in loaded.run(data, taps=tuple(sorted(taps))):
        for name, a in tapped.items():
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = (min(low, float(a.min())), max(high, float(a.max())))
    return found
