"""Folding in ONNX graphs: fewer operators, the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fastopt.models import OnnxModel  # noqa: E402
from tests.onnx_graphs import model, node, value, weights  # noqa: E402

IMAGE = [value("x", ["n", 8, 9, 7])]


def folded(proto: Any, shape: tuple[int, ...]) -> tuple[OnnxModel, tuple[str, ...], list[str]]:
    """The folded model, checked against the original, with what was done and what is left."""
    before = OnnxModel(proto)
    after = before.copy()
    notes = after.fold()
    x = {"x": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}
    a, b = next(before.run(x))[0], next(after.run(x))[0]
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(after.to_proto())
    return after, notes, [n.op_type for n in after.to_proto().graph.node]


def norm(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        "g": rng.uniform(0.5, 2, n).astype(np.float32),
        "b": rng.standard_normal(n).astype(np.float32),
        "m": rng.standard_normal(n).astype(np.float32),
        "v": rng.uniform(0.5, 2, n).astype(np.float32),
    }


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_batch_norm_goes_into_the_convolution(group: int, biased: bool) -> None:
    constants = {"w": weights(16, 8 // group, 3, 3), "c": weights(16), **norm(16)}
    proto = model(
        [
            node("Conv", "x w c" if biased else "x w", "h", group=group, pads=[1, 1, 1, 1]),
            node("BatchNormalization", "h g b m v", "k", epsilon=1e-3),
            node("Relu", "k", "y"),
        ],
        IMAGE,
        ["y"],
        constants,
    )
    assert folded(proto, (2, 8, 9, 7))[2] == ["Conv", "Relu"]


def test_batch_norm_goes_into_a_transposed_convolution() -> None:
    constants = {"w": weights(8, 3, 2, 2), **norm(6)}
    proto = model(
        [
            node("ConvTranspose", "x w", "h", group=2, strides=[2, 2]),
            node("BatchNormalization", "h g b m v", "y"),
        ],
        IMAGE,
        ["y"],
        constants,
    )
    assert folded(proto, (2, 8, 9, 7))[2] == ["ConvTranspose"]


def test_an_affine_map_before_a_layer_is_folded_where_nothing_is_padded() -> None:
    constants = {
        "s": weights(8, 1, 1), "t": np.float32([0.5]), "w": weights(6, 8, 1, 1),
        "w3": weights(6, 6, 3, 3),
    }  # fmt: skip
    proto = model(
        [
            node("Mul", "x s", "a"),
            node("Add", "t a", "b"),
            node("Conv", "b w", "h"),
            node("Relu", "h", "r"),
            node("Mul", "t r", "q"),
            node("Add", "q t", "p"),
            node("Conv", "p w3", "y", pads=[1, 1, 1, 1]),
        ],
        IMAGE,
        ["y"],
        constants,
    )
    # the addition before the padded convolution has to stay
    assert folded(proto, (2, 8, 9, 7))[2] == ["Conv", "Relu", "Mul", "Add", "Conv"]


def test_a_scale_before_a_padded_convolution_is_folded() -> None:
    constants = {"s": weights(8, 1, 1), "w": weights(4, 2, 3, 3)}
    proto = model(
        [node("Mul", "x s", "a"), node("Conv", "a w", "y", pads=[1, 1, 1, 1], group=4)],
        IMAGE,
        ["y"],
        {**constants, "w": weights(8, 2, 3, 3)},
    )
    assert folded(proto, (2, 8, 9, 7))[2] == ["Conv"]


@pytest.mark.parametrize("opset", [10, 17])
def test_hard_swish_is_two_operators(opset: int) -> None:
    clip = (
        node("Clip", "a", "b", min=0.0, max=6.0) if opset < 11 else node("Clip", "a zero six", "b")
    )
    constants = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    proto = model(
        [node("Add", "x three", "a"), clip, node("Mul", "x b", "c"), node("Div", "c six", "y")],
        IMAGE,
        ["y"],
        constants,
        opset,
    )
    _, notes, ops = folded(proto, (2, 8, 9, 7))
    assert ops == ["HardSigmoid", "Mul"]
    assert notes == ("1 hard swishes fused",)


def test_products_are_merged_where_that_is_less_work() -> None:
    constants = {"a": weights(40, 64), "b": weights(64, 10), "c": weights(10)}
    proto = model(
        [node("MatMul", "x a", "h"), node("Gemm", "h b c", "y")],
        [value("x", ["n", 40])],
        ["y"],
        constants,
    )
    after, _, ops = folded(proto, (3, 40))
    assert ops == ["Gemm"]
    assert after.n_params == 40 * 10 + 10
    thin = {"a": weights(40, 4), "b": weights(4, 30), "c": weights(30)}
    proto = model(
        [node("MatMul", "x a", "h"), node("Gemm", "h b c", "y")],
        [value("x", ["n", 40])],
        ["y"],
        thin,
    )
    assert folded(proto, (3, 40))[2] == ["MatMul", "Gemm"]


def test_what_others_read_is_not_touched() -> None:
    constants = {"w": weights(8, 8, 1, 1), **norm(8)}
    proto = model(
        [
            node("Conv", "x w", "h"),
            node("BatchNormalization", "h g b m v", "y"),
            node("Conv", "y w", "z"),  # the weight is shared
            node("Relu", "h", "q"),  # the output is read twice
        ],
        IMAGE,
        ["z", "q"],
        constants,
    )
    _, notes, ops = folded(proto, (2, 8, 9, 7))
    assert notes == ()
    assert sorted(ops) == ["BatchNormalization", "Conv", "Conv", "Relu"]


def test_a_branch_that_ends_in_a_constant_keeps_it() -> None:
    from onnx import TensorProto, helper

    def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [value("out", [8])])

    then = branch("then", [node("Add", "a b", "out")])
    other = branch("other", [node("Identity", "x", "out")])
    proto = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [value("x", [8]), value("c", [], TensorProto.BOOL)],
        ["y"],
        {"a": weights(8), "b": weights(8, seed=1)},
    )
    folded = OnnxModel(proto)
    folded.fold()
    onnx.checker.check_model(folded.to_proto())
    data = [{"x": np.zeros(8, np.float32), "c": np.array(True)}]
    np.testing.assert_array_equal(next(folded.run(data))[0]["y"], weights(8) + weights(8, seed=1))


def test_stored_layers_stay_as_they_are() -> None:
    constants = {"w": weights(16, 8, 3, 3), **norm(16)}
    proto = model(
        [node("Conv", "x w", "h"), node("BatchNormalization", "h g b m v", "y")],
        IMAGE,
        ["y"],
        constants,
    )
    stored = OnnxModel(proto)
    stored.store("w", "int8")
    assert stored.fold() == ()
    assert stored.layers["w"].form.name == "int8"


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("zeros", ["ConstantOfShape", "Expand", "one"])
def test_initial_states_of_zeros_are_left_out(op: str, zeros: str) -> None:
    gates = 4 if op == "LSTM" else 3
    constants = {
        "w": weights(1, gates * 5, 6), "r": weights(1, gates * 5, 5), "b": weights(1, gates * 10),
        "at": np.array([1]), "one": np.array([1]), "size": np.array([5]),
        "zero": np.float32(zeros == "one"),
    }  # fmt: skip
    makes = node("ConstantOfShape", "s", "h")
    if zeros != "ConstantOfShape":
        makes = node("Expand", "zero s", "h")
    states = "h h" if op == "LSTM" else "h"
    proto = model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape at", "n"),
            node("Concat", "one n size", "s", axis=0),
            makes,
            node(op, f"x w r b - {states}", "y", hidden_size=5),
        ],
        [value("x", [7, "n", 6])],
        ["y"],
        constants,
    )
    ops = folded(proto, (7, 3, 6))[2]
    assert ops == ([op] if zeros != "one" else ["Shape", "Gather", "Concat", "Expand", op])
