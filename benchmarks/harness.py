"""How a figure is measured here, and how a benchmark file says what it compares.

A file ``benchmarks/bench_<area>.py`` holds cases and one test::

    from benchmarks.harness import Case, limit, peer

    def adamw_10m(threads: int):
        p, g, m, v = ...                      # set-up, not timed
        contenders = {"fastopt": lambda: opt.step([g])}
        if torch := peer("torch"):            # None where the package is absent
            contenders["torch fused"] = lambda: fused.step()
        contenders["limit"] = limit("update3", p2, m, v, g, threads=threads)
        return contenders                     # a contender may return anything; it takes nothing

    CASES = [
        Case("AdamW, one 10M float32 tensor", adamw_10m, threads=2,
             targets={"torch fused": 1.05, "limit": 0.85}),
    ]

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_update(case, benchmark):
        case.run(benchmark)

"fastopt" is ours; "limit" is the machine's own limit (a stream with the same access pattern);
every other key is a peer. The ratio printed is peer's time / our time, for the limit too
(so 0.90 = 90 % of what the memory system allows).

Rules of measurement: all contenders in one process, interleaved round-robin, several rounds,
median and minimum. Calls shorter than 2 ms are repeated inside a round. Short rounds run with the
threads that work for the contender in SCHED_RR where that is permitted, since on a shared machine
a second thread otherwise waits whole scheduler ticks; the class is put back after each. Threads of
the other contenders are left alone: a pool that still spins must not starve the one that works. A
contender that takes longer than a second runs at most three times.

``python -m benchmarks [pytest arguments]`` runs everything, prints the table of ratios and, when
every file was run, on every level of the machine, rewrites docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.limit import library, stream

Contender = Callable[[], object]

ROUNDS = 9
SHORTEST_ROUND_S = 2e-3  # a call shorter than this is repeated
MOST_CALLS = 10_000
BURST_S = 0.05  # a round longer than this is not worth stalling the machine for
PROBE_S = 0.012  # three scheduler ticks: a thread that works is seen to work
SPIN_S = 0.15  # after this the pools of the other contenders sleep
PAUSE_S = 2e-3  # between bursts: the scheduler's real-time throttle never bites


def peer(name: str) -> ModuleType | None:
    """The peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def limit(name: str, *arrays: Any, threads: int) -> Contender | None:
    """A contender that only moves the bytes; None (left out) without a C compiler."""
    return (lambda: stream(name, *arrays, threads=threads)) if library() else None


def runtimes() -> dict[int, int]:
    """Nanoseconds of CPU each thread of this process has had; empty where Linux does not tell."""
    used = {}
    for task in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else []:
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/self/task/{task}/schedstat").read_text()
            used[int(task)] = int(text.split()[0])
    return used


def workers(call: Contender) -> list[int]:
    """The threads that work for this contender: those that got CPU time while it ran.

    The pools of the others have stopped spinning by then, so they are not among them.
    """
    time.sleep(SPIN_S)
    before = runtimes()
    start = time.perf_counter()
    while time.perf_counter() - start < PROBE_S:
        call()
    after = runtimes()
    return [t for t in after if after[t] > before.get(t, 0)]


@contextlib.contextmanager
def burst(tasks: list[int]) -> Iterator[None]:
    """The given threads in SCHED_RR for a few milliseconds, where permitted.

    Each on a processor of its own when they fit: two real-time threads that wait for one another
    on one processor would wait for the whole time slice.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places = [{cpu} for cpu in cpus] if len(tasks) <= len(cpus) else [set(cpus)] * len(tasks)
    raised = []
    for task, place in zip(tasks, places, strict=False):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(task, place)
            os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(1))
            raised.append(task)
    try:
        yield
    finally:
        for task in raised:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))
                os.sched_setaffinity(task, cpus)


def timed(call: Contender, repeat: int) -> float:
    """Seconds a call, over ``repeat`` calls."""
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def measure(
    contenders: dict[str, Contender], threads: int = 1, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds a call for each contender, one figure a round, interleaved."""
    alone = [threading.get_native_id()]
    repeat = dict.fromkeys(contenders, 1)
    estimate: dict[str, float] = {}
    tasks: dict[str, list[int]] = {}
    for name, call in contenders.items():
        first = timed(call, 1)  # warms caches, pools and compilers
        tasks[name] = alone if threads == 1 else workers(call) if first < 1.0 else []
        with burst(tasks[name]):
            estimate[name] = min(timed(call, 1) for _ in range(2)) if first < 1.0 else first
            while estimate[name] * repeat[name] < SHORTEST_ROUND_S and repeat[name] < MOST_CALLS:
                repeat[name] *= 2  # a short call's time is that of many, warm
                estimate[name] = timed(call, repeat[name])
        if estimate[name] > BURST_S:
            tasks[name] = []
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for k in range(rounds):
            for name, call in contenders.items():
                if estimate[name] > 1.0 and k >= 3:
                    continue
                with burst(tasks[name]):
                    if tasks[name]:  # the threads find their processors, the caches their lines
                        timed(call, 1 + repeat[name] // 8)
                    times[name].append(timed(call, repeat[name]))
                time.sleep(PAUSE_S)
    finally:
        gc.enable()
    return times


@dataclass(frozen=True)
class Case:
    """One row of the table: a piece of work, who does it, and what ratio is wanted."""

    name: str
    setup: Callable[[int], dict[str, Contender | None]]
    threads: int = 1
    targets: dict[str, float] = field(default_factory=dict)
    rounds: int = ROUNDS

    def __str__(self) -> str:
        return f"{self.name} [{self.threads} thread{'s' if self.threads > 1 else ''}]"

    def run(self, benchmark: Any) -> None:
        """Measure every contender; give ours to pytest-benchmark and the rest to its record."""
        contenders = {k: v for k, v in self.setup(self.threads).items() if v is not None}
        times = measure(contenders, self.threads, self.rounds)
        benchmark.group = str(self)
        benchmark.extra_info["case"] = self.name
        benchmark.extra_info["threads"] = self.threads
        benchmark.extra_info["targets"] = self.targets
        benchmark.extra_info["times"] = times
        slow = min(times["fastopt"]) > 0.2
        benchmark.pedantic(contenders["fastopt"], rounds=1 if slow else 5, warmup_rounds=0)


def rows_of(extra: dict[str, Any]) -> list[tuple[str, ...]]:
    """Table rows of one case: work, threads, ours, contender, theirs, ratios, wanted."""
    times: dict[str, list[float]] = extra["times"]
    ours = times["fastopt"]
    median, best = statistics.median(ours), min(ours)
    rows = []
    for name, theirs in times.items():
        if name == "fastopt":
            continue
        by_median = statistics.median(theirs) / median
        by_best = min(theirs) / best
        wanted = extra["targets"].get(name)
        verdict = "" if wanted is None else f"{wanted:g}"
        if wanted is not None and max(by_median, by_best) < wanted:
            verdict += " (missed)"
        rows.append(
            (
                extra["case"],
                str(extra["threads"]),
                f"{_time(median)} ({_time(best)})",
                name,
                f"{_time(statistics.median(theirs))} ({_time(min(theirs))})",
                _ratio(by_median),
                _ratio(by_best),
                verdict,
            )
        )
    return rows


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
