"""How sure a drop is: standard errors, p-values that hold, rows that are needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.compression import Candidate, Recipe, apply_recipe
from fastopt.compression.confirm import drop_of, p_value, rows_needed
from fastopt.compression.data import open_rows
from fastopt.compression.journal import Memory
from fastopt.compression.metric import Metric, Outputs
from fastopt.compression.prepare import Option
from fastopt.compression.search import knapsack, trend
from fastopt.errors import FormatError, MissingFileError, OptionError
from fastopt.models import Input, Network


@pytest.mark.parametrize("gains", [0.0, 0.05])
def test_a_model_over_the_budget_is_rarely_certified(gains: float) -> None:
    """Level 5 %: of 1000 tests of a model whose true drop is the budget, few are rejected."""
    rng = np.random.default_rng(0)
    n, limit = 400, 0.02
    draws = rng.random((1000, n))
    lost = (draws < limit + gains).astype(float) - (draws > 1 - gains)
    false = np.mean([p_value(row, limit) <= 0.05 for row in lost])
    assert false <= 0.06
    good = (draws < 0.002).astype(float)
    assert np.mean([p_value(row, limit) <= 0.05 for row in good]) > 0.9


def test_rows_needed_are_enough() -> None:
    for limit, drop in [(0.01, 0.0), (0.02, 0.0), (0.05, 0.01)]:
        n = rows_needed(limit, 0.95, drop)
        assert p_value(np.arange(n) < drop * n, limit) <= 0.08
    assert rows_needed(0.01, 0.95, 0.02) == 0
    assert rows_needed(5e-324, 0.95) > 10**300


def test_standard_errors_are_those_of_a_mean() -> None:
    """The jackknife of a black-box mean agrees with the formula."""
    rng = np.random.default_rng(0)
    y = rng.random((300, 1)).astype(np.float32)
    noisy = y + 0.1 * rng.standard_normal(y.shape).astype(np.float32)
    rows = open_rows({"x": y}, (Input("x", "float32", (None, 1)),))
    metric = Metric("m", lambda o, d, _, r: 1 - float(np.abs(o["o"] - r["o"]).mean()))
    found = drop_of(metric, rows, Outputs([{"o": y}]), Outputs([{"o": noisy}]))
    error = np.abs(noisy - y)
    assert found.value == pytest.approx(error.mean(), rel=1e-5)
    assert found.std_error == pytest.approx(error.std(ddof=1) / np.sqrt(300), rel=0.35)


def test_the_knapsack_trades_cost_for_error() -> None:
    options = {
        "a": [Option(1, 0.0, 0.0), Option(2, -10.0, 0.1), Option(3, -11.0, 5.0)],
        "b": [Option(1, 0.0, 0.0), Option(2, -1.0, 0.2)],
    }
    assert knapsack(options, 1e6) == {"a": 1, "b": 1}
    assert knapsack(options, 20.0) == {"a": 2, "b": 1}
    assert knapsack(options, 1.0) == {"a": 2, "b": 2}
    assert knapsack(options, 0.0) == {"a": 3, "b": 2}


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_errors_foretell_drops(power: float) -> None:
    errors = 10.0 ** np.arange(-4, 0, 0.25)
    known = [
        Candidate(Recipe({"k": k}), 1.0, 0.3 * e**power, 1e-5, float(e))
        for k, e in enumerate(errors)
    ]
    assert trend(known, 0.01)(1e-3) == pytest.approx(0.3 * 1e-3**power, rel=1e-3)
    assert trend(known[:0], 0.01)(1e-3) == 0.0


def test_a_journal_is_read_again_and_belongs_to_one_run(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    memory = Memory(path, "one")
    memory.put("key", [1.0, 0.5, 0.0, 0.1, 0.6])
    memory.close()
    with path.open("a") as file:
        file.write("torn li")
    again = Memory(path, "one")
    assert again.get("key") == [1.0, 0.5, 0.0, 0.1, 0.6]
    again.put("other", [2.0, 0.0, 0.0, 0.0, 0.0])
    again.close()
    assert Memory(path, "one").get("other") == [2.0, 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(FormatError, match="another run"):
        Memory(path, "two")
    whole = path.read_bytes()
    bad = whole.replace(b"[1.0", b"[3.0")
    path.write_bytes(bad)
    with pytest.raises(FormatError, match="damaged record"):
        Memory(path, "one")
    assert path.read_bytes() == bad
    path.write_text("something else\n")
    with pytest.raises(FormatError, match="not a journal"):
        Memory(path, "one")


@pytest.mark.parametrize("text", ["[]", "null", '{"recipe": null}', '{"prune.dense0": NaN}', "{"])
def test_what_is_no_recipe_is_refused(task, tmp_path: Path, text: str) -> None:
    net, x, _ = task
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises((FormatError, OptionError)):
        apply_recipe(Recipe.load(str(path)), net, x)
    with pytest.raises(MissingFileError):
        Recipe.load(str(tmp_path / "none.json"))


@pytest.fixture(scope="module")
def task() -> tuple[Network, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3000, 8)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    net = Network.mlp((8, 32, 2), seed=0)
    net.fit(x[:500], y[:500], fastopt.optim.Adam(net.params, lr=3e-3), epochs=20)
    return net, x[500:], y[500:]


def test_a_certificate_is_given_or_the_rows_it_needs(task) -> None:
    net, x, y = task
    small = fastopt.compress(net, (x, y), max_drop=0.05, confidence=0.95, max_evals=20)
    assert small.changed
    assert small.p_value is not None
    assert small.p_value <= 0.05
    assert "certified" in small.verdict()
    few = fastopt.compress(net, (x[:80], y[:80]), max_drop=0.05, confidence=0.95, max_evals=20)
    assert not few.changed
    assert any("59" in note for note in few.notes)


def test_storage_goes_on_where_it_ended(task, tmp_path: Path) -> None:
    net, x, y = task
    path = tmp_path / "run.journal"
    first = fastopt.compress(net, (x, y), max_drop=0.02, max_evals=15, storage=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:5]) + "\n")
    again = fastopt.compress(net, (x, y), max_drop=0.02, max_evals=15, storage=path)
    assert again.recipe == first.recipe
    with pytest.raises(FormatError, match="another run"):
        fastopt.compress(net, (x[:-1], y[:-1]), max_drop=0.02, max_evals=15, storage=path)


def test_a_recipe_is_repeated_on_a_retrained_model(task) -> None:
    net, x, y = task
    small = fastopt.compress(net, (x, y), max_drop=0.03, max_evals=15)
    other = net.copy()
    other.fit(x[:300], y[:300], fastopt.optim.Adam(other.params, lr=1e-3), epochs=2)
    done = fastopt.compression.apply_recipe(small.recipe, other, (x, y), max_drop=0.05)
    assert done.changed
    assert done.after.nbytes == small.after.nbytes


def test_a_compressed_model_is_compressed_again(task) -> None:
    net, x, y = task
    first = fastopt.compress(net, (x, y), max_drop=0.02, max_evals=10, passes=("quantize",))
    second = fastopt.compress(first.model, (x, y), max_drop=0.03, max_evals=25)
    assert second.after.nbytes < first.after.nbytes


def test_it_says_what_it_takes(task) -> None:
    _, x, y = task
    for model in (x, object()):
        with pytest.raises(fastopt.errors.DTypeError, match="ModelProto"):
            fastopt.compress(model, (x, y))
    with pytest.raises(fastopt.errors.OptionError, match="onnx"):
        fastopt.compress("model.pkl", (x, y))


def test_ctrl_c_while_the_result_is_measured_keeps_it(task, monkeypatch) -> None:
    net, x, y = task
    whole = fastopt.compress(net, (x, y), max_drop=0.05, max_evals=15)
    calls = []

    def pressed(*args):
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr("fastopt.compression.outcome.latencies", pressed)
    found = fastopt.compress(net, (x, y), max_drop=0.05, max_evals=15)
    assert found.interrupted
    assert not whole.interrupted
    assert len(calls) == 1
    assert np.isnan(found.after.latency_s)
    assert found.recipe == whole.recipe
    assert found.changed
    with pytest.raises(KeyboardInterrupt):
        fastopt.compress(net, (x, y), max_drop=0.05, max_evals=15, on_interrupt="raise")


_INTERRUPTED = """
import json, os, signal, sys, threading, numpy as np, fastopt
from fastopt.models import Network
net = Network.mlp([64, 256, 128, 10], seed=0)
x = np.random.default_rng(0).standard_normal((2000, 64)).astype("f4")
done = []
def callback(n, best):
    if n == 5:
        os.kill(os.getpid(), signal.SIGINT)
for how in ("return", "raise"):
    try:
        r = fastopt.compress(net, (x, net.predict(x)), max_evals=10**5, callback=callback,
                             on_interrupt=how)
        done.append([r.interrupted, json.loads(r.to_json())["interrupted"], r.verdict()])
    except KeyboardInterrupt:
        done.append("raised")
print(json.dumps(done))
"""


def test_ctrl_c_ends_the_search_and_is_told() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=120
    )
    first, second = json.loads(done.stdout)
    assert first[:2] == [True, True]
    assert "interrupted" in first[2]
    assert second == "raised"
    assert time.monotonic() - start < 100
