"""The loop around engines: arrivals, workers that die, Ctrl-C, journals of others, conditions."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.errors import (
    ArrayError,
    DTypeError,
    FormatError,
    OptionError,
    StorageError,
    TrialError,
    UnsupportedError,
    WorkerDied,
)
from fastopt.search import (
    Bool,
    Choice,
    Float,
    Genetic,
    Int,
    Permutation,
    Random,
    Space,
    Vector,
    load_result,
    minimize,
)
from fastopt.search.evaluation import Portable
from fastopt.search.journal import read

LINE = Space(a=Float(0, 1))
MIXED = Space(x=Float(-2, 2), n=Int(1, 9), kind=Choice("a", "b"), flag=Bool())
BRANCHES = Space(
    opt=Choice("sgd", "adam"),
    momentum=Float(0, 1, when={"opt": "sgd"}),
    nesterov=Bool(when={"opt": "sgd"}),
    strength=Int(1, 9, when={"nesterov": True}),
    beta=Float(0.8, 1, when={"opt": ("adam",)}),
)


def smooth(x, n, kind, flag):
    return (x - 0.5) * (x - 0.5) + abs(n - 4) + (kind == "a") + flag


def deadly(a):
    """Ends its process for a few trials, and leaves a mark each time."""
    if a > 0.9:
        Path(os.environ["MARKS"], f"{a!r}-{time.monotonic_ns()}").touch()
        os._exit(9)
    return a


def slow_for_some(a):
    if a > 0.8:
        time.sleep(60)
    return a


# --- workers of our own


def test_workers_give_what_one_process_gives(tmp_path):
    plain = minimize(smooth, MIXED, method="genetic", max_evals=80, seed=2)
    for workers in (1, 2):
        res = minimize(
            lambda x, n, kind, flag: plain.n_failed + smooth(x, n, kind, flag),  # a closure
            MIXED,
            method="genetic",
            max_evals=80,
            seed=2,
            workers=workers,
            storage=tmp_path / f"j{workers}",
        )
        assert res.history.tobytes() == plain.history.tobytes()
        assert res.x == plain.x


def test_a_dead_worker_costs_its_trial_one_retry(tmp_path, monkeypatch):
    monkeypatch.setenv("MARKS", str(tmp_path))
    journal = tmp_path / "journal"
    args = {"method": "random", "max_evals": 40, "workers": 2, "storage": journal}
    res = minimize(deadly, LINE, on_error="skip", **args)
    bad = np.flatnonzero(res.values[:, 0] > 0.9)
    assert len(bad)
    assert sorted(res.errors) == bad.tolist()
    assert all(
        e.startswith("WorkerDied: worker ended twice, by exit code 9") for e in res.errors.values()
    )
    assert len(list(tmp_path.glob("0.9*"))) == 2 * len(bad)  # once, and once more
    assert res.n_evals == 40
    assert res.n_failed == len(bad)
    good = res.values[:, 0] <= 0.9
    assert np.array_equal(res.history[good], res.values[good, 0])
    with pytest.raises(WorkerDied) as raised:
        minimize(deadly, LINE, method="random", max_evals=40, workers=2)
    assert raised.value.result.n_failed >= 1
    again = minimize(deadly, LINE, on_error="skip", **args)  # nothing is evaluated any more
    assert again.history.tobytes() == res.history.tobytes()
    assert len(list(tmp_path.glob("0.9*"))) >= 2 * len(bad)


def test_a_trial_that_takes_too_long_is_ended():
    res = minimize(
        slow_for_some, LINE, method="random", max_evals=24, workers=2, timeout=0.3, on_error="skip"
    )
    bad = np.flatnonzero(res.values[:, 0] > 0.8)
    assert len(bad)
    assert sorted(res.errors) == bad.tolist()
    assert all(
        e.startswith("TrialTimeout: no result after timeout=0.3") for e in res.errors.values()
    )
    with pytest.raises(OptionError, match="timeout"):
        minimize(slow_for_some, LINE, timeout=1)


def test_workers_that_cannot_start(monkeypatch):
    import fastopt.search.process as module

    monkeypatch.setattr(module, "_serve", lambda *a: os._exit(3))
    with pytest.raises(WorkerDied, match="before they are ready"):
        minimize(smooth, MIXED, max_evals=5, workers=1)


def test_a_broken_executor_is_our_error_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MARKS", str(tmp_path))
    with ProcessPoolExecutor(2) as pool, pytest.raises(WorkerDied) as raised:
        minimize(
            deadly, LINE, method="random", max_evals=40, executor=pool, storage=tmp_path / "j"
        )
    kept = read(tmp_path / "j")[1]
    assert raised.value.result.n_evals == len(kept) > 0


class Stepwise(Executor):
    """Runs every task at once but one, which never comes back; in this process."""

    _max_workers = 64

    def __init__(self, never):
        self.never, self.count = never, 0

    def submit(self, f, *args):
        future = Future()
        if self.count == self.never:
            future.set_running_or_notify_cancel()
        else:
            future.set_result(f(*args))
        self.count += 1
        return future


def test_trials_behind_a_slow_one_are_recorded(tmp_path):
    path = tmp_path / "j"
    res = minimize(
        lambda a: a,
        LINE,
        method="random",
        max_evals=60,
        max_time=0.3,
        executor=Stepwise(never=0),
        storage=path,
    )
    kept = read(path)[1]
    assert 0 not in kept
    assert len(kept) == res.n_evals >= 30
    assert res.fun == min(r.outcome.y for r in kept.values())
    assert res.numbers.tolist() == sorted(kept)
    assert np.array_equal(res.trials["a"], res.history)
    calls = []
    full = minimize(
        lambda a: calls.append(a) or a, LINE, method="random", max_evals=60, storage=path
    )
    assert len(calls) == 60 - len(kept)
    assert (
        full.history.tobytes()
        == minimize(lambda a: a, LINE, method="random", max_evals=60).history.tobytes()
    )


def test_what_cannot_be_sent_is_named(monkeypatch):
    class Holder:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, a):
            return a

    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(DTypeError, match=r"Holder\.lock \(lock\)"):
            minimize(Holder(), LINE, max_evals=3, executor=pool)
        pytest.importorskip("cloudpickle")
        shift = 0.25
        res = minimize(lambda a: a + shift, LINE, max_evals=9, executor=pool)
        assert res.fun >= 0.25
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
        with pytest.raises(DTypeError, match="install cloudpickle"):
            minimize(lambda a: a + shift, LINE, max_evals=9, executor=pool)
    assert Portable(abs)(-2) == 2


def test_lookahead_gives_the_same_trials_for_any_workers(tmp_path):
    args = {"method": "genetic", "max_evals": 60, "batch_size": 4, "lookahead": 3}
    plain = minimize(smooth, MIXED, **args)
    assert (
        plain.history.tobytes()
        != minimize(smooth, MIXED, **{**args, "lookahead": 0}).history.tobytes()
    )
    for workers in (1, 3):
        with ThreadPoolExecutor(workers) as pool:
            res = minimize(smooth, MIXED, executor=pool, storage=tmp_path / f"{workers}", **args)
        assert res.history.tobytes() == plain.history.tobytes()
    longer = minimize(smooth, MIXED, storage=tmp_path / "1", **{**args, "max_evals": 90})
    assert longer.history[:60].tobytes() == plain.history.tobytes()


# --- asynchronous


def by_size(a):
    time.sleep(0.004 * (a > 0.5))
    return (a - 0.3) ** 2


@pytest.mark.parametrize("method", ["random", "genetic"])
def test_an_asynchronous_search_is_replayed_exactly(tmp_path, method):
    path = tmp_path / "j"
    args = {"method": method, "mode": "async", "storage": path, "batch_size": 3}
    with ThreadPoolExecutor(3) as pool:
        first = minimize(by_size, LINE, max_evals=40, executor=pool, **args)
    assert sorted(first.numbers) == list(range(40))

    def never(a):
        raise AssertionError("evaluated again")

    again = minimize(never, LINE, max_evals=40, **args)
    assert again.history.tobytes() == first.history.tobytes()
    assert again.numbers.tolist() == first.numbers.tolist()
    longer = minimize(by_size, LINE, max_evals=55, **args)
    assert longer.history[:40].tobytes() == first.history.tobytes()
    assert longer.n_evals == 55


def test_an_asynchronous_search_by_processes(tmp_path):
    path = tmp_path / "j"
    args = {"method": "genetic", "mode": "async", "storage": path, "stopper": "asha"}
    first = minimize(learning, LINE, max_evals=40, workers=2, **args)
    assert first.n_evals == 40
    assert first.stopped
    again = minimize(learning, LINE, max_evals=40, **args)
    assert again.history.tobytes() == first.history.tobytes()
    assert again.stopped == first.stopped
    finite = minimize(lambda n: n, Space(n=Int(0, 9)), mode="async", max_evals=500, workers=2)
    assert finite.message.startswith("space exhausted")
    assert set(finite.history) == set(range(10))


# --- Ctrl-C

INTERRUPT = """
import os, signal, sys
from fastopt.search import Float, Space, minimize
calls = []
def f(a):
    calls.append(a)
    if len(calls) in {at}:
        {act}
    return a
