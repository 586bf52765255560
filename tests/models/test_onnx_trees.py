"""Tree ensembles in ONNX graphs: thinned without a change of the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from fastopt.models import OnnxModel  # noqa: E402
from tests.onnx_graphs import value  # noqa: E402


def forest(seed: int, n_trees: int, depth: int, n_classes: int) -> dict[str, list[Any]]:
    """Full binary trees with random splits; some leaves of one parent are equal."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {
        k: []
        for k in (
            "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes",
            "nodes_truenodeids", "nodes_falsenodeids", "nodes_hitrates",
            "nodes_missing_value_tracks_true", "treeids", "nodeids", "ids", "weights",
        )
    }  # fmt: skip
    inner = 2**depth - 1
    for tree in range(n_trees):
        for k in range(2 * inner + 1):
            leaf = k >= inner
            found["nodes_treeids"].append(tree)
            found["nodes_nodeids"].append(k)
            found["nodes_featureids"].append(0 if leaf else int(rng.integers(6)))
            found["nodes_values"].append(0.0 if leaf else float(rng.standard_normal()))
            found["nodes_modes"].append("LEAF" if leaf else "BRANCH_LEQ")
            found["nodes_truenodeids"].append(0 if leaf else 2 * k + 1)
            found["nodes_falsenodeids"].append(0 if leaf else 2 * k + 2)
            found["nodes_hitrates"].append(1.0)
            found["nodes_missing_value_tracks_true"].append(0)
            if leaf:
                weights = rng.integers(0, 2, n_classes).astype(float).tolist()
                found["treeids"] += [tree] * n_classes
                found["nodeids"] += [k] * n_classes
                found["ids"] += list(range(n_classes))
                found["weights"] += weights
    return found


def model_of(parts: dict[str, list[Any]], n_classes: int) -> onnx.ModelProto:
    kind = "class" if n_classes > 1 else "target"
    attrs = {k if k.startswith("nodes_") else f"{kind}_{k}": v for k, v in parts.items()}
    if n_classes > 1:
        node = helper.make_node(
            "TreeEnsembleClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
            classlabels_int64s=list(range(10, 10 + n_classes)), **attrs,
        )  # fmt: skip
        outputs = [value("label", ["n"], TensorProto.INT64), value("scores", ["n", n_classes])]
    else:
        node = helper.make_node(
            "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, **attrs
        )
        outputs = [value("y", ["n", 1])]
    graph = helper.make_graph([node], "trees", [value("x", ["n", 6])], outputs)
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=ids, ir_version=8)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_a_thinned_forest_says_the_same(n_classes: int) -> None:
    loaded = OnnxModel(model_of(forest(0, 12, 5, n_classes), n_classes))
    x = {"x": np.random.default_rng(1).standard_normal((200, 6), dtype=np.float32)}
    before = next(loaded.run(x))[0]
    thin = loaded.copy()
    (note,) = thin.fold()
    assert "thinned" in note
    after = next(thin.run(x))[0]
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-6)
    (node,) = thin.to_proto().graph.node
    names = {a.name for a in node.attribute}
    assert not names & {"nodes_hitrates", "nodes_missing_value_tracks_true"}
    if n_classes == 1:  # half of the pairs of leaves are equal
        (ids,) = [a.ints for a in node.attribute if a.name == "nodes_nodeids"]
        assert len(ids) < 0.8 * 12 * 63
    assert thin.nbytes < 0.85 * loaded.nbytes
    assert thin.fold() == ()


def test_equal_trees_are_one() -> None:
    parts = forest(0, 1, 3, 1)
    twice = {k: list(v) * 2 for k, v in parts.items()}
    for key in ("nodes_treeids", "treeids"):
        half = len(parts[key])
        twice[key] = [0] * half + [1] * half
    loaded = OnnxModel(model_of(twice, 1))
    x = {"x": np.random.default_rng(1).standard_normal((50, 6), dtype=np.float32)}
    before = next(loaded.run(x))[0]["y"]
    loaded.fold()
    (node,) = loaded.to_proto().graph.node
    (trees,) = [a.ints for a in node.attribute if a.name == "nodes_treeids"]
    assert set(trees) == {0}
    np.testing.assert_allclose(next(loaded.run(x))[0]["y"], before, rtol=1e-6)


def test_a_zipmap_is_an_array_of_its_classes() -> None:
    proto = model_of(forest(2, 3, 2, 3), 3)
    proto.graph.node.append(
        helper.make_node(
            "ZipMap", ["scores"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=[10, 11, 12]
        )
    )
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    proto.graph.output[1].CopyFrom(
        helper.make_value_info("chances", helper.make_sequence_type_proto(kind))
    )
    loaded = OnnxModel(proto)
    assert loaded.classes.tolist() == [10, 11, 12]
    assert loaded.classes_axis == {"chances": -1}
    x = {"x": np.random.default_rng(1).standard_normal((7, 6), dtype=np.float32)}
    found = next(loaded.run(x))[0]
    assert found["chances"].shape == (7, 3)
    best = found["chances"].argmax(axis=1)
    assert np.array_equal(loaded.classes[best], found["label"])
    loaded.fold()
    assert [n.op_type for n in loaded.to_proto().graph.node][-1] == "ZipMap"
