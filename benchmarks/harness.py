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
median and minimum. Calls shorter than 1 ms are repeated inside a round. Short rounds run with all
threads of the process in SCHED_RR where that is permitted, since on a shared machine a second
thread otherwise waits whole scheduler ticks; the class is put back after each. A contender that
takes longer than a second runs at most three times.

``python -m benchmarks [pytest arguments]`` runs everything, prints the table of ratios and, when
every file was run, rewrites docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from benchmarks.limit import library, stream

Contender = Callable[[], object]

ROUNDS = 9
SHORTEST_ROUND_S = 2e-3  # a call shorter than this is repeated
BURST_S = 0.05  # a round longer than this is not worth stalling the machine for
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


@contextlib.contextmanager
def burst() -> Iterator[None]:
    """All threads of this process in SCHED_RR for a few milliseconds, where permitted."""
    tasks = [int(t) for t in os.listdir("/proc/self/task")] if os.path.isdir("/proc/self") else []
    raised = []
    for task in tasks:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(1))
            raised.append(task)
    try:
        yield
    finally:
        for task in raised:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))


def timed(call: Contender, repeat: int) -> float:
    """Seconds a call, over ``repeat`` calls."""
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def measure(contenders: dict[str, Contender], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds a call for each contender, one figure a round, interleaved."""
    repeat, estimate = {}, {}
    for name, call in contenders.items():
        first = timed(call, 1)  # warms caches, pools and compilers
        second = first if first > 1.0 else timed(call, 1)
        estimate[name] = second
        repeat[name] = max(1, min(10_000, int(SHORTEST_ROUND_S / max(second, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for k in range(rounds):
            for name, call in contenders.items():
                if estimate[name] > 1.0 and k >= 3:
                    continue
                short = estimate[name] * repeat[name] < BURST_S
                with burst() if short else contextlib.nullcontext():
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
        times = measure(contenders, self.rounds)
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