try:
    res = minimize(f, Space(a=Float(0, 1)), method="random", max_evals=50, {options})
    print(res.interrupted, res.n_evals, res.message)
except KeyboardInterrupt as stop:
    print("raised", stop.result.n_evals if hasattr(stop, "result") else None)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
PRESS = "os.kill(os.getpid(), signal.SIGINT)"
SWALLOW = f"""
        try:
            {PRESS}
            for _ in range(1000): pass
        except BaseException: pass"""


def python(code, **values):
    for name, value in values.items():
        code = code.replace("{" + name + "}", value)
    env = {**os.environ, "PYTHONPATH": str(Path(fastopt.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_ctrl_c_returns_the_best_so_far(tmp_path):
    for options in ("", f"storage={str(tmp_path / 'j')!r}"):
        out = python(INTERRUPT, at="{20}", act=PRESS, options=options)
        assert out[:2] == ["True 19 interrupted", "True"]
    assert len(read(tmp_path / "j")[1]) == 19


def test_a_swallowed_ctrl_c_ends_the_search_all_the_same():
    assert python(INTERRUPT, at="{20}", act=SWALLOW, options="")[0] == "True 20 interrupted"


def test_ctrl_c_can_raise():
    out = python(INTERRUPT, at="{20}", act=PRESS, options="on_interrupt='raise'")
    assert out[:2] == ["raised 19", "True"]


def test_a_second_ctrl_c_raises():
    out = python(INTERRUPT, at="{20}", act=f"{SWALLOW}\n        {PRESS}", options="")
    assert out[0].startswith(("raised", "True 19"))


def test_ctrl_c_with_workers(tmp_path):
    code = """
import os, signal, threading, time
from fastopt.search import Float, Space, minimize
def f(a):
    time.sleep(0.02 if a < 0.8 else 30)
    return a
threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
res = minimize(f, Space(a=Float(0, 1)), method="random", max_evals=500, workers=2)
print(res.interrupted, res.n_evals > 0, time.monotonic() - start < 10)
"""
    assert python(code)[0] == "True True True"


# --- journals


def test_a_child_of_the_objective_does_not_hold_the_journal(tmp_path):
    children = []

    def f(a):
        if not children:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
        return a

    try:
        minimize(f, LINE, max_evals=5, storage=tmp_path / "j")
        res = minimize(lambda a: a, LINE, max_evals=9, storage=tmp_path / "j")
        assert res.n_evals == 9
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


@pytest.mark.parametrize("damage", ["delete", "replace", "cut", "grow"])
def test_a_journal_damaged_under_its_writer(tmp_path, damage):
    path = tmp_path / "j"

    def f(a):
        if path.stat().st_size > 2000:
            if damage == "delete":
                path.unlink()
            elif damage == "replace":
                path.rename(tmp_path / "other")
                path.write_bytes(b"")
            elif damage == "cut":
                os.truncate(path, 1000)
            else:
                os.truncate(path, path.stat().st_size + 5000)
        return a

    # A deleted file cannot be looked at by the objective any more.
    expected = (StorageError, FileNotFoundError) if damage == "delete" else StorageError
    with pytest.raises(expected) as raised:
        minimize(f, LINE, method="random", max_evals=4000, storage=path)
    assert isinstance(raised.value, StorageError)


def test_other_points_than_the_recorded_ones_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "j"
    minimize(lambda a: a, LINE, method="random", max_evals=50, storage=path)
    old = Random._random
    monkeypatch.setattr(Random, "_random", lambda self, first, k: old(self, first + 1, k))
    with pytest.raises(FormatError, match="trial 0 was evaluated at another point"):
        minimize(lambda a: a, LINE, method="random", max_evals=50, storage=path)
    monkeypatch.undo()
    monkeypatch.setattr(Random, "proposals", 2)
    with pytest.raises(FormatError, match="proposals 1"):
        minimize(lambda a: a, LINE, method="random", max_evals=50, storage=path)


def line(body):
    return b"%08x %s\n" % (zlib.crc32(body), body)


def test_forged_journals_are_format_errors(tmp_path):
    path = tmp_path / "j"
    minimize(lambda a: a, LINE, max_evals=3, storage=path)
    good = path.read_bytes()
    header = json.loads(good.split(b"\n")[0][9:])
    for body in (
        b"[" * 100_000,
        b'{"trial":3,"y":"0x1p99999"}',
        b'{"trial":3,"x":"0000000000000000","y":"0x1p99999"}',
        b'{"trial":"3","x":"0000000000000000","y":"0x1p0"}',
        b'{"trial":-1,"x":"0000000000000000","y":"0x1p0"}',
        b'{"trial":3,"x":7,"y":"0x1p0"}',
        b'{"trial":3,"x":"0000000000000000","y":1.5}',
        b'{"trial":3,"x":"0000000000000000","y":"0x1p0","error":3}',
        b'{"trial":3,"x":"0000000000000000","y":"0x1p0","reports":[[1]]}',
        b'{"trial":3,"x":"0000000000000000","y":"0x1p0","values":["a"]}',
        b'{"forget":"all"}',
    ):
        path.write_bytes(good + line(body))
        with pytest.raises(FormatError):
            minimize(lambda a: a, LINE, max_evals=9, storage=path)
    for change in (
        {"options": 3},
        {"options": {"nonsense": 1}},
        {"batch": "x"},
        {"batch": -5},
        {"own_batch": 0},
        {"method": 3},
        {"method": "magic"},
        {"format": "fastopt journal 1"},
    ):
        path.write_bytes(line(json.dumps({**header, **change}).encode()))
        with pytest.raises((FormatError, OptionError)):
            minimize(lambda a: a, LINE, max_evals=9, storage=path)
    path.write_text("hello\nworld\n")
    with pytest.raises(FormatError, match="not a journal of a search") as raised:
        minimize(lambda a: a, LINE, max_evals=9, storage=path)
    assert "cut" not in str(raised.value)
    assert path.read_text() == "hello\nworld\n"


def test_storage_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null", tmp_path / "no" / "j"):
        with pytest.raises(StorageError):
            minimize(lambda a: a, LINE, max_evals=3, storage=path)
    with pytest.raises(DTypeError, match="storage"):
        minimize(lambda a: a, LINE, max_evals=3, storage=3)
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StorageError):
            load_result(path)
        with pytest.raises((StorageError, FormatError)):
            Space.load(path)


def relu(v):
    return v


def test_identity_of_a_space_is_its_content(tmp_path):
    code = """
import sys
from fastopt.search import Choice, Float, Space, minimize
def relu(v): return v
space = Space(x=Float(0, 1), act=Choice(relu, abs))
print(minimize(lambda t: t["x"], space, max_evals=int(sys.argv[-1]), storage={path}).n_evals)
"""
    for n in ("10", "20"):
        out = python(
            f"import sys; sys.argv = ['-', {n!r}]\n" + code, path=repr(str(tmp_path / "j"))
        )
        assert out[0] == n
    a, b = np.arange(3000), np.arange(3000)
    b[1500] = -1
    assert Space(c=Choice(a, 1)) != Space(c=Choice(b, 1))
    assert Space(c=Choice(a, 1)) == Space(c=Choice(a.copy(), 1))
    minimize(lambda t: 0.0, Space(c=Choice(a, a)), max_evals=1, storage=tmp_path / "k")
    with pytest.raises(FormatError, match="another search"):
        minimize(lambda t: 0.0, Space(c=Choice(b, b)), max_evals=1, storage=tmp_path / "k")
    one, two = (lambda v: v + 1), (lambda v: v + 2)
    assert Space(c=Choice(one, 0)) != Space(c=Choice(two, 0))
    with pytest.raises(OptionError, match="only its address"):
        minimize(lambda t: 0.0, Space(c=Choice(object(), 1)), max_evals=1, storage=tmp_path / "l")


def test_failed_trials_can_be_tried_again(tmp_path):
    path = tmp_path / "j"
    args = {"method": "genetic", "x0": {"a": 0.5}, "max_evals": 30, "storage": path}

    def broken(a):
        raise ImportError("typo")

    with pytest.raises(ImportError) as raised:
        minimize(broken, LINE, **args)
    assert raised.value.result.n_failed == 1
    kept = minimize(lambda a: abs(a - 0.5), LINE, **args)
    assert kept.n_failed == 1
    assert kept.fun > 0
    mended = minimize(lambda a: abs(a - 0.5), LINE, retry_failed=True, **args)
    assert mended.n_failed == 0
    assert mended.x == {"a": 0.5}
    plain = minimize(lambda a: abs(a - 0.5), LINE, method="genetic", x0={"a": 0.5}, max_evals=30)
    assert mended.history.tobytes() == plain.history.tobytes()
    again = minimize(lambda a: 1 / 0, LINE, **args)  # all of it is in the journal
    assert again.history.tobytes() == plain.history.tobytes()


# --- spaces


@pytest.mark.parametrize("method", ["random", "greedy", "genetic"])
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_finite_space_is_searched_once(method, vectorized):
    space = Space(a=Int(-2, 1), b=Bool(), c=Choice("x", "y", "z"))
    seen = []

    def f(t):
        rows = list(zip(t["a"], t["b"], t["c"])) if vectorized else [(t["a"], t["b"], t["c"])]
        seen.extend(rows)
        y = np.array([abs(a) + 2.0 * b + (c != "y") for a, b, c in rows])
        return y if vectorized else float(y[0])

    res = minimize(f, space, method=method, max_evals=3000, vectorized=vectorized)
    assert res.n_evals == len(seen) == len(set(seen)) == 24
    assert res.message.startswith("space exhausted")
    assert res.x == {"a": 0, "b": False, "c": "y"}
    assert res.fun == 0


def test_off_the_grid_is_refused():
    space = Space(x=Float(0, 1, step=0.25), y=Float(0, 1, step=0.1))
    with pytest.raises(ArrayError, match=r"x0\[0\]\.x: 0\.3 is not a value"):
        minimize(lambda x, y: x, space, x0={"x": 0.3, "y": 0.2}, max_evals=2)
    res = minimize(
        lambda x, y: x - y, space, x0={"x": 0.25, "y": 0.3}, method="greedy", max_evals=1
    )
    assert res.x == {"x": 0.25, "y": 0.1 * 3}
    for bad in ({"x": "0.25", "y": 0.2}, {"x": None, "y": 0.1}, {"x": 1j, "y": 0.1}):
        with pytest.raises(ArrayError):
            minimize(lambda x, y: x, space, x0=bad, max_evals=2)


def test_inactive_variables_are_absent():
    seen = []
    res = minimize(lambda t: seen.append(t) or 0.0, BRANCHES, method="random", max_evals=300)
    shapes = {tuple(t) for t in seen}
    assert shapes == {
        ("opt", "beta"),
        ("opt", "momentum", "nesterov"),
        ("opt", "momentum", "nesterov", "strength"),
    }
    for t in seen:
        assert (t["opt"] == "sgd") == ("momentum" in t)
        assert ("strength" in t) == (t.get("nesterov") is True)
    columns = res.trials
    adam = columns["opt"] == "adam"
    assert np.isnan(columns["momentum"][adam]).all()
    assert not np.isnan(columns["momentum"][~adam]).any()
    assert all(v is None for v in columns["nesterov"][adam])
    values = BRANCHES.parse(seen)
    assert np.array_equal(values, res.values)
    mask = BRANCHES.active(BRANCHES.genomes_of(values))
    assert np.array_equal(mask[:, 1], ~adam)
    assert np.array_equal(mask[:, 4], adam)
    assert np.array_equal(BRANCHES.parse(BRANCHES.present(values)), values)
    for name in ("greedy", "genetic"):
        best = minimize(
            lambda t: t.get("beta", 2.0) + (t["opt"] != "adam"),
            BRANCHES,
            method=name,
            max_evals=200,
        )
        assert set(best.x) == {"opt", "beta"}
        assert best.fun < 0.85


def test_numeric_conditions_are_nan_in_the_matrix():
    space = Space(n=Int(0, 2), x=Float(1, 2, when={"n": (1, 2)}))
    res = minimize(lambda m: np.nan_to_num(m[:, 1], nan=9.0), space, max_evals=60, vectorized=True)
    assert res.x["n"] in (1, 2)
    given = Random(space, seed=1).ask(50)
    assert np.array_equal(np.isnan(given[:, 1]), given[:, 0] == 0)
    assert np.array_equal(space.present(space.parse(given)), given, equal_nan=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Space(x=Float(0, 1, when={"y": 1})),
        lambda: Space(x=Float(0, 1, when={"x": 1})),
        lambda: Space(a=Bool(when={"b": True}), b=Bool(when={"a": True})),
        lambda: Space(a=Choice("p", "q"), x=Float(0, 1, when={"a": "r"})),
        lambda: Space(a=Float(0, 1), x=Float(0, 1, when={"a": 0.5})),
        lambda: Space(a=Int(0, 3), x=Float(0, 1, when={"a": 7})),
    ],
)
def test_bad_conditions(make):
    with pytest.raises(OptionError):
        make()


def test_conditions_on_what_is_given():
    with pytest.raises(ArrayError, match="inactive"):
        BRANCHES.parse([{"opt": "adam", "beta": 0.9, "momentum": 0.5}])
    with pytest.raises(ArrayError, match="missing"):
        BRANCHES.parse([{"opt": "adam"}])
    res = minimize(lambda t: 0.0, BRANCHES, x0={"strength": 3}, max_evals=1, method="greedy")
    assert res.x["strength"] == 3
    assert res.x["opt"] == "sgd"
    with pytest.raises(ArrayError, match="inactive"):
        minimize(lambda t: 0.0, BRANCHES, x0={"opt": "adam", "strength": 3}, max_evals=1)


def test_first_trials_in_part():
    asked = []
    x0 = [{"n": 3}, {"kind": "b", "x": 0.5}]
    minimize(lambda t: asked.append(t) or t["x"], MIXED, x0=x0, max_evals=4, method="greedy")
    assert asked[0]["n"] == 3
    assert (asked[1]["kind"], asked[1]["x"]) == ("b", 0.5)
    with pytest.raises(ArrayError, match="unknown"):
        minimize(lambda t: 0.0, MIXED, x0={"z": 1}, max_evals=4)


def test_a_space_goes_to_json_and_back(tmp_path):
    space = Space(
        lr=Float(1e-5, 1, log=True),
        drop=Float(0, 0.5, step=0.1),
        opt=Choice("sgd", 3, None, True),
        momentum=Float(0, 1, when={"opt": ("sgd", None)}),
        n=Int(1, 64, log=True, when={"opt": 3}),
        flag=Bool(),
        order=Permutation(4),
        mix=Vector(2, -1, 1, when={"flag": True}),
    )
    text = json.dumps(space.to_dict())
    assert Space.from_dict(json.loads(text)) == space
    (tmp_path / "space.json").write_text(text)
    assert Space.load(tmp_path / "space.json") == space
    (tmp_path / "space.toml").write_text(
        '[lr]\ntype = "float"\nlow = 1e-5\nhigh = 1\nlog = true\n'
        '[act]\ntype = "choice"\noptions = ["relu", "tanh"]\n'
        '[slope]\ntype = "float"\nlow = 0\nhigh = 1\nwhen = {act = "relu"}\n'
    )
    assert Space.load(tmp_path / "space.toml") == Space(
        lr=Float(1e-5, 1, log=True),
        act=Choice("relu", "tanh"),
        slope=Float(0, 1, when={"act": "relu"}),
    )
    with pytest.raises(UnsupportedError, match="act"):
        Space(act=Choice(abs, relu)).to_dict()


@pytest.mark.parametrize(
    "bad",
    [
        3,
        {},
        {"x": 3},
        {"x": {"type": "real"}},
        {"x": {"type": "float", "low": 0}},
        {"x": {"type": "float", "low": 0, "high": 1, "size": 3}},
        {"x": {"type": "float", "low": 2, "high": 1}},
        {"x": {"type": "float", "low": "0", "high": 1}},
        {"x": {"type": "choice", "options": "ab"}},
        {"x": {"type": "float", "low": 0, "high": 1, "when": {"y": 1}}},
    ],
)
def test_bad_descriptions(bad, tmp_path):
    with pytest.raises(FormatError):
        Space.from_dict(bad)
    (tmp_path / "s.json").write_text(json.dumps(bad))
    with pytest.raises(FormatError, match=re.escape("s.json")):
        Space.load(tmp_path / "s.json")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(FormatError):
        Space.load(tmp_path / "s.json")


def test_spaces_of_others():
    optuna = pytest.importorskip("optuna")
    d = optuna.distributions
    assert Space.from_optuna(
        {
            "lr": d.FloatDistribution(1e-5, 1, log=True),
            "drop": d.FloatDistribution(0, 0.5, step=0.1),
            "n": d.IntDistribution(1, 64, log=True),
            "k": d.IntDistribution(1, 9, step=2),
            "act": d.CategoricalDistribution(["relu", "tanh"]),
        }
    ) == Space(
        lr=Float(1e-5, 1, log=True),
        drop=Float(0, 0.5, step=0.1),
        n=Int(1, 64, log=True),
        k=Choice(1, 3, 5, 7, 9),
        act=Choice("relu", "tanh"),
    )
    stats = pytest.importorskip("scipy.stats")
    space = Space.from_scipy(
        {
            "C": stats.loguniform(1e-3, 1e3),
            "tol": stats.uniform(1, 4),
            "depth": stats.randint(2, 9),
            "kernel": ["rbf", "linear"],
            "fit": [True, False],
            "normal": stats.norm(0, 1),
        }
    )
    assert space.variables["C"] == Float(1e-3, 1e3, log=True)
    assert space.variables["tol"] == Float(1, 5)
    assert space.variables["depth"] == Int(2, 8)
    assert space.variables["kernel"] == Choice("rbf", "linear")
    assert space.variables["fit"] == Bool()
    assert space.variables["normal"].high == pytest.approx(3.09, abs=0.01)


# --- what the objective gets and returns


def test_the_objective_may_write_into_what_it_gets():
    options = ([1, 2], np.zeros(2))
    space = Space(c=Choice(*options), p=Permutation(4), v=Vector(3, 0, 1))

    def f(t):
        y = float(t["v"].sum()) + float(np.sum(t["c"]))
        t["v"][:], t["p"][:] = -5.0, 9
        t["c"][0] = 100
        t.clear()
        return y

    res = minimize(f, space, max_evals=60, method="genetic")
    assert options[0] == [1, 2]
    assert (options[1] == 0).all()
    assert (res.values[:, 5:] >= 0).all()
    twin = minimize(
        lambda t: float(t["v"].sum()) + float(np.sum(t["c"])),
        space,
        max_evals=60,
        method="genetic",
    )
    assert twin.history.tobytes() == res.history.tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        np.ma.masked_array(1.0, mask=True),
        np.array("2"),
        np.datetime64("2020-01-01"),
        np.array(1 + 0j),
        10**400,
        np.array([None], dtype=object),
    ],
)
def test_results_pass_the_gate(bad):
    with pytest.raises(TrialError):
        minimize(lambda a: bad, LINE, max_evals=2)


