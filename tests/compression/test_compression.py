"""compress: the budget is kept and told, nothing is silent, the original is untouched."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import report
from fastopt.compression import Compressed, Recipe
from fastopt.compression.data import open_rows
from fastopt.compression.job import feed_size, split
from fastopt.compression.passes import PASSES
from fastopt.compression.passes.calibration import Calibration
from fastopt.compression.recipe import Workbench
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.models import Model, Network

EVALS = 30


def workbench(net: Network, calib: np.ndarray) -> Workbench:
    rows = open_rows(calib, net.inputs)
    return Workbench(Calibration(net, rows, batch=feed_size(net)))


@pytest.fixture(scope="module")
def trained() -> tuple[Network, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """A network far wider than its task needs, its validation rows, its training rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1400, 10)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(int)
    net = Network.mlp((10, 64, 32, 2), seed=0)
    net.fit(x[:800], y[:800], fastopt.optim.Adam(net.params, lr=3e-3), epochs=25)
    return net, (x[800:], y[800:]), x[:800]


@pytest.fixture(scope="module")
def small(trained) -> Compressed:
    net, valid, calib = trained
    return fastopt.compress(net, valid, calib=calib, max_drop=0.02, max_evals=EVALS, seed=0)


def test_the_model_gets_smaller_and_the_budget_is_kept(trained, small) -> None:
    net, (x, y), _ = trained
    assert small.changed
    assert small.drop <= 0.02
    assert small.search_drop <= 0.02
    assert small.after.nbytes * 4 < small.before.nbytes == net.nbytes
    _, held = split(len(x), 1 / 4, 0)
    assert small.after.metric == pytest.approx(small.model.score(x[held], y[held]), abs=1e-12)
    assert small.before.metric - small.after.metric == pytest.approx(small.drop)


def test_nothing_is_silent(small) -> None:
    text = small.table()
    for word in (
        "accuracy",
        "parameters",
        "bytes",
        "multiply-adds",
        "latency",
        "asked",
        "reached",
    ):
        assert word in text
    assert len(small.decisions) >= 1
    for d in small.decisions:
        assert d.name in PASSES
        assert d.place in text
    assert len(small.candidates) == EVALS
    data = json.loads(small.to_json())
    assert data["drop"] == small.drop
    assert data["recipe"] == small.recipe.to_dict()


def test_the_front_is_a_front(small) -> None:
    front = small.front
    assert all(a.cost < b.cost and a.drop > b.drop for a, b in pairwise(front))
    for c in small.candidates:
        assert not any(f.cost > c.cost and f.drop > c.drop for f in front)


def test_the_recipe_makes_the_same_model_again(trained, small) -> None:
    net, (x, _), calib = trained
    again = workbench(net, calib).apply(Recipe.from_dict(small.recipe.to_dict()))
    np.testing.assert_array_equal(again.model.forward(x), small.model.forward(x))


def test_the_same_seed_gives_the_same_answer_and_the_original_is_untouched(trained, small) -> None:
    net, valid, calib = trained
    before = {k: v.copy() for k, v in net.params.items()}
    again = fastopt.compress(net, valid, calib=calib, max_drop=0.02, max_evals=EVALS, seed=0)
    assert again.recipe.to_dict() == small.recipe.to_dict()
    assert [c.cost for c in again.candidates] == [c.cost for c in small.candidates]
    for k, v in net.params.items():
        np.testing.assert_array_equal(v, before[k])
    for p in again.model.params.values():
        p[...] = 0
    np.testing.assert_array_equal(net.params["dense0.weight"], before["dense0.weight"])


@pytest.mark.parametrize("method", ["random", "greedy", "genetic"])
@pytest.mark.parametrize("target", ["size", "macs"])
def test_each_search_and_target(method, target, trained) -> None:
    net, valid, calib = trained
    found = fastopt.compress(
        net, valid, calib=calib, max_drop=0.02, method=method, target=target, max_evals=25
    )
    assert found.changed
    assert found.drop <= 0.02
    cost = found.after.nbytes if target == "size" else found.after.macs
    assert cost < (net.nbytes if target == "size" else net.macs)


@pytest.mark.parametrize("name", ["prune", "merge", "layer", "quantize"])
def test_each_pass_alone_acts_and_only_it(name, trained) -> None:
    net, valid, calib = trained
    found = fastopt.compress(
        net, valid, calib=calib, max_drop=0.05, passes=(name,), max_evals=25, seed=1
    )
    assert found.changed
    assert {d.name for d in found.decisions} == {name}
    assert found.after.nbytes < net.nbytes


def test_a_refit_brings_the_outputs_back(trained) -> None:
    net, (x, _), calib = trained
    bench = workbench(net, calib)
    cut = {"prune.dense0": 0.1, "prune.dense1": 0.1}
    target = net.forward(x)
    rough = bench.apply(Recipe(cut)).model.forward(x)
    recipe = Recipe({**cut, "refit.outputs": 25})
    fitted = bench.apply(recipe).model.forward(x)
    thorough = bench.apply(recipe.final).model.forward(x)
    errors = [float(np.square(out - target).sum()) for out in (rough, fitted, thorough)]
    assert errors[2] < errors[1] < 0.8 * errors[0]


