"""Every engine: the same trials for any number of workers, and after kill -9 and resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt
from fastopt.search import Bool, Choice, Float, Int, Space, minimize
from fastopt.search.methods import ENGINES

ROOT = str(Path(fastopt.__file__).parents[1])
HERE = str(Path(__file__).parents[2])
MIXED = Space(x=Float(-2, 2), n=Int(1, 9), kind=Choice("a", "b"), flag=Bool())
PLANE = Space(x=Float(-1, 1), y=Float(-1, 1))
BITS = Space(**{f"b{i}": Bool() for i in range(6)})


def cost(x, n, kind, flag):
    return (x - 0.5) * (x - 0.5) + abs(n - 4) + (kind == "a") + flag


def sphere(x, y):
    return (x - 0.3) ** 2 + 10 * (y + 0.2) ** 2


def both(x, n, kind, flag):
    return cost(x, n, kind, flag), (x + 1) ** 2 + n


def taken(**bits):
    return abs(sum((i + 1) * b for i, b in enumerate(bits.values())) - 7)


# What each engine is for, and a budget that goes through all its phases.
SEARCHES = {
    "random": (cost, MIXED, 120),
    "greedy": (cost, MIXED, 120),
    "genetic": (cost, MIXED, 200),
    "islands": (cost, MIXED, 300),
    "cma": (cost, MIXED, 150),
    "portfolio": (sphere, PLANE, 150),
    "gp": (cost, MIXED, 24),
    "tpe": (cost, MIXED, 40),
    "de": (cost, MIXED, 150),
    "nsga2": (both, MIXED, 150),
    "subset": (taken, BITS, 40),
}


def search(method, **options):
    f, space, budget = SEARCHES[method]
    return minimize(f, space, method=method, max_evals=budget, seed=5, **options)


def same(res, want):
    return res.history.tobytes() == want.history.tobytes() and (
        res.values.tobytes() == want.values.tobytes()
    )


@pytest.fixture(scope="module")
def plain():
    return {method: search(method) for method in ENGINES}


def test_every_engine_is_here():
    assert set(SEARCHES) == set(ENGINES)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers(plain, workers):
    for method, want in plain.items():
        assert same(search(method, workers=workers), want), method


KILLED = """
import os, signal, sys
from tests.search.test_search_same_bits import search
path, method, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
def told(p):
    if p.n_evals >= stop:
        os.kill(os.getpid(), signal.SIGKILL)
search(method, storage=path, callback=told)
"""


@pytest.mark.parametrize("method", SEARCHES)
def test_kill_9_and_resume(plain, tmp_path, method):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, HERE])}
    want = plain[method]
    for share in (0.2, 0.7):
        stop = str(int(share * want.n_evals))
        args = [sys.executable, "-c", KILLED, str(tmp_path / "j"), method, stop]
        done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert same(search(method, storage=tmp_path / "j"), want)