@pytest.mark.parametrize(
    "bad", [np.ma.masked_array([1.0], mask=[True]), np.array([2 + 5j]), np.array(["-7"]), ["x"]]
)
def test_what_is_told_passes_the_gate(bad):
    algo = Random(LINE)
    with pytest.raises(DTypeError, match="y"):
        algo.tell([[0.5]], bad)
    assert algo.n_told == 0


def test_maximize_keeps_the_sign():
    res = minimize(lambda a: -((a - 0.3) ** 2), LINE, method="greedy", max_evals=60, maximize=True)
    assert -1e-4 < res.fun <= 0
    assert res.fun == np.nanmax(res.history)
    assert np.array_equal(res.best, np.maximum.accumulate(res.history))
    low = minimize(lambda a: (a - 0.3) ** 2, LINE, method="greedy", max_evals=60)
    assert low.history.tobytes() == (-res.history).tobytes()
    failed = minimize(lambda a: math.inf, LINE, max_evals=3, maximize=True)
    assert failed.n_failed == 3


def test_constraints_come_first():
    def f(a):
        return -a, [a - 0.25, -1.0]

    for method in ("random", "greedy", "genetic"):
        res = minimize(f, LINE, constraints=2, method=method, max_evals=150, seed=1)
        assert 0.2 < res.x["a"] <= 0.25
        assert res.violation == 0
        assert np.allclose(res.violations, np.maximum(res.values[:, 0] - 0.25, 0))
        assert res.fun == -res.x["a"] == np.nanmin(res.best)
    none = minimize(lambda a: (a, 0.5 + a), LINE, constraints=1, method="greedy", max_evals=80)
    assert none.violation == pytest.approx(0.5, abs=1e-3)
    flat = minimize(
        lambda m: (-m[:, 0], m - 0.25), LINE, constraints=1, vectorized=True, max_evals=400
    )
    assert 0.2 < flat.x["a"] <= 0.25
    for bad in (lambda a: a, lambda a: (a, [1.0]), lambda a: (a, None)):
        with pytest.raises(TrialError):
            minimize(bad, LINE, constraints=2, max_evals=2)