def test_an_impossible_budget_returns_the_original_and_says_so(trained) -> None:
    net, (x, y), calib = trained

    def jealous(outputs: np.ndarray, labels: np.ndarray) -> float:
        """1 for the original's own outputs, 0 for any other."""
        mine = net.forward(x)
        return float(any(np.array_equal(outputs[0], row) for row in mine))

    found = fastopt.compress(
        net, (x, y), calib=calib, metric=jealous, max_drop=0.0, max_evals=10, passes=("prune",)
    )
    assert not found.changed
    assert found.after.nbytes == net.nbytes
    assert "unchanged" in found.table()
    np.testing.assert_array_equal(found.model.forward(x), net.forward(x))


def test_the_check_rows_can_refuse_what_the_search_rows_allowed(trained) -> None:
    """With search rows that any model gets right, only the check stands in the way."""
    net, (x, _), calib = trained
    easy = (x[:3], net.predict(x[:3]))
    found = fastopt.compress(
        net, easy, calib=calib, check=(x, net.predict(x)), max_drop=0.02, max_evals=EVALS, seed=0
    )
    assert found.drop <= 0.02
    assert found.refused >= 1


def test_without_labels_it_stays_close_to_its_own_outputs(trained) -> None:
    net, (x, _), calib = trained
    found = fastopt.compress(net, x, calib=calib, max_drop=0.05, max_evals=25)
    assert found.metric == "r2"
    assert found.before.metric == pytest.approx(1.0)
    assert found.after.metric >= 0.95


def test_a_metric_that_fails_on_a_candidate_never_wins(trained) -> None:
    net, (x, y), calib = trained

    def fussy(outputs: np.ndarray, labels: np.ndarray) -> float:
        right = float(np.mean(outputs.argmax(axis=1) == labels))
        return right if right > 0.9 else float("nan")

    found = fastopt.compress(net, (x, y), calib=calib, metric=fussy, max_drop=0.02, max_evals=30)
    assert np.isfinite(found.after.metric)


def test_remembered_steps_give_the_same_models(trained) -> None:
    net, (x, _), calib = trained
    choices = {
        "prune.dense0": 0.5,
        "merge.dense1": 0.5,
        "layer.dense1": 0.5,
        "quantize.dense2": "int8",
    }
    fresh, warm = workbench(net, calib), workbench(net, calib)
    for key in list(choices)[::-1]:
        warm.apply(Recipe(choices).without(key))
    a, b = fresh.apply(Recipe(choices)).model, warm.apply(Recipe(choices)).model
    np.testing.assert_array_equal(a.forward(x), b.forward(x))
    assert isinstance(a.layers, dict)


def test_it_needs_the_protocol_only(trained) -> None:
    """A model that has nothing but the protocol's names compresses the same."""
    net, (x, y), calib = trained

    names = {n for n in dir(Model) if not n.startswith("_")}

    class Bare:
        def __init__(self, inner: Network) -> None:
            self._inner = inner

        def __getattr__(self, name: str):
            if name not in names:
                raise AttributeError(name)
            return getattr(self._inner, name)

        def copy(self) -> Bare:
            return Bare(self._inner.copy())

    def right(outputs: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean(outputs.argmax(axis=1) == labels))

    basic = [name for name in PASSES if name != "refit"]
    bare, real = (
        fastopt.compress(
            m, (x, y), calib=calib, metric=right, max_evals=15, max_drop=0.02, passes=basic
        )
        for m in (Bare(net), net)
    )
    assert bare.recipe == real.recipe
    assert bare.after.nbytes == real.after.nbytes


def test_wrong_input_is_refused_by_name_before_any_work(trained) -> None:
    net, (x, y), calib = trained
    for bad, error, word in [
        ({"max_drop": -1}, OptionError, "max_drop"),
        ({"max_drop": 5}, OptionError, "did you mean 5%"),
        ({"max_drop": 1}, OptionError, "max_drop"),
        ({"confidence": 95}, OptionError, "confidence"),
        ({"keep": ["nothing*"]}, OptionError, "keep"),
        ({"labels": "z"}, OptionError, "labels"),
        ({"max_drop": "1%"}, DTypeError, "max_drop"),
        ({"passes": ("shrink",)}, OptionError, "passes"),
        ({"passes": ()}, OptionError, "passes"),
        ({"target": "beauty"}, OptionError, "target"),
        ({"metric": "f1"}, OptionError, "metric"),
        ({"max_evals": 0}, OptionError, "max_evals"),
        ({"calib": np.zeros((0, 10))}, ArrayError, "calib"),
        ({"check": x}, OptionError, "check"),
        ({"method": "magic"}, OptionError, "method"),
    ]:
        with pytest.raises(error, match=word):
            fastopt.compress(net, (x, y), **{"calib": calib, "max_evals": 2, **bad})
    with pytest.raises(ArrayError, match="but the labels"):
        fastopt.compress(net, (x, y[:-1]))
    with pytest.raises(ArrayError, match="data"):
        fastopt.compress(net, (x[:1], y[:1]))
    with pytest.raises(OptionError, match="recipe"):
        Recipe.from_dict({"shrink.dense0": 1})


def test_the_report_is_one_file_with_the_same_figures(small, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write(small, path)
    text = path.read_text()
    assert f"{small.after.nbytes:,}" in text
    assert small.verdict() in text.replace("&lt;", "<")
    assert "<svg" in text
    assert "<script" not in text
    assert "http" not in text
    assert text.count("<circle") <= len(small.candidates)
