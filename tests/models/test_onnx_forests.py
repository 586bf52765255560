"""Tree ensembles as layers: a tree is a unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.errors import UnsupportedError
from fastopt.models import OnnxModel

skl2onnx = pytest.importorskip("skl2onnx")
ort = pytest.importorskip("onnxruntime")
ensemble = pytest.importorskip("sklearn.ensemble")

MAKERS = {
    "forest": lambda: ensemble.RandomForestClassifier(12, max_depth=6, random_state=0),
    "two classes": lambda: ensemble.RandomForestClassifier(12, max_depth=6, random_state=0),
    "boosting": lambda: ensemble.GradientBoostingClassifier(n_estimators=6, random_state=0),
    "boosting, two classes": lambda: ensemble.GradientBoostingClassifier(
        n_estimators=12, random_state=0
    ),
    "regression": lambda: ensemble.RandomForestRegressor(12, max_depth=6, random_state=0),
    "boosted regression": lambda: ensemble.GradientBoostingRegressor(
        n_estimators=12, random_state=0
    ),
}


def task(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((500, 7)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + x[:, 2]
    if "regression" in name:
        y: np.ndarray = score
    elif "two" in name:
        y = (score > 0).astype(int)
    else:
        y = np.digitize(score, [-0.7, 0.7])
    fitted = MAKERS[name]().fit(x, y)
    return skl2onnx.to_onnx(fitted, x[:1], target_opset=17), x, y


def scores(proto: Any, x: np.ndarray) -> np.ndarray:
    found = ort.InferenceSession(proto.SerializeToString()).run(None, {"X": x})[-1]
    if isinstance(found, list):  # ZipMap
        return np.array([list(row.values()) for row in found])
    return np.asarray(found)


@pytest.mark.parametrize("name", ["forest", "regression", "boosted regression"])
def test_rows_times_weights_are_the_scores_but_for_a_base(name: str) -> None:
    proto, x, _ = task(name)
    model = OnnxModel(proto)
    (layer,) = (v for v in model.layers.values() if v.kind == "trees")
    assert layer.tap is not None
    ((_, tapped),) = model.run({"X": x}, (layer.tap,), batch_size=len(x))
    rows = model.rows(layer.name, tapped[layer.tap])[0]
    sums = rows @ layer.weight[0]
    base = scores(proto, x).ravel() - sums
    np.testing.assert_allclose(base, base.mean(), atol=2e-5 * np.abs(sums).max())


@pytest.mark.parametrize("name", MAKERS)
def test_trees_left_out_are_trees_of_weight_zero(name: str) -> None:
    proto, x, _ = task(name)
    model = OnnxModel(proto)
    (group,) = (g for g in model.groups.values() if not g.producers)
    index = np.arange(0, group.n_units, 3)
    masked = np.zeros((1, group.n_units), np.float32)
    masked[0, index] = model.layers[group.name].weight[0, index]
    zeroed, cut = model.copy(), model.copy()
    zeroed.set_weight(group.name, masked)
    cut.keep_units(group.name, index)
    if model.layers[group.name].weight[0, 0] != 1:  # a mean of fewer trees
        cut.set_weight(group.name, masked[:, index])
    np.testing.assert_allclose(
        scores(cut.to_proto(), x), scores(zeroed.to_proto(), x), rtol=1e-5, atol=1e-5
    )
    assert cut.nbytes < 0.8 * model.nbytes
    assert model.layers[group.name].weight.shape == (1, group.n_units)


@pytest.mark.parametrize("name", ["regression", "boosted regression"])
def test_weights_and_a_shift_are_written(name: str) -> None:
    proto, x, _ = task(name)
    model = OnnxModel(proto)
    (layer,) = (v for v in model.layers.values() if v.kind == "trees")
    weight = np.random.default_rng(1).standard_normal(layer.weight.shape).astype(np.float32)
    ((_, tapped),) = model.run({"X": x}, (layer.tap,), batch_size=len(x))
    rows = model.rows(layer.name, tapped[layer.tap])[0]
    base = scores(proto, x).ravel() - rows @ layer.weight[0]
    model.set_weight(layer.name, weight, np.array([0.75], np.float32))
    np.testing.assert_array_equal(model.layers[layer.name].weight, weight)
    want = rows @ weight[0] + base + 0.75
    np.testing.assert_allclose(
        scores(model.to_proto(), x).ravel(), want, atol=1e-4 * np.abs(want).max()
    )
    with pytest.raises(UnsupportedError, match="no other form"):
        model.store(layer.name, "float32")


def test_an_ensemble_gets_smaller_within_its_budget() -> None:
    proto, x, _ = task("regression")
    fresh = np.random.default_rng(9).standard_normal((2000, 7)).astype(np.float32)
    found = fastopt.compress(proto, {"X": x}, max_drop=0.02, seed=0)
    assert found.after.nbytes < 0.9 * found.before.nbytes
    a, b = scores(proto, fresh), scores(found.model, fresh)
    assert 1 - ((a - b) ** 2).sum() / ((a - a.mean()) ** 2).sum() > 0.97