def test_known_results_are_a_warm_start():
    prior = [({"a": 0.31}, 0.0001), ({"a": 0.9}, 0.36), ({"a": 0.1}, math.nan)]
    engine = Genetic(LINE, population=8, seed=0)
    res = minimize(lambda a: (a - 0.3) ** 2, LINE, method=engine, prior=prior, max_evals=5)
    assert res.n_evals == 5
    assert engine.n_told == 8
    assert res.fun <= 0.0001
    with pytest.raises(ArrayError):
        minimize(lambda a: a, LINE, prior=[({"a": 3.0}, 1.0)])


def test_patience_and_target():
    alone = minimize(lambda a: a, LINE, method="random", max_evals=500, patience=20)
    assert alone.message.startswith("patience=20")
    best = int(np.argmin(alone.history))
    assert alone.n_evals == best + 21
    hit = minimize(lambda a: a, LINE, method="random", max_evals=500, target=0.05)
    assert hit.message == "target reached"
    assert hit.history[-1] <= 0.05 < hit.history[:-1].min()
    with ThreadPoolExecutor(3) as pool:
        for options, twin in (({"patience": 20}, alone), ({"target": 0.05}, hit)):
            res = minimize(
                lambda a: a, LINE, method="random", max_evals=500, executor=pool, **options
            )
            assert res.history.tobytes() == twin.history.tobytes()
    high = minimize(lambda a: a, LINE, max_evals=500, target=0.9, maximize=True)
    assert high.fun >= 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": 2, "vectorized": True},
        {"timeout": 0, "workers": 1},
        {"mode": "fast"},
        {"mode": "async", "retry_failed": True},
        {"on_interrupt": "ignore"},
        {"retry_failed": 1},
        {"constraints": -1},
        {"patience": 0},
        {"lookahead": -1},
        {"target": math.nan},
        {"maximize": 1},
        {"maximize": [True, False]},
        {"prior": [3]},
        {"callback": 3},
        {"max_time": 10**400},
    ],
)
def test_bad_options(wrong):
    with pytest.raises(fastopt.errors.FastoptError):
        minimize(lambda a: a, LINE, **wrong)


