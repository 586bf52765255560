"""The loop of a search: cost per trial, efficiency of executors, unequal tasks, kill -9.

    python -m benchmarks.search_loop [cost] [executors] [clock] [kill N]

Needs optuna, loky or distributed only for the rows that name them.
"""

from __future__ import annotations

import heapq
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np

from fastopt.search import Bool, Choice, Float, Int, Space, driver, minimize
from fastopt.search.journal import read

MIXED = Space(lr=Float(1e-5, 1, log=True), x=Float(0, 1), n=Int(1, 64), c=Choice("a", "b", "c"))
PLANE = Space(x=Float(0, 1), y=Float(0, 1))
TRIALS = 100_000


def first(lr, x, n, c):
    return x


def ms5(x, y):
    time.sleep(0.005)
    return x * y


def ms50(x, y):
    time.sleep(0.05)
    return x * y


def ms500(x, y):
    time.sleep(0.5)
    return x * y


def cost() -> None:
    """CPU microseconds per trial, objective and dict included: all, first and last tenth."""
    print(f"\ncost of a trial, {TRIALS} trials, us of CPU (all, first tenth, last tenth)")
    for name, method, journal, n in (
        ("random", "random", False, TRIALS),
        ("genetic", "genetic", False, TRIALS // 5),
        ("random, journal", "random", True, TRIALS),
    ):
        marks = []
        with tempfile.TemporaryDirectory() as folder:
            storage = Path(folder, "j") if journal else None
            count = 0

            def f(lr, x, n, c, size=n, marks=marks):
                nonlocal count
                if count % (size // 10) == 0:
                    marks.append(time.process_time())
                count += 1
                return x

            start = time.process_time()
            minimize(f, MIXED, method=method, max_evals=n, storage=storage)
            total = time.process_time() - start
        tenth = n / 10 / 1e6
        print(
            f"  {name:<18}{total / n * 1e6:8.2f}"
            f"{(marks[1] - marks[0]) / tenth:8.2f}{(marks[-1] - marks[-2]) / tenth:8.2f}"
        )


def executors() -> None:
    """Share of two workers' time that goes into the objective."""
    print("\nefficiency on 2 workers at 5, 50, 500 ms (random search)")

    def row(name, **options):
        minimize(ms5, PLANE, method="random", max_evals=8, **options)
        shares = []
        for f, seconds, n in ((ms5, 0.005, 400), (ms50, 0.05, 60), (ms500, 0.5, 16)):
            start = time.perf_counter()
            minimize(f, PLANE, method="random", max_evals=n, **options)
            shares.append(n * seconds / 2 / (time.perf_counter() - start))
        print(f"  {name:<18}" + "".join(f"{s:8.3f}" for s in shares))

    row("workers=2", workers=2)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(abs, range(4)))
        row("processes", executor=pool)
    try:
        distributed = import_module("distributed")
    except ImportError:
        return
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        pool = client.get_executor()
        list(pool.map(abs, range(4)))
        row("Dask", executor=pool)


class Clock:
    """Sixteen workers on a simulated clock; a trial takes a lognormal time of sigma 1."""

    last: Clock

    def __init__(self, objective, executor):
        self.objective, self.slots, self.free = objective, 16, 16
        self.waiting, self.heap, self.now, self.busy = [], [], 0.0, 0.0

    def send(self, tasks):
        self.waiting += tasks

    def arrivals(self, timeout):
        while self.waiting and self.free:
            task = self.waiting.pop(0)
            generator = np.random.Generator(np.random.Philox(key=task.number))
            seconds = math.exp(generator.standard_normal())
            self.free -= 1
            self.busy += seconds
            heapq.heappush(self.heap, (self.now + seconds, task.number, task))
        self.now, _, task = heapq.heappop(self.heap)
        self.free += 1
        return [(task.number, self.objective(task.trial, task.stop))]

    def close(self):
        Clock.last = self


def clock() -> None:
    print("\n16 workers, lognormal tasks (simulated clock), efficiency at 400 and 4000 trials")
    original, driver.Executor = driver.Executor, Clock
    try:
        for method, options in (
            ("random", {}),
            ("genetic", {}),
            ("genetic", {"lookahead": 2}),
            ("genetic", {"mode": "async"}),
            ("auto", {"mode": "async"}),
        ):
            shares = []
            for n in (400, 4000):
                pool = ProcessPoolExecutor(1)  # stands for anybody's; nothing is sent to it
                minimize(first, MIXED, method=method, max_evals=n, executor=pool, **options)
                pool.shutdown()
                shares.append(Clock.last.busy / 16 / Clock.last.now)
            said = " ".join(f"{k}={v}" for k, v in options.items())
            print(f"  {method:<8}{said:<14}" + "".join(f"{s:8.3f}" for s in shares))
    finally:
        driver.Executor = original


VICTIM = """
import sys
from benchmarks.search_loop import TREE, tree
from fastopt.search import minimize
def told(p): print(p.n_evals, flush=True)
if __name__ == "__main__":
    minimize(tree, TREE, method=sys.argv[2], max_evals=30000, seed=7, storage=sys.argv[1],
             callback=told, workers=int(sys.argv[3]) or None)
"""
TREE = Space(
    x=Float(-2, 2),
    n=Int(1, 9),
    kind=Choice("a", "b"),
    flag=Bool(),
    z=Float(0, 1, when={"kind": "a"}),
)


def tree(t):
    return (t["x"] - 0.5) ** 2 + abs(t["n"] - 4) + t.get("z", 0.3) + t["flag"]


def kill(times: int) -> None:
    """Kill -9 at random moments; then the same call must give what was never stopped."""
    print(f"\nkill -9, {times} times")
    rng = random.Random(1)
    cases = (("random", 0), ("greedy", 0), ("genetic", 0), ("auto", 0), ("genetic", 2))
    for method, workers in cases:
        with tempfile.TemporaryDirectory() as folder:
            path, most, lost = Path(folder, "j"), 0, 0
            for _ in range(times // len(cases)):
                command = [sys.executable, "-c", VICTIM, str(path), method, str(workers)]
                victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                target = most + rng.randint(1, 150)
                assert victim.stdout is not None
                for line in victim.stdout:
                    most = max(most, int(line))
                    if most >= target:
                        victim.send_signal(signal.SIGKILL)
                        break
                victim.stdout.close()
                victim.wait()
                lost += len(read(path)[1]) < most
            runs = [
                minimize(
                    tree,
                    TREE,
                    method=method,
                    max_evals=30_000,
                    seed=7,
                    storage=storage,
                    callback=lambda p, n=most: p.n_evals >= n,
                )
                for storage in (path, None)
            ]
        same = runs[0].history.tobytes() == runs[1].history.tobytes()
        print(f"  {method:<8} workers={workers}: {most} trials, {lost} lost, same bits: {same}")


def main() -> None:
    wanted = sys.argv[1:] or ["cost", "executors", "clock"]
    for name, run in (("cost", cost), ("executors", executors), ("clock", clock)):
        if name in wanted:
            run()
    if "kill" in wanted:
        kill(int(wanted[wanted.index("kill") + 1]))


if __name__ == "__main__":
    main()
