"""What the data say of a layer: parts that hardly a row reaches, probabilities without logits."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.compression import stages
from fastopt.compression.job import open_job
from fastopt.compression.metric import Outputs, relative_error, rows_changed
from fastopt.compression.options import Options
from fastopt.compression.prepare import Probe, effects, measured
from fastopt.compression.team import Team
from fastopt.models import OnnxModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx_graphs import model, node, value, weights  # noqa: E402


def two_stages() -> onnx.ModelProto:
    """A second network looks again at what the first one gives more than one half."""
    then = onnx.helper.make_graph(
        [
            node("MatMul", "x v", "g"),
            node("Relu", "g", "k"),
            node("MatMul", "k u", "z"),
            node("Sigmoid", "z", "again"),
        ],
        "then",
        [],
        [value("again", [1, 1])],
    )
    other = onnx.helper.make_graph(
        [node("Identity", "p", "same")], "other", [], [value("same", [1, 1])]
    )
    branch = onnx.helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    first = [
        node("MatMul", "x w", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r q", "s"),
        node("Add", "s b", "t"),
        node("Sigmoid", "t", "p"),
        node("Greater", "p half", "above"),
        node("Squeeze", "above", "c"),
    ]
    constants = {
        "w": weights(64, 96), "q": weights(96, 1), "v": weights(64, 96, seed=1),
        "u": weights(96, 1, seed=1), "b": np.float32(-4), "half": np.float32(0.5),
    }  # fmt: skip
    return model([*first, branch], [value("x", [1, 64])], ["y"], constants)


def test_a_branch_that_hardly_a_row_reaches_stays_careful() -> None:
    x = np.random.default_rng(0).standard_normal((200, 64), dtype=np.float32)
    x[7] = 3 * weights(64, 96) @ np.maximum(weights(96, 1)[:, 0], 0)  # one row goes through it
    options = Options(max_drop=0.05, passes=("prune", "layer", "quantize"))
    job = open_job(OnnxModel(two_stages()), {"x": x}, options, None)
    assert [k for k, layer in job.original.layers.items() if not layer.always] == ["v", "u"]
    places, start = stages._places(job)
    probe = Probe(job.bench, start, job.prices, job.search, job.feed, places)
    found = effects(probe, Team(1))
    assert {"layer.w", "quantize.w", "quantize.q", "quantize.v"} <= set(found)
    assert "layer.v" in places
    assert "layer.v" not in found
    bits = {k: {str(o.value)[:4] for o in found[f"quantize.{k}"]} for k in "wvu"}
    assert {"int2", "int3", "int4", "int5"} <= bits["w"]
    assert bits["v"] == bits["u"] == {"floa", "int6", "int8"}
    kept = measured(places, found)
    assert "layer.v" not in kept
    assert "int2" not in kept["quantize.v"].options
    assert "int2" in kept["quantize.w"].options


def test_rows_are_counted_that_changed() -> None:
    a = np.arange(12.0)
    b = a.copy()
    b[[0, 1, 7]] += 1
    parts = [{"y": np.zeros((4, 3))}]
    theirs = Outputs(parts, logits={"y": a})
    assert rows_changed(Outputs(parts, logits={"y": b}), theirs) == 2
    assert rows_changed(theirs, theirs) == 0
    ragged = Outputs(parts, logits={"y": a[:11]})
    assert rows_changed(ragged, ragged) == 4


def test_probabilities_are_compared_by_their_log_odds() -> None:
    z = np.linspace(-12, 8, 50)
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-1.1 * z))
    parts = [{"y": p}]
    by_odds = relative_error(
        Outputs(parts, logits={"y": q}), Outputs(parts, logits={"y": p}, odds=frozenset("y"))
    )
    by_logits = relative_error(
        Outputs(parts, logits={"y": 1.1 * z}), Outputs(parts, logits={"y": z})
    )
    assert by_odds == pytest.approx(by_logits, rel=1e-3)
