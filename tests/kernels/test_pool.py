"""The pool of threads: many callers, signals, forks, exits, refused threads; the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import fastopt
from fastopt import _threads
from fastopt._kernels import obs
from fastopt.errors import DTypeError, OptionError
from fastopt.pruning import SparseLinear

ENV = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}

# A layer of four thousand products per column, ready for the subprocesses as well.
LAYER = """
import numpy as np, os, sys, threading, fastopt
from fastopt.pruning import SparseLinear
w = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
w[np.abs(w) < 1.2] = 0
layer = SparseLinear.from_dense(w, "csr")
x = np.random.default_rng(1).standard_normal((256, 40)).astype(np.float32)
want = layer.matmul(x, threads=1)
right = lambda threads: np.array_equal(layer.matmul(x, threads=threads), want)
"""
scope: dict[str, object] = {}
exec(LAYER, scope)
LAYER_OBJECT: SparseLinear = scope["layer"]  # type: ignore[assignment]
right: Callable[[int], bool] = scope["right"]  # type: ignore[assignment]


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENV | env, timeout=60
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def nothing_set() -> Iterator[None]:
    yield
    fastopt.set_num_threads(None)


# --- the pool ---------------------------------------------------------------------------------


def test_many_python_threads_call_at_once() -> None:
    wrong = []

    def hammer(threads: int) -> None:
        wrong.extend(threads for _ in range(200) if not right(threads))

    callers = [threading.Thread(target=hammer, args=(1 + i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def eliminate(rows: int, threads: int) -> np.ndarray:
    """About a millisecond per row."""
    n = 160
    rng = np.random.default_rng(2)
    a = rng.standard_normal((2 * n, n))
    hinv = np.linalg.inv(a.T @ a + np.eye(n))
    order, loss = np.zeros((rows, n), np.int64), np.zeros((rows, n))
    obs.eliminate(order, loss, hinv, rng.standard_normal((rows, n)), threads)
    return order


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_handler_may_call_and_may_raise(threads: int) -> None:
    seen = []

    def handler(number: int, frame: object) -> None:
        seen.append(right(2))
        if len(seen) == 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        with pytest.raises(KeyboardInterrupt):
            eliminate(20_000, threads)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(seen)
    assert np.array_equal(eliminate(3, threads), eliminate(3, 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_during_the_calls_of_another_thread() -> None:
    code = """
done = []
def hammer():
    while not done:
        assert right(3)