# --- trials that end early


def learning(a, report):
    """Falls towards a by steps."""
    for step in range(1, 28):
        report(step, a + 1.0 / step)
    return a + 1.0 / 27


def yielding(a):
    for step in range(1, 28):
        yield a + 1.0 / step


@pytest.mark.parametrize("stopper", ["halving", "hyperband", "asha", "median", "wilcoxon"])
def test_trials_end_early_alike_for_any_workers(tmp_path, stopper):
    args = {"method": "random", "max_evals": 60, "stopper": stopper}
    plain = minimize(learning, LINE, storage=tmp_path / "j", **args)
    assert plain.n_failed == 0
    assert 5 <= len(plain.stopped) < 60
    assert int(np.argmin(plain.history)) not in plain.stopped or plain.fun > plain.history.min()
    assert plain.fun == np.nanmin(plain.best)
    assert plain.fun < 0.2
    for options in ({"workers": 2}, {"storage": tmp_path / "j"}):
        res = minimize(learning, LINE, **args, **options)
        assert res.history.tobytes() == plain.history.tobytes()
        assert res.stopped == plain.stopped
    if stopper not in ("halving", "hyperband"):  # there, trials that yield wait for each other
        other = minimize(yielding, LINE, **args)
        assert other.history.tobytes() == plain.history.tobytes()
    with pytest.raises(OptionError, match="stopper"):
        minimize(lambda a: a, LINE, **args)


