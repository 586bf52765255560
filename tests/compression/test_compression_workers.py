"""Processes that measure side by side: the same result, deaths made good, and what is timed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.compression import accept, explain, job
from fastopt.compression.journal import Memory
from fastopt.compression.prepare import Option
from fastopt.compression.search import knapsack
from fastopt.compression.team import Team
from fastopt.errors import FastoptError, OptionError, WorkerDied
from fastopt.models import Network
from fastopt.optim import SGD
from fastopt.search import process

pytestmark = pytest.mark.forks


@pytest.fixture(scope="module")
def task() -> tuple[Network, np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((400, 12), dtype=np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] > 0)
    net = Network.mlp((12, 48, 32, 3), seed=0)
    net.fit(x, y, SGD(list(net.params.values()), lr=0.2), epochs=20)
    return net, x, y


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("method", ["genetic", "greedy", "random"])
def test_any_number_of_workers_gives_the_same_model(task, method: str, labelled: bool) -> None:
    net, x, y = task
    data = (x, y) if labelled else x
    options = {"max_drop": 0.03, "max_evals": 24, "method": method, "seed": 3}
    one, two, three = (fastopt.compress(net, data, workers=n, **options) for n in (1, 2, 3))
    assert one.after.nbytes < net.nbytes
    for other in (two, three):
        assert other.recipe == one.recipe
        assert [c.recipe for c in other.candidates] == [c.recipe for c in one.candidates]
        assert [c.drop for c in other.candidates] == [c.drop for c in one.candidates]
        np.testing.assert_array_equal(other.model.forward(x), one.model.forward(x))


def test_an_onnx_model_with_workers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tests.onnx_graphs import mlp

    proto = mlp()
    name = proto.graph.input[0].name
    wide = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    x = np.random.default_rng(0).standard_normal((120, wide), dtype=np.float32)
    made = [fastopt.compress(proto, {name: x}, workers=n, max_evals=12) for n in (1, 2)]
    assert made[0].model.SerializeToString() == made[1].model.SerializeToString()
    assert made[0].recipe == made[1].recipe


def _dies_once(path: Path) -> int:
    """Kills its own process where the file is there."""
    if path.exists():
        path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    doomed = [tmp_path / str(k) for k in range(6)]
    doomed[2].touch()
    assert list(Team(2).map(_dies_once, doomed)) == [7] * 6
    assert not doomed[2].exists()


def test_a_question_that_kills_two_workers_is_an_error() -> None:
    def answer(k: int) -> int:
        if k == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return k

    found = list(Team(2).map(answer, [0, 1, 2]))
    assert found[0] == 0
    assert found[2] == 2
    assert isinstance(found[1], WorkerDied)


def _hangs_once(path: Path) -> int:
    """Waits for ever, as for a lock that nobody releases, where the file is there."""
    if path.exists():
        path.unlink()
        signal.pause()
    return 7


@pytest.mark.skipif(sys.platform != "linux", reason="reads a clock of Linux")
def test_a_worker_that_hangs_is_replaced(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(process, "STUCK_S", 0.5)
    doomed = [tmp_path / str(k) for k in range(6)]
    doomed[2].touch()
    assert list(Team(2).map(_hangs_once, doomed)) == [7] * 6
    assert not doomed[2].exists()


def test_an_error_of_a_worker_arrives() -> None:
    def answer(k: int) -> int:
        if k == 1:
            raise ZeroDivisionError("in the worker")
        return k

    with pytest.raises(ZeroDivisionError, match="in the worker"):
        list(Team(2).map(answer, [0, 1, 2]))


def test_workers_are_checked(task) -> None:
    net, x, _ = task
    with pytest.raises(OptionError, match="workers"):
        fastopt.compress(net, x, workers=0)


def test_of_rivals_only_the_best_acts() -> None:
    options = {
        "prune.a": [Option(1.0, 0.0, 0.0), Option(0.5, -10.0, 0.1)],
        "merge.a": [Option(1.0, 0.0, 0.0), Option(0.5, -10.0, 0.01)],
        "prune.b": [Option(1.0, 0.0, 0.0), Option(0.5, -10.0, 0.1)],
    }
    rivals = [["prune.a", "merge.a", "layer.x"], ["prune.b", "merge.b"]]
    assert knapsack(options, 1.0, rivals) == {"prune.a": 1.0, "merge.a": 0.5, "prune.b": 0.5}
    assert knapsack(options, 1e9, rivals) == {"prune.a": 1.0, "merge.a": 1.0, "prune.b": 1.0}


def test_a_model_that_loads_too_slowly_is_not_returned(monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    from tests.onnx_graphs import model, node, value, weights

    proto = model(
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
        [value("x", ("n", 64))],
        ["y"],
        {"w": weights(64, 128), "v": weights(128, 8)},
    )
    x = {"x": np.random.default_rng(0).standard_normal((400, 64), dtype=np.float32)}
    true = explain.latencies
    free = fastopt.compress(proto, x, max_drop=0.05, max_evals=12)
    packed = {v for v in free.recipe.choices.values() if str(v).startswith("int")}
    assert any(v[3] in "234567" for v in packed)

    def slow(models, *args, **kwargs):
        """Codes of 2 to 7 bits take four seconds to decode."""
        found = true(models, *args, **kwargs)
        for k, timed in enumerate(models):
            if any(x.form.bits not in (8, 16, 32) for x in timed.layers.values()):
                found[k] = explain.Timed(found[k].median_s, found[k].least_s, 4.0)
        return found

    monkeypatch.setattr(accept, "latencies", slow)
    held = fastopt.compress(proto, x, max_drop=0.05, max_evals=40)
    bits = {v for k, v in held.recipe.choices.items() if k.startswith("quantize.")}
    assert held.changed
    assert not any(str(v).startswith("int") and v[3] in "234567" for v in bits)
    assert any("to load" in note for note in held.notes)


def test_recipes_that_drop_too_much_are_not_timed(task, monkeypatch) -> None:
    net, x, y = task
    timed: list[int] = []
    true = job.latencies

    def counted(models, *args, **kwargs):
        timed.append(models[-1].macs)
        return true(models, *args, **kwargs)

    monkeypatch.setattr(job, "latencies", counted)
    found = fastopt.compress(
        net, (x, y), target="latency", max_evals=20, passes=["prune"], method="random"
    )
    hopeless = [c for c in found.candidates if c.drop > 2 * found.max_drop]
    assert hopeless
    assert all(c.cost == np.inf for c in hopeless)
    near = len(found.candidates) - len(hopeless)
    # once for the original, once per near candidate, twice when one is confirmed
    assert len(timed) <= 3 + near + 2 * len(found.candidates)
    assert isinstance(found, fastopt.compression.Compressed)


def test_team_of_one_asks_here() -> None:
    assert list(Team(1).map(lambda k: os.getpid(), [1, 2])) == [os.getpid()] * 2
    assert issubclass(WorkerDied, FastoptError)


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    held = Memory(path, "one")
    code = (
        "import sys\n"
        "from fastopt.compression.journal import Memory\n"
        "from fastopt.errors import StorageError\n"
        "try:\n    Memory(sys.argv[1], 'one')\n"
        "except StorageError as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, str(path)]
    assert "in use" in subprocess.run(command, capture_output=True, text=True).stdout
    held.close()
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""