others = [threading.Thread(target=hammer) for _ in range(2)]
for one in others: one.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        import faulthandler; faulthandler.dump_traceback_later(30, exit=True)
        os._exit(0 if right(1) and right(2) and right(4) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert right(2)
done.append(1)
for one in others: one.join()
"""
    run(LAYER + code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_one_thread_until_it_asks() -> None:
    code = """
fastopt.set_num_threads(3)
assert right(3)
pid = os.fork()
if pid == 0:
    first = fastopt.get_num_threads()
    fastopt.set_num_threads(2)
    os._exit(0 if (first, fastopt.get_num_threads()) == (1, 2) and right(2) else 1)
assert os.waitpid(pid, 0)[1] == 0
assert fastopt.get_num_threads() == 3
"""
    run(LAYER + code, FASTOPT_NUM_THREADS="4")


def test_exit_with_daemon_threads_at_work() -> None:
    code = """
def hammer():
    while True:
        right(3)
for _ in range(4): threading.Thread(target=hammer, daemon=True).start()
assert right(2)
print("out")
"""
    assert run(LAYER + code) == "out"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit on address space")
def test_threads_that_cannot_be_made_are_done_without() -> None:
    code = """
import resource
out = np.empty_like(want)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
layer.matmul(x, out=out, threads=64)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert np.array_equal(out, want)
print(len(os.listdir("/proc/self/task")))
"""
    assert run(LAYER + code, OPENBLAS_NUM_THREADS="1") == "1"


# One function of every family of kernels: threads -> what they made.
FAMILIES = """
import numpy as np, fastopt
from fastopt._kernels import linear_gram
from fastopt.quantization import PercentileObserver
rng = np.random.default_rng(3)
x, y, w = rng.standard_normal((3000, 20)), rng.standard_normal((3000, 1)), rng.standard_normal(
    (300, 500)).astype(np.float32)
dense = fastopt.quantization.QuantizedLinear(w)
rows = rng.standard_normal((80, 500)).astype(np.float32)

def moments(threads):
    out = np.zeros((8, 24, 24))
    linear_gram.gram(out, x, y, None, np.zeros(21), threads)
    return out

def step(threads):
    p = w.copy()
    fastopt.optim.AdamW([p], threads=threads).step([w])
    return p

def generation(threads):
    child = w[:64].astype(np.float64)
    low, high = np.full(500, -4.0), np.full(500, 4.0)
    fastopt._kernels.genetic.mutate(child, low, high, 1, 0.3, 20.0, 5, 6, threads)
    return child

def epoch(threads):
    model = fastopt.linear_model.SGDRegressor(
        max_iter=2, tol=None, random_state=0, threads=threads, local_workers=4
    )
    return model.fit(x, y[:, 0]).coef_

FAMILIES = [
    moments,
    step,
    generation,
    epoch,
    lambda threads: dense(rows, threads=threads),
    lambda threads: fastopt.quantize(w, "int8", axis=0, threads=threads).codes,
    lambda threads: fastopt.quantize(w, "int8", axis=0, threads=threads).dequantize(),
    lambda threads: fastopt.quantize(w, "nf4", group_size=50, threads=threads).codes,
    lambda threads: fastopt.prune(w, 0.7, threads=threads).arrays,
]
"""


def test_the_same_bits_for_every_number_of_threads() -> None:
    scope: dict[str, list[Callable[[int], np.ndarray]]] = {}
    exec(FAMILIES, scope)
    for number, made in enumerate(scope["FAMILIES"]):
        want = made(1)
        for threads in (2, 3, 4, 9):
            np.testing.assert_array_equal(made(threads), want, str(number))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_family_runs_on_threads_in_a_forked_child() -> None:
    code = """
import os
want = [made(2) for made in FAMILIES]
pid = os.fork()
if pid == 0:
    import faulthandler; faulthandler.dump_traceback_later(30, exit=True)
    same = [np.array_equal(made(2), there) for made, there in zip(FAMILIES, want)]
    os._exit(0 if all(same) else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    run(FAMILIES + code)


# --- how many ---------------------------------------------------------------------------------


def test_threads_of_the_call() -> None:
    assert _threads.resolve(None, 10) == 1
    assert _threads.resolve(None, 1 << 30) == fastopt.get_num_threads() >= 1
    assert _threads.resolve(3, 10) == 3
    assert _threads.resolve(10**6, 10) == _threads.MOST
    for bad in (0, -1):
        with pytest.raises(OptionError, match="threads: "):
            _threads.resolve(bad, 10)


def test_set_num_threads() -> None:
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(5)
    assert fastopt.get_num_threads() == _threads.resolve(None, 1 << 30) == 5
    assert _threads.resolve(3, 1 << 30) == 3
    fastopt.set_num_threads(10**6)
    assert fastopt.get_num_threads() == _threads.MOST
    fastopt.set_num_threads(None)
    assert fastopt.get_num_threads() == before
    with pytest.raises(OptionError, match="threads: "):
        fastopt.set_num_threads(0)
    with pytest.raises(DTypeError, match="threads: "):
        fastopt.set_num_threads(2.5)  # type: ignore[arg-type]


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    monkeypatch.delenv("FASTOPT_NUM_THREADS", raising=False)
    assert fastopt.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= fastopt.get_num_threads() <= (os.cpu_count() or 1)
    monkeypatch.setenv("FASTOPT_NUM_THREADS", "7")
    assert fastopt.get_num_threads() == 7
    for bad in ("0", "-2", "all"):
        monkeypatch.setenv("FASTOPT_NUM_THREADS", bad)
        with pytest.raises(OptionError, match="FASTOPT_NUM_THREADS"):
            fastopt.get_num_threads()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_affinity() -> None:
    code = """
import os, fastopt
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(fastopt.get_num_threads())
"""
    assert run(code) == "1"


@pytest.mark.parametrize("first", ["fastopt", "threadpoolctl"])
def test_threadpoolctl(first: str) -> None:
    pytest.importorskip("threadpoolctl")
    code = f"""
import {first}
import fastopt, threadpoolctl
limits, count = threadpoolctl.threadpool_limits, fastopt.get_num_threads
assert count() == 4
with limits(2):
    assert count() == 2
    with limits(3, user_api="fastopt"):
        assert count() == 3
        with limits(1, user_api="blas"):
            assert count() == 3
        fastopt.set_num_threads(6)
        assert count() == 6
        fastopt.set_num_threads(None)
    assert count() == 2
assert count() == 4
with limits({{"fastopt": 1}}):
    assert count() == 1
import os
os.environ["FASTOPT_NUM_THREADS"] = "5"  # nothing is left behind by a limit that has ended
assert count() == 5
[own] = [one for one in threadpoolctl.threadpool_info() if one["user_api"] == "fastopt"]
assert own["num_threads"] == 5 and own["version"] == fastopt.__version__
"""
    run(code, FASTOPT_NUM_THREADS="4")


def test_joblib_workers_get_what_they_are_told() -> None:
    pytest.importorskip("joblib")
    code = """
import joblib, fastopt
with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=3):
    print(set(joblib.Parallel()(joblib.delayed(fastopt.get_num_threads)() for _ in range(4))))
"""
    assert run(code) == "{3}"