def test_reports_are_checked():
    def backwards(a, report):
        report(2, a)
        report(1, a)

    def nothing(a, report):
        report(1, None)

    for f in (backwards, nothing):
        res = minimize(f, LINE, max_evals=3, on_error="skip")
        assert res.n_failed == 3
    seen = minimize(learning, LINE, max_evals=3)  # without a stopper all go on
    assert not seen.stopped


# --- the progress line


class Terminal:
    def __init__(self, tty=True):
        self.tty, self.text = tty, ""

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_is_one_line_on_a_terminal(monkeypatch):
    from fastopt.search import progress

    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    for tty in (True, False):
        screen = Terminal(tty)
        monkeypatch.setattr(sys, "stderr", screen)
        minimize(lambda a: a, LINE, method="random", max_evals=30, max_time=60, progress=True)
        if not tty:
            assert screen.text == ""
            continue
        assert screen.text.count("\n") == 1
        last = screen.text.split("\r")[-1]
        assert last.startswith("30/30  ")
        assert re.search(r"/s  best 0\.\d+  0:00 left", last)
    line = progress.Line(100, stream=Terminal())
    assert line.text(50, 0.5, 5000.0) == "50/100  0.01/s  best 0.5  1:23:20 left"


# --- several objectives


class Front(Random):
    """An engine for several objectives that notes what it is told."""

    n_objectives = 2

    def learn(self, values, y, violation=None):
        assert y.shape == (len(values), self.n_objectives)
        self.told = [*getattr(self, "told", []), *y.tolist()]


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("vectorized", [False, True])
def test_several_objectives(monkeypatch, tmp_path, m, vectorized):
    from fastopt.search import methods

    monkeypatch.setitem(methods.ENGINES, "random", Front)

    def one(x, y):
        return [x, (1 - x) ** 2 + y, y][:m]

    def many(v):
        x, y = v.T
        return np.stack(one(x, y), axis=1)

    space = Space(x=Float(0, 1), y=Float(0, 1))
    args = {"method": "random", "max_evals": 300, "vectorized": vectorized}
    f = many if vectorized else one
    res = minimize(f, space, storage=tmp_path / "j", **args)
    assert res.history.shape == (300, m)
    front = res.pareto
    assert front.fun.shape == (len(front), m)
    worse = [((res.history <= y).all(1) & (res.history < y).any(1)).any() for y in res.history]
    assert sorted(front.trials) == np.flatnonzero(~np.array(worse)).tolist()
    assert res.x in front.x
    assert res.fun.shape == (m,)
    again = minimize(f, space, storage=tmp_path / "j", **args)
    assert again.history.tobytes() == res.history.tobytes()
    seen = load_result(tmp_path / "j")
    assert seen.history.tobytes() == res.history.tobytes()
    assert seen.x == res.x
    up = minimize(
        (lambda v: -many(v)) if vectorized else (lambda x, y: [-v for v in one(x, y)]),
        space,
        maximize=[True] * m,
        **args,
    )
    assert np.array_equal(up.history, -res.history)
    assert up.x == res.x
    res.plot("pareto")
    if not vectorized:
        flaky = minimize(
            lambda x, y: math.nan if x < 0.3 else one(x, y), space, on_error="skip", **args
        )
        assert 50 < flaky.n_failed < 150
        assert np.isnan(flaky.history[flaky.history[:, 0] != flaky.history[:, 0]]).all()
        twin = minimize(one, space, workers=2, **args)
        assert twin.history.tobytes() == res.history.tobytes()
    monkeypatch.undo()
    real = minimize(f, space, storage=tmp_path / "k", **{**args, "method": "nsga2"})
    again = minimize(f, space, storage=tmp_path / "k", **{**args, "method": "nsga2"})
    assert again.history.tobytes() == real.history.tobytes()
    assert len(real.pareto) > 2 * len(front)
    args["method"] = "nsga2"
    for bad in (lambda *a, **k: 1.0, lambda *a, **k: [1.0], lambda *a, **k: None):
        with pytest.raises(TrialError):
            minimize(bad, space, **args)
