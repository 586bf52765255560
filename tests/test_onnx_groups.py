"""Coupling groups of ONNX graphs: found by propagation, cut, and equal to the masked graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto  # noqa: E402

from fastopt.errors import ArrayError, OptionError, UnsupportedError  # noqa: E402
from fastopt.models import OnnxModel  # noqa: E402
from tests import onnx_graphs as graphs  # noqa: E402
from tests.onnx_graphs import model, node, value, weights  # noqa: E402

ROWS = [value("x", ["n", 24])]
IMAGE = [value("x", ["n", 8, 9, 7])]
SEQUENCE = [value("x", ["n", "t", 32])]


def mlp() -> Any:
    return graphs.mlp()


def gated() -> Any:
    """Split in two, one half gates the other (SiLU)."""
    return model(
        [
            node("MatMul", "x w1", "h"),
            node("Split", "h sizes", "a b", axis=1),
            node("Sigmoid", "a", "s"),
            node("Mul", "a s", "g"),
            node("Mul", "g b", "p"),
            node("MatMul", "p w2", "y"),
        ],
        ROWS,
        ["y"],
        {"w1": weights(24, 64), "w2": weights(32, 10), "sizes": np.array([32, 32])},
    )


def gelu() -> Any:
    """The decomposed GELU reads its input twice."""
    return model(
        [
            node("MatMul", "x w1", "h0"),
            node("Add", "h0 b1", "h"),
            node("Div", "h root", "d"),
            node("Erf", "d", "e"),
            node("Add", "e one", "o"),
            node("Mul", "h o", "m"),
            node("Mul", "m half", "g"),
            node("MatMul", "g w2", "y"),
        ],
        ROWS,
        ["y"],
        {
            "w1": weights(24, 48), "b1": weights(48), "w2": weights(48, 10),
            "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5),
        },
    )  # fmt: skip


def residual() -> Any:
    """Two convolutions and a shortcut: the sum's channels are one group."""
    bn = {k: np.abs(weights(16)) + 0.5 for k in ("g", "m", "v")} | {"b": weights(16)}
    return model(
        [
            node("Conv", "x c1", "a", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "a g b m v", "n1"),
            node("Relu", "n1", "r1"),
            node("Conv", "r1 c2", "h", pads=[1, 1, 1, 1]),
            node("Relu", "h", "r2"),
            node("Conv", "r2 c3", "k", pads=[1, 1, 1, 1]),
            node("Add", "k r1", "s"),
            node("GlobalAveragePool", "s", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f w b2", "y", transB=1),
        ],
        IMAGE,
        ["y"],
        {
            "c1": weights(16, 8, 3, 3), "c2": weights(20, 16, 3, 3), "c3": weights(16, 20, 3, 3),
            "w": weights(5, 16), "b2": weights(5), **bn,
        },
    )  # fmt: skip


def depthwise() -> Any:
    """Expand, depthwise with a squeeze and excitation, project; a grouped one after it."""
    return model(
        [
            node("Conv", "x c1", "a"),
            node("Conv", "a c2 d2", "b", group=24, pads=[1, 1, 1, 1]),
            node("Relu", "b", "r"),
            node("GlobalAveragePool", "r", "p"),
            node("Conv", "p s1", "q1"),
            node("Relu", "q1", "q2"),
            node("Conv", "q2 s2", "q3"),
            node("HardSigmoid", "q3", "q4"),
            node("Mul", "r q4", "m"),
            node("Conv", "m c3", "c"),
            node("Conv", "c c4", "d", group=4),
            node("Relu", "d", "e"),
            node("ConvTranspose", "e c5", "f", strides=[2, 2]),
            node("Conv", "f c6", "y"),
        ],
        IMAGE,
        ["y"],
        {
            "c1": weights(24, 8, 1, 1), "c2": weights(24, 1, 3, 3), "d2": weights(24),
            "s1": weights(8, 24, 1, 1), "s2": weights(24, 8, 1, 1), "c3": weights(16, 24, 1, 1),
            "c4": weights(12, 4, 1, 1), "c5": weights(12, 10, 2, 2), "c6": weights(3, 10, 1, 1),
        },
    )  # fmt: skip


def joined() -> Any:
    """Concat of two branches, sliced again, flattened into a product."""
    return model(
        [
            node("Conv", "x c1", "a"),
            node("Conv", "x c2", "b"),
            node("Concat", "a b", "j", axis=1),
            node("Relu", "j", "r"),
            node("Slice", "r start end axis", "s"),
            node("MaxPool", "s", "p", kernel_shape=[3, 3], strides=[3, 3]),
            node("Reshape", "p flat", "f"),
            node("MatMul", "f w", "y"),
            node("Conv", "r c3", "z"),
        ],
        IMAGE,
        ["y", "z"],
        {
            "c1": weights(12, 8, 1, 1), "c2": weights(20, 8, 1, 1), "c3": weights(3, 32, 1, 1),
            "start": np.array([12]), "end": np.array([32]), "axis": np.array([1]),
            "flat": np.array([0, 120]), "w": weights(120, 4),
        },
    )  # fmt: skip


def attention(computed: bool) -> Any:
    """Four heads of 8; the shapes constant, or computed from the input's."""
    shapes = []
    constants: dict[str, Any] = {"heads": np.array([0, 0, 4, 8]), "whole": np.array([0, 0, 32])}
    if computed:
        constants = {
            "zero": np.array([0]), "two": np.array([2]), "axis": np.array([0]),
            "four": np.array([4]), "eight": np.array([8]), "all": np.array([32]),
        }  # fmt: skip
        shapes = [
            node("Shape", "x", "shape"),
            node("Slice", "shape zero two axis", "front"),
            node("Concat", "front four eight", "heads", axis=0),
            node("Concat", "front all", "whole", axis=0),
        ]
    parts = []
    for k in "qkv":
        parts += [
            node("MatMul", f"x w{k}", f"{k}1"),
            node("Add", f"{k}1 b{k}", f"{k}2"),
            node("Reshape", f"{k}2 heads", f"{k}3"),
            node("Transpose", f"{k}3", k, perm=[0, 2, 3, 1] if k == "k" else [0, 2, 1, 3]),
        ]
        constants |= {f"w{k}": weights(32, 32, seed=ord(k)), f"b{k}": weights(32, seed=ord(k))}
    return model(
        [
            *shapes,
            *parts,
            node("MatMul", "q k", "s"),
            node("Softmax", "s", "p", axis=-1),
            node("MatMul", "p v", "o"),
            node("Transpose", "o", "o2", perm=[0, 2, 1, 3]),
            node("Reshape", "o2 whole", "o3"),
            node("MatMul", "o3 wo", "y"),
        ],
        SEQUENCE,
        ["y"],
        {**constants, "wo": weights(32, 32, seed=1)},
    )


def einsum() -> Any:
    return model(
        [
            node("MatMul", "x w", "h"),
            node("Einsum", "h v", "y", equation="ntc,cd->ntd"),
        ],
        SEQUENCE,
        ["y"],
        {"w": weights(32, 40), "v": weights(40, 12)},
    )


def tabled() -> Any:
    """An embedding whose features a product reads."""
    return model(
        [node("Gather", "table ids", "e", axis=0), node("MatMul", "e w", "y")],
        [value("ids", ["n", "t"], TensorProto.INT64)],
        ["y"],
        {"table": weights(50, 64), "w": weights(64, 16)},
    )


def fused() -> Any:
    """Query, key and value out of one product, cut as (3, heads, size)."""
    return model(
        [
            node("MatMul", "x wqkv", "a"),
            node("Reshape", "a five", "b"),
            node("Transpose", "b", "c", perm=[2, 0, 3, 1, 4]),
            node("Split", "c", "q1 k1 v1", axis=0),
            *[node("Squeeze", f"{k}1 zero", k) for k in "qkv"],
            node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
            node("MatMul", "q kt", "s"),
            node("Softmax", "s", "p", axis=-1),
            node("MatMul", "p v", "o"),
            node("Transpose", "o", "o2", perm=[0, 2, 1, 3]),
            node("Reshape", "o2 three", "o3"),
            node("MatMul", "o3 wo", "y"),
        ],
        SEQUENCE,
        ["y"],
        {
            "wqkv": weights(32, 96), "wo": weights(32, 32), "five": np.array([0, 0, 3, 4, 8]),
            "three": np.array([0, 0, 32]), "zero": np.array([0]),
        },
    )  # fmt: skip


def batched() -> Any:
    """Heads beside the batch on one axis: the shape of a cut would depend on the batch."""
    return model(
        [
            node("MatMul", "x w", "a"),
            node("Shape", "a", "s"),
            node("Gather", "s zero", "n", axis=0),
            node("Mul", "n four", "n4"),
            node("Concat", "n4 rest", "to", axis=0),
            node("Reshape", "a to", "b"),
            node("Relu", "b", "c"),
            node("Concat", "n whole", "back", axis=0),
            node("Reshape", "c back", "d"),
            node("MatMul", "d v", "y"),
        ],
        ROWS,
        ["y"],
        {
            "w": weights(24, 32), "v": weights(32, 6), "zero": np.array([0]),
            "four": np.array([4]), "rest": np.array([8]), "whole": np.array([32]),
        },
    )  # fmt: skip


# name -> graph, shape of x, number of units of each free group
CASES: dict[str, tuple[Any, tuple[int, ...], list[int]]] = {
    "mlp": (mlp(), (5, 40), [96]),
    "gated": (gated(), (5, 24), [32]),
    "gelu": (gelu(), (5, 24), [48]),
    "residual": (residual(), (2, 8, 9, 7), [16, 20]),
    "depthwise": (depthwise(), (2, 8, 9, 7), [24, 8, 4, 3, 10]),
    "grouped": (graphs.cnn(), (2, 4, 12, 10), [8, 12]),
    "joined": (joined(), (2, 8, 9, 7), [12, 20]),
    "heads": (attention(False), (2, 6, 32), [4]),
    "heads computed": (attention(True), (2, 6, 32), [4]),
    "heads fused": (fused(), (2, 6, 32), [4]),
    "einsum": (einsum(), (2, 6, 32), [40]),
    "embedding": (tabled(), (3, 5), [64]),
}


def feed_of(loaded: OnnxModel, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    (only,) = loaded.inputs
    if only.dtype == "int64":
        return {only.name: rng.integers(0, 50, shape)}
    return {only.name: rng.standard_normal(shape, dtype=np.float32)}


def free(loaded: OnnxModel) -> list[Any]:
    return [group for group in loaded.groups.values() if group.frozen is None]


@pytest.mark.parametrize("name", list(CASES))
def test_the_cut_graph_is_the_masked_one(name: str) -> None:
    proto, shape, sizes = CASES[name]
    loaded = OnnxModel(proto)
    data = feed_of(loaded, shape)
    assert [group.n_units for group in free(loaded)] == sizes
    for group in free(loaded):
        keep = np.arange(group.n_units)[1::2] if group.n_units > 3 else np.arange(1)
        cut = loaded.copy()
        cut.keep_units(group.name, keep)
        masked = loaded.copy()
        gone = np.delete(np.arange(group.n_units), keep)
        for member in group.consumers:
            weight = masked.layers[member.tensor].weight.copy()
            weight[:, member.index[gone].reshape(-1)] = 0
            masked.set_weight(member.tensor, weight)
        a, b = next(cut.run(data))[0], next(masked.run(data))[0]
        for output in loaded.outputs:
            np.testing.assert_allclose(a[output], b[output], rtol=1e-4, atol=1e-5)
        assert cut.n_params < loaded.n_params
        assert cut.macs < loaded.macs or name == "embedding"
        onnx.checker.check_model(cut.to_proto(), full_check=True)
    # all of them, one after the other
    every = loaded.copy()
    for group in free(loaded):
        every.keep_units(group.name, np.arange(max(1, group.n_units // 2)))
    next(every.run(data))


def test_a_layer_stays_a_layer_however_small() -> None:
    loaded = OnnxModel(depthwise())
    every = [(group.name, group.consumers) for group in free(loaded)]
    for name, consumers in every:
        if name not in loaded.groups:
            continue  # one unit was left
        loaded.keep_units(name, np.arange(1))
        for member in consumers:
            loaded.set_weight(member.tensor, loaded.layers[member.tensor].weight)


def test_a_group_refits_its_consumers() -> None:
    """With two units equal, one of them goes and its columns are added to the other's."""
    loaded = OnnxModel(gated())
    (group,) = free(loaded)
    layer = loaded.layers["w1"]
    weight = layer.weight.copy()
    for half in (0, 32):
        weight[half + 5] = weight[half + 3]
    loaded.set_weight("w1", weight)
    data = feed_of(loaded, (6, 24))
    before = next(loaded.run(data))[0]["y"]
    keep = np.delete(np.arange(32), 5)
    layers = loaded.layers
    (stack,) = group.stacks(layers)
    w, columns, n = group.stack(stack, layers)
    assert (w.shape, n) == ((10, 32), 32)
    assert np.array_equal(np.sort(columns), np.arange(32))
    w[:, 3] += w[:, 5]
    loaded.keep_units(group.name, keep, group.unstack(stack, layers, keep, w[:, keep]))
    np.testing.assert_allclose(next(loaded.run(data))[0]["y"], before, rtol=1e-4, atol=1e-5)


def test_query_key_and_value_are_one_stack() -> None:
    loaded = OnnxModel(
        model(
            [
                node("MatMul", "x w0", "h"),
                node("Relu", "h", "r"),
                node("MatMul", "r wa", "a"),
                node("MatMul", "r wb", "b"),
                node("Add", "a b", "y"),
            ],
            ROWS,
            ["y"],
            {"w0": weights(24, 16), "wa": weights(16, 8), "wb": weights(16, 8, seed=1)},
        )
    )
    (group,) = free(loaded)
    (stack,) = group.stacks(loaded.layers)
    assert [m.tensor for m in stack] == ["wa", "wb"]
    w, _, _ = group.stack(stack, loaded.layers)
    back = group.unstack(stack, loaded.layers, np.arange(16), w, np.ones(16, np.float32))
    np.testing.assert_array_equal(back["wb"][0], loaded.layers["wb"].weight)
    np.testing.assert_array_equal(back["wb"][1], np.ones(8))


def test_a_channels_columns_are_its_kernel() -> None:
    loaded = OnnxModel(residual())
    group = next(g for g in free(loaded) if g.n_units == 20)
    (consumer,) = group.consumers
    assert consumer.tensor == "c3"
    assert consumer.index.shape == (20, 9)
    np.testing.assert_array_equal(consumer.index[2], np.arange(18, 27))
    heads = free(OnnxModel(attention(True)))[0]
    assert {m.index.shape for m in heads.producers} == {(4, 8)}
    assert len(heads.producers) == 3


def test_a_shape_with_the_batch_in_it_is_scaled() -> None:
    loaded = OnnxModel(batched())
    (group,) = free(loaded)
    masked = loaded.copy()
    loaded.keep_units(group.name, np.array([0, 2, 3]))
    w = masked.layers["v"].weight.copy()
    w[:, 8:16] = 0
    masked.set_weight("v", w)
    for n in (1, 2, 5):
        data = feed_of(loaded, (n, 24))
        a, b = (next(m.run(data))[0]["y"] for m in (loaded, masked))
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_cannot_be_cut_says_why() -> None:
    shuffle = model(
        [
            node("Conv", "x c1", "a"),
            node("Reshape", "a five", "b"),
            node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
            node("Reshape", "c four", "d"),
            node("Conv", "d c2", "y"),
        ],
        IMAGE,
        ["y"],
        {
            "c1": weights(16, 8, 1, 1), "c2": weights(5, 16, 1, 1),
            "five": np.array([0, 4, 4, 9, 7]), "four": np.array([0, 16, 9, 7]),
        },
    )  # fmt: skip
    loaded = OnnxModel(shuffle)
    assert free(loaded) == []
    assert any("block" in str(g.frozen) for g in loaded.groups.values())
    norm = model(
        [
            node("MatMul", "x w1", "h"),
            node("LayerNormalization", "h s", "k"),
            node("MatMul", "k w2", "l"),
            node("CumSum", "l axis", "m"),
            node("MatMul", "m w3", "y"),
        ],
        ROWS,
        ["y"],
        {
            "w1": weights(24, 16), "s": weights(16), "w2": weights(16, 12), "w3": weights(12, 8),
            "axis": np.array(0),
        },
    )  # fmt: skip
    loaded = OnnxModel(norm)
    assert free(loaded) == []
    reasons = " ".join(str(g.frozen) for g in loaded.groups.values())
    assert "LayerNormalization" in reasons
    assert loaded.notes == ("CumSum (1) has no rule: what it touches is not pruned",)
    frozen = next(iter(loaded.groups.values()))
    with pytest.raises(UnsupportedError, match="is frozen"):
        loaded.keep_units(frozen.name, np.arange(2))


def test_without_data_and_without_shapes_there_are_no_groups() -> None:
    proto = model(
        [
            node("Reshape", "x odd", "r"),
            node("MatMul", "r w1", "h"),
            node("Relu", "h", "k"),
            node("MatMul", "k w2", "y"),
        ],
        [value("x", ["n", "m"])],
        ["y"],
        {"odd": np.array([-1, 77]), "w1": weights(77, 20), "w2": weights(20, 5)},
    )
    loaded = OnnxModel(proto)
    assert loaded.groups == {}
    assert loaded.notes[0].startswith("no groups")
    list(loaded.run({"x": np.ones((7, 11), np.float32)}, batch_size=7))
    assert [g.n_units for g in free(loaded)] == []


def test_wrong_units_are_refused_and_nothing_changes() -> None:
    loaded = OnnxModel(mlp())
    (group,) = free(loaded)
    before = loaded.n_params
    for index in ([], [0, 0], [96], [-1], [0.5]):
        with pytest.raises(ArrayError, match="index"):
            loaded.keep_units(group.name, np.array(index))
    with pytest.raises(OptionError, match="group"):
        loaded.keep_units("nobody", np.arange(3))
    loaded.store("w1", "int8")
    with pytest.raises(UnsupportedError, match="stored"):
        loaded.keep_units(group.name, np.arange(3))
    assert loaded.n_params == before


@pytest.mark.parametrize("name", ["w1", "w2"])
def test_a_product_becomes_two(name: str) -> None:
    loaded = OnnxModel(mlp())
    data = feed_of(loaded, (5, 40))
    before = next(loaded.run(data))[0]["y"]
    w = loaded.layers[name].weight
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    whole = loaded.copy()
    whole.split_layer(name, u * s, vt)
    np.testing.assert_allclose(next(whole.run(data))[0]["y"], before, atol=1e-5)
    assert {f"{name}.a", f"{name}.b"} <= set(whole.layers)
    thin = loaded.copy()
    thin.split_layer(name, u[:, :3] * s[:3], vt[:3])
    masked = loaded.copy()
    masked.set_weight(name, (u[:, :3] * s[:3]) @ vt[:3])
    a, b = (next(m.run(data))[0]["y"] for m in (thin, masked))
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert thin.macs < loaded.macs
    thin.store(f"{name}.a", "int8")
    with pytest.raises(ArrayError, match="expected shape"):
        loaded.split_layer(name, u, vt[:, :3])


@pytest.mark.parametrize("name", ["c2", "c1"])
def test_a_convolution_becomes_two(name: str) -> None:
    loaded = OnnxModel(residual())
    data = feed_of(loaded, (2, 8, 9, 7))
    before = next(loaded.run(data))[0]["y"]
    w = loaded.layers[name].weight
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    loaded.split_layer(name, u * s, vt)
    np.testing.assert_allclose(next(loaded.run(data))[0]["y"], before, rtol=1e-4, atol=1e-4)
    onnx.checker.check_model(loaded.to_proto(), full_check=True)
    deep = OnnxModel(depthwise())
    with pytest.raises(UnsupportedError, match="cannot be split"):
        deep.split_layer("c2", np.ones((24, 2)), np.ones((2, 9)))


def test_shared_weights_are_not_split() -> None:
    loaded = OnnxModel(graphs.moved())
    with pytest.raises(UnsupportedError, match="cannot be split"):
        loaded.split_layer("shared", np.ones((32, 2)), np.ones((2, 32)))
